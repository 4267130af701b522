"""Packets that were forwarded and had no next hop: they are taken out of their session's row again (contract R1)."""
from natcore.frame cimport Frame
from natcore.workers.worker cimport Worker

cdef void take_back(Worker* worker, const Frame* frame) noexcept nogil
cdef void take_back_from_others(Worker* worker) noexcept nogil

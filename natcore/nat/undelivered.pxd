"""Undelivered packets: forwarded without a next hop, so that their session's row must not count them (contract R1)."""
from natcore.frame cimport Frame
from natcore.workers.worker cimport Worker

cdef void take_back(Worker* worker, const Frame* frame) noexcept nogil
cdef void take_back_from_others(Worker* worker) noexcept nogil

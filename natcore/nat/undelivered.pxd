"""Undelivered packets: forwarded without a next hop, so that their session's row must not count them (contract R1)."""
from natcore.frame cimport Frame
from natcore.workers.worker cimport Worker

cdef void subtract(Worker* worker, const Frame* frame) noexcept nogil
cdef void subtract_from_others(Worker* worker) noexcept nogil

"""Prefetching for packets without a session: the memory that their admission will most likely need."""
from libc.stdint cimport uint32_t

from natcore.packet.parse cimport Packet
from natcore.workers.worker cimport Worker

cdef bint prefetch_admission(const Worker* worker, const Packet* packet, uint32_t allocations) noexcept nogil
cdef bint predict_allocation(const Worker* worker, const Packet* packet, uint32_t allocations, uint32_t* address,
                             uint32_t* port) noexcept nogil

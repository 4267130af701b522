"""What a packet that has no session will most likely need, on its way into the cache before it is admitted."""
from libc.stdint cimport uint32_t

from natcore.packet.parse cimport Flight
from natcore.workers.worker cimport Worker

cdef bint foresee(const Worker* worker, const Flight* flight, uint32_t draws) noexcept nogil

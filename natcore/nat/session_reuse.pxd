"""TIME-WAIT reuse: a SYN on a closing session begins a new session, opened from the side that sent it."""
from libc.stdint cimport uint8_t, uint32_t

from natcore.packet.parse cimport Packet
from natcore.workers.worker cimport Clock, Worker

cdef uint8_t may_reopen(Worker* worker, uint32_t slot, uint32_t direction, const Packet* packet,
                        const Clock* now) noexcept nogil
cdef bint reopen(Worker* worker, uint32_t slot, uint32_t direction, const Packet* packet, const Clock* now) noexcept nogil

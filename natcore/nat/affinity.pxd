"""Worker affinity: each inside address belongs to exactly one worker, with its mappings and sessions."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from natcore.packet.parse cimport Flight
from natcore.frame cimport Frame
from natcore.workers.worker cimport Clock, Worker

cdef Worker* owner_by_key(Worker* worker, uint32_t side, uint64_t addresses, uint32_t ports, uint8_t protocol) noexcept nogil
cdef Worker* owner_of(Worker* worker, const Frame* frame, const Flight* flight, const Clock* now) noexcept nogil
cdef Worker* owner_for_sure(Worker* worker, const Frame* frame, const Flight* flight, bint meet,
                            const Clock* now) noexcept nogil
cdef Worker* peer_of(Worker* worker, uint64_t addresses, uint32_t ports, uint8_t protocol, const Clock* now) noexcept nogil
cdef uint32_t owner_of_frame(Worker* worker, const Frame* frame) noexcept nogil

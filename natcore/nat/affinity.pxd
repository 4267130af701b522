"""Worker affinity: each inside address belongs to exactly one worker, with its mappings and sessions."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from natcore.packet.parse cimport Packet
from natcore.frame cimport Frame
from natcore.workers.worker cimport Clock, Worker

cdef Worker* owner_by_key(Worker* worker, uint32_t side, uint64_t addresses, uint32_t ports, uint8_t protocol) noexcept nogil
cdef Worker* owner_of(Worker* worker, const Frame* frame, const Packet* packet, const Clock* now) noexcept nogil
cdef Worker* owner_with_all_locked(Worker* worker, const Frame* frame, const Packet* packet, bint expire_dead,
                                   const Clock* now) noexcept nogil
cdef Worker* hairpin_owner(Worker* worker, uint64_t addresses, uint32_t ports, uint8_t protocol,
                           const Clock* now) noexcept nogil
cdef bint is_reverse_query(const Worker* worker, const Frame* frame, const Packet* packet) noexcept nogil
cdef uint32_t owner_of_frame(Worker* worker, const Frame* frame) noexcept nogil

"""Fragments in transit: later ones follow their first fragment, or wait for it (RFC 4787 REQ-14)."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from natcore.packet.parse cimport Packet
from natcore.frame cimport Frame
from natcore.workers.worker cimport Clock, Worker

cdef uint8_t handle_fragment(Worker* worker, Frame* frame, Packet* packet, const Clock* now, uint32_t* datagram) noexcept nogil
cdef uint8_t parse_first(Packet* packet, uint32_t side) noexcept nogil
cdef void first_fragment_done(Worker* worker, const Frame* frame, const Packet* packet, uint32_t number, uint8_t verdict,
                              const Clock* now) noexcept nogil
cdef bint fragment_key(const Worker* worker, Packet* packet, uint8_t side) noexcept nogil
cdef void expire_datagrams(Worker* worker, uint64_t now_ns) noexcept nogil
cdef void fragment_if_needed(Worker* worker, Frame* frame, const Packet* packet, uint8_t verdict, uint8_t cause) noexcept nogil

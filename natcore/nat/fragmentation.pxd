"""Fragments packets that exceed the MTU of the next link (RFC 791, RFC 4787 REQ-13a)."""
from libc.stdint cimport uint8_t, uint32_t

from natcore.tables.outbox cimport Outbox
from natcore.packet.parse cimport Packet
from natcore.frame cimport Frame

cdef bint may_fragment(const Outbox* outbox, const Frame* frame, const Packet* packet, uint32_t mtu) noexcept nogil
cdef void fragment_packet(Outbox* outbox, Frame* frame, const Packet* packet, uint32_t mtu, uint8_t send_to,
                          uint8_t cause) noexcept nogil

"""Fragments packets that exceed the MTU of the next link (RFC 791, RFC 4787 REQ-13a)."""
from libc.stdint cimport uint8_t, uint32_t

from natcore.tables.icmp_output cimport Outbox
from natcore.packet.parse cimport Flight
from natcore.frame cimport Frame

cdef bint may_split(const Outbox* outbox, const Frame* frame, const Flight* flight, uint32_t mtu) noexcept nogil
cdef void split(Outbox* outbox, Frame* frame, const Flight* flight, uint32_t mtu, uint8_t send_to,
                uint8_t cause) noexcept nogil

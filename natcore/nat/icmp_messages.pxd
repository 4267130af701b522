"""ICMP messages that the gateway originates: errors about packets it refuses, echo replies (RFC 792, RFC 1812, RFC 5508)."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore.tables.outbox cimport Outbox
from natcore.frame cimport Frame
from natcore.base.compiler cimport bswap32
from natcore.base.headers cimport Ipv4Header

cdef inline uint32_t icmp_source(uint32_t link_address) noexcept nogil:
    """Source address of the gateway's errors, big-endian: its own address on that link, or 192.0.0.8 (RFC 7600)."""
    return link_address or bswap32(<uint32_t>0xC0000008)

cdef void icmp_error(Outbox* outbox, const Frame* frame, const Ipv4Header* ip, uint32_t source, uint8_t type,
                     uint8_t code, uint16_t mtu, uint8_t cause, uint64_t now_ns) noexcept nogil
cdef void echo_reply(Outbox* outbox, const Frame* frame, const Ipv4Header* ip, uint8_t cause) noexcept nogil

"""The last stage: rewrites addresses, ports, TTL and checksums to the session's other side (RFC 1624).

One end of the packet is exchanged, by direction and without a branch. Outbound (0) that is the source, which becomes the
session's outside endpoint; inbound (1) the destination, which becomes the inside one. So the place in the packet is the first
of two for outbound, the second for inbound; and the Role that the end gets is 2 - 2 * direction (ROLE_OUTSIDE, ROLE_INSIDE).
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from natcore.packet.parse cimport Packet
from natcore.tables.sessions cimport Session
from natcore.base.checksum cimport update, update_partial
from natcore.frame cimport FRAME_CSUM_PARTIAL, Frame
from natcore.base.compiler cimport bswap16, likely, unlikely
from natcore.base.headers cimport PROTOCOL_ICMP, PROTOCOL_UDP, IcmpHeader, Ipv4Header, load16

cdef inline uint16_t directed_delta(uint16_t delta, uint32_t direction) noexcept nogil:
    """The session's checksum delta in a direction, without a branch. The inbound delta is the outbound one's negative, in ones'
    complement all bits inverted: XOR with 0 - 1 = 0xFFFF. Inbound, 0xFFFF becomes zero, which is the same number."""
    return delta ^ <uint16_t>-<int>direction

cdef inline void rewrite_ports(const Frame* frame, const Packet* packet, uint16_t l3_delta, uint16_t l4_delta,
                               uint16_t port, uint32_t direction) noexcept nogil:
    """Rewrites the port of TCP or UDP without branching on which: only the checksum's offset differs.

    A partial checksum is the sum over the pseudo-header: it covers the addresses, not the ports.
    """
    cdef uint8_t* at = packet.l4 + packet.checksum_at
    cdef uint16_t before = load16(at), after = update(before, l4_delta)
    if unlikely(frame.flags & FRAME_CSUM_PARTIAL):
        after = update_partial(before, l3_delta if l3_delta else 0xFFFF)
    if unlikely(before == 0 or after == 0) and packet.protocol == PROTOCOL_UDP:
        after = 0xFFFF if before else 0         # RFC 768: 0 means no checksum and is never computed
    memcpy(at, &after, 2)
    memcpy(packet.l4 + 2 * direction, &port, 2)

cdef inline void rewrite_transport(const Frame* frame, Packet* packet, uint16_t l3_delta, uint16_t l4_delta,
                                   uint16_t port, uint32_t direction) noexcept nogil:
    """Rewrites port or ICMP identifier, and the layer-4 checksum."""
    cdef IcmpHeader* icmp = <IcmpHeader*>packet.l4
    if likely(packet.checksum_at):
        rewrite_ports(frame, packet, l3_delta, l4_delta, port, direction)
    elif packet.protocol == PROTOCOL_ICMP:
        icmp.identifier = port
        icmp.checksum = update(icmp.checksum, l4_delta)

cdef inline uint16_t rewrite_network(Ipv4Header* ip, const Session* session, uint32_t direction,
                                     bint decrement_ttl) noexcept nogil:
    """Exchanges the address. Returns the delta of a sum over the addresses."""
    cdef uint16_t l3_delta = directed_delta(session.l3_delta, direction)
    cdef uint32_t delta = l3_delta
    if decrement_ttl:
        ip.ttl -= 1
        delta += bswap16(0xFEFF)
    ip.checksum = update(ip.checksum, delta)
    memcpy(<uint8_t*>ip + 12 + 4 * direction, &session.ip[2 - 2 * direction], 4)
    return l3_delta

cdef inline void rewrite(const Frame* frame, Packet* packet, const Session* session, uint32_t direction,
                         bint decrement_ttl) noexcept nogil:
    """Exchanges the endpoint, and what the checksums say of it."""
    cdef uint16_t l3_delta = rewrite_network(packet.ip, session, direction, decrement_ttl)
    rewrite_transport(frame, packet, l3_delta, directed_delta(session.l4_delta, direction), session.port[2 - 2 * direction],
                      direction)

"""The last stage: addresses, ports, TTL and checksums of a packet become what the session says (RFC 1624)."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore._parse cimport Flight
from natcore._sessions cimport OUT, ROLE_INSIDE, ROLE_OUTSIDE, Session
from natcore.checksum cimport combine, inverse, update, update_partial
from natcore.frame cimport FRAME_CSUM_PARTIAL, Frame
from natcore.hints cimport bswap16
from natcore.wire cimport PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, IcmpHeader, Ipv4Header, TcpHeader, UdpHeader

cdef inline uint16_t rewritten(const Frame* frame, uint16_t checksum, uint16_t l3_delta, uint16_t l4_delta) noexcept nogil:
    """A layer-4 checksum. An unfinished one is the pseudo-header's sum: it knows the addresses, not the ports."""
    if frame.flags & FRAME_CSUM_PARTIAL:
        return update_partial(checksum, l3_delta)
    return update(checksum, l4_delta)

cdef inline void rewrite_transport(const Frame* frame, Flight* flight, uint16_t l3_delta, uint16_t l4_delta,
                                   uint16_t port, uint32_t direction) noexcept nogil:
    """The port, or an echo's id, and the checksum."""
    cdef TcpHeader* tcp = <TcpHeader*>flight.l4
    cdef UdpHeader* udp = <UdpHeader*>flight.l4
    cdef IcmpHeader* icmp = <IcmpHeader*>flight.l4
    if flight.protocol == PROTOCOL_ICMP:
        icmp.identifier = port
        icmp.checksum = update(icmp.checksum, l4_delta)
        return
    if flight.protocol != PROTOCOL_TCP and flight.protocol != PROTOCOL_UDP:
        return
    if direction == OUT:
        udp.source_port = port                      # TCP's are in the same place
    else:
        udp.destination_port = port
    if flight.protocol == PROTOCOL_TCP:
        tcp.checksum = rewritten(frame, tcp.checksum, l3_delta, l4_delta)
    elif udp.checksum:                              # RFC 768: 0 says that there is none, and is never computed
        udp.checksum = rewritten(frame, udp.checksum, l3_delta, l4_delta) or 0xFFFF

cdef inline uint16_t rewrite_network(Ipv4Header* ip, const Session* session, uint32_t direction,
                                     bint decrement_ttl) noexcept nogil:
    """From inside the source becomes the outside address, from outside the destination becomes the inside one.

    What that adds to a sum over the addresses.
    """
    cdef uint16_t l3_delta = session.l3_delta, header
    if direction == OUT:
        ip.source = session.ip[ROLE_OUTSIDE]
    else:
        ip.destination = session.ip[ROLE_INSIDE]
        l3_delta = inverse(l3_delta)
    header = l3_delta
    if decrement_ttl:
        ip.ttl -= 1
        header = combine(header, bswap16(0xFEFF))
    ip.checksum = update(ip.checksum, header)
    return l3_delta

cdef inline void rewrite(const Frame* frame, Flight* flight, const Session* session, uint32_t direction,
                         bint decrement_ttl) noexcept nogil:
    """From inside the source becomes the outside endpoint, from outside the destination becomes the inside endpoint."""
    cdef uint16_t l3_delta = rewrite_network(flight.ip, session, direction, decrement_ttl), l4_delta = session.l4_delta
    cdef uint32_t role = ROLE_OUTSIDE
    if direction != OUT:
        role = ROLE_INSIDE
        l4_delta = inverse(l4_delta)
    rewrite_transport(frame, flight, l3_delta, l4_delta, session.port[role], direction)

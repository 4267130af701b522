"""The last stage: addresses, ports, TTL and checksums of a packet become what the session says (RFC 1624)."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore._parse cimport Flight
from natcore._sessions cimport OUT, ROLE_INSIDE, ROLE_OUTSIDE, Session
from natcore.checksum cimport combine, inverse, update, update_partial
from natcore.frame cimport FRAME_CSUM_PARTIAL, Frame
from natcore.hints cimport bswap16
from natcore.wire cimport PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, IcmpHeader, Ipv4Header, TcpHeader, UdpHeader

cdef inline void rewrite_checksum(const Frame* frame, Flight* flight, uint16_t l3_delta, uint16_t l4_delta) noexcept nogil:
    """The layer-4 checksum. An unfinished one is the pseudo-header's sum: it knows the addresses, not the ports."""
    cdef uint16_t* field
    if flight.protocol == PROTOCOL_TCP:
        field = &(<TcpHeader*>flight.l4).checksum
    elif flight.protocol == PROTOCOL_UDP:
        field = &(<UdpHeader*>flight.l4).checksum
    else:
        field = &(<IcmpHeader*>flight.l4).checksum
        field[0] = update(field[0], l4_delta)
        return
    if frame.flags & FRAME_CSUM_PARTIAL:
        field[0] = update_partial(field[0], l3_delta)
    elif flight.protocol == PROTOCOL_TCP:
        field[0] = update(field[0], l4_delta)
    elif field[0]:                                  # RFC 768: 0 says that there is none, and is never computed
        field[0] = update(field[0], l4_delta)
        if field[0] == 0:
            field[0] = 0xFFFF

cdef inline void rewrite(const Frame* frame, Flight* flight, const Session* session, uint32_t direction,
                         bint decrement_ttl) noexcept nogil:
    """From inside the source becomes the outside endpoint, from outside the destination becomes the inside endpoint."""
    cdef Ipv4Header* ip = flight.ip
    cdef uint16_t l3_delta = session.l3_delta, l4_delta = session.l4_delta, header
    cdef uint32_t role
    if direction == OUT:
        ip.source = session.ip[ROLE_OUTSIDE]
        role = ROLE_OUTSIDE
    else:
        ip.destination = session.ip[ROLE_INSIDE]
        role = ROLE_INSIDE
        l3_delta = inverse(l3_delta)
        l4_delta = inverse(l4_delta)
    if flight.protocol == PROTOCOL_ICMP:
        (<IcmpHeader*>flight.l4).identifier = session.port[role]
    elif direction == OUT:
        (<UdpHeader*>flight.l4).source_port = session.port[role]
    else:
        (<UdpHeader*>flight.l4).destination_port = session.port[role]
    header = l3_delta
    if decrement_ttl:
        ip.ttl -= 1
        header = combine(header, bswap16(0xFEFF))
    ip.checksum = update(ip.checksum, header)
    rewrite_checksum(frame, flight, l3_delta, l4_delta)

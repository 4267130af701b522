"""ICMP errors in transit: verified, matched by the quoted packet, and rewritten together with it.

They neither refresh nor end the session, and are not counted in it (RFC 5508 REQ-6).
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from natcore.nat.admission cimport is_martian, is_shared_address, is_static, may_pass, session_mtu
from natcore.nat.ip_identification cimport identify
from natcore.packet.parse cimport Packet, header_sum
from natcore.tables.ports cimport address_find
from natcore.tables.sessions cimport (
    HAIRPINNED, IN, OUT, ROLE_INSIDE, ROLE_OUTSIDE, SYN_NOTED, UNTRANSLATED_BOTH, Session, Sessions, is_dead, session_find,
    session_fold, hairpin_addresses, hairpin_ports,
)
from natcore.tables.tcp_state cimport FAST_OPEN, TCP_ACKED, TCP_INIT_IN, TCP_SENT, TCP_STATE
from natcore.base.checksum cimport checksum, combine, delta16, delta32, update
from natcore.frame cimport Frame
from natcore.base.compiler cimport bswap16, bswap32, unlikely
from natcore.base.sentinels cimport NONE
from natcore.base.serial_numbers cimport is_later
from natcore.workers.worker cimport Clock, Worker
from natcore.packet.verdict cimport (
    DROP_CHECKSUM, DROP_MALFORMED, DROP_NO_MAPPING, DROP_SPOOFED, DROP_UNSUPPORTED, HAIRPIN, INBOUND, LOCAL,
    OUTBOUND, OUTSIDE, PENDING, UNTRANSLATED,
)
from natcore.base.headers cimport (
    ICMP_PARAMETER_PROBLEM, ICMP_TIME_EXCEEDED, ICMP_UNREACHABLE, IPV4_OFFSET,
    PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, IcmpHeader, Ipv4Header, TcpHeader, UdpHeader, is_reply,
    is_request,
)

cdef enum:
    WINDOW_MOST = 1 << 30       # TCP window size limit in bytes (RFC 7323 section 2.3)


cdef struct Quote:              # the quoted packet
    Ipv4Header* ip
    uint8_t* l4
    uint32_t rest               # quoted bytes from l4 on
    uint64_t addresses          # source and destination of a packet in the opposite direction
    uint32_t ports
    bint reversed               # an ICMP query in a direction that only 1:1 entries pass


cdef bint is_error(const Packet* packet) noexcept nogil:
    """Destination unreachable, time exceeded, parameter problem; not redirect or source quench (RFC 5508 REQ-9)."""
    cdef uint8_t type = (<const IcmpHeader*>packet.l4).type
    return type == ICMP_UNREACHABLE or type == ICMP_TIME_EXCEEDED or type == ICMP_PARAMETER_PROBLEM


cdef uint8_t read_quote(Packet* packet, Quote* quote, uint32_t back) noexcept nogil:
    """Reads the key of the opposite direction from the quoted packet. back: that direction."""
    cdef uint32_t length = packet.total_length - <uint32_t>(packet.l4 - <uint8_t*>packet.ip), words
    cdef uint16_t source, destination
    cdef uint8_t type
    if checksum(packet.l4, length, 0) != 0:
        return DROP_CHECKSUM
    if length < 8 + 20:
        return DROP_MALFORMED
    quote.ip = <Ipv4Header*>(packet.l4 + 8)
    words = quote.ip.version_ihl & 15
    if quote.ip.version_ihl >> 4 != 4 or words < 5 or length < 8 + words * 4 + 8:
        return DROP_MALFORMED
    if header_sum(quote.ip, words) != 0xFFFF:
        return DROP_CHECKSUM
    if quote.ip.fragment & bswap16(IPV4_OFFSET):
        return DROP_UNSUPPORTED                     # later fragment: no ports
    quote.l4 = <uint8_t*>quote.ip + words * 4
    quote.rest = length - 8 - words * 4
    quote.addresses = <uint64_t>quote.ip.source << 32 | quote.ip.destination
    quote.reversed = False
    if quote.ip.protocol == PROTOCOL_ICMP:
        type = (<IcmpHeader*>quote.l4).type
        if not (is_request(type) or is_reply(type)):
            return DROP_UNSUPPORTED
        quote.reversed = not (is_request(type) if back == IN else is_reply(type))
        source = (<IcmpHeader*>quote.l4).identifier
        quote.ports = <uint32_t>source << 16 if back == IN else source
    elif quote.ip.protocol == PROTOCOL_TCP or quote.ip.protocol == PROTOCOL_UDP:
        memcpy(&source, quote.l4, 2)
        memcpy(&destination, quote.l4 + 2, 2)
        quote.ports = <uint32_t>source << 16 | destination
    else:
        quote.ports = 0
    return PENDING


cdef bint sequence_in_window(const Session* session, const uint32_t* syn, uint32_t direction,
                             const Quote* quote) noexcept nogil:
    """Whether the quoted TCP sequence number is in flight in that direction (RFC 5927 section 4.1): from the lowest one not
    acknowledged, minus one (keep-alive), to the highest sent; or is the SYN of a new connection. A SYN without answer has at
    most a segment of data.

    An acknowledgement of data never sent is ignored: it may be forged.
    """
    cdef uint32_t sequence, end = session.end[direction], low = end - WINDOW_MOST, span
    if quote.ip.protocol != PROTOCOL_TCP or not session.state & (TCP_SENT << direction):
        return True
    sequence = bswap32((<TcpHeader*>quote.l4).sequence)
    if session.flags & (SYN_NOTED << direction) and sequence == syn[direction] - 1:
        return True
    if session.state & TCP_STATE <= TCP_INIT_IN:
        low = end - FAST_OPEN
    if session.state & (TCP_ACKED << (1 - direction)) and not is_later(session.ack[1 - direction], end):
        low = session.ack[1 - direction]
    span = end - low if end - low < WINDOW_MOST else WINDOW_MOST
    return sequence - (low - 1) <= span + 1


cdef void rewrite_quote(Quote* quote, bint source, uint32_t ip, uint16_t port) noexcept nogil:
    """Rewrites the quoted source or destination endpoint, and the quoted checksums as far as present."""
    cdef uint32_t old_ip = quote.ip.source if source else quote.ip.destination
    cdef uint16_t l3_delta = delta32(old_ip, ip), l4_delta, old_port
    cdef uint32_t at = 0 if source else 2
    quote.ip.checksum = update(quote.ip.checksum, l3_delta)
    if source:
        quote.ip.source = ip
    else:
        quote.ip.destination = ip
    if quote.ip.protocol == PROTOCOL_ICMP:
        at = 4
    elif quote.ip.protocol != PROTOCOL_TCP and quote.ip.protocol != PROTOCOL_UDP:
        return
    memcpy(&old_port, quote.l4 + at, 2)
    memcpy(quote.l4 + at, &port, 2)
    l4_delta = delta16(old_port, port)
    if quote.ip.protocol == PROTOCOL_ICMP:
        (<IcmpHeader*>quote.l4).checksum = update((<IcmpHeader*>quote.l4).checksum, l4_delta)
        return
    l4_delta = combine(l4_delta, l3_delta)
    if quote.ip.protocol == PROTOCOL_TCP:
        if quote.rest >= 18:
            (<TcpHeader*>quote.l4).checksum = update((<TcpHeader*>quote.l4).checksum, l4_delta)
    elif (<UdpHeader*>quote.l4).checksum:
        (<UdpHeader*>quote.l4).checksum = update((<UdpHeader*>quote.l4).checksum, l4_delta) or 0xFFFF


cdef void rewrite_outer(Worker* worker, Packet* packet, bint decrement) noexcept nogil:
    """Recomputes the checksums of the error itself, which were verified before."""
    cdef IcmpHeader* icmp = <IcmpHeader*>packet.l4
    cdef uint32_t header = <uint32_t>(packet.l4 - <uint8_t*>packet.ip)
    if decrement:
        packet.ip.ttl -= 1
    packet.ip.checksum = 0
    packet.ip.checksum = checksum(<uint8_t*>packet.ip, header, 0)
    icmp.checksum = 0
    icmp.checksum = checksum(packet.l4, packet.total_length - header, 0)


cdef const Session* find_quoted(const Worker* worker, const Quote* quote, uint32_t back, const Clock* now) noexcept nogil:
    """The live session of the quoted packet; back: the direction of its answers."""
    cdef uint32_t slot = session_find(&worker.sessions, back, quote.addresses, quote.ports, quote.ip.protocol)
    cdef const Session* session
    if slot == NONE:
        return NULL
    if unlikely(worker.sessions.offload != NULL):
        session_fold(<Sessions*>&worker.sessions, slot)
    session = &worker.sessions.hot[slot]
    if is_dead(&worker.sessions, session, now.ms) or not sequence_in_window(
            session, &worker.sessions.syn[2 * <size_t>slot], 1 - back, quote):
        return NULL
    if back == IN and session.flags & HAIRPINNED:
        return NULL                                 # packets of a hairpin never were outside
    if quote.reversed and not is_static(worker, slot):
        return NULL
    return session


cdef uint32_t quoted_slot(const Worker* worker, Packet* packet, uint32_t side, const Clock* now) noexcept nogil:
    """The live session that an error from a side refers to, or NONE."""
    cdef uint32_t back = IN if side == OUTSIDE else OUT
    cdef const Session* session = NULL
    cdef Quote quote
    if read_quote(packet, &quote, back) == PENDING:
        session = find_quoted(worker, &quote, back, now)
    return NONE if session == NULL else <uint32_t>(session - worker.sessions.hot)


cdef uint8_t translate_inbound(Worker* worker, Packet* packet, Quote* quote, const Session* session) noexcept nogil:
    """From outside: the quoted source and the error's destination become the inside endpoint (REQ-4)."""
    rewrite_quote(quote, True, session.ip[ROLE_INSIDE], session.port[ROLE_INSIDE])
    packet.ip.destination = session.ip[ROLE_INSIDE]
    return UNTRANSLATED if session.flags & UNTRANSLATED_BOTH else INBOUND


cdef uint8_t translate_outbound(Worker* worker, Packet* packet, Quote* quote, const Session* session) noexcept nogil:
    """From inside: the quoted destination and the error's source become the outside endpoint (REQ-5)."""
    rewrite_quote(quote, False, session.ip[ROLE_OUTSIDE], session.port[ROLE_OUTSIDE])
    if not session.flags & UNTRANSLATED_BOTH:
        packet.ip.source = session.ip[ROLE_OUTSIDE]
    return UNTRANSLATED if session.flags & UNTRANSLATED_BOTH else OUTBOUND


cdef uint8_t translate_hairpinned(Worker* worker, Packet* packet, Quote* quote, const Session* session,
                                  const Clock* now) noexcept nogil:
    """An error about a hairpinned packet goes back inside, to the host that sent it (REQ-7)."""
    cdef const Session* other
    cdef uint32_t i, slot = NONE
    cdef Worker* peer = worker
    for i in range(worker.shared.count):
        if slot == NONE:
            peer = worker.shared.workers[i]
            slot = session_find(&peer.sessions, IN, hairpin_addresses(session), hairpin_ports(session), quote.ip.protocol)
    if slot == NONE or is_dead(&peer.sessions, &peer.sessions.hot[slot], now.ms):
        return DROP_NO_MAPPING
    other = &peer.sessions.hot[slot]
    translate_outbound(worker, packet, quote, session)
    translate_inbound(worker, packet, quote, other)
    return HAIRPIN


cdef uint8_t translate_error(Worker* worker, Frame* frame, Packet* packet, const Clock* now) noexcept nogil:
    """Finds the session of an ICMP error and translates the error; or the reason why not."""
    cdef uint32_t back = IN if frame.side == OUTSIDE else OUT
    cdef uint8_t verdict
    cdef const Session* session
    cdef Quote quote
    cdef bint pool = address_find(worker.mappings.ports, packet.ip.destination) != NONE
    cdef bint shared = is_shared_address(worker, packet.ip.destination)
    verdict = read_quote(packet, &quote, back)
    if verdict != PENDING:
        return LOCAL if shared else verdict         # the host judges it too
    session = find_quoted(worker, &quote, back, now)
    if session == NULL and shared:
        return LOCAL                                # about a packet of the host's
    if session == NULL and quote.reversed:
        return DROP_UNSUPPORTED
    if session == NULL:
        if not pool and worker.links.address[frame.side] and packet.ip.destination == worker.links.address[frame.side]:
            return LOCAL
        return DROP_NO_MAPPING
    if (is_martian(worker, packet.ip.source) or address_find(worker.mappings.ports, packet.ip.source) != NONE
            or packet.ip.destination != quote.ip.source):
        return DROP_SPOOFED                         # an error goes to the sender of the quoted packet (RFC 1122 section 3.2.2)
    verdict = may_pass(worker, frame, packet, session_mtu(worker, session, back))
    if verdict != PENDING:
        return verdict
    if back == IN:
        verdict = translate_inbound(worker, packet, &quote, session)
    elif session.flags & HAIRPINNED:
        verdict = translate_hairpinned(worker, packet, &quote, session, now)
    else:
        verdict = translate_outbound(worker, packet, &quote, session)
    if verdict == OUTBOUND or verdict == HAIRPIN:
        identify(worker, frame, packet)
    if verdict < LOCAL:
        rewrite_outer(worker, packet, worker.configuration.decrement_ttl)
    return verdict

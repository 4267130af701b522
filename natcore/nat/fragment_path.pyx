"""Translates fragments. The caller decides a datagram's first fragment like any packet; later ones follow it. Nothing is
reassembled.
"""
from libc.stdint cimport int16_t, uint8_t, uint16_t, uint32_t, uint64_t

from natcore.nat.admission cimport find_live, inside_mtu, may_pass, session_mtu
from natcore.tables.fragments cimport (
    DATAGRAM_BROKEN, DATAGRAM_KNOWN, DATAGRAM_REFUSED, DATAGRAMS, EXPIRED_AT_ONCE, RANGE_LAST, Datagram, Fragments,
    FragmentRange, datagram_break, datagram_close, datagram_find, datagram_has_fragment, datagram_next_held, datagram_hold,
    datagram_mark_received, datagram_open,
    datagram_set_state, datagram_pop_held, datagram_is_complete, datagram_is_over, fragments_expire, fragment_digest,
)
from natcore.nat.ip_identification cimport set_identification
from natcore.tables.outbox cimport outbox_push, outbox_cancel, outbox_amend
from natcore.packet.parse cimport KIND_SESSION, Packet, parse_network, parse_transport, wire_length
from natcore.nat.rewrite cimport rewrite_network
from natcore.tables.sessions cimport (
    HAIRPINNED, IN, OUT, UNTRANSLATED_BOTH, Session, session_count, session_find, session_id, hairpin_addresses,
    hairpin_ports, window_roll,
)
from natcore.nat.fragmentation cimport fragment_packet
from natcore.base.serial_numbers cimport is_later
from natcore.frame cimport FRAME_CROSSING, Frame
from natcore.base.compiler cimport bswap16, bswap32
from natcore.base.sentinels cimport NONE
from natcore.workers.worker cimport Clock, Worker
from natcore.packet.verdict cimport (
    DROP_FRAGMENT, DROP_MALFORMED, DROP_NO_MAPPING, HAIRPIN, HELD, INBOUND, INSIDE, LOCAL, OUTBOUND, OUTSIDE, PENDING,
    UNTRANSLATED, egress_of,
)
from natcore.base.headers cimport (
    IPV4_MORE, IPV4_OFFSET, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, TCP_FIN, TCP_SYN, TcpHeader,
)


cdef inline uint32_t offset_of(const Packet* packet) noexcept nogil:
    """Offset of the packet's payload in the datagram, in bytes."""
    return (bswap16(packet.ip.fragment) & IPV4_OFFSET) * 8


cdef inline uint32_t payload_of(const Packet* packet) noexcept nogil:
    """Bytes behind the IPv4 header."""
    return packet.total_length - <uint32_t>(packet.l4 - <uint8_t*>packet.ip)


cdef void fragment_if_needed(Worker* worker, Frame* frame, const Packet* packet, uint8_t verdict, uint8_t cause) noexcept nogil:
    """Fragments a forwarded packet that exceeds the MTU of its egress link (REQ-13a). cause: Verdict of the other fragments."""
    cdef uint8_t send_to = egress_of(verdict, frame.side, frame.flags & FRAME_CROSSING)
    cdef uint32_t mtu = worker.links.mtu[OUTSIDE] if send_to == OUTSIDE else inside_mtu(worker, packet.ip.destination)
    if wire_length(frame, packet) > mtu:
        fragment_packet(worker.outbox, frame, packet, mtu, send_to, cause)


# ---- later fragments -------------------------------------------------------------------------------------------------

cdef void account_later_fragment(Worker* worker, uint32_t slot, uint32_t direction, const Packet* packet, uint32_t sequence,
                                 bint counted,
                                 const Clock* now) noexcept nogil:
    """Accounts a later fragment to the session. sequence: at the first byte of the TCP header. counted: as one more packet."""
    cdef Session* session = &worker.sessions.hot[slot]
    cdef uint32_t end = sequence + offset_of(packet) + payload_of(packet)
    if <int16_t>(now.seconds - session.window_end) >= 0:
        window_roll(&worker.sessions, slot, now.ns)
    if direction == OUT or worker.configuration.inbound_refresh:
        session.last_seen = now.ms
    if packet.protocol == PROTOCOL_TCP and is_later(end, session.end[direction]):
        session.end[direction] = end
    if counted:
        session_count(session, &worker.sessions.cold[slot], direction, 1, packet.total_length)


cdef uint8_t translate_later_fragment(Worker* worker, Frame* frame, Packet* packet, const Datagram* datagram,
                                      const Clock* now) noexcept nogil:
    """Translates a later fragment through the session of its first one, if that is still alive."""
    cdef uint32_t direction = frame.side, other = NONE
    cdef uint32_t slot = find_live(worker, direction, packet.addresses, datagram.ports, packet.protocol, now)
    cdef const Session* session
    cdef Worker* peer = worker
    cdef uint8_t verdict
    cdef uint32_t i
    if slot == NONE or session_id(&worker.sessions.cold[slot]) != datagram.session:
        return DROP_NO_MAPPING
    session = &worker.sessions.hot[slot]
    if session.flags & HAIRPINNED:
        for i in range(worker.shared.count):
            if other == NONE:
                peer = worker.shared.workers[i]
                other = find_live(peer, IN, hairpin_addresses(session), hairpin_ports(session), packet.protocol, now)
        if other == NONE:
            return DROP_NO_MAPPING
    verdict = (HAIRPIN if other != NONE else UNTRANSLATED if session.flags & UNTRANSLATED_BOTH
               else OUTBOUND if direction == OUT else INBOUND)
    if may_pass(worker, frame, packet, session_mtu(worker, session, direction)) != PENDING:
        return may_pass(worker, frame, packet, session_mtu(worker, session, direction))
    account_later_fragment(worker, slot, direction, packet, datagram.sequence, True, now)
    rewrite_network(packet.ip, session, direction, worker.configuration.decrement_ttl)
    if other != NONE:
        account_later_fragment(peer, other, IN, packet, datagram.sequence, peer != worker or other != slot, now)
        rewrite_network(packet.ip, &peer.sessions.hot[other], IN, False)
    if packet.ip.identification != datagram.sent_identification:
        set_identification(packet.ip, datagram.sent_identification)
    return verdict


# ---- every fragment --------------------------------------------------------------------------------------------------

cdef void count_held_dropped(Worker* worker) noexcept nogil:
    """Counts held frames that the table dropped."""
    cdef Fragments* table
    cdef uint32_t side
    for side in range(2):
        table = &worker.fragments[side]
        worker.counters[HELD] -= table.held_dropped
        worker.counters[DROP_FRAGMENT] += table.held_dropped
        worker.from_outside[HELD] -= table.held_dropped * side
        worker.from_outside[DROP_FRAGMENT] += table.held_dropped * side
        table.held_dropped = 0


cdef void expire_datagrams(Worker* worker, uint64_t now_ns) noexcept nogil:
    """Drops datagrams that timed out."""
    fragments_expire(&worker.fragments[INSIDE], now_ns // 1000000, DATAGRAMS)
    fragments_expire(&worker.fragments[OUTSIDE], now_ns // 1000000, DATAGRAMS)
    count_held_dropped(worker)


cdef uint8_t check_fragment(const Packet* packet) noexcept nogil:
    """Checks that fragment offset and length are possible, and that a TCP header is not overwritten (RFC 1858)."""
    cdef uint32_t offset = offset_of(packet), payload = payload_of(packet)
    if (payload == 0 or offset + packet.total_length > 0xFFFF
            or (packet.ip.fragment & bswap16(IPV4_MORE) and payload % 8)):
        return DROP_MALFORMED
    return DROP_FRAGMENT if packet.protocol == PROTOCOL_TCP and 0 < offset < 20 else PENDING


cdef uint8_t handle_fragment(Worker* worker, Frame* frame, Packet* packet, const Clock* now, uint32_t* datagram) noexcept nogil:
    """The verdict on a later fragment. PENDING: a first fragment, for which the caller reports to `first_fragment_done`."""
    cdef Fragments* table = &worker.fragments[frame.side]
    cdef uint64_t now_ms = now.ns // 1000000
    cdef uint32_t offset = offset_of(packet), number
    cdef uint16_t identification = packet.ip.identification
    cdef uint8_t verdict = check_fragment(packet)
    cdef FragmentRange received
    if verdict == DROP_MALFORMED:
        return verdict
    fragments_expire(table, now_ms, EXPIRED_AT_ONCE)
    number = datagram_find(table, frame.side, packet.addresses, packet.protocol, identification)
    if number != NONE and datagram_is_over(table, number, now_ms):
        datagram_close(table, number)
        number = NONE
    if number == NONE:
        number = datagram_open(table, frame.side, packet.addresses, packet.protocol, identification, offset == 0, now_ms)
    if number == NONE:
        verdict = DROP_FRAGMENT
    elif table.datagrams[number].state == DATAGRAM_BROKEN:
        verdict = DROP_FRAGMENT
    elif verdict == DROP_FRAGMENT:
        datagram_break(table, number, DROP_FRAGMENT)
    else:
        received.first = <uint16_t>(offset // 8)
        received.units = <uint16_t>((payload_of(packet) + 7) // 8)
        received.units |= 0 if packet.ip.fragment & bswap16(IPV4_MORE) else RANGE_LAST
        received.sum = fragment_digest(table, packet.l4, payload_of(packet))
        if datagram_has_fragment(table, number, &received):
            verdict = DROP_FRAGMENT                         # exact duplicate (RFC 8200 section 4.5): drop it alone
        elif not datagram_mark_received(table, number, &received):
            datagram_break(table, number, DROP_FRAGMENT)    # overlap: drop the datagram, as RFC 5722 does
            verdict = DROP_FRAGMENT
    if verdict == PENDING and offset:
        verdict = handle_later_fragment(worker, frame, packet, number, now)
    if table.held_dropped:
        count_held_dropped(worker)
    datagram[0] = number
    return verdict


cdef uint8_t handle_later_fragment(Worker* worker, Frame* frame, Packet* packet, uint32_t number,
                                   const Clock* now) noexcept nogil:
    """Handles a later fragment by the state of its datagram."""
    cdef Fragments* table = &worker.fragments[frame.side]
    cdef Datagram* datagram = &table.datagrams[number]
    cdef uint8_t verdict
    if datagram.state == DATAGRAM_KNOWN:
        verdict = translate_later_fragment(worker, frame, packet, datagram, now)
        if verdict < LOCAL:
            fragment_if_needed(worker, frame, packet, verdict, verdict)
    elif datagram.state == DATAGRAM_REFUSED:
        verdict = datagram.verdict
    else:
        return HELD if datagram_hold(table, number, frame.data, frame.length) else DROP_FRAGMENT
    if datagram_is_complete(table, number):
        datagram_close(table, number)
    return verdict


cdef bint fragment_key(const Worker* worker, Packet* packet, uint8_t side) noexcept nogil:
    """Completes the session key of a fragment, from its header or its first fragment; False: not known yet."""
    cdef uint32_t number
    cdef const Fragments* table = &worker.fragments[side]
    packet.kind = KIND_SESSION
    if offset_of(packet) == 0:
        return parse_first(packet, side) == PENDING
    number = datagram_find(table, side, packet.addresses, packet.protocol, packet.ip.identification)
    if number == NONE or table.datagrams[number].state != DATAGRAM_KNOWN:
        return False
    packet.ports = table.datagrams[number].ports
    return True


# ---- first fragments -------------------------------------------------------------------------------------------------

cdef uint8_t parse_first(Packet* packet, uint32_t side) noexcept nogil:
    """Parses the layer-4 header, which the first fragment must contain in full (RFC 1858, RFC 3128); PENDING or a drop."""
    cdef uint32_t rest = payload_of(packet)
    if packet.protocol == PROTOCOL_TCP:
        if rest < 20 or rest < ((<const TcpHeader*>packet.l4).data_offset >> 4) * 4:
            return DROP_FRAGMENT
    elif packet.protocol == PROTOCOL_UDP or packet.protocol == PROTOCOL_ICMP:
        if rest < 8:
            return DROP_FRAGMENT
        rest = 0xFFFF                               # UDP length covers the whole datagram
    return parse_transport(packet, side, rest)


cdef uint8_t release_held(Worker* worker, uint32_t number, uint8_t side, uint8_t verdict, const Clock* now) noexcept nogil:
    """Sends the fragment held longest through the outbox, or drops it; its verdict. verdict: of the first fragment."""
    cdef Fragments* table = &worker.fragments[side]
    cdef uint32_t length = datagram_next_held(table, number)
    cdef Frame frame
    cdef Packet packet
    frame.data = outbox_push(worker.outbox, length, side, side, HELD) if verdict < LOCAL else NULL
    datagram_pop_held(table, number, frame.data)
    if frame.data == NULL:
        return DROP_FRAGMENT if verdict < LOCAL else verdict
    frame.length = length
    frame.flags = 0
    frame.side = side
    parse_network(&frame, &packet, worker.configuration.ethernet)
    verdict = translate_later_fragment(worker, &frame, &packet, &table.datagrams[number], now)
    if verdict >= LOCAL:
        outbox_cancel(worker.outbox, length)
        return verdict
    fragment_if_needed(worker, &frame, &packet, verdict, verdict)
    side = egress_of(verdict, side, False)
    outbox_amend(frame.data, frame.length, side)
    return OUTBOUND if side == OUTSIDE else INBOUND     # counted by egress side


cdef void first_fragment_done(Worker* worker, const Frame* frame, const Packet* packet, uint32_t number, uint8_t verdict,
                              const Clock* now) noexcept nogil:
    """Applies the first fragment's verdict to the datagram: held fragments are sent or dropped."""
    cdef Fragments* table = &worker.fragments[frame.side]
    cdef Datagram* datagram = &table.datagrams[number]
    cdef const TcpHeader* tcp = <const TcpHeader*>packet.l4
    cdef uint32_t slot
    cdef uint8_t released
    datagram_set_state(table, number, DATAGRAM_KNOWN if verdict < LOCAL else DATAGRAM_REFUSED, verdict)
    if verdict < LOCAL:
        datagram.ports = packet.ports
        datagram.sent_identification = packet.ip.identification     # as it leaves
        slot = session_find(&worker.sessions, frame.side, packet.addresses, packet.ports, packet.protocol)
        datagram.session = session_id(&worker.sessions.cold[slot])
        if packet.protocol == PROTOCOL_TCP:
            datagram.sequence = (bswap32(tcp.sequence) - (tcp.data_offset >> 4) * 4 + (1 if tcp.flags & TCP_SYN else 0)
                                 + (1 if tcp.flags & TCP_FIN else 0))
    while datagram_next_held(table, number):
        worker.counters[HELD] -= 1
        worker.from_outside[HELD] -= frame.side
        released = release_held(worker, number, frame.side, verdict, now)
        worker.counters[released] += 1
        # of those forwarded, which are counted by egress side, a plane says the side opposite to it
        if released > INBOUND:
            worker.from_outside[released] += frame.side
        elif released == INBOUND:
            worker.from_outside[released] += 1
    if datagram_is_complete(table, number):
        datagram_close(table, number)

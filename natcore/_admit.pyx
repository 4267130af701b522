"""Admission of new sessions, in the order in which a packet may fail; nothing is left half done.

What would fail for room first completes the expiry of the moment, at most once a second of the gateway's clock.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore._events cimport event_note
from natcore._mappings cimport Mapping, mapping_close, mapping_find, mapping_open, mappings_have_room
from natcore._parse cimport Flight, wire_length
from natcore._ports cimport address_find, port_mapping, space_of
from natcore._rules cimport SnatRule, snat_rule
from natcore._sessions cimport (
    HAIRPINNED, IN, OPENED_OUTSIDE, TIMEOUT_ICMP, TIMEOUT_TCP_TRANSITORY, TIMEOUT_UDP, TIMEOUT_UNREPLIED,
    filter_open, is_dead, mapping_alive, session_expire, session_find, session_open,
)
from natcore._sweep cimport expire_mapping, sweep_all
from natcore._tcp cimport TCP_INIT_IN, TCP_INIT_OUT, TCP_PICKED
from natcore.frame cimport Frame
from natcore.hints cimport bswap16, bswap32
from natcore.index cimport NONE
from natcore.state cimport FILTER_ADDRESS, FILTER_NONE, Clock, Worker
from natcore.verdict cimport (
    DROP_CONFLICT, DROP_FILTERED, DROP_MTU, DROP_NO_MAPPING, DROP_NO_SNAT_ENTRY, DROP_OUTSIDE_LIMIT,
    DROP_PORTS_EXHAUSTED, DROP_PROBE_LIMIT, DROP_SESSION_LIMIT, DROP_SPOOFED, DROP_TTL, DROP_UNSUPPORTED, INSIDE, LOCAL,
    OUTSIDE, PENDING,
)
from natcore.wire cimport PROTOCOL_ICMP, PROTOCOL_TCP, TCP_RST, TCP_SYN, TcpHeader


cdef bint complete(Worker* worker, uint64_t now_ns) noexcept nogil:
    """Completes expiry for now, unless this second has seen it done; whether it did."""
    cdef uint64_t second = now_ns // 1000000000 + 1
    if worker.completed == second:
        return False
    worker.completed = second
    sweep_all(&worker.sessions, now_ns, <uint64_t>-1)
    return True


cdef inline bint is_no_host(uint32_t ip) noexcept nogil:
    """0/8, 127/8 and 224/3 (big-endian): no packet of ours comes from there or goes there."""
    cdef uint32_t first = bswap32(ip) >> 24
    return first == 0 or first == 127 or first >= 224


cdef uint8_t may_pass(Worker* worker, const Frame* frame, const Flight* flight, uint32_t mtu) noexcept nogil:
    """What a router asks before it forwards: time to live, and the next link's MTU."""
    if flight.ip.ttl <= 1 and worker.decrement_ttl:
        return DROP_TTL
    if wire_length(frame, flight) > mtu:
        return DROP_MTU
    return PENDING


cdef uint8_t tcp_flags(const Flight* flight) noexcept nogil:
    return (<const TcpHeader*>flight.l4).flags if flight.protocol == PROTOCOL_TCP else 0


cdef uint8_t screen_outbound(Worker* worker, const Frame* frame, const Flight* flight, const SnatRule** rule,
                             bint* hairpin) noexcept nogil:
    cdef uint32_t source = flight.ip.source, destination = flight.ip.destination
    cdef uint8_t flags = tcp_flags(flight), verdict
    if worker.link_address[INSIDE] and destination == worker.link_address[INSIDE]:
        return LOCAL
    hairpin[0] = address_find(&worker.mappings.ports, destination) != NONE
    if hairpin[0] and flight.protocol == PROTOCOL_ICMP:
        return LOCAL
    if is_no_host(source):
        return DROP_SPOOFED
    if is_no_host(destination):
        return DROP_UNSUPPORTED
    if address_find(&worker.mappings.ports, source) != NONE:
        return DROP_SPOOFED
    rule[0] = snat_rule(worker.rules, bswap32(source)) if worker.rules != NULL else NULL
    if rule[0] == NULL:
        return DROP_NO_SNAT_ENTRY
    if hairpin[0] and not worker.hairpin:
        return DROP_UNSUPPORTED
    verdict = may_pass(worker, frame, flight, worker.mtu[INSIDE if hairpin[0] else OUTSIDE])
    if verdict != PENDING:
        return verdict
    if flight.protocol == PROTOCOL_TCP and (flags & TCP_RST or (not flags & TCP_SYN and not worker.tcp_pickup)):
        return DROP_NO_MAPPING
    return PENDING


cdef uint8_t find_mapping(Worker* worker, const Flight* flight, const SnatRule* rule, uint16_t inside_port,
                          const Clock* now, uint32_t* mapping) noexcept nogil:
    """The live mapping of the inside endpoint, or a new one."""
    cdef uint32_t inside_ip = flight.ip.source, number
    number = mapping_find(&worker.mappings, inside_ip, inside_port, flight.protocol)
    if number != NONE:
        if mapping_alive(&worker.sessions, number, now.ms):
            mapping[0] = number
            return PENDING
        expire_mapping(&worker.sessions, number, now.ns)
    if not mappings_have_room(&worker.mappings, inside_ip):
        complete(worker, now.ns)
        if not mappings_have_room(&worker.mappings, inside_ip):
            return DROP_SESSION_LIMIT
    number = mapping_open(&worker.mappings, inside_ip, inside_port, flight.protocol, rule.entry, rule.pool,
                          rule.pool_size, now.ms)
    if number == NONE and complete(worker, now.ns):
        number = mapping_open(&worker.mappings, inside_ip, inside_port, flight.protocol, rule.entry, rule.pool,
                              rule.pool_size, now.ms)
    mapping[0] = number
    return DROP_PORTS_EXHAUSTED if number == NONE else PENDING


cdef uint8_t claim(Worker* worker, uint32_t mapping, uint32_t remote_ip, uint16_t remote_port, uint8_t flags,
                   uint8_t timeout_class, const Clock* now, uint32_t* slot) noexcept nogil:
    """The session itself; a mapping that would stay without one goes again."""
    cdef const Mapping* owner = &worker.mappings.mappings[mapping]
    cdef uint64_t addresses = <uint64_t>owner.outside_ip << 32 | remote_ip
    cdef uint32_t other = session_find(&worker.sessions, IN, addresses, <uint32_t>owner.outside_port << 16 | remote_port,
                                       owner.protocol)
    cdef uint8_t verdict = PENDING
    if other != NONE:
        if is_dead(&worker.sessions, &worker.sessions.hot[other], now.ms):
            session_expire(&worker.sessions, other, now.ns)
        else:
            verdict = DROP_CONFLICT
    if verdict == PENDING:
        slot[0] = session_open(&worker.sessions, mapping, remote_ip, remote_port, flags, timeout_class, now.ns)
        if slot[0] != NONE:
            return PENDING
        verdict = DROP_PROBE_LIMIT
    if worker.mappings.mappings[mapping].sessions == 0:
        mapping_close(&worker.mappings, mapping, owner.held_until, now.ms)
    return verdict


cdef bint has_slot(Worker* worker, const Clock* now) noexcept nogil:
    if worker.sessions.slots.live < worker.sessions.slots.capacity:
        return True
    complete(worker, now.ns)
    return worker.sessions.slots.live < worker.sessions.slots.capacity


cdef uint8_t admit_outbound(Worker* worker, Frame* frame, Flight* flight, const Clock* now,
                            uint32_t* slot) noexcept nogil:
    """A session for a packet from inside that has none. PENDING: slot is its session; else why not."""
    cdef const SnatRule* rule = NULL
    cdef bint hairpin = False
    cdef uint32_t mapping = NONE
    cdef uint16_t inside_port = <uint16_t>flight.ports, remote_port = <uint16_t>(flight.ports >> 16)
    cdef uint8_t verdict = screen_outbound(worker, frame, flight, &rule, &hairpin), timeout_class
    if verdict != PENDING:
        return verdict
    verdict = DROP_SESSION_LIMIT
    if has_slot(worker, now):
        verdict = find_mapping(worker, flight, rule, inside_port, now, &mapping)
    if verdict == PENDING:
        timeout_class = (TIMEOUT_UDP if flight.protocol == 17 else TIMEOUT_ICMP if flight.protocol == PROTOCOL_ICMP
                         else TIMEOUT_TCP_TRANSITORY)
        verdict = claim(worker, mapping, flight.ip.destination, remote_port, HAIRPINNED if hairpin else 0,
                        timeout_class, now, slot)
    if verdict == PENDING:
        worker.sessions.hot[slot[0]].state = TCP_INIT_OUT if tcp_flags(flight) & TCP_SYN else TCP_PICKED
        return PENDING
    if verdict == DROP_SESSION_LIMIT or verdict == DROP_PORTS_EXHAUSTED:
        event_note(&worker.events, verdict, flight.ip.source, flight.ip.destination, remote_port, flight.protocol, now.ns)
    return verdict


cdef uint8_t screen_inbound(Worker* worker, const Flight* flight) noexcept nogil:
    """Where a packet from outside may be going, before any mapping is asked."""
    cdef bint ours = address_find(&worker.mappings.ports, flight.ip.destination) != NONE
    if not ours and worker.link_address[OUTSIDE] and flight.ip.destination == worker.link_address[OUTSIDE]:
        return LOCAL
    if is_no_host(flight.ip.source) or address_find(&worker.mappings.ports, flight.ip.source) != NONE:
        return DROP_SPOOFED
    return PENDING if ours else DROP_NO_MAPPING


cdef uint8_t pass_filter(Worker* worker, uint32_t outside_ip, uint16_t outside_port, uint32_t remote_ip,
                         const Flight* flight, const Clock* now) noexcept nogil:
    """Whether a remote without a session may open one (RFC 4787 section 5; TCP: by a first SYN alone)."""
    cdef uint8_t filtering = worker.filtering[space_of(flight.protocol)], flags = tcp_flags(flight)
    if flight.protocol == PROTOCOL_TCP and (flags & TCP_RST or not flags & TCP_SYN):
        return DROP_FILTERED
    if filtering == FILTER_NONE:
        return PENDING
    if (filtering == FILTER_ADDRESS and flight.protocol != PROTOCOL_ICMP
            and filter_open(&worker.sessions, remote_ip, outside_ip, outside_port, flight.protocol, now.ms)):
        return PENDING
    return DROP_FILTERED


cdef bint below_caps(Worker* worker, const Mapping* mapping, const Clock* now) noexcept nogil:
    """Whether the mapping and the gateway may have one more session that was opened from outside."""
    if mapping.opened_outside < worker.mapping_cap and worker.sessions.opened_outside < worker.outside_cap:
        return True
    complete(worker, now.ns)
    return mapping.opened_outside < worker.mapping_cap and worker.sessions.opened_outside < worker.outside_cap


cdef uint8_t admit_inbound(Worker* worker, const Frame* frame, uint32_t outside_ip, uint16_t outside_port,
                           uint32_t remote_ip, uint16_t remote_port, Flight* flight, uint8_t flags, const Clock* now,
                           uint32_t* slot) noexcept nogil:
    """A session opened from outside, over a mapping that is open for this remote. PENDING: slot is it; else why not.

    frame: NULL for a hairpinned packet, which was asked before whether it may pass.
    """
    cdef uint32_t address = address_find(&worker.mappings.ports, outside_ip), number = NONE
    cdef Mapping* mapping
    cdef uint8_t verdict
    if address != NONE:
        number = port_mapping(&worker.mappings.ports.addresses[address].maps[space_of(flight.protocol)],
                              bswap16(outside_port))
    if number == NONE:
        return DROP_NO_MAPPING
    if not mapping_alive(&worker.sessions, number, now.ms):
        expire_mapping(&worker.sessions, number, now.ns)
        return DROP_NO_MAPPING
    verdict = pass_filter(worker, outside_ip, outside_port, remote_ip, flight, now)
    if verdict == PENDING and frame != NULL:
        verdict = may_pass(worker, frame, flight, worker.mtu[INSIDE])
    if verdict != PENDING:
        return verdict
    mapping = &worker.mappings.mappings[number]
    if not below_caps(worker, mapping, now):
        verdict = DROP_OUTSIDE_LIMIT
    elif not has_slot(worker, now):
        verdict = DROP_SESSION_LIMIT
    if verdict == PENDING:
        verdict = claim(worker, number, remote_ip, remote_port, flags | OPENED_OUTSIDE, TIMEOUT_UNREPLIED, now, slot)
    if verdict == PENDING:
        worker.sessions.hot[slot[0]].state = TCP_INIT_IN
    elif verdict != DROP_CONFLICT:
        event_note(&worker.events, verdict, mapping.inside_ip, remote_ip, remote_port, flight.protocol, now.ns)
    return verdict

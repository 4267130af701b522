"""Admission of new sessions, in the order in which a packet may fail; nothing is left half done."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore.tables.port_allocation cimport OVER_QUOTA
from natcore.log.events cimport event_note
from natcore.workers.limits cimport (
    LIMIT_GATEWAY_RATE, LIMIT_MAPPINGS, LIMIT_NONE, LIMIT_OUTSIDE, LIMIT_POOL, LIMIT_SESSIONS, LIMIT_SUBSCRIBER_BLOCKS,
    LIMIT_SUBSCRIBERS, LIMIT_SUBSCRIBER_PORTS, LIMIT_SUBSCRIBER_RATE, LIMIT_SUBSCRIBER_SESSIONS, below_caps, count_opened,
    may_open_mapping, may_open_session, may_subscribe, over_gateway_rate, over_quota, over_rate, reclaim_of, reclaim_some,
    watch_sessions,
)
from natcore.tables.mappings cimport (
    MAPPING_DRAINING, MAPPING_PORTLESS, MAPPING_STATIC, POOLING_ARBITRARY, POOLING_PAIRED, Mapping, MappingKey,
    Subscriber, dynamic_key, mapping_close, mapping_find, mapping_open, mapping_open_static, subscriber_find,
)
from natcore.packet.parse cimport Flight, wire_length
from natcore.tables.ports cimport (
    PORT_OF_ANOTHER, PORT_RESERVED, PORTS_DETERMINISTIC, PORTS_OVERLOAD, Pool, Ports, address_find, has_ports, port_holder,
    space_of,
)
from natcore.tables.entries cimport (
    ANY_SPACE, DnatRule, PlainRule, SnatRule, dnat_key, dnat_rule, dnat_target, is_inside, plain_rule, snat_rule,
    speaker_rule, whole_rule,
)
from natcore.tables.sessions cimport (
    HAIRPINNED, IN, LIFE_SOME, OPENED_OUTSIDE, OUT, TIMEOUT_UNREPLIED, UNLOGGED, UNTRANSLATED_BOTH, class_of, filter_open,
    is_dead, mapping_answered, mapping_life, session_announce, session_find, session_open,
)
from natcore.nat.fragmentation cimport may_split
from natcore.workers.expiry cimport expire, expire_mapping
from natcore.tables.tcp_state cimport TCP_INIT_IN, TCP_INIT_OUT, TCP_PICKED, TCP_PICKED_IN, TCP_STEADY
from natcore.base.flow_hash cimport flow_hash
from natcore.frame cimport Frame
from natcore.base.compiler cimport bswap16, bswap32
from natcore.base.hash_table cimport NONE
from natcore.workers.worker cimport FILTER_ADDRESS, FILTER_NONE, Clock, Worker, has_all, owner_of_inside
from natcore.packet.verdict cimport (
    DROP_CONFLICT, DROP_FILTERED, DROP_MTU, DROP_NO_MAPPING, DROP_NO_SNAT_ENTRY, DROP_OUTSIDE_LIMIT,
    DROP_PORTS_EXHAUSTED, DROP_PROBE_LIMIT, DROP_RATE_LIMIT, DROP_SESSION_LIMIT, DROP_SPOOFED, DROP_SUBSCRIBER_LIMIT,
    DROP_TTL, DROP_UNSUPPORTED, INSIDE, LOCAL, OUTSIDE, PENDING,
)
from natcore.base.headers cimport ICMP_ECHO_REQUEST, PROTOCOL_ICMP, PROTOCOL_TCP, TCP_RST, TCP_SYN, IcmpHeader, TcpHeader


cdef enum:
    LINK_LOCAL = 0xA9FE         # 169.254/16, its first two bytes
    BROADCAST = 0xFFFFFFFF
    ADDRESSES_TRIED = 256       # of a pool, for a protocol without ports: look-ups in all workers' tables together

cdef struct Way:                # how a packet from inside may leave: by one of the three
    const SnatRule* snat
    const DnatRule* forwarded   # a DNAT or 1:1 entry that has the source as target
    const PlainRule* plain
    bint hairpin                # its destination is an outside address of ours


cdef bint is_no_host(const Worker* worker, uint32_t ip) noexcept nogil:
    """0/8, 127/8, 224/3 and 169.254/16 (big-endian): no packet of ours comes from there or goes there (RFC 1812 5.3.7,
    RFC 3927 section 7), but where the policy says so."""
    cdef uint32_t host = bswap32(ip), first = host >> 24
    if host >> 16 == LINK_LOCAL:
        return not worker.link_local
    if first >= 240 and host != BROADCAST:
        return not worker.class_e
    return first == 0 or first == 127 or first >= 224


cdef inline bint is_own(const Worker* worker, uint32_t ip) noexcept nogil:
    """Whether an address (big-endian) is the gateway's own, of either side: what comes from there did not come by a wire."""
    return ip != 0 and (ip == worker.link_address[INSIDE] or ip == worker.link_address[OUTSIDE])


cdef uint8_t may_pass(Worker* worker, const Frame* frame, const Flight* flight, uint32_t mtu) noexcept nogil:
    """What a router asks before it forwards: time to live, and the next link's MTU, where it may not be split for it."""
    if flight.ip.ttl < worker.lowest_ttl:
        return DROP_TTL
    if wire_length(frame, flight) <= mtu:
        return PENDING
    worker.mtu_met = mtu
    if not has_all(worker):                         # fragments are written with all held, and the MTU is another one by now
        return ask_for_all(worker, DROP_MTU)
    return PENDING if may_split(worker.outbox, frame, flight, mtu) else DROP_MTU


cdef uint8_t tcp_flags(const Flight* flight) noexcept nogil:
    return (<const TcpHeader*>flight.l4).flags if flight.protocol == PROTOCOL_TCP else 0


cdef uint8_t ask_for_all(Worker* worker, uint8_t verdict) noexcept nogil:
    """What the packet needs may lie in another worker's tables: it is done again with all workers held. verdict: where they
    are already."""
    worker.wants_all = not has_all(worker)
    return verdict


# ---- what both ways need ---------------------------------------------------------------------------------------------

cdef uint8_t refuse(Worker* worker, uint8_t verdict, uint8_t limit) noexcept nogil:
    """The verdict, and what its event will say was reached."""
    worker.limit_met = limit
    return verdict


cdef void tell(Worker* worker, uint8_t verdict, uint8_t limit, uint32_t subscriber, uint32_t destination, uint16_t port,
               uint8_t protocol, const Clock* now) noexcept nogil:
    """An event about a refusal, unless the packet comes again."""
    if not worker.wants_all:
        event_note(worker.events, verdict, limit, subscriber, destination, port, protocol, now.ns)


cdef bint has_slot(Worker* worker, const Clock* now) noexcept nogil:
    if may_open_session(worker):
        return True
    reclaim_some(worker, now)
    return may_open_session(worker)


cdef uint32_t find_mapping(Worker* worker, const MappingKey* key, const Clock* now) noexcept nogil:
    """The live mapping, or NONE; a dead one that is met is ended. One that has more dead sessions than may be looked at is
    taken for alive: its inside endpoint keeps it."""
    cdef uint32_t number = mapping_find(&worker.mappings, key)
    if number != NONE and mapping_life(&worker.sessions, number, now.ms) != LIFE_SOME:
        expire_mapping(&worker.sessions, number, now.ns)
        if worker.mappings.mappings[number].sessions == 0:
            return NONE
    return number


cdef uint8_t find_static(Worker* worker, MappingKey* key, uint32_t entry, uint32_t outside_ip, uint16_t outside_port,
                         uint32_t address, const Clock* now, uint32_t* mapping) noexcept nogil:
    """The mapping between an inside endpoint and the outside one that an entry gives it."""
    key.flags |= MAPPING_STATIC
    key.remote_ip = outside_ip
    key.remote_port = outside_port
    mapping[0] = find_mapping(worker, key, now)
    if mapping[0] != NONE:
        return PENDING
    if not may_open_mapping(worker):
        reclaim_some(worker, now)
        if not may_open_mapping(worker):
            return refuse(worker, DROP_SESSION_LIMIT, LIMIT_MAPPINGS)
    mapping[0] = mapping_open_static(&worker.mappings, key, entry, outside_ip, outside_port, address)
    return DROP_PROBE_LIMIT if mapping[0] == NONE else PENDING


cdef uint32_t find_live(Worker* worker, uint32_t direction, uint64_t addresses, uint32_t ports, uint8_t protocol,
                        const Clock* now) noexcept nogil:
    """The live session that has the key, or NONE; a dead one that is met is ended."""
    cdef uint32_t slot = session_find(&worker.sessions, direction, addresses, ports, protocol)
    if slot != NONE and is_dead(&worker.sessions, &worker.sessions.hot[slot], now.ms):
        expire(&worker.sessions, slot, now.ns)
        return NONE
    return slot


cdef bint is_taken(Worker* worker, uint64_t addresses, uint32_t ports, uint8_t protocol, const Clock* now) noexcept nogil:
    """Whether a live session has the key of packets from outside. Without ports that may be any worker's."""
    cdef uint32_t i
    if has_ports(protocol) or worker.shared.count == 1:
        return find_live(worker, IN, addresses, ports, protocol, now) != NONE
    for i in range(worker.shared.count):
        if find_live(worker.shared.workers[i], IN, addresses, ports, protocol, now) != NONE:
            return True
    return False


cdef uint8_t claim(Worker* worker, uint32_t direction, uint32_t mapping, uint32_t remote_ip, uint16_t remote_port,
                   uint8_t flags, uint8_t timeout_class, const Clock* now, uint32_t* slot) noexcept nogil:
    """The session itself, unless either key is taken; a mapping that would stay without one goes again.

    The key of the packet, which came in this direction, was just looked up in vain. Outbound, the other one can only be
    taken where the outside endpoint was not drawn: one that was is no other mapping's. The mapping stays meanwhile, be all
    its other sessions ended.
    """
    cdef Mapping* owner = &worker.mappings.mappings[mapping]
    cdef uint8_t verdict = PENDING
    owner.sessions += 1
    if ((owner.flags & (MAPPING_STATIC | MAPPING_PORTLESS)
         and is_taken(worker, <uint64_t>owner.outside_ip << 32 | remote_ip,
                      <uint32_t>owner.outside_port << 16 | remote_port, owner.protocol, now))
            or (direction == IN
                and find_live(worker, OUT, <uint64_t>remote_ip << 32 | owner.inside_ip,
                              <uint32_t>remote_port << 16 | owner.inside_port, owner.protocol, now) != NONE)):
        verdict = DROP_CONFLICT
    owner.sessions -= 1
    if verdict == PENDING:
        slot[0] = session_open(&worker.sessions, mapping, remote_ip, remote_port, flags, timeout_class, now.ns)
        if slot[0] != NONE:
            return PENDING
        verdict = DROP_PROBE_LIMIT
    if owner.sessions == 0:
        mapping_close(&worker.mappings, mapping, owner.held_until, now.ms)
    return verdict


cdef bint is_whole(const Worker* worker, uint32_t ip) noexcept nogil:
    """Whether an outside address (big-endian) is an inside host's own, by a 1:1 entry: echoes are for that host."""
    return worker.rules != NULL and dnat_rule(worker.rules, dnat_key(bswap32(ip), 2, 0)) != NULL


cdef bint is_static(const Worker* worker, uint32_t slot) noexcept nogil:
    """Whether a session's mapping is an entry's own: DNAT, 1:1, no-NAT."""
    return worker.mappings.mappings[worker.sessions.cold[slot].mapping].flags & MAPPING_STATIC


cdef const DnatRule* forwarding_rule(const Worker* worker, const Flight* flight) noexcept nogil:
    """The entry whose outside endpoint an inside endpoint has that speaks first (RFC 4787 REQ-1), or NULL.

    Of several the first added. An entry of several targets is that of the one which it would choose for the remote: so the
    remote's packets to that endpoint are for the same host, whoever speaks first.
    """
    cdef const DnatRule* rule
    cdef uint32_t source = bswap32(flight.ip.source)
    if has_ports(flight.protocol):
        rule = speaker_rule(worker.rules, dnat_key(source, space_of(flight.protocol), bswap16(<uint16_t>flight.ports)))
        if rule != NULL and dnat_target(rule, flow_hash(&worker.sessions.key, flight.ip.destination, rule.entry,
                                                        0)) == flight.ip.source:
            return rule
    return whole_rule(worker.rules, source)


# ---- from inside -----------------------------------------------------------------------------------------------------

cdef uint8_t screen_outbound(Worker* worker, const Frame* frame, const Flight* flight, Way* way) noexcept nogil:
    """Which entry lets the packet out, or why none does."""
    cdef uint32_t source = flight.ip.source, destination = flight.ip.destination
    cdef uint8_t flags = tcp_flags(flight), verdict
    way.snat = NULL
    way.forwarded = NULL
    way.plain = NULL
    if worker.link_address[INSIDE] and destination == worker.link_address[INSIDE]:
        return LOCAL
    way.hairpin = address_find(worker.mappings.ports, destination) != NONE
    if way.hairpin and not has_all(worker):         # its other session may be another worker's
        return ask_for_all(worker, DROP_UNSUPPORTED)
    if way.hairpin and flight.protocol == PROTOCOL_ICMP and not (worker.hairpin and is_whole(worker, destination)):
        return LOCAL if (<const IcmpHeader*>flight.l4).type == ICMP_ECHO_REQUEST else DROP_UNSUPPORTED
    if is_no_host(worker, source) or is_own(worker, source):
        return DROP_SPOOFED
    if is_no_host(worker, destination):
        return DROP_UNSUPPORTED
    if address_find(worker.mappings.ports, source) != NONE:
        return DROP_SPOOFED
    if worker.rules != NULL:
        if not way.hairpin:
            way.plain = plain_rule(worker.rules, bswap32(source), bswap32(destination))
        if way.plain == NULL:
            way.forwarded = forwarding_rule(worker, flight)
        if way.plain == NULL and way.forwarded == NULL:
            way.snat = snat_rule(worker.rules, bswap32(source))
    if way.plain == NULL and way.forwarded == NULL and way.snat == NULL:
        return DROP_NO_SNAT_ENTRY
    if way.hairpin and not (worker.hairpin and has_ports(flight.protocol)):     # without ports nobody is meant
        return DROP_UNSUPPORTED
    verdict = may_pass(worker, frame, flight, worker.mtu[INSIDE if way.hairpin else OUTSIDE])
    if verdict != PENDING:
        return verdict
    if flight.protocol == PROTOCOL_TCP and (flags & TCP_RST or (not flags & TCP_SYN and not worker.tcp_pickup)):
        return DROP_NO_MAPPING
    return PENDING


cdef uint8_t open_dynamic(Worker* worker, const MappingKey* key, const Pool* pool, const Clock* now,
                          uint32_t* mapping) noexcept nogil:
    """A new mapping with a port of the pool."""
    if over_quota(worker, key.inside_ip, True):
        reclaim_of(worker, key.inside_ip, now)
        if over_quota(worker, key.inside_ip, True):
            return refuse(worker, DROP_SUBSCRIBER_LIMIT, LIMIT_SUBSCRIBER_PORTS)
    if not (may_open_mapping(worker) and may_subscribe(worker, key.inside_ip)):
        reclaim_some(worker, now)
        if not may_open_mapping(worker):
            return refuse(worker, DROP_SESSION_LIMIT, LIMIT_MAPPINGS)
        if not may_subscribe(worker, key.inside_ip):
            return refuse(worker, DROP_SESSION_LIMIT, LIMIT_SUBSCRIBERS)
    mapping[0] = mapping_open(&worker.mappings, key, pool, now.ms)
    if mapping[0] == OVER_QUOTA:
        reclaim_of(worker, key.inside_ip, now)
        mapping[0] = mapping_open(&worker.mappings, key, pool, now.ms)
    if mapping[0] == NONE:
        reclaim_some(worker, now)
        mapping[0] = mapping_open(&worker.mappings, key, pool, now.ms)
    if mapping[0] == OVER_QUOTA:
        return refuse(worker, DROP_SUBSCRIBER_LIMIT, LIMIT_SUBSCRIBER_BLOCKS)
    if mapping[0] == NONE:
        return refuse(worker, DROP_PORTS_EXHAUSTED, LIMIT_POOL)
    return PENDING


cdef uint8_t may_have_more(Worker* worker, uint32_t inside_ip, const Clock* now) noexcept nogil:
    """Whether a subscriber may open one more session."""
    if over_rate(worker, inside_ip, now):
        return refuse(worker, DROP_RATE_LIMIT, LIMIT_SUBSCRIBER_RATE)
    if over_quota(worker, inside_ip, False):
        reclaim_of(worker, inside_ip, now)
        if over_quota(worker, inside_ip, False):
            return refuse(worker, DROP_SUBSCRIBER_LIMIT, LIMIT_SUBSCRIBER_SESSIONS)
    return PENDING


cdef uint8_t find_dynamic(Worker* worker, const MappingKey* key, const SnatRule* rule, const Clock* now,
                          uint32_t* mapping) noexcept nogil:
    """The live mapping of the inside endpoint, or a new one."""
    cdef uint8_t verdict = may_have_more(worker, key.inside_ip, now)
    if verdict != PENDING:
        return verdict
    mapping[0] = find_mapping(worker, key, now)
    return PENDING if mapping[0] != NONE else open_dynamic(worker, key, &rule.pool, now, mapping)


cdef inline uint16_t outside_port(const DnatRule* rule, uint16_t inside_port) noexcept nogil:
    """Of a DNAT entry's inside port, both big-endian."""
    return bswap16(<uint16_t>(rule.outside_port + bswap16(inside_port) - rule.inside_port))


cdef bint is_free(Worker* worker, uint32_t address, uint32_t remote_ip, uint8_t protocol, const Clock* now) noexcept nogil:
    """Whether an outside address (by number) has no live session with a remote over a protocol without ports."""
    return not is_taken(worker, <uint64_t>worker.mappings.ports.addresses[address].ip << 32 | remote_ip, 0, protocol, now)


cdef uint8_t open_elsewhere(Worker* worker, MappingKey* key, const SnatRule* rule, uint32_t remote_ip, const Clock* now,
                            uint32_t* mapping) noexcept nogil:
    """A new mapping over an address of the pool that no other host has towards the remote; DROP_CONFLICT: there is none.

    At most ADDRESSES_TRIED are looked at, from anywhere in the pool on.
    """
    cdef uint32_t addresses[ADDRESSES_TRIED]
    cdef uint32_t tries = ADDRESSES_TRIED // worker.shared.count, _step, at
    cdef Pool pool
    pool.entry = rule.pool.entry
    pool.first = rule.pool.first
    pool.size = 0
    pool.addresses = addresses
    pool.members = NULL                 # asked where ports are drawn
    pool.first_word = pool.words = 0
    pool.alone = True
    at = <uint32_t>((flow_hash(&worker.sessions.key, <uint64_t>remote_ip << 32 | key.inside_ip, 0, key.protocol) >> 32)
                    * rule.pool.size >> 32)
    for _step in range(rule.pool.size if rule.pool.size < tries else tries):
        if is_free(worker, rule.pool.addresses[at], remote_ip, key.protocol, now):
            addresses[pool.size] = rule.pool.addresses[at]
            pool.size += 1
        at = at + 1 if at + 1 < rule.pool.size else 0
    return open_dynamic(worker, key, &pool, now, mapping) if pool.size else DROP_CONFLICT


cdef bint has_pair(const Worker* worker, uint32_t inside_ip, const SnatRule* rule, uint32_t* address) noexcept nogil:
    """Whether a subscriber's mappings have one outside address (its number), which the next one has too."""
    cdef uint32_t who = subscriber_find(&worker.mappings, inside_ip)
    cdef const Subscriber* subscriber
    if who == NONE or worker.mappings.pooling == POOLING_ARBITRARY:
        return False
    subscriber = &worker.mappings.subscribers[who]
    address[0] = subscriber.address
    return subscriber.mappings and subscriber.entry == rule.pool.entry


cdef uint8_t find_portless(Worker* worker, MappingKey* key, const SnatRule* rule, uint32_t remote_ip, const Clock* now,
                           uint32_t* mapping) noexcept nogil:
    """The same for a protocol without ports: two hosts may not have one outside address towards one remote.

    Where the pooling allows it the second has another address, for this remote alone if it has one for the others.
    """
    cdef uint32_t own = NONE
    cdef bint computed = worker.mappings.ports.policy == PORTS_DETERMINISTIC
    cdef uint8_t verdict = may_have_more(worker, key.inside_ip, now)
    if verdict != PENDING:
        return verdict
    mapping[0] = find_mapping(worker, key, now)
    if mapping[0] != NONE:
        own = worker.mappings.mappings[mapping[0]].address
        if computed or worker.mappings.pooling == POOLING_PAIRED or is_free(worker, own, remote_ip, key.protocol, now):
            return PENDING
        key.remote_ip = remote_ip
        mapping[0] = find_mapping(worker, key, now)
        return PENDING if mapping[0] != NONE else open_elsewhere(worker, key, rule, remote_ip, now, mapping)
    if computed or (has_pair(worker, key.inside_ip, rule, &own)
                    and (worker.mappings.pooling == POOLING_PAIRED or is_free(worker, own, remote_ip, key.protocol, now))):
        return open_dynamic(worker, key, &rule.pool, now, mapping)
    return open_elsewhere(worker, key, rule, remote_ip, now, mapping)


cdef uint8_t find_way(Worker* worker, const Flight* flight, const Way* way, const Clock* now,
                      uint32_t* mapping) noexcept nogil:
    """The mapping by which a packet from inside leaves."""
    cdef MappingKey key
    cdef bint ported = has_ports(flight.protocol), dynamic = way.plain == NULL and way.forwarded == NULL
    dynamic_key(&key, flight.addresses, flight.ports, flight.protocol,
                dynamic and ported and worker.mapping[space_of(flight.protocol)])
    key.flags = 0 if ported else MAPPING_PORTLESS
    if way.plain != NULL:
        return find_static(worker, &key, way.plain.entry, key.inside_ip, key.inside_port, NONE, now, mapping)
    if way.forwarded != NULL:
        return find_static(worker, &key, way.forwarded.entry, way.forwarded.outside_ip,
                           outside_port(way.forwarded, key.inside_port) if ported else 0, way.forwarded.address, now, mapping)
    if not ported:
        return find_portless(worker, &key, way.snat, flight.ip.destination, now, mapping)
    return find_dynamic(worker, &key, way.snat, now, mapping)


cdef uint8_t admit_outbound(Worker* worker, Frame* frame, Flight* flight, const Clock* now,
                            uint32_t* slot) noexcept nogil:
    """A session for a packet from inside that has none, to be announced. PENDING: slot is its session; else why not."""
    cdef Way way
    cdef uint32_t mapping = NONE
    cdef uint16_t remote_port = <uint16_t>(flight.ports >> 16)
    cdef uint8_t verdict = screen_outbound(worker, frame, flight, &way), flags = 0
    if verdict != PENDING:
        return verdict
    flags = ((HAIRPINNED if way.hairpin else 0) | (UNLOGGED if way.snat == NULL else 0)
             | (UNTRANSLATED_BOTH if way.plain != NULL else 0))
    if over_gateway_rate(worker, now):
        verdict = refuse(worker, DROP_RATE_LIMIT, LIMIT_GATEWAY_RATE)
    elif has_slot(worker, now):
        verdict = find_way(worker, flight, &way, now, &mapping)
    else:
        verdict = refuse(worker, DROP_SESSION_LIMIT, LIMIT_SESSIONS)
    if verdict == PENDING:
        verdict = claim(worker, OUT, mapping, flight.ip.destination, remote_port, flags,
                        class_of(flight.protocol), now, slot)
    if verdict == PENDING:
        worker.sessions.hot[slot[0]].state = TCP_STEADY
        if flight.protocol == PROTOCOL_TCP:
            worker.sessions.hot[slot[0]].state = TCP_INIT_OUT if tcp_flags(flight) & TCP_SYN else TCP_PICKED
        return PENDING
    if verdict == DROP_CONFLICT:                    # whose endpoint is another's already: of ports there are enough
        worker.limit_met = LIMIT_NONE if way.snat == NULL or has_ports(flight.protocol) else LIMIT_POOL
    if DROP_PORTS_EXHAUSTED <= verdict <= DROP_CONFLICT:
        tell(worker, verdict, worker.limit_met, flight.ip.source, flight.ip.destination, remote_port,
             flight.protocol, now)
    return verdict


# ---- from outside ----------------------------------------------------------------------------------------------------

cdef uint8_t screen_inbound(Worker* worker, const Flight* flight, Endpoints* ends) noexcept nogil:
    """Where a packet from outside may be going, before any mapping is asked; ends is written."""
    ends.remote_ip = flight.ip.source
    ends.remote_port = <uint16_t>flight.ports
    ends.outside_ip = flight.ip.destination
    ends.outside_port = <uint16_t>(flight.ports >> 16)
    ends.address = address_find(worker.mappings.ports, ends.outside_ip)
    if ends.address == NONE and worker.link_address[OUTSIDE] and flight.ip.destination == worker.link_address[OUTSIDE]:
        return LOCAL
    if (is_no_host(worker, flight.ip.source) or is_own(worker, flight.ip.source)
            or address_find(worker.mappings.ports, flight.ip.source) != NONE
            or (worker.reverse_path_filter and worker.rules != NULL and is_inside(worker.rules, bswap32(flight.ip.source)))):
        return DROP_SPOOFED
    return PENDING if ends.address != NONE else DROP_NO_MAPPING


cdef uint8_t pass_filter(Worker* worker, const Endpoints* ends, const Flight* flight, const Clock* now) noexcept nogil:
    """Whether a remote without a session may open one over a mapping (RFC 4787 section 5)."""
    cdef uint8_t filtering = worker.filtering[space_of(flight.protocol)]
    if filtering == FILTER_NONE:
        return PENDING
    if (filtering == FILTER_ADDRESS and flight.protocol != PROTOCOL_ICMP
            and filter_open(&worker.sessions, ends.remote_ip, ends.outside_ip, ends.outside_port, flight.protocol,
                            not worker.inbound_refresh, now.ms)):
        return PENDING
    return DROP_FILTERED


cdef uint8_t find_entry(Worker* worker, const Endpoints* ends, uint8_t protocol, const Clock* now,
                        uint32_t* mapping) noexcept nogil:
    """The mapping of a DNAT entry's outside endpoint; the remote's address chooses among several targets."""
    cdef uint32_t space = space_of(protocol) if has_ports(protocol) else ANY_SPACE
    cdef uint32_t port = bswap16(ends.outside_port)
    cdef const DnatRule* rule = NULL
    cdef MappingKey key
    cdef uint8_t verdict
    if worker.rules != NULL:
        rule = dnat_rule(worker.rules, dnat_key(bswap32(ends.outside_ip), space, port))
    if rule == NULL:
        return DROP_NO_MAPPING
    key.inside_ip = dnat_target(rule, flow_hash(&worker.sessions.key, ends.remote_ip, rule.entry, 0))
    if worker.shared.count > 1 and owner_of_inside(bswap32(key.inside_ip), worker.shared.count) != worker.number:
        return ask_for_all(worker, DROP_NO_MAPPING)     # the entries have changed since the packet's owner was looked for
    key.inside_port = bswap16(<uint16_t>(rule.inside_port + port - rule.outside_port)) if space != ANY_SPACE else 0
    key.protocol = protocol
    key.flags = 0 if space != ANY_SPACE else MAPPING_PORTLESS
    verdict = find_static(worker, &key, rule.entry, ends.outside_ip, ends.outside_port, rule.address, now, mapping)
    if verdict == DROP_SESSION_LIMIT:
        tell(worker, verdict, worker.limit_met, key.inside_ip, ends.remote_ip, ends.remote_port, protocol,
             now)
    return verdict


cdef uint32_t own_holder(const Worker* worker, uint32_t address, uint32_t space, uint16_t port) noexcept nogil:
    """The worker's own mapping that has an outside port (host order), PORT_RESERVED, NONE, or PORT_OF_ANOTHER: a number in
    the tables of another worker. While the worker is held, its own mappings keep their ports."""
    cdef Ports* ports = worker.mappings.ports
    cdef uint32_t holder = worker.number, number = port_holder(ports, address, space, port, &holder)
    return number if holder == worker.number or ports.policy == PORTS_OVERLOAD else PORT_OF_ANOTHER


cdef inline bint opens(const Worker* worker, uint32_t mapping, uint8_t flags) noexcept nogil:
    """Whether a TCP segment from outside may open a session: a SYN; any but a RST at an entry's endpoint, if connections are
    picked up (after a restart they are there before their session, as those of the inside)."""
    if flags & TCP_RST:
        return False
    return flags & TCP_SYN or (worker.tcp_pickup and worker.mappings.mappings[mapping].flags & MAPPING_STATIC)


cdef uint8_t find_open(Worker* worker, const Endpoints* ends, const Flight* flight, const Clock* now,
                       uint32_t* mapping) noexcept nogil:
    """The live mapping or the entry behind an outside endpoint, if this remote may use it."""
    cdef uint32_t number = NONE
    cdef uint8_t flags = tcp_flags(flight), verdict = PENDING
    if ends.address == NONE:
        return DROP_NO_MAPPING
    if has_ports(flight.protocol):
        number = own_holder(worker, ends.address, space_of(flight.protocol), bswap16(ends.outside_port))
    if number == PORT_OF_ANOTHER:                   # it was drawn since the packet's owner was looked for
        return ask_for_all(worker, DROP_NO_MAPPING)
    if number == PORT_RESERVED or not has_ports(flight.protocol):
        verdict = find_entry(worker, ends, flight.protocol, now, mapping)
    elif number == NONE or worker.mappings.ports.policy == PORTS_OVERLOAD:
        return DROP_NO_MAPPING                      # overloaded: only its own session leads to a mapping
    elif worker.mappings.mappings[number].flags & MAPPING_DRAINING:
        return DROP_NO_MAPPING
    elif mapping_life(&worker.sessions, number, now.ms) == LIFE_SOME:
        if not worker.inbound_refresh and not mapping_answered(&worker.sessions, number, now.ms):
            return DROP_NO_MAPPING                  # by policy the outside does not keep it (RFC 4787 REQ-6)
        mapping[0] = number
        verdict = pass_filter(worker, ends, flight, now)
    else:
        expire_mapping(&worker.sessions, number, now.ns)
        return DROP_NO_MAPPING
    if verdict == PENDING and flight.protocol == PROTOCOL_TCP and not opens(worker, mapping[0], flags):
        verdict = DROP_FILTERED
        if worker.mappings.mappings[mapping[0]].sessions == 0:
            mapping_close(&worker.mappings, mapping[0], now.ms, now.ms)
    return verdict


cdef uint8_t admit_inbound(Worker* worker, const Frame* frame, const Endpoints* ends, Flight* flight, uint8_t flags,
                           const Clock* now, uint32_t* slot) noexcept nogil:
    """A session opened from outside, over what is open for this remote. PENDING: slot is it; else why not.

    frame: NULL for a hairpinned packet, which was asked before whether it may pass.
    """
    cdef uint32_t number = NONE
    cdef Mapping* mapping
    cdef uint8_t verdict = find_open(worker, ends, flight, now, &number)
    if verdict != PENDING:
        return verdict
    mapping = &worker.mappings.mappings[number]
    if mapping.inside_ip == ends.remote_ip:         # it would reach its own source: a land packet after translation
        verdict = DROP_SPOOFED
    elif frame != NULL:
        verdict = may_pass(worker, frame, flight, inside_mtu(worker, mapping.inside_ip))
    if verdict == PENDING and not below_caps(worker, number, now):
        verdict = DROP_OUTSIDE_LIMIT
    mapping.sessions += 1               # it stays, be all its sessions ended
    if verdict == PENDING and not has_slot(worker, now):
        verdict = DROP_SESSION_LIMIT
    mapping.sessions -= 1
    if verdict == DROP_SESSION_LIMIT or verdict == DROP_OUTSIDE_LIMIT:
        tell(worker, verdict, LIMIT_SESSIONS if verdict == DROP_SESSION_LIMIT else LIMIT_OUTSIDE,
             mapping.inside_ip, ends.remote_ip, ends.remote_port, flight.protocol, now)
    if verdict == PENDING:
        flags |= OPENED_OUTSIDE | (UNLOGGED if mapping.flags & MAPPING_STATIC else 0)
        verdict = claim(worker, IN, number, ends.remote_ip, ends.remote_port, flags, TIMEOUT_UNREPLIED, now, slot)
    elif mapping.sessions == 0:
        mapping_close(&worker.mappings, number, now.ms, now.ms)
    if verdict == PENDING:
        worker.sessions.hot[slot[0]].state = TCP_INIT_IN
        if flight.protocol == PROTOCOL_TCP and not tcp_flags(flight) & TCP_SYN:
            worker.sessions.hot[slot[0]].state = TCP_PICKED_IN
        watch_sessions(worker, now)
    return verdict


cdef void announce(Worker* worker, uint32_t slot, uint32_t direction, const Clock* now) noexcept nogil:
    """A new session stays: it has its create row, and counts if the inside opened it."""
    if direction == OUT:
        count_opened(worker, slot, now)
    session_announce(&worker.sessions, slot)

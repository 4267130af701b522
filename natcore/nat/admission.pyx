"""Admission of new sessions: checks in the order in which a packet can fail; a refusal leaves no state behind."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore.tables.port_allocation cimport OVER_QUOTA
from natcore.log.events cimport event_note
from natcore.workers.limits cimport (
    LIMIT_GATEWAY_RATE, LIMIT_MAPPINGS, LIMIT_NONE, LIMIT_OUTSIDE, LIMIT_POOL, LIMIT_SESSIONS, LIMIT_SUBSCRIBER_BLOCKS,
    LIMIT_SUBSCRIBERS, LIMIT_SUBSCRIBER_PORTS, LIMIT_SUBSCRIBER_RATE, LIMIT_SUBSCRIBER_SESSIONS, below_caps, count_opened,
    may_open_mapping, may_open_session, may_subscribe, over_gateway_rate, over_quota, over_rate, reclaim_own, reclaim_shared,
    check_session_threshold,
)
from natcore.tables.mappings cimport (
    MAPPING_DRAINING, MAPPING_PORTLESS, MAPPING_STATIC, POOLING_ARBITRARY, POOLING_PAIRED, Mapping, MappingKey,
    Subscriber, dynamic_key, mapping_close, mapping_find, mapping_open, mapping_open_static, subscriber_find,
)
from natcore.packet.parse cimport Packet, wire_length
from natcore.tables.ports cimport (
    PORT_OF_HOST, PORT_OF_OTHER_WORKER, PORT_RESERVED, PORTS_DETERMINISTIC, PORTS_OVERLOAD, Pool, Ports, address_find,
    has_ports, host_has, is_shared, port_holder, space_of,
)
from natcore.tables.entries cimport (
    ANY_SPACE, DnatRange, DnatRule, NoNatRule, SnatRule, dnat_key, dnat_rule, dnat_target, is_inside, next_of_inside,
    no_nat_rule, one_to_one_rule, range_of_inside, snat_rule,
)
from natcore.tables.sessions cimport (
    HAIRPINNED, IN, LIFE_SOME, OPENED_OUTSIDE, OUT, TIMEOUT_UNREPLIED, UNLOGGED, UNTRANSLATED_BOTH, class_of, filter_open,
    inbound_hash, is_over, mapping_answered, mapping_life, create_row_write, outbound_hash, session_find, session_open,
)
from natcore.nat.fragmentation cimport may_fragment
from natcore.workers.expiry cimport expire, expire_mapping
from natcore.tables.tcp_state cimport TCP_INIT_IN, TCP_INIT_OUT, TCP_PICKED, TCP_PICKED_IN, TCP_STEADY
from natcore.base.flow_hash cimport flow_hash
from natcore.base.hash_table cimport index_may_have
from natcore.frame cimport Frame
from natcore.base.compiler cimport bswap16, bswap32, likely
from natcore.base.sentinels cimport NONE
from natcore.workers.configuration cimport FILTER_ADDRESS, FILTER_NONE
from natcore.workers.worker cimport Clock, Worker, holds_all_locks, worker_of_inside
from natcore.packet.verdict cimport (
    DROP_CONFLICT, DROP_FILTERED, DROP_MTU, DROP_NO_MAPPING, DROP_NO_SNAT_ENTRY, DROP_OUTSIDE_LIMIT,
    DROP_PORTS_EXHAUSTED, DROP_PROBE_LIMIT, DROP_RATE_LIMIT, DROP_SESSION_LIMIT, DROP_SPOOFED, DROP_SUBSCRIBER_LIMIT,
    DROP_TTL, DROP_UNSUPPORTED, INSIDE, LOCAL, OUTSIDE, PENDING,
)
from natcore.base.headers cimport ICMP_ECHO_REQUEST, PROTOCOL_ICMP, PROTOCOL_TCP, TCP_RST, TCP_SYN, IcmpHeader, TcpHeader


cdef enum:
    LINK_LOCAL = 0xA9FE         # first two bytes of 169.254/16
    BROADCAST = 0xFFFFFFFF
    PORTLESS_SEARCH_MOST = 256  # addresses of a pool that are looked at for a protocol without ports, summed over workers

cdef struct OutboundMatch:                # the entry by which a packet from inside leaves: one of the three
    const SnatRule* snat
    const DnatRule* dnat        # DNAT or 1:1 entry with the source as a target
    const NoNatRule* no_nat
    bint hairpin                # the destination is one of our outside addresses


cdef bint is_martian(const Worker* worker, uint32_t ip) noexcept nogil:
    """0/8, 127/8, 224/3 and 169.254/16 (big-endian): not valid as source or destination (RFC 1812 5.3.7, RFC 3927 section 7)
    unless the policy allows them."""
    cdef uint32_t host = bswap32(ip), first = host >> 24
    if host >> 16 == LINK_LOCAL:
        return not worker.configuration.link_local
    if first >= 240 and host != BROADCAST:
        return not worker.configuration.class_e
    return first == 0 or first == 127 or first >= 224


cdef inline bint is_gateway_address(const Worker* worker, uint32_t ip) noexcept nogil:
    """Whether an address (big-endian) is the gateway's own: a packet with this source is spoofed."""
    return ip != 0 and (ip == worker.links.address[INSIDE] or ip == worker.links.address[OUTSIDE])


cdef uint8_t may_pass(Worker* worker, const Frame* frame, const Packet* packet, uint32_t mtu) noexcept nogil:
    """The checks of a router before forwarding: TTL, and the MTU of the next link unless the packet may be fragmented."""
    if packet.ip.ttl < worker.configuration.lowest_ttl:
        return DROP_TTL
    if wire_length(frame, packet) <= mtu:
        return PENDING
    worker.exceeded_mtu = mtu
    if not holds_all_locks(worker):    # fragments are written with all locked, when the MTU may be another one
        return repeat_with_all_locked(worker, DROP_MTU)
    return PENDING if may_fragment(worker.outbox, frame, packet, mtu) else DROP_MTU


cdef bint is_shared_address(const Worker* worker, uint32_t ip) noexcept nogil:
    """Whether an address (big-endian) is an outside address that the gateway's host has too, and no 1:1 entry."""
    return is_shared(worker.mappings.ports, address_find(worker.mappings.ports, ip)) and not is_one_to_one(worker, ip)


cdef bint is_for_host(const Worker* worker, uint32_t address, const Packet* packet) noexcept nogil:
    """Whether a packet to an outside address (by index) is for the host that has it too: one to a port of the host's, ICMP,
    and protocols without ports. ICMP of the gateway's sessions was found before."""
    if not is_shared(worker.mappings.ports, address):
        return False
    if packet.protocol == PROTOCOL_ICMP or not has_ports(packet.protocol):
        return not is_one_to_one(worker, packet.ip.destination)
    return host_has(&worker.mappings.ports.addresses[address], space_of(packet.protocol),
                    bswap16(<uint16_t>(packet.ports >> 16)))


cdef uint8_t tcp_flags(const Packet* packet) noexcept nogil:
    return (<const TcpHeader*>packet.l4).flags if packet.protocol == PROTOCOL_TCP else 0


cdef uint8_t repeat_with_all_locked(Worker* worker, uint8_t verdict) noexcept nogil:
    """Requests that the packet is repeated with all workers locked, since its state may be another worker's. verdict: returned
    if all are locked already."""
    worker.needs_all_locked = not holds_all_locks(worker)
    return verdict


# ---- both directions -------------------------------------------------------------------------------------------------

cdef uint8_t refuse(Worker* worker, uint8_t verdict, uint8_t limit) noexcept nogil:
    """Returns the verdict, and records the limit that its event will name."""
    worker.reached_limit = limit
    return verdict


cdef void report_drop(Worker* worker, uint8_t verdict, uint8_t limit, uint32_t subscriber, uint32_t destination, uint16_t port,
                      uint8_t protocol, const Clock* now) noexcept nogil:
    """Reports a refusal as an event, unless the packet will be repeated."""
    if not worker.needs_all_locked:
        worker.refused[limit] += 1
        event_note(worker.events, verdict, limit, subscriber, destination, port, protocol, now.ns)


cdef inline bint has_slot(Worker* worker, const Clock* now) noexcept nogil:
    if may_open_session(worker):
        return True
    reclaim_shared(worker, now)
    return may_open_session(worker)


cdef inline uint32_t find_mapping(Worker* worker, const MappingKey* key, const Clock* now) noexcept nogil:
    """The live mapping, or NONE; a dead one is ended. A mapping with more dead sessions than one packet may examine counts as
    live, so that its inside endpoint keeps it."""
    cdef uint32_t number = mapping_find(&worker.mappings, key)
    if number != NONE and mapping_life(&worker.sessions, number, now.ms) != LIFE_SOME:
        expire_mapping(&worker.sessions, number, now.ns)
        if worker.mappings.mappings[number].sessions == 0:
            return NONE
    return number


cdef uint8_t find_static(Worker* worker, MappingKey* key, uint32_t entry, uint32_t outside_ip, uint16_t outside_port,
                         uint32_t address, const Clock* now, uint32_t* mapping) noexcept nogil:
    """Finds or opens the mapping of an inside endpoint to the outside endpoint that an entry defines."""
    key.flags |= MAPPING_STATIC
    key.remote_ip = outside_ip
    key.remote_port = outside_port
    mapping[0] = find_mapping(worker, key, now)
    if mapping[0] != NONE:
        return PENDING
    if not may_open_mapping(worker):
        reclaim_shared(worker, now)
        if not may_open_mapping(worker):
            return refuse(worker, DROP_SESSION_LIMIT, LIMIT_MAPPINGS)
    mapping[0] = mapping_open_static(&worker.mappings, key, entry, outside_ip, outside_port, address)
    return DROP_PROBE_LIMIT if mapping[0] == NONE else PENDING


cdef uint32_t find_live(Worker* worker, uint32_t direction, uint64_t addresses, uint32_t ports, uint8_t protocol,
                        const Clock* now) noexcept nogil:
    """The live session with this key, or NONE; a dead one is ended."""
    cdef uint32_t slot = session_find(&worker.sessions, direction, addresses, ports, protocol)
    if slot != NONE and is_over(&worker.sessions, slot, now.ms):
        expire(&worker.sessions, slot, now.ns)
        return NONE
    return slot


cdef bint is_taken(Worker* worker, uint64_t addresses, uint32_t ports, uint8_t protocol, const Clock* now) noexcept nogil:
    """Whether a live session has this inbound key. Without ports it may be any worker's."""
    cdef uint32_t i
    if has_ports(protocol) or worker.shared.count == 1:
        return find_live(worker, IN, addresses, ports, protocol, now) != NONE
    for i in range(worker.shared.count):
        if find_live(worker.shared.workers[i], IN, addresses, ports, protocol, now) != NONE:
            return True
    return False


cdef uint8_t open_unless_taken(Worker* worker, uint32_t direction, uint64_t hash, uint32_t mapping, uint32_t remote_ip,
                               uint16_t remote_port, uint8_t flags, uint8_t timeout_class, const Clock* now,
                               uint32_t* slot) noexcept nogil:
    """Opens the session, unless one of its keys is in use; on failure a mapping without sessions is closed again.

    The key of the packet itself, with this hash, was just looked up, without result. Outbound, the inbound key can only be in
    use where the outside endpoint was not allocated: an allocated one belongs to one mapping. The session count keeps the
    mapping meanwhile, even if all its other sessions end.
    """
    cdef Mapping* owner = &worker.mappings.mappings[mapping]
    cdef uint64_t outbound = hash, inbound = hash
    cdef uint8_t verdict = PENDING
    if direction == OUT:
        inbound = inbound_hash(&worker.sessions, owner, remote_ip, remote_port)
    else:
        outbound = outbound_hash(&worker.sessions, owner, remote_ip, remote_port)
    owner.sessions += 1
    if ((owner.flags & (MAPPING_STATIC | MAPPING_PORTLESS) == MAPPING_PORTLESS
         and is_shared(worker.mappings.ports, owner.address))       # the host has these protocols
            or (owner.flags & (MAPPING_STATIC | MAPPING_PORTLESS)
                and is_taken(worker, <uint64_t>owner.outside_ip << 32 | remote_ip,
                             <uint32_t>owner.outside_port << 16 | remote_port, owner.protocol, now))
            or (direction == IN and index_may_have(&worker.sessions.index[OUT], outbound)
                and find_live(worker, OUT, <uint64_t>remote_ip << 32 | owner.inside_ip,
                              <uint32_t>remote_port << 16 | owner.inside_port, owner.protocol, now) != NONE)):
        verdict = DROP_CONFLICT
    owner.sessions -= 1
    if verdict == PENDING:
        slot[0] = session_open(&worker.sessions, mapping, remote_ip, remote_port, outbound, inbound, flags, timeout_class,
                               now.ns)
        if slot[0] != NONE:
            return PENDING
        verdict = DROP_PROBE_LIMIT
    if owner.sessions == 0:
        mapping_close(&worker.mappings, mapping, owner.held_until, now.ms)
    return verdict


cdef bint is_one_to_one(const Worker* worker, uint32_t ip) noexcept nogil:
    """Whether an outside address (big-endian) belongs to a 1:1 entry: then echo requests are for the inside host."""
    return worker.rules != NULL and dnat_rule(worker.rules, dnat_key(bswap32(ip), 2, 0)) != NULL


cdef bint is_static(const Worker* worker, uint32_t slot) noexcept nogil:
    """Whether a session's mapping is defined by an entry: DNAT, 1:1, no-NAT."""
    return worker.mappings.mappings[worker.sessions.cold[slot].mapping].flags & MAPPING_STATIC


cdef const DnatRule* dnat_rule_of_inside(const Worker* worker, const Packet* packet) noexcept nogil:
    """The DNAT or 1:1 entry for an inside endpoint that sends first (RFC 4787 REQ-1), or NULL.

    Of several entries the first added that applies. One with several targets applies if it would choose this one for the
    remote, so that packets in either direction reach the same host, whichever side sends first.
    """
    cdef const DnatRange* at = NULL
    cdef uint32_t source = bswap32(packet.ip.source)
    if likely(worker.rules.inside_endpoint_count == 0 and worker.rules.one_to_one_count == 0):
        return NULL
    if has_ports(packet.protocol):
        at = range_of_inside(worker.rules, dnat_key(source, space_of(packet.protocol), bswap16(<uint16_t>packet.ports)))
    while at != NULL:
        if dnat_target(at.rule, flow_hash(&worker.sessions.key, packet.ip.destination, at.rule.entry, 0)) == packet.ip.source:
            return at.rule
        at = next_of_inside(worker.rules, at)
    return one_to_one_rule(worker.rules, source)


# ---- outbound --------------------------------------------------------------------------------------------------------

cdef uint8_t screen_outbound(Worker* worker, const Frame* frame, const Packet* packet, OutboundMatch* match) noexcept nogil:
    """Finds the entry that lets the packet out, or the reason why none does."""
    cdef uint32_t source = packet.ip.source, destination = packet.ip.destination, address
    cdef uint8_t flags = tcp_flags(packet), verdict
    match.snat = NULL
    match.dnat = NULL
    match.no_nat = NULL
    if worker.links.address[INSIDE] and destination == worker.links.address[INSIDE]:
        return LOCAL
    address = address_find(worker.mappings.ports, destination)
    match.hairpin = address != NONE
    if match.hairpin and is_for_host(worker, address, packet):
        return LOCAL
    if match.hairpin and not holds_all_locks(worker):         # the second session may be another worker's
        return repeat_with_all_locked(worker, DROP_UNSUPPORTED)
    if (match.hairpin and packet.protocol == PROTOCOL_ICMP
            and not (worker.configuration.hairpin and is_one_to_one(worker, destination))):
        return LOCAL if (<const IcmpHeader*>packet.l4).type == ICMP_ECHO_REQUEST else DROP_UNSUPPORTED
    if is_martian(worker, source) or is_gateway_address(worker, source):
        return DROP_SPOOFED
    if is_martian(worker, destination):
        return DROP_UNSUPPORTED
    if address_find(worker.mappings.ports, source) != NONE:
        return DROP_SPOOFED
    if worker.rules != NULL:
        if not match.hairpin:
            match.no_nat = no_nat_rule(worker.rules, bswap32(source), bswap32(destination))
        if match.no_nat == NULL:
            match.dnat = dnat_rule_of_inside(worker, packet)
        if match.no_nat == NULL and match.dnat == NULL:
            match.snat = snat_rule(worker.rules, bswap32(source))
    if match.no_nat == NULL and match.dnat == NULL and match.snat == NULL:
        return DROP_NO_SNAT_ENTRY
    if match.hairpin and not (worker.configuration.hairpin and has_ports(packet.protocol)):     # without ports: no target
        return DROP_UNSUPPORTED
    verdict = may_pass(worker, frame, packet, worker.links.mtu[INSIDE if match.hairpin else OUTSIDE])
    if verdict != PENDING:
        return verdict
    if packet.protocol == PROTOCOL_TCP and (flags & TCP_RST or (not flags & TCP_SYN and not worker.configuration.tcp_pickup)):
        return DROP_NO_MAPPING
    return PENDING


cdef inline uint8_t may_have_mapping(Worker* worker, uint32_t inside_ip, const Clock* now) noexcept nogil:
    """Whether the subscriber may open another mapping; PENDING or a drop. What is dead may end for it, a pairing with it."""
    if over_quota(worker, inside_ip, True):
        reclaim_own(worker, inside_ip, now)
        if over_quota(worker, inside_ip, True):
            return refuse(worker, DROP_SUBSCRIBER_LIMIT, LIMIT_SUBSCRIBER_PORTS)
    if not (may_open_mapping(worker) and may_subscribe(worker, inside_ip)):
        reclaim_shared(worker, now)
        if not may_open_mapping(worker):
            return refuse(worker, DROP_SESSION_LIMIT, LIMIT_MAPPINGS)
        if not may_subscribe(worker, inside_ip):
            return refuse(worker, DROP_SESSION_LIMIT, LIMIT_SUBSCRIBERS)
    return PENDING


cdef uint8_t open_dynamic(Worker* worker, const MappingKey* key, const Pool* pool, const Clock* now,
                          uint32_t* mapping) noexcept nogil:
    """Opens a mapping with a port allocated from the pool. may_have_mapping comes before."""
    mapping[0] = mapping_open(&worker.mappings, key, pool, now.ms)
    if likely(mapping[0] < OVER_QUOTA):
        return PENDING
    if mapping[0] == OVER_QUOTA:
        reclaim_own(worker, key.inside_ip, now)
        mapping[0] = mapping_open(&worker.mappings, key, pool, now.ms)
    if mapping[0] == NONE:
        reclaim_shared(worker, now)
        mapping[0] = mapping_open(&worker.mappings, key, pool, now.ms)
    if mapping[0] == OVER_QUOTA:
        return refuse(worker, DROP_SUBSCRIBER_LIMIT, LIMIT_SUBSCRIBER_BLOCKS)
    if mapping[0] == NONE:
        return refuse(worker, DROP_PORTS_EXHAUSTED, LIMIT_POOL)
    return PENDING


cdef uint8_t may_have_more(Worker* worker, uint32_t inside_ip, const Clock* now) noexcept nogil:
    """Whether a subscriber may open another session; PENDING or a drop."""
    if over_rate(worker, inside_ip, now):
        return refuse(worker, DROP_RATE_LIMIT, LIMIT_SUBSCRIBER_RATE)
    if over_quota(worker, inside_ip, False):
        reclaim_own(worker, inside_ip, now)
        if over_quota(worker, inside_ip, False):
            return refuse(worker, DROP_SUBSCRIBER_LIMIT, LIMIT_SUBSCRIBER_SESSIONS)
    return PENDING


cdef uint8_t find_dynamic(Worker* worker, const MappingKey* key, const SnatRule* rule, const Clock* now,
                          uint32_t* mapping) noexcept nogil:
    """Finds the live mapping of the inside endpoint, or opens one."""
    cdef uint8_t verdict = may_have_more(worker, key.inside_ip, now)
    if verdict != PENDING:
        return verdict
    mapping[0] = find_mapping(worker, key, now)
    if mapping[0] != NONE:
        return PENDING
    verdict = may_have_mapping(worker, key.inside_ip, now)
    return open_dynamic(worker, key, &rule.pool, now, mapping) if verdict == PENDING else verdict


cdef inline uint16_t outside_port(const DnatRule* rule, uint16_t inside_port) noexcept nogil:
    """The outside port of a DNAT entry for an inside port, both big-endian."""
    return bswap16(<uint16_t>(rule.outside_port + bswap16(inside_port) - rule.inside_port))


cdef bint is_free(Worker* worker, uint32_t address, uint32_t remote_ip, uint8_t protocol, const Clock* now) noexcept nogil:
    """Whether neither a live session uses an outside address (by index) towards a remote, nor the host has it, for a protocol
    without ports."""
    return not is_shared(worker.mappings.ports, address) and not is_taken(
        worker, <uint64_t>worker.mappings.ports.addresses[address].ip << 32 | remote_ip, 0, protocol, now)


cdef uint8_t open_on_other_address(Worker* worker, MappingKey* key, const SnatRule* rule, uint32_t remote_ip, const Clock* now,
                                   uint32_t* mapping) noexcept nogil:
    """Opens a mapping over a pool address that no other host uses towards the remote; DROP_CONFLICT: there is none.

    At most PORTLESS_SEARCH_MOST are looked at, from anywhere in the pool on.
    """
    cdef uint32_t addresses[PORTLESS_SEARCH_MOST]
    cdef uint32_t tries = PORTLESS_SEARCH_MOST // worker.shared.count, _step, at
    cdef Pool pool
    pool.entry = rule.pool.entry
    pool.first = rule.pool.first
    pool.size = 0
    pool.addresses = addresses
    pool.members = NULL                 # only needed to allocate ports
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


cdef bint has_paired_address(const Worker* worker, uint32_t inside_ip, const SnatRule* rule, uint32_t* address) noexcept nogil:
    """Whether the subscriber is paired with an outside address of this entry (its index)."""
    cdef uint32_t who = subscriber_find(&worker.mappings, inside_ip)
    cdef const Subscriber* subscriber
    if who == NONE or worker.mappings.pooling == POOLING_ARBITRARY:
        return False
    subscriber = &worker.mappings.subscribers[who]
    address[0] = subscriber.address
    return subscriber.mappings and subscriber.entry == rule.pool.entry


cdef uint8_t find_portless(Worker* worker, MappingKey* key, const SnatRule* rule, uint32_t remote_ip, const Clock* now,
                           uint32_t* mapping) noexcept nogil:
    """As find_dynamic for protocols without ports: two hosts cannot share an outside address towards one remote.

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
        if mapping[0] != NONE:
            return PENDING
    verdict = may_have_mapping(worker, key.inside_ip, now)
    if verdict != PENDING:
        return verdict
    if own != NONE:
        return open_on_other_address(worker, key, rule, remote_ip, now, mapping)
    if computed or (has_paired_address(worker, key.inside_ip, rule, &own)
                    and (worker.mappings.pooling == POOLING_PAIRED or is_free(worker, own, remote_ip, key.protocol, now))):
        return open_dynamic(worker, key, &rule.pool, now, mapping)
    return open_on_other_address(worker, key, rule, remote_ip, now, mapping)


cdef uint8_t find_outbound_mapping(Worker* worker, const Packet* packet, const OutboundMatch* match, const Clock* now,
                                   uint32_t* mapping) noexcept nogil:
    """Finds or opens the mapping by which a packet from inside leaves."""
    cdef MappingKey key
    cdef bint ported = has_ports(packet.protocol), dynamic = match.no_nat == NULL and match.dnat == NULL
    dynamic_key(&key, packet.addresses, packet.ports, packet.protocol,
                dynamic and ported and worker.configuration.mapping[space_of(packet.protocol)])
    key.flags = 0 if ported else MAPPING_PORTLESS
    if match.no_nat != NULL:
        return find_static(worker, &key, match.no_nat.entry, key.inside_ip, key.inside_port, NONE, now, mapping)
    if match.dnat != NULL:
        return find_static(worker, &key, match.dnat.entry, match.dnat.outside_ip,
                           outside_port(match.dnat, key.inside_port) if ported else 0, match.dnat.address,
                           now, mapping)
    if not ported:
        return find_portless(worker, &key, match.snat, packet.ip.destination, now, mapping)
    return find_dynamic(worker, &key, match.snat, now, mapping)


cdef uint8_t admit_outbound(Worker* worker, Frame* frame, Packet* packet, const Clock* now,
                            uint32_t* slot) noexcept nogil:
    """Opens a session for a packet from inside; log it with log_new_session. PENDING: slot is set; otherwise the reason."""
    cdef OutboundMatch match
    cdef uint32_t mapping = NONE
    cdef uint16_t remote_port = <uint16_t>(packet.ports >> 16)
    cdef uint8_t verdict = screen_outbound(worker, frame, packet, &match), flags = 0
    if verdict != PENDING:
        return verdict
    flags = ((HAIRPINNED if match.hairpin else 0) | (UNLOGGED if match.snat == NULL else 0)
             | (UNTRANSLATED_BOTH if match.no_nat != NULL else 0))
    if over_gateway_rate(worker, now):
        verdict = refuse(worker, DROP_RATE_LIMIT, LIMIT_GATEWAY_RATE)
    elif has_slot(worker, now):
        verdict = find_outbound_mapping(worker, packet, &match, now, &mapping)
    else:
        verdict = refuse(worker, DROP_SESSION_LIMIT, LIMIT_SESSIONS)
    if verdict == PENDING:
        verdict = open_unless_taken(worker, OUT, packet.hash, mapping, packet.ip.destination, remote_port, flags,
                                    class_of(packet.protocol), now, slot)
    if verdict == PENDING:
        worker.sessions.hot[slot[0]].state = TCP_STEADY
        if packet.protocol == PROTOCOL_TCP:
            worker.sessions.hot[slot[0]].state = TCP_INIT_OUT if tcp_flags(packet) & TCP_SYN else TCP_PICKED
        return PENDING
    if verdict == DROP_CONFLICT:                    # the endpoint is in use: with ports that is no lack of addresses
        worker.reached_limit = LIMIT_NONE if match.snat == NULL or has_ports(packet.protocol) else LIMIT_POOL
    if DROP_PORTS_EXHAUSTED <= verdict <= DROP_CONFLICT:
        report_drop(worker, verdict, worker.reached_limit, packet.ip.source, packet.ip.destination, remote_port,
                    packet.protocol, now)
    return verdict


# ---- inbound ---------------------------------------------------------------------------------------------------------

cdef uint8_t screen_inbound(Worker* worker, const Packet* packet, Endpoints* ends) noexcept nogil:
    """Checks the addresses of a packet from outside, before mappings are looked up; writes ends."""
    ends.remote_ip = packet.ip.source
    ends.remote_port = <uint16_t>packet.ports
    ends.outside_ip = packet.ip.destination
    ends.outside_port = <uint16_t>(packet.ports >> 16)
    ends.address = address_find(worker.mappings.ports, ends.outside_ip)
    if ends.address == NONE and worker.links.address[OUTSIDE] and packet.ip.destination == worker.links.address[OUTSIDE]:
        return LOCAL
    if (is_martian(worker, packet.ip.source) or is_gateway_address(worker, packet.ip.source)
            or address_find(worker.mappings.ports, packet.ip.source) != NONE
            or ((worker.configuration.reverse_path_filter or worker.links.reverse_path_filter)
                and worker.rules != NULL and is_inside(worker.rules, bswap32(packet.ip.source)))):
        return DROP_SPOOFED
    return PENDING if ends.address != NONE else DROP_NO_MAPPING


cdef uint8_t pass_filter(Worker* worker, const Endpoints* ends, const Packet* packet, const Clock* now) noexcept nogil:
    """Whether a remote without a session may open one through a mapping (RFC 4787 section 5)."""
    cdef uint8_t filtering = worker.configuration.filtering[space_of(packet.protocol)]
    if filtering == FILTER_NONE:
        return PENDING
    if (filtering == FILTER_ADDRESS and packet.protocol != PROTOCOL_ICMP
            and filter_open(&worker.sessions, ends.remote_ip, ends.outside_ip, ends.outside_port, packet.protocol,
                            not worker.configuration.inbound_refresh, now.ms)):
        return PENDING
    return DROP_FILTERED


cdef uint8_t find_dnat_mapping(Worker* worker, const Endpoints* ends, uint8_t protocol, const Clock* now,
                               uint32_t* mapping) noexcept nogil:
    """Finds or opens the mapping of a DNAT entry's outside endpoint; with several targets the remote's address selects one."""
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
    if worker.shared.count > 1 and worker_of_inside(bswap32(key.inside_ip), worker.shared.count) != worker.number:
        return repeat_with_all_locked(worker, DROP_NO_MAPPING)     # entries changed after the owner was found
    key.inside_port = bswap16(<uint16_t>(rule.inside_port + port - rule.outside_port)) if space != ANY_SPACE else 0
    key.protocol = protocol
    key.flags = 0 if space != ANY_SPACE else MAPPING_PORTLESS
    verdict = find_static(worker, &key, rule.entry, ends.outside_ip, ends.outside_port, rule.address, now, mapping)
    if verdict == DROP_SESSION_LIMIT:
        report_drop(worker, verdict, worker.reached_limit, key.inside_ip, ends.remote_ip, ends.remote_port, protocol,
                    now)
    return verdict


cdef uint32_t own_mapping_of_port(const Worker* worker, uint32_t address, uint32_t space, uint16_t port) noexcept nogil:
    """The worker's own mapping that uses an outside port (host order), PORT_RESERVED, PORT_OF_HOST, NONE, or
    PORT_OF_OTHER_WORKER: then the number belongs to another worker's tables. While the worker is locked, its own mappings keep
    their ports."""
    cdef Ports* ports = worker.mappings.ports
    cdef uint32_t holder = worker.number, number = port_holder(ports, address, space, port, &holder)
    return number if holder == worker.number or ports.policy == PORTS_OVERLOAD else PORT_OF_OTHER_WORKER


cdef inline bint may_open_tcp(const Worker* worker, uint32_t mapping, uint8_t flags) noexcept nogil:
    """Whether a TCP segment from outside may open a session: a SYN; with tcp_pickup also others but a RST, at an entry's
    endpoint (after a restart, connections exist before their sessions)."""
    if flags & TCP_RST:
        return False
    return flags & TCP_SYN or (worker.configuration.tcp_pickup and worker.mappings.mappings[mapping].flags & MAPPING_STATIC)


cdef uint8_t find_open(Worker* worker, const Endpoints* ends, const Packet* packet, const Clock* now,
                       uint32_t* mapping) noexcept nogil:
    """Finds the live mapping or the entry behind an outside endpoint, if this remote may use it."""
    cdef uint32_t number = NONE
    cdef uint8_t flags = tcp_flags(packet), verdict = PENDING
    if ends.address == NONE:
        return DROP_NO_MAPPING
    if has_ports(packet.protocol):
        number = own_mapping_of_port(worker, ends.address, space_of(packet.protocol), bswap16(ends.outside_port))
    if number == PORT_OF_OTHER_WORKER:                   # allocated after the owner was found
        return repeat_with_all_locked(worker, DROP_NO_MAPPING)
    if number == PORT_RESERVED or not has_ports(packet.protocol):
        verdict = find_dnat_mapping(worker, ends, packet.protocol, now, mapping)
    elif number == NONE or number == PORT_OF_HOST or worker.mappings.ports.policy == PORTS_OVERLOAD:
        return DROP_NO_MAPPING                      # overloaded ports are reached through sessions only
    elif worker.mappings.mappings[number].flags & MAPPING_DRAINING:
        return DROP_NO_MAPPING
    elif mapping_life(&worker.sessions, number, now.ms) == LIFE_SOME:
        if not worker.configuration.inbound_refresh and not mapping_answered(&worker.sessions, number, now.ms):
            return DROP_NO_MAPPING                  # by policy, inbound packets do not keep it open (RFC 4787 REQ-6)
        mapping[0] = number
        verdict = pass_filter(worker, ends, packet, now)
    else:
        expire_mapping(&worker.sessions, number, now.ns)
        return DROP_NO_MAPPING
    if verdict == PENDING and packet.protocol == PROTOCOL_TCP and not may_open_tcp(worker, mapping[0], flags):
        verdict = DROP_FILTERED
        if worker.mappings.mappings[mapping[0]].sessions == 0:
            mapping_close(&worker.mappings, mapping[0], now.ms, now.ms)
    return verdict


cdef uint8_t admit_inbound(Worker* worker, const Frame* frame, const Endpoints* ends, Packet* packet, uint8_t flags,
                           const Clock* now, uint32_t* slot) noexcept nogil:
    """Opens a session from outside through what is open for this remote. PENDING: slot is set; otherwise the reason.

    frame: NULL for a hairpinned packet, which was asked before whether it may pass.
    """
    cdef uint32_t number = NONE
    cdef uint64_t hash
    cdef Mapping* mapping
    cdef uint8_t verdict = find_open(worker, ends, packet, now, &number)
    if verdict != PENDING:
        if (is_shared(worker.mappings.ports, ends.address) and (verdict == DROP_NO_MAPPING or verdict == DROP_FILTERED)
                and frame != NULL and not worker.needs_all_locked and is_for_host(worker, ends.address, packet)):
            return LOCAL
        return verdict
    mapping = &worker.mappings.mappings[number]
    if mapping.inside_ip == ends.remote_ip:         # after translation, source and destination would be equal
        verdict = DROP_SPOOFED
    elif frame != NULL:
        verdict = may_pass(worker, frame, packet, inside_mtu(worker, mapping.inside_ip))
    if verdict == PENDING and not below_caps(worker, number, now):
        verdict = DROP_OUTSIDE_LIMIT
    mapping.sessions += 1               # keeps the mapping even if all its sessions end
    if verdict == PENDING and not has_slot(worker, now):
        verdict = DROP_SESSION_LIMIT
    mapping.sessions -= 1
    if verdict == DROP_SESSION_LIMIT or verdict == DROP_OUTSIDE_LIMIT:
        report_drop(worker, verdict, LIMIT_SESSIONS if verdict == DROP_SESSION_LIMIT else LIMIT_OUTSIDE,
                    mapping.inside_ip, ends.remote_ip, ends.remote_port, packet.protocol, now)
    if verdict == PENDING:
        flags |= OPENED_OUTSIDE | (UNLOGGED if mapping.flags & MAPPING_STATIC else 0)
        hash = packet.hash
        if frame == NULL:
            hash = inbound_hash(&worker.sessions, mapping, ends.remote_ip, ends.remote_port)
        verdict = open_unless_taken(worker, IN, hash, number, ends.remote_ip, ends.remote_port, flags, TIMEOUT_UNREPLIED, now,
                                    slot)
    elif mapping.sessions == 0:
        mapping_close(&worker.mappings, number, now.ms, now.ms)
    if verdict == PENDING:
        worker.sessions.hot[slot[0]].state = TCP_INIT_IN
        if packet.protocol == PROTOCOL_TCP and not tcp_flags(packet) & TCP_SYN:
            worker.sessions.hot[slot[0]].state = TCP_PICKED_IN
        check_session_threshold(worker, now)
    return verdict


cdef void log_new_session(Worker* worker, uint32_t slot, uint32_t direction, const Clock* now) noexcept nogil:
    """Logs a new session that is kept, and counts it for rates and thresholds if the inside opened it."""
    if direction == OUT:
        count_opened(worker, slot, now)
    create_row_write(&worker.sessions, slot)

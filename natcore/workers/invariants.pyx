"""Checks the invariants of a gateway's tables: each entry is found by its key, lists and counters agree, ports match mappings.

Debug builds (NATCORE_DEBUG) check after every batch and abort on a violation; tests check in every build.
"""
from libc.stdint cimport uint32_t, uint64_t

from natcore.tables.port_blocks cimport Block
from natcore.tables.mappings cimport (
    MAPPING_DRAINING, MAPPING_FREE, MAPPING_PORTLESS, MAPPING_STATIC, Mapping, MappingKey, Mappings, Subscriber, key_of,
    mapping_find, subscriber_find,
)
from natcore.tables.port_overload cimport EndpointPair, overload_find
from natcore.tables.ports cimport (
    GROUPS, HOST_SPACES, PORT_OF_HOST, PORT_RESERVED, PORT_SPACES, PORT_WORDS, PORTS_OVERLOAD, SUPERS, PortMap, Ports, host_has,
    has_free_port, space_of,
)
from natcore.tables.sessions cimport (
    IN, OPENED_OUTSIDE, OUT, SESSION_FREE, TIMEOUT_FRAGMENT, Filter, Session, Sessions, filter_find, filter_key,
    session_addresses, session_find, session_ports,
)
from natcore.base.compiler cimport bswap16
from natcore.base.sentinels cimport NONE
from natcore.base.hash_table cimport BUCKET_ENTRIES, Index
from natcore.base.freelist cimport Freelist
from natcore.workers.worker cimport Worker, holds_all_locks

cdef extern from * nogil:
    """
    #include <stdio.h>
    #include <stdlib.h>
    static void natcore_abort(const char* text, unsigned worker, unsigned number, unsigned long long seen,
                              unsigned long long expected) {
        fprintf(stderr, "natcore: invariant broken: %s: worker %u, number %u: %llu, expected %llu\\n",
                text, worker, number, seen, expected);
        abort();
    }
    """
    uint32_t bits_of "__builtin_popcountll" (uint64_t word) noexcept
    void abort_with "natcore_abort" (const char* text, unsigned worker, unsigned number, unsigned long long seen,
                                     unsigned long long expected) noexcept

cdef enum:
    LARGE = 65536               # slots; larger tables are checked after every SELDOM-th batch
    SELDOM = 256
    PORTS_SELDOM = 16           # batches between checks of all ports; ports of mappings are checked every time

cdef uint64_t EVEN = 0x5555555555555555ULL      # the even ports of a bitmap word


cdef inline bint holds(Fault* fault, const char* text, uint32_t number, uint64_t seen, uint64_t expected) noexcept nogil:
    """Whether two numbers are equal; otherwise records the fault."""
    if seen == expected:
        return True
    fault.text = text
    fault.number = number
    fault.seen = seen
    fault.expected = expected
    return False


cdef bint freelist_holds(const Freelist* freelist, Fault* fault, const char* text) noexcept nogil:
    """The free list has as many slots as are not in use, all below `fresh`."""
    cdef uint32_t slot = freelist.free, count = 0
    if freelist.fresh > freelist.capacity:
        return holds(fault, text, freelist.fresh, freelist.fresh, freelist.capacity)
    while slot != NONE and count <= freelist.fresh:
        if slot >= freelist.fresh:
            return holds(fault, text, slot, slot, freelist.fresh)
        count += 1
        slot = (<const uint32_t*>(freelist.base + slot * freelist.stride))[0]
    return holds(fault, text, 0, count, freelist.fresh - freelist.live)


cdef bint index_holds(const Index* index, uint32_t entries, uint32_t fresh, Fault* fault, const char* text) noexcept nogil:
    """The index has as many entries as its table, and no number beyond it."""
    cdef uint32_t bucket, at, count = 0
    for bucket in range(index.count):
        for at in range(BUCKET_ENTRIES):
            if index.buckets[bucket].tags[at]:
                count += 1
                if index.buckets[bucket].numbers[at] >= fresh:
                    return holds(fault, text, bucket, index.buckets[bucket].numbers[at], fresh)
    return holds(fault, text, NONE, count, entries)


# ---- one worker's tables ---------------------------------------------------------------------------------------------

cdef bint sessions_hold(const Sessions* table, Fault* fault) noexcept nogil:
    """Each session is found by both keys, and belongs to an existing mapping and filter entry."""
    cdef uint32_t slot, live = 0, outside = 0, filtered = 0, number
    cdef const Session* session
    cdef Filter key
    if not freelist_holds(&table.slots, fault, "free list of sessions"):
        return False
    for slot in range(table.slots.fresh):
        session = &table.hot[slot]
        if session.flags & SESSION_FREE:
            continue
        live += 1
        outside += 1 if session.flags & OPENED_OUTSIDE else 0
        if not (holds(fault, "time-out class of a session", slot, session.timeout_class >= TIMEOUT_FRAGMENT, 0)
                and holds(fault, "session by its outbound key", slot, session_find(
                    table, OUT, session_addresses(session, OUT), session_ports(session, OUT), session.protocol), slot)
                and holds(fault, "session by its inbound key", slot, session_find(
                    table, IN, session_addresses(session, IN), session_ports(session, IN), session.protocol), slot)):
            return False
        number = table.cold[slot].mapping
        if number >= table.mappings.mapping_slots.fresh:
            return holds(fault, "mapping of a session", slot, number, table.mappings.mapping_slots.fresh)
        if not holds(fault, "mapping of a session is free", slot, table.mappings.mappings[number].flags & MAPPING_FREE, 0):
            return False
        if table.filtered[space_of(session.protocol)]:
            filtered += 1
            filter_key(session, &key)
            number = filter_find(table, &key)
            if number >= table.filter_slots.fresh:
                return holds(fault, "filter of a session", slot, number, table.filter_slots.fresh)
    return (holds(fault, "live sessions", NONE, live, table.slots.live)
            and holds(fault, "sessions opened from outside", NONE, outside, table.opened_outside)
            and index_holds(&table.index[OUT], live, table.slots.fresh, fault, "outbound index")
            and index_holds(&table.index[IN], live, table.slots.fresh, fault, "inbound index")
            and (table.filters == NULL or filters_hold(table, filtered, fault)))


cdef bint filters_hold(const Sessions* table, uint32_t sessions, Fault* fault) noexcept nogil:
    """Each filter entry has as many sessions as it counts; together they are all sessions under address-dependent filtering."""
    cdef uint32_t number, live = 0, total = 0, count, slot
    cdef const Filter* entry
    cdef const Session* session
    cdef Filter key
    if not freelist_holds(&table.filter_slots, fault, "free list of filters"):
        return False
    for number in range(table.filter_slots.fresh):
        entry = &table.filters[number]
        if not entry.in_use:
            continue
        live += 1
        total += entry.sessions
        count = 0
        slot = entry.first
        while slot != NONE and count <= entry.sessions:
            if slot >= table.slots.fresh or table.hot[slot].flags & SESSION_FREE:
                return holds(fault, "session of a filter", number, slot, NONE)
            session = &table.hot[slot]
            filter_key(session, &key)
            if not holds(fault, "filter by its key", number, filter_find(table, &key), number):
                return False
            count += 1
            slot = table.by_filter[slot].next
            if slot == entry.first:
                break
        if not holds(fault, "sessions of a filter", number, count, entry.sessions):
            return False
    return (holds(fault, "live filters", NONE, live, table.filter_slots.live)
            and holds(fault, "sessions of all filters", NONE, total, sessions)
            and index_holds(&table.by_remote, live, table.filter_slots.fresh, fault, "index of filters"))


cdef bint mapping_holds(const Sessions* table, uint32_t number, Fault* fault) noexcept nogil:
    """The mapping is found by its key, unless it drains, and has as many sessions as it counts."""
    cdef const Mapping* mapping = &table.mappings.mappings[number]
    cdef uint32_t count = 0, outside = 0, slot = mapping.first
    cdef MappingKey key
    key_of(mapping, &key)
    if not mapping.flags & MAPPING_DRAINING and not holds(fault, "mapping by its key", number,
                                                          mapping_find(table.mappings, &key), number):
        return False
    while slot != NONE and count <= mapping.sessions:
        if slot >= table.slots.fresh or table.hot[slot].flags & SESSION_FREE:
            return holds(fault, "session of a mapping", number, slot, NONE)
        if not holds(fault, "mapping of its session", number, table.cold[slot].mapping, number):
            return False
        count += 1
        outside += 1 if table.hot[slot].flags & OPENED_OUTSIDE else 0
        slot = table.by_mapping[slot].next
        if slot == mapping.first:
            break
    if count == 0:
        return holds(fault, "a mapping without sessions", number, 0, 1)
    return (holds(fault, "sessions of a mapping", number, count, mapping.sessions)
            and holds(fault, "its sessions opened from outside", number, outside, mapping.opened_outside))


cdef bint port_holds(const Mappings* table, uint32_t number, Fault* fault) noexcept nogil:
    """The port of a mapping is in use and refers to the mapping."""
    cdef const Mapping* mapping = &table.mappings[number]
    cdef const PortMap* map
    cdef uint32_t port = bswap16(mapping.outside_port), taken
    cdef uint64_t bit = <uint64_t>1 << (port & 63)
    cdef EndpointPair ends
    if mapping.flags & (MAPPING_STATIC | MAPPING_PORTLESS):
        return True
    if mapping.address >= table.ports.count or table.ports.addresses[mapping.address].memory == NULL:
        return holds(fault, "outside address of a mapping", number, mapping.address, table.ports.count)
    map = &table.ports.addresses[mapping.address].maps[space_of(mapping.protocol)]
    if not (holds(fault, "outside address of a mapping, on the wire", number, mapping.outside_ip,
                  table.ports.addresses[mapping.address].ip)
            and holds(fault, "port of a mapping is in use", number, 1 if map.used[port >> 6] & bit else 0, 1)
            and holds(fault, "port of a mapping is held down", number, 1 if map.held[port >> 6] & bit else 0, 0)):
        return False
    if table.ports.policy != PORTS_OVERLOAD:
        return (holds(fault, "mapping of a port", number, map.cells[port], number)
                and (table.ports.workers == 1
                     or holds(fault, "worker of a port", number, map.workers[port], table.worker)))
    ends.outside_ip = mapping.outside_ip
    ends.outside_port = mapping.outside_port
    ends.remote_ip = mapping.remote_ip
    ends.remote_port = mapping.remote_port
    ends.protocol = mapping.protocol
    taken = overload_find(&table.ports.overload, &table.ports.key, &ends)
    return (holds(fault, "overloaded port of a mapping", number, taken == NONE, 0)
            and holds(fault, "mapping of an overloaded port", number, table.ports.overload.pairs[taken].mapping, number)
            and holds(fault, "worker of an overloaded port", number, table.ports.overload.pairs[taken].worker, table.worker))


cdef bint mappings_hold(const Sessions* sessions, bint alone, Fault* fault) noexcept nogil:
    """alone: no other worker allocates or releases ports meanwhile."""
    cdef const Mappings* table = sessions.mappings
    cdef uint32_t number, live = 0, owned = 0, total = 0, inside = 0
    cdef const Mapping* mapping
    cdef const Subscriber* subscriber
    if not freelist_holds(&table.mapping_slots, fault, "free list of mappings"):
        return False
    for number in range(table.mapping_slots.fresh):
        mapping = &table.mappings[number]
        if mapping.flags & MAPPING_FREE:
            continue
        live += 1
        if not mapping_holds(sessions, number, fault) or (alone and not port_holds(table, number, fault)):
            return False
        if mapping.flags & MAPPING_STATIC:
            continue
        owned += 1
        inside += mapping.sessions - mapping.opened_outside
        if mapping.subscriber >= table.subscriber_slots.fresh:
            return holds(fault, "subscriber of a mapping", number, mapping.subscriber, table.subscriber_slots.fresh)
        if not holds(fault, "subscriber of a mapping, by address", number, subscriber_find(table, mapping.inside_ip),
                     mapping.subscriber):
            return False
    if not freelist_holds(&table.subscriber_slots, fault, "free list of subscribers"):
        return False
    for number in range(table.subscriber_slots.fresh):
        subscriber = &table.subscribers[number]
        total += subscriber.mappings
        inside -= subscriber.sessions if subscriber.mappings else 0
    return (holds(fault, "live mappings", NONE, live, table.mapping_slots.live)
            and index_holds(&table.by_inside, live, table.mapping_slots.fresh, fault, "index of mappings")
            and holds(fault, "mappings of all subscribers", NONE, total, owned)
            and holds(fault, "sessions of all subscribers", NONE, inside, 0)
            and index_holds(&table.by_ip, table.subscriber_slots.live, table.subscriber_slots.fresh, fault,
                            "index of subscribers"))


# ---- ports, with all workers locked -----------------------------------------------------------------------------------

cdef bint port_map_holds(Worker* worker, uint32_t address, uint32_t space, uint64_t* in_use, Fault* fault) noexcept nogil:
    """Every port is free, held down, reserved, or used by a live mapping; in_use: incremented by the uses."""
    cdef const Ports* ports = worker.mappings.ports
    cdef const PortMap* map = &ports.addresses[address].maps[space]
    cdef uint32_t word, port, free = 0, held = 0, reserved = 0, bit
    cdef const Mappings* owner
    cdef const Mapping* mapping
    for word in range(PORT_WORDS):
        free += bits_of(ports.ranges[word] & ~map.used[word])
        held += bits_of(map.held[word])
        if not holds(fault, "ports held down that are not taken", word * 64, map.held[word] & ~map.used[word], 0):
            return False
        if not map.used[word] & ~map.held[word]:
            continue
        for bit in range(64):
            port = word * 64 + bit
            if not (map.used[word] & ~map.held[word]) >> bit & 1:
                continue
            if space < HOST_SPACES and ports.addresses[address].host != NULL and not holds(
                    fault, "ports of the host", port, host_has(&ports.addresses[address], space, port),
                    map.cells[port] == PORT_OF_HOST):
                return False
            if map.cells[port] == PORT_RESERVED or map.cells[port] == PORT_OF_HOST:
                reserved += (ports.ranges[word] >> bit) & 1
            elif ports.policy == PORTS_OVERLOAD:
                in_use[0] += map.cells[port]
            else:
                in_use[0] += 1
                if map.workers[port] >= worker.shared.count:
                    return holds(fault, "worker of a port", port, map.workers[port], worker.shared.count)
                owner = &worker.shared.workers[map.workers[port]].mappings
                if map.cells[port] >= owner.mapping_slots.fresh:
                    return holds(fault, "mapping of a port", port, map.cells[port], owner.mapping_slots.fresh)
                mapping = &owner.mappings[map.cells[port]]
                if not (holds(fault, "mapping of a port is free", port, mapping.flags & MAPPING_FREE, 0)
                        and holds(fault, "address of a port's mapping", port, mapping.address, address)
                        and holds(fault, "port of a port's mapping", port, bswap16(mapping.outside_port), port)
                        and holds(fault, "protocol of a port's mapping", port, space_of(mapping.protocol), space)):
                    return False
    return (holds(fault, "free ports", address, map.free, free)
            and holds(fault, "ports held down", address, map.held_count, held)
            and holds(fault, "ports reserved", address, map.reserved, reserved)
            and summaries_hold(ports, address, space, fault))


cdef bint summaries_hold(const Ports* ports, uint32_t address, uint32_t space, Fault* fault) noexcept nogil:
    """What an allocation looks at before the ports: their counts by groups and supers, and the bits of their address."""
    cdef const PortMap* map = &ports.addresses[address].maps[space]
    cdef uint32_t word, group, taken, of_super = 0
    cdef uint64_t used
    for group in range(GROUPS):
        taken = 0
        for word in range(group * PORT_WORDS // GROUPS, (group + 1) * PORT_WORDS // GROUPS):
            used = ports.ranges[word] & map.used[word]
            taken += bits_of(used & EVEN) | bits_of(used & ~EVEN) << 16
        of_super += taken
        if not holds(fault, "ports not free of a group", group, map.taken_in[group], taken):
            return False
        if (group + 1) % (GROUPS // SUPERS) == 0:
            if not holds(fault, "ports not free of a super", group, map.taken_in[GROUPS + group // (GROUPS // SUPERS)],
                         of_super):
                return False
            of_super = 0
    return (holds(fault, "bit of an address with free ports", address, has_free_port(ports, space, address), map.free != 0)
            and holds(fault, "bit of an address with ports held down", address,
                      (ports.addresses_held[space][address >> 6] >> (address & 63)) & 1, map.held_count != 0))


cdef bint blocks_hold(const Ports* ports, uint32_t address, Fault* fault) noexcept nogil:
    """Each assigned block counts its ports in use or held down, others have none; the number of free blocks is right."""
    cdef uint32_t block, at, port, space, taken, free = 0
    cdef const Block* one
    cdef const PortMap* map
    for block in range(ports.block_count):
        one = &ports.blocks.of[address][block]
        taken = 0
        for at in range(block * ports.block_size, (block + 1) * ports.block_size):
            port = ports.allowed[at]
            for space in range(PORT_SPACES):
                map = &ports.addresses[address].maps[space]
                if (map.used[port >> 6] >> (port & 63)) & 1 and (
                        (map.held[port >> 6] >> (port & 63)) & 1 or map.cells[port] < PORT_OF_HOST):
                    taken += 1
        free += 0 if one.taken else 1
        if not holds(fault, "ports of a block", block, taken, one.ports if one.taken else 0):
            return False
    return holds(fault, "free blocks", address, ports.blocks.free[address], free)


cdef bint ports_hold(Worker* worker, Fault* fault) noexcept nogil:
    cdef const Ports* ports = worker.mappings.ports
    cdef uint32_t address, space, number, w
    cdef uint64_t in_use = 0, expected = 0
    cdef const Mappings* table
    for address in range(ports.count):
        if ports.addresses[address].memory == NULL:
            continue
        for space in range(PORT_SPACES):
            if not port_map_holds(worker, address, space, &in_use, fault):
                return False
        if ports.blocks.per_address and not blocks_hold(ports, address, fault):
            return False
    for w in range(worker.shared.count):
        table = &worker.shared.workers[w].mappings
        for number in range(table.mapping_slots.fresh):
            expected += not table.mappings[number].flags & (MAPPING_FREE | MAPPING_STATIC | MAPPING_PORTLESS)
    return holds(fault, "uses of all ports", NONE, in_use, expected)


# ---- all tables ------------------------------------------------------------------------------------------------------

cdef bint tables_hold(Worker* worker, bint ports, Fault* fault) noexcept nogil:
    """Whether the invariants hold: of all tables with all workers locked, otherwise of this worker's; fault: the first that
    does not. ports: check each port of each outside address too."""
    cdef uint32_t w
    cdef bint alone = holds_all_locks(worker)
    fault.text = NULL
    for w in range(worker.shared.count):
        if alone or w == worker.number:
            fault.worker = w
            if not (sessions_hold(&worker.shared.workers[w].sessions, fault)
                    and mappings_hold(&worker.shared.workers[w].sessions, alone, fault)):
                return False
    return not (alone and ports) or ports_hold(worker, fault)


cdef bint asserts_paused = False


cdef void pause_asserts(bint pause) noexcept nogil:
    """Suspends the checks while a test fills a table with entries that belong to no session."""
    global asserts_paused
    asserts_paused = pause


cdef void assert_tables(Worker* worker) noexcept nogil:
    """Aborts with a message if an invariant is broken."""
    cdef Fault fault
    worker.batches += 1
    if asserts_paused:
        return
    if worker.sessions.slots.fresh > LARGE and worker.batches % SELDOM:
        return
    if not tables_hold(worker, worker.batches % PORTS_SELDOM == 0, &fault):
        abort_with(fault.text, fault.worker, fault.number, fault.seen, fault.expected)

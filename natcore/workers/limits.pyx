"""Limits are checked at admission only; packets of established sessions do not touch them.

At a limit, a bounded number of dead sessions is ended, then the check is repeated. For a quota or a mapping's cap these are
the subscriber's or the mapping's sessions; for shared limits the next lines of all tables, once a millisecond.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from natcore.log.events cimport PORTS_THRESHOLD, SESSIONS_THRESHOLD, event_note
from natcore.tables.mappings cimport MAPPING_PORTLESS, MAPPING_STATIC, Mapping, Subscriber, subscriber_find
from natcore.tables.ports cimport LOOKS, PORT_SPACES, PortMap, Ports, reclaim, space_of
from natcore.workers.expiry cimport reclaim_lines, reclaim_mapping, reclaim_subscriber
from natcore.base.compiler cimport likely, load_relaxed, store_relaxed
from natcore.base.sentinels cimport NONE, NO_LIMIT
from natcore.base.spinlock cimport spin_lock, spin_unlock
from natcore.workers.worker cimport Clock, Shared, Worker, holds_all_locks, tables_of_all


cdef void reclaim_shared(Worker* worker, const Clock* now) noexcept nogil:
    """Ends dead sessions in the next lines of all tables, once per millisecond of the clock.

    This bounds the time spent on refusals, and makes the result independent of how often it is called. It needs all workers
    locked; otherwise it requests that the packet is repeated with all locked.
    """
    cdef Shared* shared = worker.shared
    cdef uint64_t ms = now.ns // 1000000 + 1
    if shared.reclaimed == ms:
        return
    if not holds_all_locks(worker):
        worker.needs_all_locked = True
        return
    if reclaim_lines(tables_of_all(worker), &shared.reclaim_table, &shared.reclaim_line, now.ns):
        shared.reclaimed = ms               # otherwise the next refusal continues


cdef void reclaim_own(Worker* worker, uint32_t inside_ip, const Clock* now) noexcept nogil:
    """Ends dead sessions among the subscriber's next ones."""
    reclaim_subscriber(&worker.sessions, inside_ip, now.ns)


# ---- totals of all workers -------------------------------------------------------------------------------------------

cdef inline bint has_capacity(Worker* worker, uint64_t live, uint32_t capacity) noexcept nogil:
    """Whether one more fits. With several workers, each may be adding one: near the limit only with all workers locked."""
    if holds_all_locks(worker):
        return live < capacity
    if live + worker.shared.count <= capacity:
        return True
    if live < capacity:
        worker.needs_all_locked = True
    return False


cdef uint32_t sessions_live(const Worker* worker) noexcept nogil:
    """Sessions of the gateway, including dead ones not met yet."""
    cdef uint32_t total = 0, i
    for i in range(worker.shared.count):
        total += load_relaxed(&worker.shared.workers[i].sessions.slots.live)
    return total


cdef uint32_t mappings_live(const Worker* worker) noexcept nogil:
    cdef uint32_t total = 0, i
    for i in range(worker.shared.count):
        total += load_relaxed(&worker.shared.workers[i].mappings.mapping_slots.live)
    return total


cdef bint sessions_fit(Worker* worker) noexcept nogil:
    """may_open_session, of several workers."""
    return has_capacity(worker, sessions_live(worker), worker.sessions.slots.capacity)


cdef bint mappings_fit(Worker* worker) noexcept nogil:
    """may_open_mapping, of several workers."""
    return has_capacity(worker, mappings_live(worker), worker.mappings.mapping_slots.capacity)


cdef bint subscriber_fits(Worker* worker, uint32_t inside_ip) noexcept nogil:
    """may_subscribe, of several workers, or where the table is full."""
    cdef uint32_t total = 0, i, capacity = worker.mappings.subscriber_slots.capacity
    for i in range(worker.shared.count):
        total += load_relaxed(&worker.shared.workers[i].mappings.subscriber_slots.live)
    if total + worker.shared.count > capacity and subscriber_find(&worker.mappings, inside_ip) != NONE:
        return True
    return has_capacity(worker, total, capacity)


cdef uint32_t opened_outside(const Worker* worker) noexcept nogil:
    cdef uint32_t total = 0, i
    for i in range(worker.shared.count):
        total += load_relaxed(&worker.shared.workers[i].sessions.opened_outside)
    return total


cdef bint reaches_quota(const Worker* worker, uint32_t inside_ip, bint new_mapping) noexcept nogil:
    """over_quota, where there is one."""
    cdef uint32_t limit = worker.configuration.sessions_per_subscriber, who
    cdef const Subscriber* subscriber
    if new_mapping:
        limit = worker.configuration.ports_per_subscriber
    who = subscriber_find(&worker.mappings, inside_ip)
    if who == NONE:
        return limit == 0
    subscriber = &worker.mappings.subscribers[who]
    return limit <= (subscriber.mappings if new_mapping else subscriber.sessions)


# ---- rates of sessions opened from inside ------------------------------------------------------------------------------

cdef inline uint32_t second_of(const Clock* now) noexcept nogil:
    return <uint32_t>(now.ns // 1000000000)


cdef bint reaches_rate(const Worker* worker, uint32_t inside_ip, const Clock* now) noexcept nogil:
    """over_rate, where there is one."""
    cdef uint32_t who = subscriber_find(&worker.mappings, inside_ip)
    cdef const Subscriber* subscriber
    if who == NONE:
        return worker.configuration.new_per_second == 0
    subscriber = &worker.mappings.subscribers[who]
    return subscriber.second == second_of(now) and subscriber.opened >= worker.configuration.new_per_second


cdef bint reaches_gateway_rate(const Worker* worker, const Clock* now) noexcept nogil:
    """over_gateway_rate, where there is one."""
    return (load_relaxed(&worker.shared.opened_second) == second_of(now)
            and load_relaxed(&worker.shared.opened) >= worker.configuration.gateway_per_second)


cdef void count_new(Worker* worker, uint32_t mapping, const Clock* now) noexcept nogil:
    """Counts a session that the inside opened or restarted."""
    cdef uint32_t who = worker.mappings.mappings[mapping].subscriber, second
    cdef Subscriber* subscriber
    if likely(worker.configuration.gateway_per_second == NO_LIMIT and worker.configuration.new_per_second == NO_LIMIT):
        return
    second = second_of(now)
    if worker.configuration.gateway_per_second != NO_LIMIT:
        spin_lock(&worker.shared.spin)
        if worker.shared.opened_second != second:
            store_relaxed(&worker.shared.opened, 0)
            store_relaxed(&worker.shared.opened_second, second)
        store_relaxed(&worker.shared.opened, worker.shared.opened + 1)
        spin_unlock(&worker.shared.spin)
    if who == NONE or worker.configuration.new_per_second == NO_LIMIT:
        return
    subscriber = &worker.mappings.subscribers[who]
    if subscriber.second != second or subscriber.opened == 0:
        subscriber.second = second
        subscriber.second_ms = <uint32_t>(now.ns // 1000000000 * 1000)
        subscriber.opened = 0
    subscriber.opened += 1


cdef void count_opened(Worker* worker, uint32_t slot, const Clock* now) noexcept nogil:
    """Counts a session that the inside opened and that was kept (not a hairpin refused later)."""
    cdef uint32_t number = worker.sessions.cold[slot].mapping
    cdef const Mapping* mapping = &worker.mappings.mappings[number]
    count_new(worker, number, now)
    if likely(worker.shared.count == 1 and is_below_thresholds(worker, mapping)):
        return
    check_session_threshold(worker, now)
    if mapping.sessions == 1:
        check_port_threshold(worker, mapping, now)


# ---- sessions opened from outside ------------------------------------------------------------------------------------

cdef bint below_caps(Worker* worker, uint32_t number, const Clock* now) noexcept nogil:
    """Whether mapping and gateway may have another session opened from outside. These caps are separate, so that outside
    traffic cannot exhaust the table. The mapping is kept even if its sessions end."""
    cdef Mapping* mapping = &worker.mappings.mappings[number]
    cdef bint below
    mapping.sessions += 1
    if mapping.opened_outside >= worker.configuration.mapping_cap:
        reclaim_mapping(&worker.sessions, number, now.ns)
    below = mapping.opened_outside < worker.configuration.mapping_cap
    if below and opened_outside(worker) >= worker.configuration.outside_cap:
        reclaim_shared(worker, now)
        below = opened_outside(worker) < worker.configuration.outside_cap
    mapping.sessions -= 1
    return below


# ---- warning thresholds: edge-triggered, with hysteresis ---------------------------------------------------------------

cdef inline bint is_below_thresholds(const Worker* worker, const Mapping* mapping) noexcept nogil:
    """Whether neither threshold is near, or to be rearmed, with one worker: the counts are below, and no event was sent."""
    cdef const Ports* ports = worker.mappings.ports
    cdef const PortMap* map
    if worker.configuration.warn_sessions and (
            worker.shared.sessions_warned or worker.sessions.slots.live >= worker.configuration.warn_sessions):
        return False
    if worker.configuration.warn_ports == 0 or mapping.flags & (MAPPING_PORTLESS | MAPPING_STATIC):
        return True
    if ports.blocks.per_address:
        return False
    map = &ports.addresses[mapping.address].maps[space_of(mapping.protocol)]
    return not map.warned and taken_of(ports, map) < worker.configuration.warn_ports


cdef inline bint reaches_threshold(uint32_t taken, uint32_t warn, uint32_t rearm, uint8_t* warned) noexcept nogil:
    """Whether `taken` reaches warn for the first time since it was at rearm or below."""
    if taken <= rearm:
        warned[0] = 0
    if taken < warn or warned[0]:
        return False
    warned[0] = 1
    return True


cdef void check_session_threshold(Worker* worker, const Clock* now) noexcept nogil:
    """Call after a session was opened."""
    cdef bint warn
    if worker.configuration.warn_sessions:
        spin_lock(&worker.shared.spin)
        warn = reaches_threshold(sessions_live(worker), worker.configuration.warn_sessions, worker.configuration.rearm_sessions,
                                 &worker.shared.sessions_warned)
        spin_unlock(&worker.shared.spin)
        if warn:
            event_note(worker.events, SESSIONS_THRESHOLD, LIMIT_SESSIONS, 0, 0, 0, 0, now.ns)


cdef inline uint32_t taken_of(const Ports* ports, const PortMap* map) noexcept nogil:
    """Ports of an outside address and protocol that are not free, or assigned blocks of the address."""
    if ports.blocks.per_address:
        return ports.block_count - ports.blocks.free[map.address]
    return ports.range_size - map.free


cdef void check_port_threshold(Worker* worker, const Mapping* mapping, const Clock* now) noexcept nogil:
    """Call after a mapping was opened."""
    cdef Ports* ports = worker.mappings.ports
    cdef PortMap* map
    cdef uint32_t taken, space, first = 0, last = PORT_SPACES - 1, looks = LOOKS
    cdef bint warn
    if worker.configuration.warn_ports == 0 or mapping.flags & (MAPPING_PORTLESS | MAPPING_STATIC):
        return
    if ports.blocks.per_address == 0:
        first = last = space_of(mapping.protocol)
    map = &ports.addresses[mapping.address].maps[first]
    spin_lock(&ports.spin)
    taken = taken_of(ports, map)
    if taken >= worker.configuration.warn_ports or map.warned:          # free ports with an expired hold-down first
        for space in range(first, last + 1):
            reclaim(ports, &ports.addresses[mapping.address].maps[space], &looks, now.ms)
        taken = taken_of(ports, map)
    warn = reaches_threshold(taken, worker.configuration.warn_ports, worker.configuration.rearm_ports, &map.warned)
    spin_unlock(&ports.spin)
    if warn:
        event_note(worker.events, PORTS_THRESHOLD, LIMIT_POOL, mapping.outside_ip, 0, 0,
                   0 if ports.blocks.per_address else mapping.protocol, now.ns)

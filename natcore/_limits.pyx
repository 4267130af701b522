"""Asked at admission only: quotas, rates, caps and thresholds; an established session's packets know nothing of them.

What would fail for room first completes the expiry of the moment, at most once a second of the gateway's clock.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from natcore._events cimport PORTS_THRESHOLD, SESSIONS_THRESHOLD, event_note
from natcore._mappings cimport MAPPING_PORTLESS, MAPPING_STATIC, Subscriber, subscriber_find
from natcore._ports cimport PORT_SPACES, PortMap, Ports, reclaim, space_of
from natcore._sweep cimport sweep_all
from natcore.index cimport NONE
from natcore.state cimport NO_LIMIT


cdef bint complete(Worker* worker, uint64_t now_ns) noexcept nogil:
    """Completes expiry for now, unless this second has seen it done; whether it did."""
    cdef uint64_t second = now_ns // 1000000000 + 1
    if worker.completed == second:
        return False
    worker.completed = second
    sweep_all(&worker.sessions, now_ns, <uint64_t>-1)
    return True


cdef bint over_quota(Worker* worker, uint32_t inside_ip, bint new_mapping) noexcept nogil:
    """Whether the subscriber has as many sessions, or mappings where a new one is asked for, as it may (RFC 6888 REQ-4)."""
    cdef uint32_t limit = worker.ports_per_subscriber if new_mapping else worker.sessions_per_subscriber, who
    cdef const Subscriber* subscriber
    if limit == NO_LIMIT:
        return False
    who = subscriber_find(&worker.mappings, inside_ip)
    if who == NONE:
        return limit == 0
    subscriber = &worker.mappings.subscribers[who]
    return limit <= (subscriber.mappings if new_mapping else subscriber.sessions)


# ---- rates: of the sessions that the inside opens --------------------------------------------------------------------

cdef inline uint32_t second_of(const Clock* now) noexcept nogil:
    return <uint32_t>(now.ns // 1000000000)


cdef uint8_t over_rate(Worker* worker, uint32_t inside_ip, const Clock* now) noexcept nogil:
    """Whether the subscriber has opened as many sessions in this second as it may."""
    cdef uint32_t who
    cdef const Subscriber* subscriber
    if worker.new_per_second == NO_LIMIT:
        return False
    who = subscriber_find(&worker.mappings, inside_ip)
    if who == NONE:
        return worker.new_per_second == 0
    subscriber = &worker.mappings.subscribers[who]
    return subscriber.second == second_of(now) and subscriber.opened >= worker.new_per_second


cdef bint over_gateway_rate(Worker* worker, const Clock* now) noexcept nogil:
    """Whether all of the inside together has."""
    return (worker.gateway_per_second != NO_LIMIT and worker.opened_second == second_of(now)
            and worker.opened >= worker.gateway_per_second)


cdef void count_new(Worker* worker, uint32_t mapping, const Clock* now) noexcept nogil:
    """A session that the inside opened, anew or again."""
    cdef uint32_t who = worker.mappings.mappings[mapping].subscriber, second = second_of(now)
    cdef Subscriber* subscriber
    if worker.gateway_per_second != NO_LIMIT:
        if worker.opened_second != second:
            worker.opened_second = second
            worker.opened = 0
        worker.opened += 1
    if who == NONE or worker.new_per_second == NO_LIMIT:
        return
    subscriber = &worker.mappings.subscribers[who]
    if subscriber.second != second or subscriber.opened == 0:
        subscriber.second = second
        subscriber.second_ms = <uint32_t>(now.ns // 1000000000 * 1000)
        subscriber.opened = 0
    subscriber.opened += 1


cdef void count_opened(Worker* worker, uint32_t slot, const Clock* now) noexcept nogil:
    """A new session that the inside opened, and that stays: a refused hairpin was none."""
    cdef uint32_t number = worker.sessions.cold[slot].mapping
    cdef const Mapping* mapping = &worker.mappings.mappings[number]
    count_new(worker, number, now)
    watch_sessions(worker, now)
    if mapping.sessions == 1:
        watch_ports(worker, mapping, now)


# ---- sessions opened from outside ------------------------------------------------------------------------------------

cdef bint below_caps(Worker* worker, const Mapping* mapping, const Clock* now) noexcept nogil:
    """Whether the mapping and the gateway may have one more session that was opened from outside: they have room of their
    own, so that a stranger's are refused before anybody else's."""
    if mapping.opened_outside < worker.mapping_cap and worker.sessions.opened_outside < worker.outside_cap:
        return True
    complete(worker, now.ns)
    return mapping.opened_outside < worker.mapping_cap and worker.sessions.opened_outside < worker.outside_cap


# ---- thresholds: told of once, and again after they were left by far ---------------------------------------------------

cdef inline bint crosses(uint32_t taken, uint32_t warn, uint32_t rearm, uint8_t* told) noexcept nogil:
    """Whether the one that was taken last makes it as many as warn, for the first time since there were fewer than rearm."""
    if taken <= rearm:
        told[0] = 0
    if taken < warn or told[0]:
        return False
    told[0] = 1
    return True


cdef void watch_sessions(Worker* worker, const Clock* now) noexcept nogil:
    """A session was opened."""
    if worker.warn_sessions and crosses(worker.sessions.slots.live, worker.warn_sessions, worker.rearm_sessions,
                                        &worker.sessions_told):
        event_note(&worker.events, SESSIONS_THRESHOLD, LIMIT_SESSIONS, 0, 0, 0, 0, now.ns)


cdef inline uint32_t taken_of(const Ports* ports, const PortMap* map) noexcept nogil:
    """Ports of an outside address and protocol that are not free, or blocks of the address that are somebody's."""
    if ports.blocks.per_address:
        return ports.block_count - ports.blocks.free[map.address]
    return ports.range_size - map.free


cdef void watch_ports(Worker* worker, const Mapping* mapping, const Clock* now) noexcept nogil:
    """A mapping was opened."""
    cdef Ports* ports = &worker.mappings.ports
    cdef PortMap* map
    cdef uint32_t taken, space, first = 0, last = PORT_SPACES - 1
    if worker.warn_ports == 0 or mapping.flags & (MAPPING_PORTLESS | MAPPING_STATIC):
        return
    if ports.blocks.per_address == 0:
        first = last = space_of(mapping.protocol)
    map = &ports.addresses[mapping.address].maps[first]
    taken = taken_of(ports, map)
    if taken >= worker.warn_ports or map.told:          # what has rested for long enough is free, if nobody looked so far
        for space in range(first, last + 1):
            reclaim(ports, &ports.addresses[mapping.address].maps[space], now.ms)
        taken = taken_of(ports, map)
    if crosses(taken, worker.warn_ports, worker.rearm_ports, &map.told):
        event_note(&worker.events, PORTS_THRESHOLD, LIMIT_POOL, mapping.outside_ip, 0, 0,
                   0 if ports.blocks.per_address else mapping.protocol, now.ns)

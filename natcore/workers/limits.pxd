"""Limits of a gateway and its subscribers: quotas, rates, caps; and warning thresholds."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from natcore.base.compiler cimport likely
from natcore.base.sentinels cimport NO_LIMIT
from natcore.workers.worker cimport Clock, Worker

cdef enum:                      # Limit: the one that an event reports, by number in python/natcore/events.py
    LIMIT_NONE = 0
    LIMIT_SUBSCRIBER_SESSIONS = 1
    LIMIT_SUBSCRIBER_PORTS = 2
    LIMIT_SUBSCRIBER_BLOCKS = 3
    LIMIT_SUBSCRIBER_RATE = 4
    LIMIT_GATEWAY_RATE = 5
    LIMIT_SESSIONS = 6
    LIMIT_MAPPINGS = 7
    LIMIT_POOL = 8
    LIMIT_OUTSIDE = 9
    LIMIT_SUBSCRIBERS = 10
    LIMITS = 11                 # length of Worker.refused

cdef void reclaim_shared(Worker* worker, const Clock* now) noexcept nogil
cdef void reclaim_own(Worker* worker, uint32_t inside_ip, const Clock* now) noexcept nogil
cdef uint32_t sessions_live(const Worker* worker) noexcept nogil
cdef uint32_t mappings_live(const Worker* worker) noexcept nogil
cdef bint sessions_fit(Worker* worker) noexcept nogil
cdef bint mappings_fit(Worker* worker) noexcept nogil
cdef bint subscriber_fits(Worker* worker, uint32_t inside_ip) noexcept nogil
cdef bint reaches_quota(const Worker* worker, uint32_t inside_ip, bint new_mapping) noexcept nogil
cdef bint reaches_rate(const Worker* worker, uint32_t inside_ip, const Clock* now) noexcept nogil
cdef bint reaches_gateway_rate(const Worker* worker, const Clock* now) noexcept nogil
cdef void count_new(Worker* worker, uint32_t mapping, const Clock* now) noexcept nogil
cdef void count_opened(Worker* worker, uint32_t slot, const Clock* now) noexcept nogil
cdef bint below_caps(Worker* worker, uint32_t number, const Clock* now) noexcept nogil
cdef void check_session_threshold(Worker* worker, const Clock* now) noexcept nogil

# What one worker alone answers in a few instructions, or a limit that is not set, is decided here.

cdef inline bint may_open_session(Worker* worker) noexcept nogil:
    if likely(worker.shared.count == 1):
        return worker.sessions.slots.live < worker.sessions.slots.capacity
    return sessions_fit(worker)

cdef inline bint may_open_mapping(Worker* worker) noexcept nogil:
    if likely(worker.shared.count == 1):
        return worker.mappings.mapping_slots.live < worker.mappings.mapping_slots.capacity
    return mappings_fit(worker)

cdef inline bint may_subscribe(Worker* worker, uint32_t inside_ip) noexcept nogil:
    """Whether inside_ip is a subscriber or can become one."""
    if likely(worker.shared.count == 1 and worker.mappings.subscriber_slots.live < worker.mappings.subscriber_slots.capacity):
        return True
    return subscriber_fits(worker, inside_ip)

cdef inline bint over_quota(const Worker* worker, uint32_t inside_ip, bint new_mapping) noexcept nogil:
    """Whether the subscriber is at its limit of sessions, or with new_mapping of mappings (RFC 6888 REQ-4)."""
    if likely((worker.configuration.ports_per_subscriber if new_mapping
               else worker.configuration.sessions_per_subscriber) == NO_LIMIT):
        return False
    return reaches_quota(worker, inside_ip, new_mapping)

cdef inline bint over_rate(const Worker* worker, uint32_t inside_ip, const Clock* now) noexcept nogil:
    """Whether the subscriber opened its maximum of sessions in this second."""
    return worker.configuration.new_per_second != NO_LIMIT and reaches_rate(worker, inside_ip, now)

cdef inline bint over_gateway_rate(const Worker* worker, const Clock* now) noexcept nogil:
    """Whether the inside as a whole opened its maximum of sessions in this second."""
    return worker.configuration.gateway_per_second != NO_LIMIT and reaches_gateway_rate(worker, now)

"""Limits of a gateway and its subscribers: quotas, rates, caps; and warning thresholds."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from natcore.tables.mappings cimport Mapping
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
cdef bint may_open_session(Worker* worker) noexcept nogil
cdef bint may_open_mapping(Worker* worker) noexcept nogil
cdef bint may_subscribe(Worker* worker, uint32_t inside_ip) noexcept nogil
cdef uint32_t sessions_live(const Worker* worker) noexcept nogil
cdef uint32_t mappings_live(const Worker* worker) noexcept nogil
cdef bint over_quota(Worker* worker, uint32_t inside_ip, bint new_mapping) noexcept nogil
cdef uint8_t over_rate(Worker* worker, uint32_t inside_ip, const Clock* now) noexcept nogil
cdef bint over_gateway_rate(Worker* worker, const Clock* now) noexcept nogil
cdef void count_new(Worker* worker, uint32_t mapping, const Clock* now) noexcept nogil
cdef void count_opened(Worker* worker, uint32_t slot, const Clock* now) noexcept nogil
cdef bint below_caps(Worker* worker, uint32_t number, const Clock* now) noexcept nogil
cdef void check_session_threshold(Worker* worker, const Clock* now) noexcept nogil

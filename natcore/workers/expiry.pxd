"""Expiry and window roll-over: an incremental sweep of the session table, and complete expiry in order of deadlines."""
from libc.stdint cimport uint32_t, uint64_t

from natcore.tables.sessions cimport Sessions

cdef enum:
    LONG_STEP_S = 14400         # well within what 16 bits of seconds can distinguish

cdef inline bint is_long_ago(const Sessions* table, uint64_t now_ns) noexcept nogil:
    """Whether the sweep's current round began so long ago that a complete sweep is due first."""
    return now_ns - table.swept_ns > <uint64_t>LONG_STEP_S * 1000000000

cdef void sweep_slice(Sessions* table, uint32_t lines, uint32_t ends, uint64_t now_ns) noexcept nogil
cdef bint sweep_all(Sessions* first, uint64_t now_ns, uint64_t rows) noexcept nogil
cdef uint64_t close_windows(Sessions* first, uint64_t now_ns, bint losing) noexcept nogil
cdef uint32_t expire(Sessions* table, uint32_t slot, uint64_t now_ns) noexcept nogil
cdef uint32_t expire_mapping(Sessions* table, uint32_t number, uint64_t now_ns) noexcept nogil
cdef void reclaim_mapping(Sessions* table, uint32_t number, uint64_t now_ns) noexcept nogil
cdef void reclaim_subscriber(Sessions* table, uint32_t inside_ip, uint64_t now_ns) noexcept nogil
cdef bint reclaim_lines(Sessions* first, uint32_t* table_at, uint32_t* line_at, uint64_t now_ns) noexcept nogil

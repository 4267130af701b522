"""Expiry and window roll-over: an incremental sweep of the session table, and complete expiry in order of deadlines.

Theory of operation. There is no timer and no list in order of deadlines: a packet writes `last_seen` into its session's line
and nothing else. A session is dead from its deadline on, ended or not: every look-up asks is_dead. What ends it is

- the sweep (sweep_slice), a cursor over the lines. A plane's loop sweeps a slice between batches, so that it examines each
  session within SWEEP_NS; without a loop packets carry it (nat/clock.pyx);
- a packet that meets it, or needs what it has: a port, a slot, a subscriber's quota (expire, reclaim_*). It looks at a bounded
  number of lines, EXAMINED_MOST sessions or RECLAIM_LINES, and the next packet continues behind them;
- complete expiry (sweep_all), for advance(), a change of entries, and a clock that jumped: all that is due, in the order
  (time, slot), or with several workers (time, session number).

Sweep and complete expiry also close windows that are over and that no packet closed. A row has the times of the deadline or of
the window's end, not of the look, so that the log does not show when the sweep came by.

Invariants.
- What ends together ends in the order of deadlines: expire() takes a mapping's dead sessions with it when none is alive.
- Milliseconds are kept modulo 2^32 and seconds modulo 2^16. So no session may be left unexamined for HORIZON_NS, no window for
  LONG_STEP_S: after a longer step a complete expiry comes first (is_long_ago; clock_forward).
- `complete_ns`: what was due by then has its rows in the journal. It moves when a round has examined every line, to the time at
  which that round began.
- The sweep never loses a row: where the journal is short of space it stops, and resumes at the same line.

Lock. The worker of the table; sweep_all, reclaim_lines and close_windows: all workers. Each port that becomes free takes the
ports' spin lock.

Cost. A line that is not due costs one load of 64 bytes, read in order: 10 million sessions, each within 8 s, about 1 % of a
processor. An end costs about what opening the session did. Complete expiry reads every line and sorts what is due.
"""
from libc.stdint cimport uint32_t, uint64_t

from natcore.tables.sessions cimport Sessions

cdef enum:
    LONG_STEP_S = 14400         # well within what 16 bits of seconds can distinguish

cdef inline bint is_long_ago(const Sessions* table, uint64_t now_ns) noexcept nogil:
    """Whether the sweep's current round began so long ago that a complete sweep is due first."""
    return now_ns - table.swept_ns > <uint64_t>LONG_STEP_S * 1000000000

cdef void sweep_slice(Sessions* table, uint32_t lines, uint32_t ends, uint64_t now_ns) noexcept nogil
cdef bint sweep_all(Sessions* first, uint64_t now_ns, uint64_t rows) noexcept nogil
cdef void retime(Sessions* table, const uint32_t* timeout_ms, uint32_t now_ms) noexcept nogil
cdef uint64_t close_windows(Sessions* first, uint64_t now_ns, bint losing) noexcept nogil
cdef uint32_t expire(Sessions* table, uint32_t slot, uint64_t now_ns) noexcept nogil
cdef uint32_t expire_mapping(Sessions* table, uint32_t number, uint64_t now_ns) noexcept nogil
cdef void reclaim_mapping(Sessions* table, uint32_t number, uint64_t now_ns) noexcept nogil
cdef void reclaim_subscriber(Sessions* table, uint32_t inside_ip, uint64_t now_ns) noexcept nogil
cdef bint reclaim_lines(Sessions* first, uint32_t* table_at, uint32_t* line_at, uint64_t now_ns) noexcept nogil

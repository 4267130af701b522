"""What a standby does not know yet, as rows.

Theory of operation. Each worker's session table has a bitmap of slots that changed (Sessions.changed): a bit is set, with the
worker locked, when a session begins, ends or goes to another TCP state or time-out, never by another packet. A thread that
feeds a standby takes the rows of those slots, as they are then, in slices with the worker locked, and clears the bits. So there
is no queue that could run over: a slot that changes twice in between is one row, and for a standby that knows nothing all bits
are set.

A cycle is two passes over the bitmap: first the slots of which the session, as it was sent, has ended, then the sessions. A
standby with full tables so has place for what follows. Between cycles a third cursor passes the lines and finds sessions that
packets have refreshed since they were last sent (`seen`); it reads what the sweep reads, and costs the worker nothing but the
slice.

Lock. The worker, for a call. Cost. A bitmap of a million slots is read in some 10 µs; a row costs three lines of memory.
"""
from libc.stdint cimport uint32_t, uint64_t

from natcore.tables.ports cimport Ports
from natcore.workers.peer_rows cimport PeerHeldDown, PeerRefresh, PeerSession
from natcore.workers.worker cimport Worker

cdef struct Feed:               # of one worker
    Worker* worker
    uint64_t* changed           # [words]
    uint32_t* seen              # [capacity] last_seen as the standby has it
    uint32_t* sent              # [capacity] number of the session that it has, the low part; 0: none
    uint32_t capacity           # slots
    uint32_t words
    uint32_t word               # cursor of the pass
    uint32_t line               # cursor of the refreshes

cdef bint feed_new(Feed* feed, Worker* worker) noexcept nogil
cdef void feed_delete(Feed* feed) noexcept nogil
cdef void feed_mark_all(Feed* feed) noexcept nogil
cdef uint32_t feed_waiting(const Feed* feed) noexcept nogil
cdef uint32_t feed_ends(Feed* feed, uint32_t* rows, uint32_t most) noexcept nogil
cdef uint32_t feed_sessions(Feed* feed, PeerSession* rows, uint32_t most) noexcept nogil
cdef uint32_t feed_refreshes(Feed* feed, PeerRefresh* rows, uint32_t lines) noexcept nogil
cdef uint32_t feed_held_down(Ports* ports, uint32_t address, uint32_t space, PeerHeldDown* rows, uint32_t most) noexcept nogil

"""SessionRanking: the first live sessions in an order, found in one pass that keeps no more rows than are asked for.

Theory of operation: as in a search (search.pyx), slices of the sessions are looked at without the worker's lock. Of each that
matches a key is computed, and the smallest key comes first; the sessions with the smallest keys so far are in a heap with the
last of them as its root, so that nearly all others cost one comparison. When all were looked at, the rows of those in the heap
alone are copied, with the worker locked. A key is of the moment in which its session was looked at; of a session that packets
change then, it is a guess. The cursors of a page are made of these keys: whatever changes meanwhile, no session comes between
two pages.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from natcore.api.search cimport COPY_ROWS, SCAN_LINES, Search, copy_line, session_matches
from natcore.api.snapshot cimport SessionRow, bytes_of_session, copy_sessions, last_seen_ns, packets_of_session
from natcore.base.compiler cimport bswap16, bswap32
from natcore.base.peek cimport peek32
from natcore.base.sentinels cimport NONE
from natcore.nat.clock cimport clock_of_all
from natcore.tables.sessions cimport (
    IN, OUT, ROLE_INSIDE, ROLE_OUTSIDE, ROLE_REMOTE, Cold, Session, Sessions, deadline_of, is_dead, session_id,
)
from natcore.workers.locks cimport lock, unlock
from natcore.workers.worker cimport Worker

cdef enum:                      # Order: the place of its name in natcore.ranking.ORDERS
    BY_SESSION = 0
    BY_BYTES = 1                # the most first, as the next three
    BY_PACKETS = 2
    BY_BYTES_OUT = 3
    BY_BYTES_IN = 4
    BY_AGE = 5                  # the oldest first
    BY_IDLE = 6                 # the longest idle first
    BY_EXPIRES = 7
    BY_SUBSCRIBER = 8
    BY_OUTSIDE = 9              # address and port
    BY_REMOTE = 10

cdef struct Ranked:             # a session of the heap
    int64_t key                 # with the sign of the direction, as the next
    int64_t number
    uint32_t worker
    uint32_t slot


cdef int64_t key_of(const Sessions* table, const Session* session, const Cold* cold, uint32_t order,
                    uint64_t now_ns) noexcept nogil:
    """A session's key: the smallest comes first. table: one with the time-outs."""
    cdef uint64_t deadline
    if order == BY_SESSION:
        return <int64_t>session_id(cold)
    if order == BY_BYTES:
        return -<int64_t>(bytes_of_session(session, cold, OUT) + bytes_of_session(session, cold, IN))
    if order == BY_PACKETS:
        return -<int64_t>(packets_of_session(session, cold, OUT) + packets_of_session(session, cold, IN))
    if order == BY_BYTES_OUT:
        return -<int64_t>bytes_of_session(session, cold, OUT)
    if order == BY_BYTES_IN:
        return -<int64_t>bytes_of_session(session, cold, IN)
    if order == BY_AGE:
        return <int64_t>cold.birth_ns
    if order == BY_SUBSCRIBER:
        return bswap32(session.ip[ROLE_INSIDE])
    if order == BY_OUTSIDE:
        return <int64_t>bswap32(session.ip[ROLE_OUTSIDE]) << 16 | bswap16(session.port[ROLE_OUTSIDE])
    if order == BY_REMOTE:
        return bswap32(session.ip[ROLE_REMOTE])
    deadline = deadline_of(table, session, now_ns)
    return <int64_t>(deadline if order == BY_EXPIRES else last_seen_ns(table, session, cold, deadline))


cdef inline uint64_t time_of(const Session* session, uint64_t now_ns) noexcept nogil:
    """The gateway's clock at a look at a line without the lock: its last packet may be later than now_ns."""
    cdef int32_t ahead_ms = <int32_t>(session.last_seen - <uint32_t>(now_ns // 1000000))
    return now_ns if ahead_ms <= 0 else now_ns + <uint64_t>ahead_ms * 1000000


cdef inline bint comes_after(const Ranked* one, const Ranked* other) noexcept nogil:
    return one.key > other.key or (one.key == other.key and one.number > other.number)


cdef void sink(Ranked* heap, uint32_t count, uint32_t at) noexcept nogil:
    """Lets an element down to where none below it comes after it."""
    cdef Ranked moved = heap[at]
    cdef uint32_t below
    while 2 * at + 1 < count:
        below = 2 * at + 1
        if below + 1 < count and comes_after(&heap[below + 1], &heap[below]):
            below += 1
        if not comes_after(&heap[below], &moved):
            break
        heap[at] = heap[below]
        at = below
    heap[at] = moved


cdef void rise(Ranked* heap, uint32_t at) noexcept nogil:
    """Lets an element up to where it does not come after the one above it."""
    cdef Ranked moved = heap[at]
    while at and comes_after(&moved, &heap[(at - 1) // 2]):
        heap[at] = heap[(at - 1) // 2]
        at = (at - 1) // 2
    heap[at] = moved


cdef class SessionRanking(Search):
    """Finds the first sessions in an order."""
    cdef Ranked* heap           # [most]; in order when `is_sorted`
    cdef uint32_t most          # sessions that are kept
    cdef uint32_t held
    cdef uint32_t order
    cdef int64_t sign           # -1: the other way round
    cdef bint is_sorted
    cdef bint has_after
    cdef Ranked after           # what is kept comes after it
    cdef readonly bint reverse
    cdef readonly uint64_t matched      # sessions that meet the criteria
    cdef readonly uint64_t before       # of these, sessions that do not come after the cursor

    def __dealloc__(self):
        free(self.heap)

    def rank(self, uint32_t order, uint32_t most, bint reverse, after):
        """Says which order, and how many sessions are kept; before the first look. after: None, or a cursor: (key, number)."""
        if self.heap != NULL or most == 0 or order > BY_REMOTE:
            raise ValueError(f"rank once, most above 0, order at most {BY_REMOTE}, got {most}, {order}")
        self.heap = <Ranked*>malloc(most * sizeof(Ranked))
        if self.heap == NULL:
            raise MemoryError
        self.most, self.order, self.reverse, self.sign = most, order, reverse, -1 if reverse else 1
        if after is not None:
            self.has_after = True
            self.after.key, self.after.number = self.sign * <int64_t>after[0], self.sign * <int64_t>after[1]

    cdef void keep(self, const Ranked* found) noexcept nogil:
        """Keeps a session if it is among the first."""
        if self.held < self.most:
            self.heap[self.held] = found[0]
            rise(self.heap, self.held)
            self.held += 1
        elif comes_after(&self.heap[0], found):
            self.heap[0] = found[0]
            sink(self.heap, self.held, 0)

    def look(self):
        """Looks at the next slice."""
        cdef uint32_t fresh = 0, last, i
        cdef uint64_t begun_ns, now_ns
        cdef Sessions times             # time-outs alone, which a change may exchange meanwhile
        cdef Session seen
        cdef Cold cold
        cdef Ranked found
        cdef Worker* worker
        if self.done or self.heap == NULL:
            return
        worker = self.workers.shared.workers[self.at]
        found.worker = self.at
        with nogil:
            fresh = peek32(&worker.sessions.slots.fresh)
            last = min(fresh, self.slot + SCAN_LINES)
            begun_ns = clock_of_all(worker)
            for i in range(sizeof(times.timeout_ms) // sizeof(times.timeout_ms[0])):
                times.timeout_ms[i] = peek32(&worker.sessions.timeout_ms[i])
            for found.slot in range(self.slot, last):
                if not session_matches(worker, found.slot, &self.wanted, &seen):
                    continue
                now_ns = time_of(&seen, begun_ns)
                if is_dead(&times, &seen, <uint32_t>(now_ns // 1000000)):
                    continue
                copy_line(&worker.sessions.cold[found.slot], &cold)
                self.matched += 1
                found.key = self.sign * key_of(&times, &seen, &cold, self.order, now_ns)
                found.number = self.sign * <int64_t>session_id(&cold)
                if self.has_after and not comes_after(&found, &self.after):
                    self.before += 1
                else:
                    self.keep(&found)
            self.slot = last
        self.advance(fresh)

    @property
    def ends(self):
        """The cursors of the first and the last session that was kept: (key, number) each; None: none was."""
        self.put_in_order()
        if self.held == 0:
            return None
        return tuple((self.sign * each.key, self.sign * each.number)
                     for each in (self.heap[0], self.heap[self.held - 1]))

    cdef int put_in_order(self) except -1:
        """Makes the heap an array in order, once all sessions were looked at."""
        cdef Ranked last
        cdef uint32_t count
        if not self.done:
            raise ValueError("sessions are left to look at")
        if self.is_sorted:
            return 0
        self.is_sorted = True
        with nogil:
            for count in range(self.held - 1 if self.held else 0, 0, -1):
                last = self.heap[count]
                self.heap[count] = self.heap[0]
                self.heap[0] = last
                sink(self.heap, count, 0)
        return 0

    def fill(self, rows not None, keys not None):
        """Fills SESSION (n,) and int64 (n,), the key with the sign of the direction, with n at least as many as are kept; how
        many. Rows and keys are of now, in the order that they had when they were looked at; a session that has ended since is
        left out.
        """
        cdef uint8_t[::1] raw = rows.view("u1")
        cdef int64_t[::1] key = keys
        cdef SessionRow* out
        cdef uint32_t filled = 0, i = 0, last, slot, number
        cdef Worker* worker
        self.put_in_order()
        if raw.shape[0] < <Py_ssize_t>(self.held * sizeof(SessionRow)) or key.shape[0] < self.held:
            raise ValueError(f"rows and keys must be {self.held}, got {len(rows)} and {len(keys)}")
        if self.held == 0:
            return 0
        out = <SessionRow*>&raw[0]
        with nogil:
            for number in range(self.workers.shared.count):
                worker = self.workers.shared.workers[number]
                i = 0
                while i < self.held:
                    last = min(self.held, i + COPY_ROWS)
                    lock(worker)
                    for i in range(i, last):
                        slot = self.heap[i].slot
                        if self.heap[i].worker != number:
                            continue
                        if (<int64_t>session_id(&worker.sessions.cold[slot]) != self.sign * self.heap[i].number
                                or not copy_sessions(worker, &out[i], 1, &slot, slot + 1)):
                            self.heap[i].slot = NONE
                            continue
                        slot = self.heap[i].slot
                        key[i] = self.sign * key_of(&worker.sessions, &worker.sessions.hot[slot], &worker.sessions.cold[slot],
                                                    self.order, clock_of_all(worker))
                    unlock(worker)
                    i = last
            for i in range(self.held):
                if self.heap[i].slot != NONE:
                    out[filled] = out[i]
                    key[filled] = key[i]
                    filled += 1
        return filled


assert sizeof(Session) == 64
assert sizeof(Cold) == 64

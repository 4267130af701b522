"""SubscriberRates: what each inside address had since the last pass: bytes, packets, sessions, mappings.

Theory of operation: a pass looks through all sessions, some hundred with a worker locked at a time, then likewise through the
mappings. What a session has counted so far, less what it had at the pass before (`past`, by slot; the session's number says
whether it is the same one), is added to its inside address in a table of its own. Nothing is copied: a line is read where it
lies, and the table grows with the inside addresses, not with the sessions. What a session had in the time before its end, since
the pass before, is not seen.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from natcore.api.search cimport Search, mapping_matches, session_matches
from natcore.api.snapshot cimport bytes_of_session, packets_of_session
from natcore.base.compiler cimport bswap32
from natcore.base.peek cimport peek32
from natcore.nat.clock cimport clock_of_all
from natcore.tables.sessions cimport IN, OUT, ROLE_INSIDE, Cold, Session, is_dead, session_id
from natcore.workers.locks cimport lock, unlock
from natcore.workers.worker cimport WORKERS_AT_MOST, Worker

cdef enum:
    LOCKED_SESSIONS = 256       # lines that are looked at with a worker locked: some ten microseconds
    LOCKED_MAPPINGS = 4096
    SLICE_LINES = 32768         # of a look: a millisecond or two

cdef packed struct RateRow:     # SUBSCRIBER_RATE of python/natcore/dtypes.py
    uint64_t bytes_out
    uint64_t packets_out
    uint64_t bytes_in
    uint64_t packets_in
    uint32_t inside_ip          # host order
    uint32_t sessions           # 0: the place of the table is free
    uint32_t mappings
    uint32_t unused

cdef struct Past:               # what a session had counted at the last pass
    uint64_t session            # its number; 0: none
    uint64_t bytes[2]           # by Direction
    uint64_t packets[2]


cdef inline RateRow* place_of(RateRow* rows, uint64_t mask, uint32_t inside_ip) noexcept nogil:
    """An address's row in a table with linear probing, or the free place where it belongs. Neighbours, 16 of them, lie
    together: sessions that began together often have addresses near each other."""
    cdef uint64_t at = ((inside_ip >> 4) * <uint64_t>0x9E3779B97F4A7C15 >> 32 << 4 | inside_ip & 15) & mask
    while rows[at].sessions and rows[at].inside_ip != inside_ip:
        at = (at + 1) & mask
    return &rows[at]


cdef class SubscriberRates(Search):
    """Counts by inside address, from one pass to the next."""
    cdef Past* past[WORKERS_AT_MOST]    # [capacity of the worker's sessions] each; NULL: not looked at yet
    cdef RateRow* rows          # [mask + 1], at most half of it taken
    cdef uint64_t mask
    cdef uint32_t held
    cdef bint in_mappings       # the sessions were looked through
    cdef public bint once       # there is one pass: nothing is remembered for another

    def __dealloc__(self):
        cdef uint32_t w
        for w in range(WORKERS_AT_MOST):
            free(self.past[w])
        free(self.rows)

    cdef bint provide(self) noexcept nogil:
        """Makes place for the addresses of one locked slice; False: there is no memory."""
        cdef RateRow* rows
        cdef uint64_t mask, i
        if self.rows != NULL and 2 * (self.held + <uint64_t>LOCKED_SESSIONS) <= self.mask + 1:
            return True
        mask = 4095 if self.rows == NULL else 2 * self.mask + 1
        rows = <RateRow*>calloc(mask + 1, sizeof(RateRow))
        if rows == NULL:
            return False
        if self.rows != NULL:
            for i in range(self.mask + 1):
                if self.rows[i].sessions:
                    place_of(rows, mask, self.rows[i].inside_ip)[0] = self.rows[i]
            free(self.rows)
        self.rows, self.mask = rows, mask
        return True

    cdef void add(self, const Session* session, const Cold* cold, Past* past) noexcept nogil:
        """Adds what a session had since the pass before. past: NULL: in its whole life."""
        cdef uint32_t inside_ip = bswap32(session.ip[ROLE_INSIDE])
        cdef RateRow* row = place_of(self.rows, self.mask, inside_ip)
        if row.sessions == 0:
            row.inside_ip = inside_ip
            self.held += 1
        row.sessions += 1
        row.bytes_out += bytes_of_session(session, cold, OUT)
        row.bytes_in += bytes_of_session(session, cold, IN)
        row.packets_out += packets_of_session(session, cold, OUT)
        row.packets_in += packets_of_session(session, cold, IN)
        if past == NULL:
            return
        if past.session == session_id(cold):
            row.bytes_out -= past.bytes[OUT]
            row.bytes_in -= past.bytes[IN]
            row.packets_out -= past.packets[OUT]
            row.packets_in -= past.packets[IN]
        past.session = session_id(cold)
        past.bytes[OUT], past.bytes[IN] = bytes_of_session(session, cold, OUT), bytes_of_session(session, cold, IN)
        past.packets[OUT] = packets_of_session(session, cold, OUT)
        past.packets[IN] = packets_of_session(session, cold, IN)

    cdef void look_at_sessions(self, Worker* worker, uint32_t last) noexcept nogil:
        """Looks at the sessions up to `last`, with the worker locked."""
        cdef Session seen
        cdef Past* past = self.past[self.at]
        cdef uint32_t slot, now_ms = <uint32_t>(clock_of_all(worker) // 1000000)
        for slot in range(self.slot, last):
            if session_matches(worker, slot, &self.wanted, &seen) and not is_dead(&worker.sessions, &seen, now_ms):
                self.add(&seen, &worker.sessions.cold[slot], NULL if past == NULL else &past[slot])

    cdef void look_at_mappings(self, Worker* worker, uint32_t last) noexcept nogil:
        """Counts the mappings of the addresses that have sessions, likewise."""
        cdef RateRow* row
        cdef uint32_t slot
        for slot in range(self.slot, last):
            if mapping_matches(&worker.mappings.mappings[slot], &self.wanted):
                row = place_of(self.rows, self.mask, bswap32(worker.mappings.mappings[slot].inside_ip))
                row.mappings += 1 if row.sessions else 0

    def look(self):
        """Looks at the next slice; whether the pass goes on."""
        cdef uint32_t fresh = 0, last, end, lines = LOCKED_MAPPINGS if self.in_mappings else LOCKED_SESSIONS
        cdef bint is_provided = True
        cdef Worker* worker
        if self.done:
            return False
        worker = self.workers.shared.workers[self.at]
        if self.past[self.at] == NULL and not self.once:
            self.past[self.at] = <Past*>calloc(worker.sessions.slots.capacity or 1, sizeof(Past))
            if self.past[self.at] == NULL and not self.once:
                raise MemoryError
        with nogil:
            fresh = peek32(&worker.mappings.mapping_slots.fresh if self.in_mappings else &worker.sessions.slots.fresh)
            end = min(fresh, self.slot + SLICE_LINES)
            while self.slot < end:
                is_provided = self.provide()
                if not is_provided:
                    break
                last = min(end, self.slot + lines)
                lock(worker)
                if self.in_mappings:
                    self.look_at_mappings(worker, last)
                else:
                    self.look_at_sessions(worker, last)
                unlock(worker)
                self.slot = last
        if not is_provided:
            raise MemoryError
        self.advance(fresh)
        if self.done and not self.in_mappings and self.held:
            self.in_mappings, self.at = True, 0
        return not self.done

    @property
    def count(self):
        """Rows that take() has."""
        return self.held

    def take(self, rows not None):
        """Fills SUBSCRIBER_RATE (n,), in no order, with n as many as `count`, and begins the next pass."""
        cdef uint8_t[::1] raw = rows.view("u1")
        cdef RateRow* out
        cdef uint64_t i, filled = 0
        if not self.done:
            raise ValueError("the pass must be done")
        if raw.shape[0] < <Py_ssize_t>(self.held * sizeof(RateRow)):
            raise ValueError(f"rows must be {self.held}, got {len(rows)}")
        if self.held:
            out = <RateRow*>&raw[0]
            with nogil:
                for i in range(self.mask + 1):
                    if self.rows[i].sessions:
                        out[filled] = self.rows[i]
                        filled += 1
                memset(self.rows, 0, (self.mask + 1) * sizeof(RateRow))
        self.held = self.at = self.slot = 0
        self.in_mappings = False
        return filled


assert sizeof(RateRow) == 48

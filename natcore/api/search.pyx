"""SessionSearch and MappingSearch: live rows that match, a slice at a time, without holding up packets.

Theory of operation: a slice of the sessions is read without the worker's lock; of what is read only addresses, ports, protocol
and entry are compared. A line may change meanwhile, so that the result is a guess. The slots that matched are then copied with
the worker locked, after a second look; there are few of them, and a packet waits for these alone. A session that begins or
moves during a search may be missed or, if its slot was freed and used again, found in its later form; each row is consistent.
Mappings are fewer, and looked at with the worker locked, in slices of 4,096.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t

from natcore.api.snapshot cimport MappingRow, SessionRow, copy_sessions, mapping_row
from natcore.api.workers cimport Workers
from natcore.base.peek cimport peek32
from natcore.base.sentinels cimport NONE
from natcore.tables.criteria cimport Criteria, criteria_of, meets
from natcore.tables.mappings cimport MAPPING_FREE, Mapping
from natcore.tables.sessions cimport ROLE_INSIDE, ROLE_OUTSIDE, ROLE_REMOTE, SESSION_FREE, Session
from natcore.workers.locks cimport lock, unlock
from natcore.workers.worker cimport Worker

cdef enum:
    LOCKED_LINES = 4096         # lines that are looked at with a worker locked: some ten microseconds


cdef uint32_t entry_of(const Worker* worker, uint32_t mapping) noexcept nogil:
    """A mapping's entry. Without the lock the number may be of another time, but never outside the table."""
    if mapping >= worker.mappings.mapping_slots.capacity:
        return NONE
    return peek32(&worker.mappings.mappings[mapping].entry)


cdef bint session_matches(const Worker* worker, uint32_t slot, const Criteria* wanted, Session* seen) noexcept nogil:
    """Whether the session in a slot meets the criteria. seen: its line, as it was looked at; without the lock a guess."""
    cdef const Session* line = &worker.sessions.hot[slot]
    if (peek32(&line.ip[ROLE_INSIDE]) ^ wanted.ip[ROLE_INSIDE]) & wanted.mask[ROLE_INSIDE]:   # the commonest criterion
        return False
    copy_line(line, seen)
    if seen.flags & SESSION_FREE or not meets(wanted, seen.ip, seen.port, seen.protocol):
        return False
    return wanted.entry == 0 or entry_of(worker, peek32(&worker.sessions.cold[slot].mapping)) == wanted.entry


cdef bint mapping_matches(const Mapping* mapping, const Criteria* wanted) noexcept nogil:
    cdef uint32_t ip[3]
    cdef uint16_t port[3]
    if mapping.flags & MAPPING_FREE:
        return False
    ip[ROLE_INSIDE], ip[ROLE_REMOTE], ip[ROLE_OUTSIDE] = mapping.inside_ip, mapping.remote_ip, mapping.outside_ip
    port[ROLE_INSIDE], port[ROLE_REMOTE], port[ROLE_OUTSIDE] = mapping.inside_port, mapping.remote_port, mapping.outside_port
    return meets(wanted, ip, port, mapping.protocol) and (wanted.entry == 0 or mapping.entry == wanted.entry)


cdef class Search:
    """A search through all workers' tables, one slice after the other. From one thread at a time."""

    def __cinit__(self, Workers workers not None, addresses, masks, ports, int protocol, uint32_t entry):
        """addresses, masks: by role (inside, remote, outside), host order. ports: likewise, -1: any. protocol: -1: any.
        entry: 0: any."""
        self.workers = workers
        self.wanted = criteria_of(addresses, masks, ports, protocol, entry)

    @property
    def done(self):
        """Whether every table was looked through."""
        return self.at >= self.workers.shared.count

    cdef void advance(self, uint32_t fresh) noexcept:
        """Goes on with the next worker, where this one's table is looked through."""
        if self.slot >= fresh:
            self.at += 1
            self.slot = 0


cdef class SessionSearch(Search):
    """Finds sessions."""

    def find(self, rows not None):
        """Fills SESSION (n,) from the next slice; how many."""
        cdef uint8_t[::1] raw = rows.view("u1")
        cdef uint32_t capacity = min(<uint32_t>(raw.shape[0] // sizeof(SessionRow)), COPY_ROWS)
        cdef SessionRow* out = <SessionRow*>&raw[0] if capacity else NULL
        cdef uint32_t found[COPY_ROWS]
        cdef uint32_t count = 0, filled = 0, fresh = 0, last, at, i
        cdef Session seen
        cdef Worker* worker
        if self.at >= self.workers.shared.count or capacity == 0:
            return 0
        worker = self.workers.shared.workers[self.at]
        with nogil:
            fresh = peek32(&worker.sessions.slots.fresh)
            last = min(fresh, self.slot + SCAN_LINES)
            while self.slot < last and count < capacity:
                found[count] = self.slot
                count += session_matches(worker, self.slot, &self.wanted, &seen)
                self.slot += 1
            if count:
                lock(worker)
                for i in range(count):
                    at = found[i]
                    if session_matches(worker, at, &self.wanted, &seen):
                        filled += copy_sessions(worker, &out[filled], 1, &at, at + 1)
                unlock(worker)
        self.advance(fresh)
        return filled


cdef class MappingSearch(Search):
    """Finds mappings."""

    def find(self, rows not None):
        """Fills MAPPING (n,) from the next slice; how many."""
        cdef uint8_t[::1] raw = rows.view("u1")
        cdef uint32_t capacity = min(<uint32_t>(raw.shape[0] // sizeof(MappingRow)), COPY_ROWS)
        cdef MappingRow* out = <MappingRow*>&raw[0] if capacity else NULL
        cdef uint32_t filled = 0, fresh = 0, last
        cdef Worker* worker
        if self.at >= self.workers.shared.count or capacity == 0:
            return 0
        worker = self.workers.shared.workers[self.at]
        with nogil:
            lock(worker)
            fresh = worker.mappings.mapping_slots.fresh
            last = min(fresh, self.slot + LOCKED_LINES)
            while self.slot < last and filled < capacity:
                if mapping_matches(&worker.mappings.mappings[self.slot], &self.wanted):
                    mapping_row(&worker.mappings.mappings[self.slot], &out[filled])
                    filled += 1
                self.slot += 1
            unlock(worker)
        self.advance(fresh)
        return filled

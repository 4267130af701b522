"""The stream to a standby: its rows taken out of a gateway's tables, and applied to those of another one."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from natcore.api.workers cimport Workers
from natcore.tables.offload cimport offload_outdate
from natcore.tables.ports cimport PORT_SPACES
from natcore.workers.locks cimport lock, unlock
from natcore.workers.peer_apply cimport (
    Standby, apply_end, apply_held_down, apply_refresh, apply_session, apply_time, promote, standby_delete, standby_new,
)
from natcore.workers.peer_feed cimport (
    Feed, feed_delete, feed_ends, feed_held_down, feed_mark_all, feed_new, feed_refreshes, feed_sessions, feed_waiting,
)
from natcore.workers.peer_rows cimport (
    PEER_ENDS, PEER_HELD_DOWN, PEER_REFRESHES, PEER_SESSIONS, PeerHeldDown, PeerRefresh, PeerSession,
)
from natcore.workers.worker cimport Shared
from natcore.base.compiler cimport load_relaxed, load_relaxed64, store_relaxed, store_relaxed64, store_release
from natcore.base.peek cimport peek64
from natcore.base.spinlock cimport spin_lock, spin_unlock

from natcore.errors import CapacityError, Error, StateError


cdef enum:
    SLICE_ROWS = 256            # rows that are taken while the worker waits
    SLICE_LINES = 4096          # lines that are looked at meanwhile


def peer_row_bytes():
    """{PeerKind: bytes of a row}"""
    return {PEER_ENDS: 4, PEER_SESSIONS: sizeof(PeerSession), PEER_REFRESHES: sizeof(PeerRefresh),
            PEER_HELD_DOWN: sizeof(PeerHeldDown)}


cdef class PeerFeed:
    """What a standby does not know yet of a gateway; one at a time. Error: there is one already.

    Its methods may be called by any thread, one at a time.
    """
    cdef Workers workers
    cdef Feed* feeds            # of each worker
    cdef bint closed

    def __cinit__(self, Workers workers not None):
        cdef uint32_t i, made = 0
        cdef bint other
        self.workers = workers
        self.feeds = <Feed*>calloc(workers.shared.count, sizeof(Feed))
        if self.feeds == NULL:
            raise MemoryError
        with nogil:
            workers.lock()
            other = workers.first.sessions.changed != NULL
            for i in range(0 if other else workers.shared.count):
                made += feed_new(&self.feeds[i], workers.shared.workers[i])
            workers.unlock()
        if made < workers.shared.count:
            self.close()
            if other:
                raise Error("a gateway feeds one standby at a time")
            raise CapacityError("no memory for a standby's feed")

    def __dealloc__(self):
        if self.feeds != NULL:
            self.close()
            free(self.feeds)

    def close(self):
        """Notes no changes any more. Idempotent."""
        cdef uint32_t i
        self.closed = True      # before the memory goes: `waiting` is another thread's
        with nogil:
            self.workers.lock()
            for i in range(self.workers.shared.count):
                feed_delete(&self.feeds[i])
            self.workers.unlock()

    @property
    def worker_count(self):
        """How many workers the gateway has."""
        return self.workers.shared.count

    @property
    def slots(self):
        """How many sessions each worker's table has at most."""
        return self.workers.first.sessions.slots.capacity

    def now_ns(self):
        """The gateway's clock."""
        cdef uint64_t now_ns = 0
        cdef uint32_t i
        for i in range(self.workers.shared.count):
            now_ns = max(now_ns, peek64(&self.workers.shared.workers[i].now_ns))
        return now_ns

    def created(self):
        """The highest number of a session so far."""
        return peek64(&self.workers.first.sessions.created if self.workers.shared.count == 1
                      else &self.workers.shared.created)

    def mark_all(self):
        """The standby knows nothing: everything is to be taken."""
        cdef uint32_t i
        for i in range(self.workers.shared.count):
            self._feed(i)
            with nogil:
                lock(self.workers.shared.workers[i])
                feed_mark_all(&self.feeds[i])
                unlock(self.workers.shared.workers[i])

    def waiting(self):
        """How many slots changed since they were taken, about."""
        cdef uint64_t total = 0
        cdef uint32_t i
        for i in range(self.workers.shared.count):
            total += feed_waiting(self._feed(i))
        return total

    cdef Feed* _feed(self, uint32_t worker) except NULL:
        if worker >= self.workers.shared.count or self.closed:
            raise Error("the feed is closed")
        return &self.feeds[worker]

    def take(self, uint32_t worker, uint32_t kind, uint8_t[::1] rows not None):
        """Takes rows of a kind, from where the last call stopped, as many as the array has place for; (rows, whether the pass
        is over). Passes of ends and of sessions share a cursor: finish one before the other. The worker waits for slices."""
        cdef Feed* feed = self._feed(worker)
        cdef uint64_t place = <uint64_t>rows.shape[0], count = 0
        cdef uint32_t size = (4 if kind == PEER_ENDS else sizeof(PeerSession) if kind == PEER_SESSIONS
                              else sizeof(PeerRefresh))
        cdef uint8_t* at = &rows[0]
        cdef uint32_t most, taken
        cdef bint done = False
        place //= size
        with nogil:
            while not done and place - count >= 64:
                most = <uint32_t>min(place - count, <uint64_t>(SLICE_LINES if kind == PEER_REFRESHES else SLICE_ROWS))
                lock(feed.worker)
                if kind == PEER_ENDS:
                    taken = feed_ends(feed, <uint32_t*>(at + count * size), most)
                    done = feed.word == 0
                elif kind == PEER_SESSIONS:
                    taken = feed_sessions(feed, <PeerSession*>(at + count * size), most)
                    done = feed.word == 0
                else:
                    taken = feed_refreshes(feed, <PeerRefresh*>(at + count * size), most)
                    done = feed.line == 0
                unlock(feed.worker)
                count += taken
        return count, done

    def held_down(self, uint32_t place, uint8_t[::1] rows not None):
        """Copies the ports that are held down of one outside address and protocol: the place, from 0; (rows, the next place or
        None). 65,536 rows are enough."""
        cdef uint32_t count = 0, most = <uint32_t>(<uint64_t>rows.shape[0] // sizeof(PeerHeldDown))
        cdef PeerHeldDown* at = <PeerHeldDown*>&rows[0]
        if place >= self.workers.shared.ports.count * PORT_SPACES:
            return 0, None
        with nogil:
            lock(self.workers.first)            # addresses come and go with all workers locked
            spin_lock(&self.workers.shared.ports.spin)
            if place < self.workers.shared.ports.count * PORT_SPACES:
                count = feed_held_down(&self.workers.shared.ports, place // PORT_SPACES, place % PORT_SPACES, at, most)
            spin_unlock(&self.workers.shared.ports.spin)
            unlock(self.workers.first)
        return count, place + 1


cdef class Fence:
    """Keeps a gateway's planes from translating and sending, from a moment on. Calls from memory are not kept from it."""
    cdef Workers workers

    def __cinit__(self, Workers workers not None):
        self.workers = workers

    def set(self, uint64_t until_ns):
        """Planes may translate until then, CLOCK_BOOTTIME in ns; 0: for ever. Each batch of frames asks; a fast path offloads
        nothing from now on."""
        cdef Shared* shared = self.workers.shared
        cdef uint32_t i
        with nogil:
            self.workers.lock()
            if shared.fence_ns == 0:
                for i in range(shared.count):
                    offload_outdate(shared.workers[i].sessions.offload)
            store_relaxed64(&shared.fence_ns, until_ns)
            self.workers.unlock()

    def until_ns(self):
        """Until when; 0: for ever."""
        return load_relaxed64(&self.workers.shared.fence_ns)


cdef class PeerDeferral:
    """Holds back, in a gateway's planes, frames of new sessions until a standby has these (natcore/io/deferred_frames.pxd).

    fd: an eventfd, which is open until `close`; it is readable when the standby is to be told. One at a time.
    """
    cdef Workers workers

    def __cinit__(self, Workers workers not None, int fd):
        self.workers = workers
        self._set(0, fd)

    cdef void _set(self, uint32_t wait_ms, int fd):
        with nogil:
            self.workers.lock()
            store_relaxed(&self.workers.shared.defer_ms, wait_ms)
            self.workers.shared.defer_fd = fd
            self.workers.unlock()

    def hold(self, uint32_t wait_ms):
        """From now on each frame waits so long at most, in ms; 0: no frame waits, and those that do leave."""
        store_relaxed(&self.workers.shared.defer_ms, wait_ms)

    def begin_cycle(self):
        """The standby will be told what has changed by now; the cycle's number."""
        cdef uint32_t cycle = load_relaxed(&self.workers.shared.defer_cycle) + 1
        store_release(&self.workers.shared.defer_cycle, cycle)
        return cycle

    def acknowledge(self, uint32_t cycle):
        """The standby has what it was told in that cycle: frames that waited for it leave."""
        store_release(&self.workers.shared.defer_acknowledged, cycle)

    def close(self):
        """Holds nothing back any more. Idempotent."""
        self._set(0, 0)


cdef class PeerStandby:
    """A gateway that becomes what an active one is, row by row; nothing else may use it meanwhile.

    workers, slots: of the active gateway. entries: EntryKind by the number of an entry.
    """
    cdef Workers workers
    cdef Standby standby
    cdef const uint8_t[::1] entries

    def __cinit__(self, Workers workers not None, uint32_t count, uint32_t slots, const uint8_t[::1] entries not None):
        self.workers, self.entries = workers, entries
        if not standby_new(&self.standby, workers.shared, count, slots):
            raise CapacityError("no memory for a standby")
        self.standby.entries, self.standby.entry_count = &entries[0], <uint32_t>entries.shape[0]

    def __dealloc__(self):
        standby_delete(&self.standby)

    @property
    def evicted(self):
        """Sessions that made way for a row."""
        return self.standby.evicted

    def apply(self, uint32_t worker, uint32_t kind, const uint8_t[::1] rows not None):
        """Applies rows of a kind. StateError: one of them is none that a gateway gives, with kind and index; those before it
        are applied, and the gateway is no longer the active one's image."""
        cdef size_t size = (4 if kind == PEER_ENDS else sizeof(PeerSession) if kind == PEER_SESSIONS
                            else sizeof(PeerRefresh) if kind == PEER_REFRESHES else sizeof(PeerHeldDown))
        cdef uint64_t count = <uint64_t>rows.shape[0] // size, i = 0
        cdef const uint8_t* at
        cdef const char* wrong = NULL
        if count == 0:
            return
        at = &rows[0]
        with nogil:
            self.workers.lock()
            while i < count and wrong == NULL:
                if kind == PEER_ENDS:
                    wrong = apply_end(&self.standby, worker, (<const uint32_t*>at)[i])
                elif kind == PEER_SESSIONS:
                    wrong = apply_session(&self.standby, worker, &(<const PeerSession*>at)[i])
                elif kind == PEER_REFRESHES:
                    wrong = apply_refresh(&self.standby, worker, &(<const PeerRefresh*>at)[i])
                else:
                    wrong = apply_held_down(&self.standby, &(<const PeerHeldDown*>at)[i])
                i += 1
            self.workers.unlock()
        if wrong != NULL:
            raise StateError(wrong.decode(), kind, i - 1)

    def set_time(self, uint64_t now_ns):
        """The active gateway's clock: it goes on, and hold-downs that are over end."""
        with nogil:
            self.workers.lock()
            apply_time(&self.standby, now_ns)
            self.workers.unlock()

    def promote(self, uint64_t now_ns, uint64_t created, uint32_t grace_ms):
        """The gateway is to translate from now_ns of its clock on. created: the highest number that the active one may have
        given. grace_ms: how old the last refresh of a session may be."""
        with nogil:
            self.workers.lock()
            promote(&self.standby, now_ns, created, grace_ms)
            self.workers.unlock()

"""The session log's access to the core: rows of the journal, open windows, time labels."""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from natcore.log.journal cimport Journal, Record, journal_drain, journal_forget, journal_space_for_bulk, journal_waiting
from natcore.api.snapshot cimport copy_block_rows, oldest_window
from natcore.api.workers cimport Workers
from natcore.tables.port_blocks cimport Blocks
from natcore.tables.sessions cimport micros, window_copy
from natcore.workers.expiry cimport close_windows
from natcore.nat.clock cimport clock_forward, clock_of_all
from natcore.base.compiler cimport exchange, load_acquire64, load_relaxed64, store_relaxed64, store_release
from natcore.base.spinlock cimport wait_turn
from natcore.workers.worker cimport Worker, tables_of_all

from natcore.errors import ConfigurationError

cdef enum:
    LOOK_LINES = 65536          # lines of a part of the table, examined with all workers locked


cdef void begin_reading(uint32_t* reading) noexcept nogil:
    cdef uint32_t turn = 0
    while exchange(reading, 1):
        wait_turn(turn)
        turn += 1


cdef uint8_t[::1] bytes_of_rows(records):
    """The memory of RECORD (n,): its field order differs from the memory layout."""
    if records.itemsize != sizeof(Record):
        raise ConfigurationError(f"records must be of dtype RECORD, got {records.dtype}")
    return records.view("u1")


cdef class LogRows:
    """The journal's rows and open windows of a gateway. Thread-safe."""

    def __cinit__(self, Workers workers not None):
        self.workers = workers
        self.shared, self.worker = workers.shared, workers.first

    cdef void forked(self) noexcept nogil:
        """In a forked child: the session logs, whoever was reading, and all rows so far are the parent's."""
        journal_forget(self.worker.journal)
        self.forget_lost()
        self.reading = 0

    # ---- the journal ------------------------------------------------------------------------------------------------

    def drain(self, records not None):
        """Moves rows out of the journal into RECORD (count,), numbered; how many. From any thread."""
        cdef uint8_t[::1] raw = bytes_of_rows(records)
        cdef uint64_t capacity = raw.shape[0] // sizeof(Record), count
        if capacity == 0:
            return 0
        with nogil:
            begin_reading(&self.reading)
            count = journal_drain(self.worker.journal, <Record*>&raw[0], capacity, &self.drained)
            store_release(&self.reading, 0)
        return count

    @property
    def journal_lost(self):
        """Rows ever lost for lack of space."""
        return load_relaxed64(&self.worker.journal.lost) + load_relaxed64(&self.worker.journal.lifecycle_lost)

    @property
    def blocks_lost(self):
        """Rows of port blocks among these."""
        return load_relaxed64(&self.worker.journal.blocks_lost)

    def take_lost(self):
        """(window rows, begin and end rows) lost while no session log ran, since the last call; earliest start and latest end
        of them, microseconds since 1970."""
        cdef Journal* journal = self.worker.journal
        cdef uint64_t windows, others
        cdef int64_t first, last
        with nogil:
            self.workers.lock()
            windows, others = journal.lost - self.lost_reported, journal.lifecycle_lost - self.lifecycle_lost_reported
            first, last = journal.lost_from, journal.lost_until
            self.forget_lost()
            self.workers.unlock()
        return windows, others, first, last

    cdef void forget_lost(self) noexcept nogil:
        self.lost_reported, self.lifecycle_lost_reported = self.worker.journal.lost, self.worker.journal.lifecycle_lost
        self.worker.journal.lost_from, self.worker.journal.lost_until = 0, -1

    @property
    def journal_waiting(self):
        """Rows that can be drained."""
        return journal_waiting(self.worker.journal)

    @property
    def journal_filling(self):
        """Whether an eighth of the ring or more waits."""
        return 8 * self.journal_waiting >= self.worker.journal.capacity

    @property
    def journal_short(self):
        """Whether the last two rows of a session that can wait do not fit."""
        return journal_space_for_bulk(self.worker.journal) < 2

    @property
    def is_read(self):
        """Whether a session log drains the journal. Then rows of the sweep and of removed entries that find the ring full wait
        in extra memory, at most two per session; otherwise they are lost and counted."""
        return load_relaxed64(&self.worker.journal.overflow_limit) != 0

    @is_read.setter
    def is_read(self, bint read):
        cdef Journal* journal = self.worker.journal
        with nogil:
            self.workers.lock()
            if read != (journal.overflow_limit != 0):
                self.forget_lost()                  # losses so far are reported by the other mode
            store_relaxed64(&journal.overflow_limit, 2 * <uint64_t>self.worker.sessions.slots.capacity if read else 0)
            self.workers.unlock()

    def close_windows(self, uint64_t now_ns, bint losing=False):
        """Closes open windows with partial rows and ends what is dead; sessions continue.

        How many remain open for lack of space: drain the journal and call again. losing: none; their rows are lost.
        """
        cdef uint64_t left
        with nogil:
            self.workers.lock()
            now_ns = clock_forward(self.worker, now_ns)
            left = close_windows(tables_of_all(self.worker), now_ns, losing)
            self.workers.unlock()
        return left

    @property
    def next_number(self):
        """Number of the next row."""
        return load_relaxed64(&self.drained)

    def skip_numbers(self, uint64_t count):
        """Assigns count numbers to lost rows; the first one."""
        cdef uint64_t first
        with nogil:
            begin_reading(&self.reading)
            first = self.drained
            store_relaxed64(&self.drained, self.drained + count)
            store_release(&self.reading, 0)
        return first

    cdef uint32_t parts(self) noexcept nogil:
        """Parts of the tables: those of each worker in turn."""
        cdef uint32_t most = 0, w
        for w in range(self.shared.count):
            most = max(most, (self.shared.workers[w].sessions.slots.fresh + LOOK_LINES - 1) // LOOK_LINES)
        return max(most, 1) * self.shared.count

    def oldest_window(self, uint32_t part):
        """(ns of the begin of the oldest open window in this part of the tables, now if none; number of parts)."""
        cdef uint64_t oldest
        cdef uint32_t parts, first = part // self.shared.count * LOOK_LINES
        cdef Worker* worker = self.shared.workers[part % self.shared.count]
        with nogil:
            self.workers.lock()
            oldest = oldest_window(worker, first, first + LOOK_LINES, clock_of_all(worker))
            parts = self.parts()
            self.workers.unlock()
        return oldest, parts

    def copy_windows(self, records not None, uint32_t part):
        """Copies the open windows of a part of the tables into RECORD (65,536,), as if they ended now; (how many, parts)."""
        cdef uint8_t[::1] raw = records.view("u1")
        cdef Record* rows = <Record*>&raw[0]
        cdef uint32_t slot, parts, count = 0, first = part // self.shared.count * LOOK_LINES
        cdef Worker* worker = self.shared.workers[part % self.shared.count]
        if records.itemsize != sizeof(Record) or raw.shape[0] < LOOK_LINES * <int64_t>sizeof(Record):
            raise ConfigurationError(f"records must be at least RECORD[{LOOK_LINES}], got {records.dtype}[{len(records)}]")
        with nogil:
            self.workers.lock()
            for slot in range(first, min(first + LOOK_LINES, worker.sessions.slots.fresh)):
                if window_copy(&worker.sessions, slot, clock_of_all(worker), &rows[count]):
                    count += 1
            parts = self.parts()
            self.workers.unlock()
        return count, parts

    @property
    def block_count(self):
        """Port blocks that are assigned; None: the policy has none."""
        cdef const Blocks* blocks = &self.worker.mappings.ports.blocks
        cdef uint64_t count
        if blocks.per_address == 0:
            return None
        with nogil:
            self.workers.lock()
            count = blocks.taken - blocks.released
            self.workers.unlock()
        return count

    def copy_blocks(self, records not None):
        """Copies the assigned port blocks into RECORD (count,), as rows of now; how many."""
        cdef uint8_t[::1] raw = bytes_of_rows(records)
        cdef uint64_t capacity = raw.shape[0] // sizeof(Record), count
        if capacity == 0:
            return 0
        with nogil:
            self.workers.lock()
            count = copy_block_rows(self.worker, <Record*>&raw[0], capacity)
            self.workers.unlock()
        return count

    def label(self, uint64_t at_ns):
        """Microseconds since 1970 of a time of the gateway's clock, as in rows."""
        return micros(&self.worker.sessions, at_ns)

    @property
    def now_ns(self):
        """The gateway's clock."""
        return clock_of_all(self.worker)

    @property
    def complete_ns(self):
        """Sessions and windows that ended before this moment of the gateway's clock have their rows in the journal."""
        cdef uint64_t complete = <uint64_t>-1
        cdef uint32_t w
        for w in range(self.shared.count):
            complete = min(complete, load_acquire64(&self.shared.workers[w].sessions.complete_ns))
        return complete

    @property
    def epoch_ns(self):
        """Unix time at now = 0."""
        return <int64_t>load_relaxed64(<const uint64_t*>&self.worker.sessions.epoch_ns)

    def set_epoch(self, int64_t epoch_ns):
        cdef uint32_t w
        with nogil:
            self.workers.lock()
            for w in range(self.shared.count):
                store_relaxed64(<uint64_t*>&self.shared.workers[w].sessions.epoch_ns, <uint64_t>epoch_ns)
            self.workers.unlock()

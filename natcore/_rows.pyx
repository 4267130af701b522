"""The session log's side of the core: rows out of the journal, open windows, the labels of time; who holds the worker."""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from natcore._journal cimport Record, journal_drain, journal_waiting
from natcore._look cimport oldest_window
from natcore._sessions cimport micros, window_copy
from natcore._sweep cimport close_windows
from natcore._translate cimport clock_forward, hold, release
from natcore.hints cimport fetch_add
from natcore.state cimport Worker

from natcore.errors import ConfigurationError

cdef extern from * nogil:
    """
    #include <time.h>
    static void natcore_pause(void) { struct timespec t = {0, 20000}; nanosleep(&t, NULL); }
    """
    void pause "natcore_pause" () noexcept

cdef enum:
    LOOK_LINES = 65536          # of a part of the table, that is looked at while the worker waits


cdef class Rows:
    """What Core (_gateway) is built on, which makes the worker and frees it."""

    def __cinit__(self, *_, **__):
        if type(self) is Rows:
            raise TypeError("Rows: allowed as a part of Core alone")

    # ---- who holds the worker -------------------------------------------------------------------------------------

    cdef void own(self) noexcept:
        """Waits, without the GIL, until a loop lets the worker go between two batches."""
        cdef Worker* worker = self.worker
        if hold(worker):
            return
        with nogil:
            fetch_add(&worker.attention, 1)
            while not hold(worker):
                pause()
            fetch_add(&worker.attention, <uint32_t>-1)

    cdef void disown(self) noexcept:
        release(self.worker)

    # ---- the journal ------------------------------------------------------------------------------------------------

    def drain(self, records not None):
        """Moves rows out of the journal into RECORD (count,), numbered; how many. One caller at a time; any thread."""
        cdef uint8_t[::1] raw = records.view("u1")      # RECORD names its fields in another order than they lie
        cdef uint64_t room = raw.shape[0] // sizeof(Record), count
        if records.itemsize != sizeof(Record):
            raise ConfigurationError(f"records={records.dtype}: allowed is RECORD")
        if room == 0:
            return 0
        with nogil:
            count = journal_drain(&self.worker.journal, <Record*>&raw[0], room, self.drained)
        self.drained += count
        return count

    @property
    def journal_lost(self):
        return self.worker.journal.lost

    @property
    def journal_waiting(self):
        """Rows that can be drained."""
        return journal_waiting(&self.worker.journal)

    @property
    def journal_filling(self):
        """An eighth of the ring or more waits."""
        return 8 * self.journal_waiting >= self.worker.journal.capacity

    @property
    def relief(self):
        """Called with the worker held, to take rows out of a journal that is full; None: nobody reads.

        While somebody does, rows of the sweep that find the ring full wait beside it, two of each session at most.
        """
        return self.reader

    @relief.setter
    def relief(self, reader):
        self.reader = reader
        self.worker.journal.aside_limit = 0 if reader is None else 2 * <uint64_t>self.worker.sessions.slots.capacity

    def close_windows(self, uint64_t now_ns, bint losing=False):
        """Writes open windows as partial rows, what is dead as ended; the sessions go on.

        How many are open still: the journal had no room, drain it and call again. losing: none; such rows are lost.
        """
        cdef uint64_t left
        self.own()
        with nogil:
            now_ns = clock_forward(self.worker, now_ns)
            left = close_windows(&self.worker.sessions, now_ns, losing)
        self.disown()
        return left

    @property
    def next_number(self):
        """The number that the next row gets."""
        return self.drained

    def skip_numbers(self, uint64_t count):
        """Gives count numbers to rows that are lost; the first. The caller is the one who drains."""
        self.drained += count
        return self.drained - count

    def oldest_window(self, uint32_t part):
        """(ns when the oldest window began that this part of the table has open, now if none has; parts there are)."""
        cdef uint64_t oldest
        cdef uint32_t parts
        self.own()
        with nogil:
            oldest = oldest_window(self.worker, part * LOOK_LINES, (part + 1) * LOOK_LINES)
            parts = (self.worker.sessions.slots.fresh + LOOK_LINES - 1) // LOOK_LINES
        self.disown()
        return oldest, parts if parts else 1

    def copy_windows(self, records not None, uint32_t part):
        """Copies the open windows of a part of the table into RECORD (65,536,), as if they ended now; (how many, parts)."""
        cdef uint8_t[::1] raw = records.view("u1")
        cdef Record* rows = <Record*>&raw[0]
        cdef uint32_t slot, parts, count = 0
        if records.itemsize != sizeof(Record) or raw.shape[0] < LOOK_LINES * <int64_t>sizeof(Record):
            raise ConfigurationError(f"records={records.dtype}[{len(records)}]: allowed is RECORD[{LOOK_LINES}] or more")
        self.own()
        with nogil:
            for slot in range(part * LOOK_LINES, min((part + 1) * LOOK_LINES, self.worker.sessions.slots.fresh)):
                if window_copy(&self.worker.sessions, slot, self.worker.now_ns, &rows[count]):
                    count += 1
            parts = (self.worker.sessions.slots.fresh + LOOK_LINES - 1) // LOOK_LINES
        self.disown()
        return count, parts if parts else 1

    def label(self, uint64_t at_ns):
        """Microseconds since 1970 of a time of the gateway's clock, as rows have it."""
        return micros(&self.worker.sessions, at_ns)

    @property
    def now_ns(self):
        """The gateway's clock."""
        return self.worker.now_ns

    def set_epoch(self, int64_t epoch_ns):
        self.worker.sessions.epoch_ns = epoch_ns

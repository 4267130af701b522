"""A gateway's state as sections of rows, copied out of its tables and back into those of a new one."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from natcore.api.log_rows cimport LogRows
from natcore.api.workers cimport Workers
from natcore.nat.fragment_state cimport give_datagrams, take_datagrams
from natcore.workers.state_restore cimport key_set, take_gateway, take_held_down, take_rows, take_worker
from natcore.workers.state_rows cimport (
    SECTION_GATEWAY, SECTION_ROWS, SECTION_WORKER, SECTIONS, Damage, GatewayState, Later, Rows, row_bytes,
)
from natcore.workers.state_save cimport expect_rows, give_counters, give_gateway, give_rows, give_worker
from natcore.workers.worker cimport Shared, Worker
from natcore.base.compiler cimport exchange, store_release
from natcore.base.spinlock cimport wait_turn

from natcore.errors import StateError


cdef class State:
    """The rows of a gateway's tables. Sections are numbered as in natcore/workers/state_rows.pxd; arrays are uint8 (bytes,)."""
    cdef Workers workers
    cdef LogRows log_rows
    cdef Shared* shared
    cdef Worker* worker         # the first one

    def __cinit__(self, LogRows log_rows not None):
        self.log_rows, self.workers = log_rows, log_rows.workers
        self.shared, self.worker = self.workers.shared, self.workers.first

    @staticmethod
    def row_bytes():
        """[bytes of a row, by section]"""
        return [row_bytes(section) for section in range(SECTIONS)]

    def expected(self, bint tables=True):
        """[[rows that each section has now, by section], by worker]; those of the gateway are the first worker's. tables: as
        for copy."""
        cdef uint32_t w, i
        cdef Rows* rows = new_rows(self.shared.count)
        try:
            with nogil:
                self.workers.lock()
                for w in range(self.shared.count):
                    if tables:
                        expect_rows(self.shared.workers[w], &rows[w * SECTIONS])
                    else:
                        rows[w * SECTIONS + SECTION_WORKER].capacity = 1
                give_gateway(self.worker, rows, False)
                give_datagrams(self.worker, rows)
                self.workers.unlock()
            counts = [[max(rows[w * SECTIONS + i].capacity, rows[w * SECTIONS + i].count) for i in range(SECTIONS)]
                      for w in range(self.shared.count)]
            counts[0][SECTION_ROWS] = self.log_rows.journal_waiting
            return counts
        finally:
            free(rows)

    def copy(self, list buffers not None, bint seeded, bint log_rows, bint tables=True):
        """Copies everything at one moment into arrays, [[array of each section], by worker], and returns how many rows there
        are, likewise; more than an array has place for: nothing of it is usable, and a larger one is needed.

        Packets wait meanwhile. seeded: with the state of the random numbers. log_rows: with the rows that wait to be drained.
        tables: False: of the workers' sections only the counters.
        """
        cdef uint32_t w, i
        cdef Rows* rows = new_rows(self.shared.count)
        try:
            fill_rows(rows, buffers, self.shared.count)
            with nogil:
                begin_reading(&self.log_rows.reading)
                self.workers.lock()
                for w in range(self.shared.count):
                    if tables:
                        give_worker(self.shared.workers[w], &rows[w * SECTIONS])
                    else:
                        give_counters(self.shared.workers[w], &rows[w * SECTIONS])
                give_gateway(self.worker, rows, seeded)
                give_datagrams(self.worker, rows)
                if log_rows:
                    give_rows(self.worker, &rows[SECTION_ROWS])
                self.note_rows(<GatewayState*>rows[SECTION_GATEWAY].rows)
                self.workers.unlock()
                store_release(&self.log_rows.reading, 0)
            return [[rows[w * SECTIONS + i].count for i in range(SECTIONS)] for w in range(self.shared.count)]
        finally:
            free(rows)

    cdef void note_rows(self, GatewayState* row) noexcept nogil:
        row.drained, row.lost_reported = self.log_rows.drained, self.log_rows.lost_reported
        row.lifecycle_lost_reported = self.log_rows.lifecycle_lost_reported

    def set_key(self, uint64_t low, uint64_t high):
        """Sets the key of all hashes; the gateway must have no entry and no session."""
        with nogil:
            self.workers.lock()
            key_set(self.worker, low, high)
            self.workers.unlock()

    def restore(self, list buffers not None, const uint8_t[::1] entries not None, uint64_t gap_ns, bint frozen, bint seeded):
        """Fills the tables of a new gateway, which has its entries and outside addresses. buffers: as for copy.

        entries: EntryKind by the number of an entry (workers/state_rows.pxd). gap_ns, frozen: how much later it is, and whether
        deadlines move by that. StateError: the rows are damaged, and the gateway is unusable.
        """
        cdef uint32_t w
        cdef Rows* rows = new_rows(self.shared.count)
        cdef Damage damage = Damage(NULL, 0, 0)
        cdef Later later = Later(gap_ns, frozen)
        cdef const uint8_t* known = &entries[0]
        cdef uint32_t known_count = <uint32_t>entries.shape[0]
        cdef const GatewayState* gateway
        cdef bint done
        try:
            fill_rows(rows, buffers, self.shared.count)
            for w in range(self.shared.count * SECTIONS):
                rows[w].count = rows[w].capacity
            with nogil:
                self.workers.lock()
                done = take_gateway(self.worker, rows, &later, seeded, &damage)
                for w in range(self.shared.count):
                    done = done and take_worker(self.shared.workers[w], &rows[w * SECTIONS], known, known_count, &later,
                                                &damage)
                done = (done and take_held_down(self.worker, rows, &later, &damage)
                        and take_datagrams(self.worker, rows, &later, &damage)
                        and take_rows(self.worker, &rows[SECTION_ROWS], &damage))
                if done:
                    gateway = <const GatewayState*>rows[SECTION_GATEWAY].rows
                    self.log_rows.drained = gateway.drained
                    self.log_rows.lost_reported = gateway.lost_reported
                    self.log_rows.lifecycle_lost_reported = gateway.lifecycle_lost_reported
                self.workers.unlock()
            if not done:
                raise StateError(damage.text.decode(), damage.section, damage.row)
        finally:
            free(rows)


cdef void begin_reading(uint32_t* reading) noexcept nogil:
    """Waits until the journal is not being drained."""
    cdef uint32_t turn = 0
    while exchange(reading, 1):
        wait_turn(turn)
        turn += 1


cdef Rows* new_rows(uint32_t workers) except NULL:
    cdef Rows* rows = <Rows*>calloc(<size_t>workers * SECTIONS, sizeof(Rows))
    if rows == NULL:
        raise MemoryError
    return rows


cdef int fill_rows(Rows* rows, list buffers, uint32_t workers) except -1:
    """Sets where the rows of each section are, and how many fit. No section is at NULL, which memcpy must not be given even
    for no bytes; that of an empty one is never read."""
    cdef uint32_t w, i
    cdef const uint8_t[::1] raw
    for w in range(workers):
        for i in range(SECTIONS):
            raw = buffers[w][i]
            rows[w * SECTIONS + i].rows = <uint8_t*>&raw[0] if raw.shape[0] else <uint8_t*>rows
            rows[w * SECTIONS + i].capacity = <uint64_t>raw.shape[0] // row_bytes(i)
    return 0

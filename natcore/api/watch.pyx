"""SessionTap: sessions that begin and end, as they do, for one who watches; beside the journal, which loses nothing by it."""
from cpython.ref cimport Py_INCREF, Py_XDECREF, PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from natcore.api.workers cimport Workers
from natcore.base.compiler cimport exchange
from natcore.base.pages cimport table_delete, table_new
from natcore.base.spinlock cimport spin_lock, spin_read, spin_unlock
from natcore.log.journal cimport Record, RowTap
from natcore.workers.locks cimport lock_all, unlock_all
from natcore.workers.worker cimport Shared

from natcore.errors import CapacityError

cdef enum:
    TAKE_ROWS = 128             # rows that are copied while a worker with a row may wait


cdef class SessionTap:
    """Create and end rows of a gateway from construction until `close`; those that find `capacity` rows waiting are counted."""
    cdef PyObject* workers      # Workers; counted by hand, since the garbage collector might clear it before close()
    cdef Shared* shared         # of workers
    cdef RowTap tap
    cdef uint32_t attached      # 1: the journal has it

    def __cinit__(self, Workers workers not None, uint64_t capacity):
        self.tap.rows = <Record*>table_new(capacity * sizeof(Record))
        if self.tap.rows == NULL:
            raise CapacityError(f"capacity={capacity}: no address space for the rows")
        self.tap.capacity = capacity
        self.tap.spin.needed = 1
        self.shared = workers.shared
        self.workers = <PyObject*>workers
        Py_INCREF(workers)
        with nogil:
            lock_all(self.shared.workers[0])
            self.tap.next = self.shared.workers[0].journal.taps
            self.shared.workers[0].journal.taps = &self.tap
            unlock_all(self.shared.workers[0])
        self.attached = 1

    def __dealloc__(self):
        if self.shared != NULL:
            self.close()
        Py_XDECREF(self.workers)
        table_delete(self.tap.rows, self.tap.capacity * sizeof(Record))

    def close(self):
        """Ends it; rows that wait can still be taken. Idempotent, from any thread."""
        cdef RowTap** at
        if exchange(&self.attached, 0):
            with nogil:
                lock_all(self.shared.workers[0])
                at = &self.shared.workers[0].journal.taps
                while at[0] != &self.tap:
                    at = &at[0].next
                at[0] = self.tap.next
                unlock_all(self.shared.workers[0])

    @property
    def lost(self):
        """Rows that found no place, so far."""
        return spin_read(&self.tap.spin, &self.tap.lost)

    def take(self, rows not None):
        """Fills RECORD (n,) with the oldest rows; how many. For one thread at a time."""
        cdef uint8_t[::1] raw = rows.view("u1")
        cdef uint64_t capacity = raw.shape[0] // sizeof(Record), filled = 0, piece, first
        cdef Record* out = <Record*>&raw[0] if capacity else NULL
        with nogil:
            while filled < capacity:
                spin_lock(&self.tap.spin)
                piece = min(self.tap.head - self.tap.tail, min(capacity - filled, <uint64_t>TAKE_ROWS))
                first = self.tap.tail % self.tap.capacity
                piece = min(piece, self.tap.capacity - first)
                memcpy(&out[filled], &self.tap.rows[first], piece * sizeof(Record))
                self.tap.tail += piece
                spin_unlock(&self.tap.spin)
                if piece == 0:
                    break
                filled += piece
        return filled

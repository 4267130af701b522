"""The workers of a gateway: their memory, which ends with the last object that uses them, and the lock on all of them.

`Core` configures them and translates; `LogRows` reads the journal, `Inspection` copies tables, `FlowTable` captures flows.
Each keeps its own state and one reference to the workers, and none knows another.
"""
from natcore.base.compiler cimport unlikely
from natcore.base.grace_period cimport grace_period
from natcore.base.pages cimport table_delete, table_new
from natcore.log.events cimport event_fd, event_fd_close
from natcore.workers.locks cimport lock_all, unlock_all
from natcore.workers.setup cimport workers_delete, workers_new
from natcore.workers.worker cimport Worker

from natcore.errors import CapacityError


cdef class Workers:
    """A gateway's workers. filters: their sessions have filter entries."""

    def __cinit__(self, bint filters):
        cdef Worker* first = <Worker*>table_new(sizeof(Worker))
        self.filters = filters
        self.shared = workers_new(first) if first != NULL else NULL
        if self.shared == NULL:
            table_delete(first, sizeof(Worker))
            raise CapacityError("out of memory for a gateway")
        self.first = first
        first.events.fd = event_fd()
        if first.events.fd < 0:
            raise CapacityError("no file descriptor left for a gateway's events")

    def __dealloc__(self):
        if self.shared != NULL:
            event_fd_close(self.first.events.fd)
            workers_delete(self.shared, self.filters)

    cdef void lock(self) noexcept nogil:
        """Locks all workers, between two batches of their loops. Pair it with unlock in one `with nogil:`: no Python code may
        run in between, not even by an allocation or a dropped reference, since it may want the lock too."""
        lock_all(self.first)
        if unlikely(self.first.sessions.offload != NULL):
            self.first.sessions.offload.recalled = False

    cdef void unlock(self) noexcept nogil:
        """With a fast path, what the caller has changed holds for every packet when it returns."""
        cdef bint recalled = self.first.sessions.offload != NULL and self.first.sessions.offload.recalled
        unlock_all(self.first)
        if unlikely(recalled):
            grace_period()

"""LogRows: the session log's access to the core."""
from libc.stdint cimport uint32_t, uint64_t

from natcore.api.workers cimport Workers
from natcore.workers.worker cimport Shared, Worker

cdef class LogRows:
    cdef Workers workers
    cdef Shared* shared         # of workers
    cdef Worker* worker         # the first one
    cdef uint64_t drained       # rows numbered so far
    cdef uint64_t lost_reported     # journal.lost at the last take_lost
    cdef uint64_t lifecycle_lost_reported
    cdef uint32_t reading       # lock: one reader or numbering at a time
    cdef void forget_lost(self) noexcept nogil
    cdef void forked(self) noexcept nogil
    cdef uint32_t parts(self) noexcept nogil

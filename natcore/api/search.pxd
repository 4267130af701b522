"""Search: slices of the workers' tables that meet criteria; and a look at a session without its worker's lock."""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from natcore.api.workers cimport Workers
from natcore.base.peek cimport peek64
from natcore.tables.criteria cimport Criteria
from natcore.tables.mappings cimport Mapping
from natcore.tables.sessions cimport Session
from natcore.workers.worker cimport Worker

cdef enum:
    SCAN_LINES = 65536          # lines of a slice that are looked at without a lock: a millisecond or two
    COPY_ROWS = 256             # rows that are copied with a worker locked: some ten microseconds

cdef inline void copy_line(const void* line, void* seen) noexcept nogil:
    """Copies a session's hot or cold line, 64 bytes. Without the worker's lock each word is of one moment, the line is not."""
    cdef uint64_t words[8]
    cdef uint32_t word
    for word in range(8):
        words[word] = peek64(&(<const uint64_t*>line)[word])
    memcpy(seen, words, 64)

cdef bint session_matches(const Worker* worker, uint32_t slot, const Criteria* wanted, Session* seen) noexcept nogil
cdef bint mapping_matches(const Mapping* mapping, const Criteria* wanted) noexcept nogil

cdef class Search:
    cdef Workers workers
    cdef Criteria wanted
    cdef uint32_t at            # worker
    cdef uint32_t slot
    cdef void advance(self, uint32_t fresh) noexcept

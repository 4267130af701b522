"""Invariants of a gateway's tables, which hold between two batches whatever packets came."""
from libc.stdint cimport uint32_t, uint64_t

from natcore.workers.worker cimport Worker

cdef struct Fault:              # a broken invariant
    const char* text            # NULL: all hold
    uint32_t worker
    uint32_t number             # of the slot, mapping or port
    uint64_t seen
    uint64_t expected

cdef bint tables_hold(Worker* worker, bint ports, Fault* fault) noexcept nogil
cdef void assert_tables(Worker* worker) noexcept nogil
cdef void pause_asserts(bint pause) noexcept nogil

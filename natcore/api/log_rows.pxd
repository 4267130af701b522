"""Rows: the session log's side of the core, and how the worker is held."""
from libc.stdint cimport uint32_t, uint64_t

from natcore.workers.worker cimport Shared, Worker

cdef class Rows:
    cdef Shared* shared
    cdef Worker* worker         # the first
    cdef uint64_t drained       # rows numbered so far
    cdef uint64_t lost_told     # of the journal's, by take_lost
    cdef uint64_t apart_lost_told
    cdef uint32_t reading       # somebody takes rows or numbers: one at a time
    cdef void own(self) noexcept nogil
    cdef void disown(self) noexcept nogil
    cdef void forget_lost(self) noexcept nogil
    cdef uint32_t parts(self) noexcept nogil

"""Rows: the session log's side of the core, and how the worker is held."""
from libc.stdint cimport uint64_t

from natcore.state cimport Worker

cdef class Rows:
    cdef Worker* worker
    cdef uint64_t drained       # rows numbered so far
    cdef object reader          # called with the worker held, to take rows out of a journal that is full; or None
    cdef void own(self) noexcept
    cdef void disown(self) noexcept

"""Core: what the Python objects own, and the one place where Python and the packet's side meet."""
from libc.stdint cimport uint64_t

from natcore._rules cimport RuleSet
from natcore.state cimport Worker

cdef class Core:
    cdef Worker* worker
    cdef RuleSet rules          # keeps worker.rules alive
    cdef uint64_t drained       # rows numbered so far
    cdef public object relief   # called with the worker held, to take rows out of a journal that is full; or None
    cdef bint filters
    cdef bint translating       # in translate, or in a plane's loop
    cdef void own(self) noexcept
    cdef void disown(self) noexcept

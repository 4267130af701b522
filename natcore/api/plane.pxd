"""PlaneLoop: what the Python objects of a plane own."""
from libc.stdint cimport uint32_t

from natcore.io.io_loop cimport Loop, Port

cdef class PlaneLoop:
    cdef Loop* loop
    cdef object _owner          # of the worker
    cdef object _drivers        # [Driver | None] by port
    cdef object _turn           # held while the loop runs
    cdef object _past           # counters of drivers that are closed, by port
    cdef Port* _port(self, uint32_t port) except NULL
    cdef void _enter(self) noexcept nogil
    cdef void _leave(self) noexcept nogil

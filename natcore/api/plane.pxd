"""PlaneLoop: what the Python object of a plane's loop owns."""
from libc.stdint cimport uint32_t

from natcore.io.io_loop cimport Loop, Port

cdef class PlaneLoop:
    cdef Loop* loop
    cdef object _owner          # keeps the worker alive
    cdef object _drivers        # [Driver | None] by port
    cdef object _taps           # [Driver | None] by port
    cdef object _turn           # lock, held while the loop runs
    cdef object _views          # {FrameView: its place}
    cdef object _past           # counters of closed drivers, by port
    cdef Port* _port(self, uint32_t port) except NULL
    cdef void _enter(self) noexcept nogil
    cdef void _leave(self) noexcept nogil

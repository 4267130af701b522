"""PlaneLoop: what the Python object of a plane's loop owns."""
from libc.stdint cimport uint32_t

from natcore.io.fast_path cimport FastPath
from natcore.io.loop_state cimport Interface, Loop

cdef class PlaneLoop:
    cdef Loop* loop
    cdef object _owner          # keeps the worker alive
    cdef object _drivers        # [Driver | None] by number
    cdef object _taps           # [Driver | None] by number
    cdef object _turn           # lock, held while the loop runs
    cdef object _views          # {FrameView: its place}
    cdef FastPath _fast_path    # or None
    cdef object _past           # counters of closed drivers, by number
    cdef Interface* _interface(self, uint32_t number) except NULL
    cdef void _lock(self) noexcept nogil
    cdef void _unlock(self) noexcept nogil
    cdef void _outdate(self) noexcept nogil

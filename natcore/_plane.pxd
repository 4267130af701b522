"""PlaneLoop: what the Python objects of a plane own."""
from natcore._worker cimport Loop

cdef class PlaneLoop:
    cdef Loop* loop
    cdef object _owner          # of the worker
    cdef object _rings          # [PacketRing | None] by Side
    cdef object _turn           # held while the loop runs
    cdef object _past           # counters of rings that are closed, by Side
    cdef void _enter(self) noexcept
    cdef void _leave(self) noexcept

"""Workers: owns the workers of a gateway; the parts of `Core` share it."""
from natcore.workers.worker cimport Shared, Worker

cdef class Workers:
    cdef Shared* shared
    cdef Worker* first
    cdef bint filters           # the sessions' tables have filter entries
    cdef void lock(self) noexcept nogil
    cdef void unlock(self) noexcept nogil

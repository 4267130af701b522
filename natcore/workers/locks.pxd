"""Who holds a worker, or all of them: whoever does has its tables for itself."""
from natcore.workers.worker cimport Worker

cdef bint hold(Worker* worker) noexcept nogil
cdef void release(Worker* worker) noexcept nogil
cdef void await_hold(Worker* worker) noexcept nogil
cdef void give_way(Worker* worker) noexcept nogil
cdef void gather(Worker* worker) noexcept nogil
cdef void disperse(Worker* worker) noexcept nogil
cdef void hold_all(Worker* worker) noexcept nogil
cdef void release_all(Worker* worker) noexcept nogil

"""The workers of a gateway: what they have together, and a table of each kind for every one of them."""
from libc.stdint cimport uint32_t

from natcore.workers.worker cimport Shared, Worker

cdef Shared* crew_new(Worker* first) noexcept nogil
cdef bint crew_grow(Shared* shared, uint32_t count, bint filters) noexcept nogil
cdef void crew_delete(Shared* shared, bint filters) noexcept nogil

"""Creates the workers of a gateway: shared state, and tables for each worker."""
from libc.stdint cimport uint32_t

from natcore.workers.worker cimport Shared, Worker

cdef Shared* workers_new(Worker* first) noexcept nogil
cdef bint workers_grow(Shared* shared, uint32_t count, bint filters) noexcept nogil
cdef void workers_delete(Shared* shared, bint filters) noexcept nogil

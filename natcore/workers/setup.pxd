"""Creates the workers of a gateway: shared state, and tables for each worker; puts their configuration into force."""
from libc.stdint cimport uint32_t

from natcore.workers.configuration cimport Configuration
from natcore.workers.worker cimport Shared, Worker

cdef Shared* workers_new(Worker* first) noexcept nogil
cdef bint workers_grow(Shared* shared, uint32_t count, bint filters) noexcept nogil
cdef void configure(Shared* shared, const Configuration* new) noexcept nogil
cdef void workers_delete(Shared* shared, bint filters) noexcept nogil

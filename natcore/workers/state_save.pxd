"""Gives the rows of a saved state."""
from natcore.workers.state_rows cimport Rows
from natcore.workers.worker cimport Worker

cdef void expect_rows(const Worker* worker, Rows* sections) noexcept nogil
cdef void give_worker(const Worker* worker, Rows* sections) noexcept nogil
cdef void give_counters(const Worker* worker, Rows* sections) noexcept nogil
cdef void give_gateway(Worker* first, Rows* sections, bint seeded) noexcept nogil
cdef void give_rows(Worker* first, Rows* section) noexcept nogil

"""Rows of datagrams in progress, of a saved state."""
from natcore.workers.state_rows cimport Damage, Later, Rows
from natcore.workers.worker cimport Worker

cdef void give_datagrams(const Worker* first, Rows* sections) noexcept nogil
cdef bint take_datagrams(Worker* first, const Rows* sections, const Later* later, Damage* damage) noexcept nogil

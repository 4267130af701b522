"""The gateway's clock, and what it drives: the sweep, SYN hold-off, fragment time-outs, complete expiry."""
from libc.stdint cimport uint32_t, uint64_t

from natcore.workers.worker cimport Clock, Worker

cdef uint64_t clock_forward(Worker* worker, uint64_t now_ns) noexcept nogil
cdef uint64_t clock_forward_with(Worker* worker, uint32_t packets, uint64_t now_ns) noexcept nogil
cdef void clock_follow(Worker* worker, Clock* now) noexcept nogil
cdef uint64_t clock_of_all(const Worker* worker) noexcept nogil
cdef void tick(Worker* worker, uint64_t now_ns) noexcept nogil
cdef bint advance(Worker* worker, uint64_t now_ns, uint64_t rows) noexcept nogil
cdef void finish_held(Worker* worker, uint64_t now_ns) noexcept nogil

"""The I/O loop of a plane: joins interfaces, next hops and a worker; moves packets without the GIL."""
from libc.stdint cimport uint32_t, uint64_t

from natcore.io.loop_state cimport Loop

cdef uint32_t work(Loop* loop, uint32_t budget) noexcept nogil
cdef void run(Loop* loop) noexcept nogil
cdef void clear_errors(Loop* loop) noexcept nogil
cdef void end_pending(Loop* loop) noexcept nogil
cdef void signal_fd(int fd) noexcept nogil
cdef void drain_fd(int fd) noexcept nogil
cdef uint64_t clock_of(const Loop* loop) noexcept nogil

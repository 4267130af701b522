"""The kernel fast path: which sessions the XDP program translates by itself (tables/offload.pxd says how)."""
from libc.stdint cimport uint32_t, uint64_t

from natcore.frame cimport Frame
from natcore.io.loop_state cimport Interface, Loop
from natcore.tables.offload cimport Offload

cdef class FastPath:
    cdef Offload offload
    cdef uint32_t _capacity     # sessions
    cdef Loop* _loop            # it works for, or NULL
    cdef void begin(self, Loop* loop) noexcept

cdef void offer(Loop* loop, const Interface* ingress, const Frame* frame) noexcept nogil
cdef void fold_some(Loop* loop, uint64_t elapsed_ns) noexcept nogil

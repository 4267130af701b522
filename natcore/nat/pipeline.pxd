"""The packet path as C callers and the I/O loop use it (frame.pxd): translate, with the worker's lock and clock."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from natcore.workers.locks cimport lock, try_lock, unlock
from natcore.nat.clock cimport tick
from natcore.frame cimport Frame
from natcore.workers.worker cimport Worker

cdef enum:
    FRAME_DEFERRED = 1 << 15    # of Frame.flags: it opened a session, and planes hold it back (Shared.defer_ms)

cdef void translate(Worker* worker, Frame* frames, uint32_t count, uint64_t now_ns) noexcept nogil
cdef void count_sides(Worker* worker, const Frame* frames, uint32_t count) noexcept nogil
cdef void revoke(Worker* worker, Frame* frame, uint8_t verdict) noexcept nogil
cdef uint32_t take_generated(Worker* worker, uint8_t* out, uint32_t capacity, uint8_t* send_to, uint8_t* cause) noexcept nogil

"""What natcore.h calls: a table of functions behind a capsule, so that callers are compiled against that file alone."""
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from natcore.frame cimport Frame
from natcore.nat.clock cimport tick
from natcore.nat.pipeline cimport count_sides, take_generated, translate
from natcore.workers.locks cimport lock, try_lock, unlock
from natcore.workers.worker cimport Worker

cdef extern from "natcore/natcore.h":
    enum:
        NATCORE_ABI_VERSION

    ctypedef struct natcore_worker:
        pass

    ctypedef struct natcore_functions:
        uint32_t abi_version
        uint32_t frame_bytes
        void (*translate)(natcore_worker*, Frame*, uint32_t, uint64_t) noexcept nogil
        void (*tick)(natcore_worker*, uint64_t) noexcept nogil
        uint32_t (*take_generated)(natcore_worker*, uint8_t*, uint32_t, uint8_t*, uint8_t*) noexcept nogil
        void (*lock)(natcore_worker*) noexcept nogil
        int (*try_lock)(natcore_worker*) noexcept nogil
        void (*unlock)(natcore_worker*) noexcept nogil


cdef void c_translate(natcore_worker* worker, Frame* frames, uint32_t count, uint64_t now_ns) noexcept nogil:
    translate(<Worker*>worker, frames, count, now_ns)
    count_sides(<Worker*>worker, frames, count)


cdef void c_tick(natcore_worker* worker, uint64_t now_ns) noexcept nogil:
    tick(<Worker*>worker, now_ns)


cdef uint32_t c_take_generated(natcore_worker* worker, uint8_t* out, uint32_t capacity, uint8_t* send_to,
                               uint8_t* cause) noexcept nogil:
    return take_generated(<Worker*>worker, out, capacity, send_to, cause)


cdef void c_lock(natcore_worker* worker) noexcept nogil:
    lock(<Worker*>worker)


cdef int c_try_lock(natcore_worker* worker) noexcept nogil:
    return try_lock(<Worker*>worker)


cdef void c_unlock(natcore_worker* worker) noexcept nogil:
    unlock(<Worker*>worker)


cdef natcore_functions functions
functions.abi_version = NATCORE_ABI_VERSION
functions.frame_bytes = sizeof(Frame)
functions.translate = c_translate
functions.tick = c_tick
functions.take_generated = c_take_generated
functions.lock = c_lock
functions.try_lock = c_try_lock
functions.unlock = c_unlock

ABI_VERSION = NATCORE_ABI_VERSION
C_API = PyCapsule_New(&functions, "natcore.C_API", NULL)

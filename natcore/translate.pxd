"""The C interface for Cython: natcore.h with Cython's names. A module calls import_natcore() once, before all else."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from natcore.frame cimport FRAME_CROSSING, FRAME_CSUM_PARTIAL, FRAME_GSO, FRAME_UNFINISHED, Frame

cdef extern from "natcore/natcore.h":
    enum:
        ABI_VERSION "NATCORE_ABI_VERSION"

    ctypedef struct Worker "natcore_worker":
        pass

    int import_natcore "natcore_import"() except -1
    Worker* worker_of "natcore_worker_of"(object capsule) except NULL

cdef extern from "natcore/natcore.h" nogil:
    void translate "natcore_translate"(Worker* worker, Frame* frames, uint32_t count, uint64_t now_ns) noexcept
    void tick "natcore_tick"(Worker* worker, uint64_t now_ns) noexcept
    uint32_t take_generated "natcore_take_generated"(Worker* worker, uint8_t* out, uint32_t capacity, uint8_t* send_to,
                                                     uint8_t* cause) noexcept
    void lock "natcore_lock"(Worker* worker) noexcept
    bint try_lock "natcore_try_lock"(Worker* worker) noexcept
    void unlock "natcore_unlock"(Worker* worker) noexcept

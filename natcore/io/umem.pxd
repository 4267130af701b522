"""Umem: the frame memory that a loop's AF_XDP sockets share with the kernel. No sockets."""
from libc.stdint cimport uint8_t, uint32_t

cdef enum:
    HOLDERS = 256
    HEADROOM = 256              # bytes reserved before a received frame: XDP_PACKET_HEADROOM

cdef enum Holder:               # holder of a chunk
    FREE = 0
    LOOP = 1                    # received, and neither returned nor queued to be sent
    FIRST_QUEUE = 2             # from here on: queue that the kernel fills it from or sends it by

cdef struct Umem:             # used by one thread at a time
    uint8_t* area
    uint32_t chunk_bytes
    uint32_t chunk_shift        # log2 of chunk bytes
    uint32_t chunks
    uint8_t* holders            # [chunks] Holder
    uint32_t* free              # [chunks] stack of free chunks
    uint32_t free_count
    uint8_t queues[HOLDERS]     # queue numbers in use

cdef inline void free_chunk(Umem* umem, uint32_t chunk) noexcept nogil:
    """Frees a chunk."""
    umem.holders[chunk] = FREE
    umem.free[umem.free_count] = chunk
    umem.free_count += 1

cdef class FrameMemory:
    cdef Umem umem

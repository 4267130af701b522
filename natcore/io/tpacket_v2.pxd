"""TPACKET_V2 receive ring: passes frames on one by one, without waiting for a block to fill."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from natcore.io.super_frames cimport Split
from natcore.io.device cimport Arrival
from natcore.io.kernel cimport virtio_net_hdr

cdef enum:
    LARGE_AT_ONCE = 32              # frames longer than a slot, between two `frames_complete`

cdef struct FrameRing:
    int fd
    uint8_t* slots
    uint32_t slot_bytes
    uint32_t slot_count
    uint32_t next                   # next slot to read
    uint32_t read                   # slots to return to the kernel
    uint8_t* large                  # [LARGE_AT_ONCE] frames, a virtio-net header before each
    uint32_t large_count            # used ones
    uint8_t* big                    # one frame over 64 KB, preceded by a virtio-net header
    Split split                     # its segmentation
    uint64_t received               # frames read
    uint64_t truncated              # longer than a slot, and not received whole: not passed on

cdef uint32_t frames_receive(FrameRing* ring, Arrival* arrivals, uint32_t most) noexcept nogil
cdef void frames_complete(FrameRing* ring) noexcept nogil
cdef int frames_open(FrameRing* ring, int fd, uint32_t mtu) except -1
cdef int frames_take_over(FrameRing* ring, int fd, uint32_t slot_bytes, uint32_t slot_count, uint32_t next) except -1
cdef void frames_free(FrameRing* ring) noexcept nogil

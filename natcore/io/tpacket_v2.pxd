"""A receive ring that hands over frame by frame (TPACKET_V2): no block to fill, so no waiting for it."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from natcore.io.super_frames cimport Cut
from natcore.io.device cimport Arrival
from natcore.io.kernel cimport virtio_net_hdr

cdef enum:
    LARGE_AT_ONCE = 32              # frames longer than a place, between two `frames_complete`

cdef struct FrameRing:
    int fd
    uint8_t* places
    uint32_t place_bytes
    uint32_t place_count
    uint32_t next                   # place to be read
    uint32_t read                   # places that the kernel gets back
    uint8_t* large                  # [LARGE_AT_ONCE] frames, a virtio-net header before each
    uint32_t large_count            # in use
    uint8_t* big                    # one frame over 64 KB, a virtio-net header before it
    Cut cut                         # of it
    uint64_t received               # frames read
    uint64_t truncated              # longer than a place, and not fetched whole: never passed on

cdef uint32_t frames_receive(FrameRing* ring, Arrival* arrivals, uint32_t most) noexcept nogil
cdef void frames_complete(FrameRing* ring) noexcept nogil
cdef int frames_open(FrameRing* ring, int fd, uint32_t mtu) except -1
cdef void frames_free(FrameRing* ring) noexcept nogil

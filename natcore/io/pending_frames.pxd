"""Pending frames: translated frames with an unresolved next hop, in order of arrival."""
from libc.stdint cimport uint8_t, uint32_t

from natcore.io.device cimport FRAME_CAPACITY
from natcore.io.neighbors cimport Neighbour, Neighbours
from natcore.frame cimport Frame
from natcore.io.kernel cimport virtio_net_hdr

cdef enum:
    PENDING_FRAMES = 1024       # frames at most
    PENDING_BYTES = 4 << 20     # buffer: 64 of the largest frames
    PENDING_EACH = 212992       # bytes pending for one next hop, as the kernel's neigh/default/unres_qlen_bytes
    PENDING_MS = 1000           # age at which they are dropped

cdef struct PendingFrame:            # header before each frame's bytes
    uint32_t bytes              # bytes up to the next header
    uint32_t address            # next hop, host order; of a deferred frame any other number; 0: removed
    uint32_t since_ms
    uint32_t interface          # number of the egress interface
    uint32_t cycle              # of a deferred frame (deferred_frames.pxd), as the next one
    uint32_t flow
    Frame frame
    virtio_net_hdr offload

cdef struct PendingFrames:        # ring buffer: the oldest frame at tail, space at head
    uint8_t* memory             # [PENDING_BYTES], touched when used
    uint32_t head
    uint32_t tail
    uint32_t used               # bytes from tail to head
    uint32_t frames             # pending frames

cdef inline PendingFrame* pending_first(PendingFrames* pending) noexcept nogil:
    """The oldest place of the ring, which may be a removed one; NULL: empty."""
    return <PendingFrame*>(pending.memory + pending.tail) if pending.used else NULL

cdef inline PendingFrame* pending_next(PendingFrames* pending, PendingFrame* waiting) noexcept nogil:
    """The next place; NULL: the end."""
    cdef uint32_t after = <uint32_t>(<uint8_t*>waiting - pending.memory) + waiting.bytes
    after = after if after < PENDING_BYTES else 0
    return <PendingFrame*>(pending.memory + after) if after != pending.head else NULL

cdef bint pending_new(PendingFrames* pending) noexcept nogil
cdef void pending_delete(PendingFrames* pending) noexcept nogil
cdef PendingFrame* pending_copy(PendingFrames* pending, const Frame* frame, const virtio_net_hdr* offload,
                                uint32_t now_ms) noexcept nogil
cdef bint pending_add(PendingFrames* pending, Neighbour* neighbour, uint32_t interface, const Frame* frame,
                      const virtio_net_hdr* offload, uint32_t now_ms) noexcept nogil
cdef void pending_remove(PendingFrames* pending, PendingFrame* waiting, Neighbours* neighbours) noexcept nogil
cdef void pending_sweep(PendingFrames* pending) noexcept nogil

"""Frames of a plane copied for someone who looks: as they came, as they leave, and their verdict.

Nothing is looked at while no view is attached to a loop, but for one pointer a batch. With one, every frame of a batch is
copied before it is translated, since an inside address of a packet from outside is known only afterwards; what meets the
criteria then goes into the view's ring. A full ring loses the copy, and counts it. Frames that the gateway originates (ICMP,
fragments) are shown as they leave, with the verdict that caused them.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from natcore.base.spinlock cimport Spinlock
from natcore.frame cimport Frame
from natcore.tables.criteria cimport Criteria

cdef enum:
    VIEW_FRAMES = 256            # of a batch, at most

cdef struct ViewedFrame:        # a frame in the ring, before its bytes: as it came, then as it leaves
    uint32_t total              # bytes in the ring, with this header, rounded up to 8
    uint32_t kept[2]            # bytes that were copied: as it came, as it leaves (0: it does not)
    uint32_t length[2]          # bytes that the frame had; as it came 0: the gateway originates it
    uint8_t verdict             # or what caused it
    uint8_t side                # Side that it came from, or goes to
    uint8_t interface           # number of the interface that it came by, or leaves by
    uint8_t worker
    uint64_t at_ns              # gateway's clock

cdef struct View:
    Criteria criteria
    bint drops                  # only drops
    uint32_t snaplen            # bytes of a frame that are copied, at most
    uint8_t* ring
    uint64_t capacity           # bytes, a power of two
    uint64_t head               # bytes ever written
    uint64_t tail               # bytes ever read
    uint64_t lost               # frames that found no place
    Spinlock spin               # needed whatever the number of workers: the reader locks none

cdef struct ArrivedFrames:      # the frames of a batch as they came
    View* view
    uint8_t* bytes              # [VIEW_FRAMES][snaplen]
    uint32_t lengths[VIEW_FRAMES]

cdef class FrameView:
    cdef View view
    cdef void peek(self, void* out, uint64_t offset, uint32_t count) noexcept

cdef bint arrived_new(ArrivedFrames* before, View* view) noexcept nogil
cdef void arrived_delete(ArrivedFrames* before) noexcept nogil
cdef void view_arrive(ArrivedFrames* before, const Frame* frames, uint32_t count) noexcept nogil
cdef void view_leave(ArrivedFrames* before, const Frame* frames, uint32_t count, uint8_t interface, uint32_t worker,
                     bint forwarded_only, uint64_t now_ns) noexcept nogil
cdef void view_generated(ArrivedFrames* before, const uint8_t* data, uint32_t length, uint8_t send_to, uint8_t cause,
                         uint8_t interface, uint32_t worker, uint64_t now_ns) noexcept nogil

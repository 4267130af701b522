"""Deferred frames: translated frames of new sessions, which leave when the standby has these ([peer] defer).

Theory of operation. The feed of a standby tells it what has changed in cycles, which are numbered (Shared.defer_cycle). A frame
that opened a session while cycle c was the newest waits until the standby has acknowledged cycle c + 1, which began after the
session was noted as changed, and so tells it. Who acknowledges late, or not, holds up a frame for a bounded time alone.

A later frame of the same connection that comes meanwhile waits too, behind the first one, and leaves with it: `flows` has a
bucket for each hash of an outgoing five-tuple, with the cycle and the time of the newest first frame that waits there. Two
connections that share a bucket wait for the later one of them; no frame overtakes another one of its connection, and once the
bucket is empty frames of the connection pass by. While no frame waits, nothing of this is looked at.

Lock. None: the frames are the loop's.
"""
from libc.stdint cimport uint32_t, uint64_t

from natcore.base.flow_hash cimport HashKey
from natcore.frame cimport Frame
from natcore.io.kernel cimport virtio_net_hdr
from natcore.io.pending_frames cimport PendingFrame, PendingFrames, pending_first, pending_next

cdef enum:
    DEFERRED_FRAMES = 8192      # at most
    DEFERRED_FLOWS = 8192       # buckets

cdef enum:                      # Outcome: why a frame leaves
    DEFERRED_WAITS = 0          # it does not yet
    DEFERRED_ACKNOWLEDGED = 1   # the standby has its session
    DEFERRED_LATE = 2           # it has waited long enough
    DEFERRED_ALONE = 3          # no standby follows any more
    DEFERRED_OVERFLOW = 4       # there is no space for more
    OUTCOMES = 5

cdef struct Flow:               # frames that wait, of the connections with a hash
    uint32_t frames
    uint32_t tag                # of the hash: other connections pass by; SHARED_FLOW: of more than one
    uint32_t cycle
    uint32_t since_ms

cdef struct DeferredFrames:
    PendingFrames ring
    Flow* flows                 # [DEFERRED_FLOWS]
    uint32_t acknowledged       # the newest cycle that was looked at
    uint64_t outcomes[OUTCOMES]        # by Outcome: frames that have left
    uint64_t waited_ms          # all of them together

cdef inline PendingFrame* deferred_first(DeferredFrames* deferred) noexcept nogil:
    """The oldest frame that waits; NULL: none does."""
    cdef PendingFrame* waiting = pending_first(&deferred.ring)
    while waiting != NULL and not waiting.address:
        waiting = pending_next(&deferred.ring, waiting)
    return waiting

cdef bint deferred_new(DeferredFrames* deferred) noexcept nogil
cdef void deferred_delete(DeferredFrames* deferred) noexcept nogil
cdef bint deferred_follows(const DeferredFrames* deferred, const HashKey* key, const Frame* frame) noexcept nogil
cdef bint deferred_add(DeferredFrames* deferred, const HashKey* key, const Frame* frame, const virtio_net_hdr* offload,
                       bint opened, uint32_t cycle, uint32_t now_ms) noexcept nogil
cdef uint32_t deferred_outcome(const PendingFrame* waiting, uint32_t acknowledged, uint32_t wait_ms,
                               uint32_t now_ms) noexcept nogil
cdef void deferred_remove(DeferredFrames* deferred, PendingFrame* waiting, uint32_t outcome, uint32_t now_ms) noexcept nogil

"""Python wrappers of a plane's inline functions, for tests only."""
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset

from natcore.base.flow_hash cimport HashKey
from natcore.io.deferred_frames cimport (
    DeferredFrames as DeferredRing, deferred_add, deferred_delete, deferred_first, deferred_follows, deferred_new,
    deferred_outcome, deferred_remove,
)
from natcore.io.neighbors cimport Neighbours, neighbour_at, neighbour_of, neighbours_delete, neighbours_new
from natcore.io.pending_frames cimport (
    PendingFrame, pending_delete, pending_add, pending_first, pending_remove, pending_new, pending_next, pending_sweep,
)
from natcore.io.pending_frames cimport PendingFrames as FrameRing
from natcore.frame cimport Frame
from natcore.io.kernel cimport virtio_net_hdr


cdef class PendingFrames:
    """Pending frames and one link's neighbours."""
    cdef FrameRing pending
    cdef Neighbours neighbours

    def __cinit__(self):
        if not pending_new(&self.pending) or not neighbours_new(&self.neighbours):
            raise MemoryError("pending frames")

    def __dealloc__(self):
        pending_delete(&self.pending)
        neighbours_delete(&self.neighbours)

    def enter(self, uint32_t address, bytes data not None, uint32_t now_ms=0):
        """Whether the frame was stored for the address."""
        cdef Frame frame
        cdef virtio_net_hdr offload
        memset(&frame, 0, sizeof(frame))
        memset(&offload, 0, sizeof(offload))
        frame.data = <uint8_t*>PyBytes_AS_STRING(data)
        frame.length = <uint32_t>len(data)
        return pending_add(&self.pending, neighbour_of(&self.neighbours, address), 0, &frame, &offload, now_ms)

    def leave(self, addresses):
        """Removes and returns the frames for these addresses, in order."""
        cdef PendingFrame* waiting = pending_first(&self.pending)
        gone = []
        while waiting != NULL:
            if waiting.address and waiting.address in addresses:
                gone.append((waiting.address, waiting.frame.data[:waiting.frame.length]))
                pending_remove(&self.pending, waiting, &self.neighbours)
            waiting = pending_next(&self.pending, waiting)
        pending_sweep(&self.pending)
        return gone

    def waiting_for(self, uint32_t address):
        """Bytes of pending frames for the address."""
        return neighbour_at(&self.neighbours, address).waiting

    @property
    def frames(self):
        return self.pending.frames

    @property
    def used(self):
        """Bytes of the buffer in use."""
        return self.pending.used


cdef class DeferredFrames:
    """Frames that wait for a standby, as the loop keeps them."""
    cdef DeferredRing deferred
    cdef HashKey key

    def __cinit__(self):
        self.key.low, self.key.high, self.key.aes = 1, 2, 0
        if not deferred_new(&self.deferred):
            raise MemoryError("deferred frames")

    def __dealloc__(self):
        deferred_delete(&self.deferred)

    cdef Frame _frame(self, bytes data):
        cdef Frame frame
        memset(&frame, 0, sizeof(frame))
        frame.data = <uint8_t*>PyBytes_AS_STRING(data)
        frame.length = <uint32_t>len(data)
        return frame

    def follows(self, bytes data not None):
        """Whether the frame has to wait for one that came before."""
        cdef Frame frame = self._frame(data)
        return deferred_follows(&self.deferred, &self.key, &frame)

    def enter(self, bytes data not None, bint opened, uint32_t cycle, uint32_t now_ms):
        """Whether the frame was stored."""
        cdef Frame frame = self._frame(data)
        cdef virtio_net_hdr offload
        memset(&offload, 0, sizeof(offload))
        return deferred_add(&self.deferred, &self.key, &frame, &offload, opened, cycle, now_ms)

    def leave(self, uint32_t acknowledged, uint32_t wait_ms, uint32_t now_ms):
        """Removes and returns the frames that need not wait any more, in order, with their outcomes."""
        cdef PendingFrame* waiting = deferred_first(&self.deferred)
        cdef uint32_t outcome
        gone = []
        while waiting != NULL:
            outcome = deferred_outcome(waiting, acknowledged, wait_ms, now_ms) if waiting.address else 0
            if outcome:
                gone.append((outcome, waiting.frame.data[:waiting.frame.length]))
                deferred_remove(&self.deferred, waiting, outcome, now_ms)
            waiting = pending_next(&self.deferred.ring, waiting)
        pending_sweep(&self.deferred.ring)
        return gone

    @property
    def frames(self):
        return self.deferred.ring.frames

    @property
    def waited_ms(self):
        """By all frames that have left."""
        return self.deferred.waited_ms

"""Pending frames in one ring of bytes: removed in any order, space is reclaimed from the oldest on."""
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from natcore.io.neighbors cimport neighbour_at
from natcore.base.compiler cimport store_relaxed
from natcore.base.pages cimport table_delete, table_new


cdef bint pending_new(PendingFrames* pending) noexcept nogil:
    memset(pending, 0, sizeof(PendingFrames))
    pending.memory = <uint8_t*>table_new(PENDING_BYTES)
    return pending.memory != NULL


cdef void pending_delete(PendingFrames* pending) noexcept nogil:
    table_delete(pending.memory, PENDING_BYTES)
    pending.memory = NULL


cdef PendingFrame* claim(PendingFrames* pending, uint32_t need) noexcept nogil:
    """Allocates contiguous bytes, a multiple of eight; NULL: full."""
    cdef PendingFrame* waiting = <PendingFrame*>(pending.memory + pending.head)
    cdef uint32_t left = PENDING_BYTES - pending.head      # bytes up to the end of the buffer
    if need > left:             # skip the rest
        if pending.used + left + need > PENDING_BYTES:
            return NULL
        waiting.bytes = left
        waiting.address = 0
        pending.used += left
        pending.head = 0
        waiting = <PendingFrame*>pending.memory
    elif pending.used + need > PENDING_BYTES:
        return NULL
    waiting.bytes = need
    pending.used += need
    pending.head = pending.head + need if pending.head + need < PENDING_BYTES else 0
    return waiting


cdef PendingFrame* pending_copy(PendingFrames* pending, const Frame* frame, const virtio_net_hdr* offload,
                                uint32_t now_ms) noexcept nogil:
    """Stores a copy of the frame, which the caller gives an address; NULL: no space."""
    cdef PendingFrame* waiting
    if frame.length > FRAME_CAPACITY:
        return NULL
    waiting = claim(pending, (<uint32_t>sizeof(PendingFrame) + frame.length + 7) & ~<uint32_t>7)
    if waiting == NULL:
        return NULL
    waiting.since_ms = now_ms
    waiting.frame = frame[0]
    waiting.frame.data = <uint8_t*>(waiting + 1)
    waiting.offload = offload[0]
    memcpy(waiting.frame.data, frame.data, frame.length)
    store_relaxed(&pending.frames, pending.frames + 1)
    return waiting


cdef bint pending_add(PendingFrames* pending, Neighbour* neighbour, uint32_t interface, const Frame* frame,
                      const virtio_net_hdr* offload, uint32_t now_ms) noexcept nogil:
    """Stores a copy of the frame for the neighbour behind the interface; false: a limit is reached."""
    cdef PendingFrame* waiting
    if pending.frames == PENDING_FRAMES or neighbour.waiting + frame.length > PENDING_EACH:
        return False
    waiting = pending_copy(pending, frame, offload, now_ms)
    if waiting == NULL:
        return False
    waiting.address = neighbour.address
    waiting.interface = interface
    neighbour.waiting += frame.length
    return True


cdef void pending_remove(PendingFrames* pending, PendingFrame* waiting, Neighbours* neighbours) noexcept nogil:
    """Removes a frame. Its bytes stay valid, and its space in use, until `pending_sweep`."""
    cdef Neighbour* neighbour = neighbour_at(neighbours, waiting.address)
    if neighbour.address:
        neighbour.waiting -= waiting.frame.length
    waiting.address = 0
    store_relaxed(&pending.frames, pending.frames - 1)


cdef void pending_sweep(PendingFrames* pending) noexcept nogil:
    """Reclaims the space of removed frames, up to the first pending one."""
    cdef PendingFrame* waiting
    while pending.used:
        waiting = <PendingFrame*>(pending.memory + pending.tail)
        if waiting.address:
            return
        pending.used -= waiting.bytes
        pending.tail = pending.tail + waiting.bytes if pending.tail + waiting.bytes < PENDING_BYTES else 0
    pending.head = pending.tail = 0

"""Who waits lies in one ring of bytes, and leaves in any order; places are free again from the first one on."""
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from natcore.io.neighbors cimport neighbour_at
from natcore.base.compiler cimport store_relaxed
from natcore.base.pages cimport table_delete, table_new


cdef bint waiting_new(WaitingRoom* room) noexcept nogil:
    memset(room, 0, sizeof(WaitingRoom))
    room.memory = <uint8_t*>table_new(WAITING_BYTES)
    return room.memory != NULL


cdef void waiting_delete(WaitingRoom* room) noexcept nogil:
    table_delete(room.memory, WAITING_BYTES)
    room.memory = NULL


cdef Waiting* claim(WaitingRoom* room, uint32_t need) noexcept nogil:
    """A place of so many bytes in one piece, a multiple of eight; NULL: full."""
    cdef Waiting* waiting = <Waiting*>(room.memory + room.head)
    cdef uint32_t left = WAITING_BYTES - room.head      # up to the end of the memory
    if need > left:             # the rest is passed over
        if room.used + left + need > WAITING_BYTES:
            return NULL
        waiting.room = left
        waiting.address = 0
        room.used += left
        room.head = 0
        waiting = <Waiting*>room.memory
    elif room.used + need > WAITING_BYTES:
        return NULL
    waiting.room = need
    room.used += need
    room.head = room.head + need if room.head + need < WAITING_BYTES else 0
    return waiting


cdef bint waiting_enter(WaitingRoom* room, Neighbour* neighbour, uint32_t port, const Frame* frame,
                        const virtio_net_hdr* offload, uint32_t now_ms) noexcept nogil:
    """A copy of the frame waits for the neighbour behind the port; false: enough wait already."""
    cdef Waiting* waiting
    if (frame.length > FRAME_ROOM or room.frames == WAITING_FRAMES
            or neighbour.waiting + frame.length > WAITING_EACH):
        return False
    waiting = claim(room, (<uint32_t>sizeof(Waiting) + frame.length + 7) & ~<uint32_t>7)
    if waiting == NULL:
        return False
    waiting.address = neighbour.address
    waiting.since_ms = now_ms
    waiting.port = port
    waiting.frame = frame[0]
    waiting.frame.data = <uint8_t*>(waiting + 1)
    waiting.offload = offload[0]
    memcpy(waiting.frame.data, frame.data, frame.length)
    neighbour.waiting += frame.length
    store_relaxed(&room.frames, room.frames + 1)
    return True


cdef void waiting_leave(WaitingRoom* room, Waiting* waiting, Neighbours* neighbours) noexcept nogil:
    """It waits no longer. Its place is free after `waiting_sweep`, and its bytes stay until then."""
    cdef Neighbour* neighbour = neighbour_at(neighbours, waiting.address)
    if neighbour.address:
        neighbour.waiting -= waiting.frame.length
    waiting.address = 0
    store_relaxed(&room.frames, room.frames - 1)


cdef void waiting_sweep(WaitingRoom* room) noexcept nogil:
    """The places of those who left are free, up to the first who still waits."""
    cdef Waiting* waiting
    while room.used:
        waiting = <Waiting*>(room.memory + room.tail)
        if waiting.address:
            return
        room.used -= waiting.room
        room.tail = room.tail + waiting.room if room.tail + waiting.room < WAITING_BYTES else 0
    room.head = room.tail = 0

"""The waiting room: translated frames whose next hop is being resolved, in the order in which they came."""
from libc.stdint cimport uint8_t, uint32_t

from natcore.io.device cimport FRAME_ROOM
from natcore.io.neighbors cimport Neighbour, Neighbours
from natcore.frame cimport Frame
from natcore.io.kernel cimport virtio_net_hdr

cdef enum:
    WAITING_FRAMES = 1024       # in the room at most
    WAITING_BYTES = 4 << 20     # of the room: 64 of the largest frames
    WAITING_EACH = 212992       # bytes that may wait for one next hop, as the kernel's neigh/default/unres_qlen_bytes
    WAITING_MS = 1000           # then they are dropped

cdef struct Waiting:            # before each frame's bytes
    uint32_t room               # bytes up to the next one
    uint32_t address            # of the next hop, host order; 0: it is gone
    uint32_t since_ms
    uint32_t port               # that it leaves by
    Frame frame
    virtio_net_hdr offload

cdef struct WaitingRoom:        # a ring: what came first lies at tail, what came last before head
    uint8_t* memory             # [WAITING_BYTES], touched when used
    uint32_t head
    uint32_t tail
    uint32_t used               # bytes from tail to head
    uint32_t frames             # that wait

cdef inline Waiting* waiting_first(WaitingRoom* room) noexcept nogil:
    """The first place of the ring; NULL: nobody waits."""
    return <Waiting*>(room.memory + room.tail) if room.used else NULL

cdef inline Waiting* waiting_next(WaitingRoom* room, Waiting* waiting) noexcept nogil:
    """The place after it; NULL: it was the last one."""
    cdef uint32_t after = <uint32_t>(<uint8_t*>waiting - room.memory) + waiting.room
    after = after if after < WAITING_BYTES else 0
    return <Waiting*>(room.memory + after) if after != room.head else NULL

cdef bint waiting_new(WaitingRoom* room) noexcept nogil
cdef void waiting_delete(WaitingRoom* room) noexcept nogil
cdef bint waiting_enter(WaitingRoom* room, Neighbour* neighbour, uint32_t port, const Frame* frame,
                        const virtio_net_hdr* offload, uint32_t now_ms) noexcept nogil
cdef void waiting_leave(WaitingRoom* room, Waiting* waiting, Neighbours* neighbours) noexcept nogil
cdef void waiting_sweep(WaitingRoom* room) noexcept nogil

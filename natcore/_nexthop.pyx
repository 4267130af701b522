"""Tables of next hops: replaced or extended by the control side while it holds the worker, read by the loop."""
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from natcore._ring cimport FRAME_ROOM
from natcore.memory cimport table_delete, table_new

cdef enum:
    FORGET_MS = 10000           # a neighbour that has not been found for so long


cdef bint hops_new(NextHops* hops) noexcept nogil:
    memset(hops, 0, sizeof(NextHops))
    hops.neighbours = <Neighbour*>table_new(NEIGHBOURS * sizeof(Neighbour))
    return hops.neighbours != NULL


cdef void hops_delete(NextHops* hops) noexcept nogil:
    table_delete(hops.neighbours, NEIGHBOURS * sizeof(Neighbour))
    free(hops.starts)
    free(hops.vias)
    memset(hops, 0, sizeof(NextHops))


cdef bint routes_replace(NextHops* hops, const uint32_t* starts, const uint32_t* vias, uint32_t ranges) noexcept nogil:
    """Takes copies of the new ranges; false, and nothing changed, without memory."""
    cdef uint32_t* new_starts = <uint32_t*>malloc(<size_t>(ranges + 1) * 4)
    cdef uint32_t* new_vias = <uint32_t*>malloc(<size_t>(ranges + 1) * 4)
    if new_starts == NULL or new_vias == NULL:
        free(new_starts)
        free(new_vias)
        return False
    memcpy(new_starts, starts, <size_t>ranges * 4)
    memcpy(new_vias, vias, <size_t>ranges * 4)
    free(hops.starts)
    free(hops.vias)
    hops.starts, hops.vias, hops.ranges = new_starts, new_vias, ranges
    return True


cdef bint neighbour_learn(NextHops* hops, uint32_t address, const uint8_t* mac, uint8_t state) noexcept nogil:
    """What the kernel says of a neighbour. mac: 6 bytes, or NULL where it has none. False: no room."""
    cdef Neighbour* neighbour = neighbour_at(hops, address)
    if neighbour.address == 0:
        if mac == NULL:
            return True
        if hops.count >= NEIGHBOURS_MOST:
            return False
        hops.count += 1
        neighbour.address = address
    neighbour.state = state
    if mac != NULL:
        memcpy(neighbour.mac, mac, 6)
    return True


cdef bint neighbours_forget(NextHops* hops, uint32_t now_ms) noexcept nogil:
    """Frees the slots of neighbours long sought in vain (a scan of the link leaves many). False without memory."""
    cdef Neighbour* before = hops.neighbours
    cdef Neighbour* after = <Neighbour*>table_new(NEIGHBOURS * sizeof(Neighbour))
    cdef uint32_t i
    if after == NULL:
        return False
    hops.neighbours = after
    hops.count = 0
    for i in range(NEIGHBOURS):
        if before[i].address == 0:
            continue
        if before[i].state == KNOWN or before[i].waiting or now_ms - before[i].asked_ms < FORGET_MS:
            neighbour_at(hops, before[i].address)[0] = before[i]
            hops.count += 1
    table_delete(before, NEIGHBOURS * sizeof(Neighbour))
    return True


cdef bint set_replace(AddressSet* addresses, const uint32_t* members, uint32_t count) noexcept nogil:
    """The set holds exactly the members (host order, none 0) from now on; false, nothing changed: no memory."""
    cdef uint32_t size = 8, i, j
    cdef uint32_t* slots
    while size < count * 4:
        size *= 2
    slots = <uint32_t*>calloc(size, 4)
    if slots == NULL:
        return False
    for i in range(count):
        j = spread(members[i]) & (size - 1)
        while slots[j] and slots[j] != members[i]:
            j = (j + 1) & (size - 1)
        slots[j] = members[i]
    free(addresses.slots)
    addresses.slots, addresses.mask = slots, size - 1
    return True


cdef void set_delete(AddressSet* addresses) noexcept nogil:
    free(addresses.slots)
    addresses.slots = NULL


cdef bint waiting_new(Waiting* room) noexcept nogil:
    """room: WAITING_ROOM places; their memory is touched when used."""
    cdef uint8_t* memory = <uint8_t*>table_new(<size_t>WAITING_ROOM * FRAME_ROOM)
    cdef uint32_t i
    memset(room, 0, WAITING_ROOM * sizeof(Waiting))
    if memory == NULL:
        return False
    for i in range(WAITING_ROOM):
        room[i].data = memory + <size_t>i * FRAME_ROOM
    return True


cdef void waiting_delete(Waiting* room) noexcept nogil:
    table_delete(room[0].data, <size_t>WAITING_ROOM * FRAME_ROOM)
    room[0].data = NULL


cdef Waiting* waiting_take(Waiting* room, Neighbour* neighbour) noexcept nogil:
    """A place to wait for the neighbour, or NULL: enough wait already."""
    cdef uint32_t i
    if neighbour.waiting >= WAITING_EACH:
        return NULL
    for i in range(WAITING_ROOM):
        if not room[i].taken:
            room[i].taken = True
            room[i].address = neighbour.address
            neighbour.waiting += 1
            return &room[i]
    return NULL


cdef void waiting_free(Waiting* waiting, NextHops* hops) noexcept nogil:
    cdef Neighbour* neighbour = neighbour_at(hops, waiting.address)
    if neighbour.address and neighbour.waiting:
        neighbour.waiting -= 1
    waiting.taken = False

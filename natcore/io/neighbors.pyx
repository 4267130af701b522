"""Next-hop tables: the control side changes them with the worker locked, the loop reads them."""
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from natcore.base.pages cimport table_delete, table_new

cdef enum:
    FORGET_MS = 10000           # age at which an unresolved neighbour is removed


cdef bint routes_replace(Routes* routes, const uint32_t* starts, const uint32_t* vias, const uint8_t* interfaces,
                         uint32_t ranges) noexcept nogil:
    """Replaces the routes by copies of the ranges; false: out of memory, nothing changed."""
    cdef Routes fresh
    fresh.starts = <uint32_t*>malloc(<size_t>(ranges + 1) * 4)
    fresh.vias = <uint32_t*>malloc(<size_t>(ranges + 1) * 4)
    fresh.interfaces = <uint8_t*>malloc(ranges + 1)
    fresh.ranges = ranges
    if fresh.starts == NULL or fresh.vias == NULL or fresh.interfaces == NULL:
        routes_delete(&fresh)
        return False
    memcpy(fresh.starts, starts, <size_t>ranges * 4)
    memcpy(fresh.vias, vias, <size_t>ranges * 4)
    memcpy(fresh.interfaces, interfaces, ranges)
    routes_delete(routes)
    routes[0] = fresh
    return True


cdef void routes_delete(Routes* routes) noexcept nogil:
    free(routes.starts)
    free(routes.vias)
    free(routes.interfaces)
    memset(routes, 0, sizeof(Routes))


cdef bint neighbours_new(Neighbours* neighbours) noexcept nogil:
    store_relaxed(&neighbours.count, 0)
    neighbours.slots = <Neighbour*>table_new(NEIGHBOURS * sizeof(Neighbour))
    return neighbours.slots != NULL


cdef void neighbours_delete(Neighbours* neighbours) noexcept nogil:
    table_delete(neighbours.slots, NEIGHBOURS * sizeof(Neighbour))
    neighbours.slots = NULL


cdef bint neighbour_is(const Neighbours* neighbours, uint32_t address, const uint8_t* mac, uint8_t state) noexcept nogil:
    """Whether that is known of the neighbour already."""
    cdef const Neighbour* neighbour = neighbour_at(neighbours, address)
    if neighbour.address == 0:
        return mac == NULL
    return neighbour.state == state and (mac == NULL or memcmp(neighbour.mac, mac, 6) == 0)


cdef bint neighbour_learn(Neighbours* neighbours, uint32_t address, const uint8_t* mac, uint8_t state) noexcept nogil:
    """Sets a neighbour's state as the kernel reports it. mac: 6 bytes, or NULL: none. False: the table is full."""
    cdef Neighbour* neighbour = neighbour_at(neighbours, address)
    if neighbour.address == 0:
        if mac == NULL:
            return True
        neighbour = neighbour_of(neighbours, address)
        if neighbour == NULL:
            return False
    neighbour.state = state
    if mac != NULL:
        memcpy(neighbour.mac, mac, 6)
    return True


cdef void neighbours_lose(Neighbours* neighbours) noexcept nogil:
    """The link is down: no neighbour is resolved any more."""
    cdef uint32_t i
    if neighbours.count == 0:
        return
    for i in range(NEIGHBOURS):
        if neighbours.slots[i].address:
            neighbours.slots[i].state = UNKNOWN


cdef bint neighbours_forget(Neighbours* neighbours, uint32_t now_ms) noexcept nogil:
    """Removes neighbours that stayed unresolved, as a scan of the link leaves many. False: out of memory."""
    cdef Neighbour* before = neighbours.slots
    cdef Neighbour* after = <Neighbour*>table_new(NEIGHBOURS * sizeof(Neighbour))
    cdef uint32_t i
    if after == NULL:
        return False
    neighbours.slots = after
    store_relaxed(&neighbours.count, 0)
    for i in range(NEIGHBOURS):
        if before[i].address == 0:
            continue
        if before[i].state == KNOWN or before[i].waiting or now_ms - before[i].requested_ms < FORGET_MS:
            neighbour_at(neighbours, before[i].address)[0] = before[i]
            store_relaxed(&neighbours.count, neighbours.count + 1)
    table_delete(before, NEIGHBOURS * sizeof(Neighbour))
    return True


cdef bint set_replace(AddressSet* addresses, const uint32_t* members, uint32_t count) noexcept nogil:
    """Replaces the set by the members (host order, not 0); false: out of memory, nothing changed."""
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

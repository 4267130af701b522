"""Next hops: routes as disjoint ranges over some interfaces, and a link's neighbours by address. No sockets."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from natcore.base.compiler cimport store_relaxed
from natcore.base.search cimport upper_bound32

cdef enum:
    ON_LINK = 0                 # via: the destination is directly connected
    NO_ROUTE = 0xFFFFFFFF       # via: unreachable

    NEIGHBOURS = 65536          # slots of a table; a power of two
    NEIGHBOURS_MOST = 49152     # entries at most
    RESOLVE_AGAIN_MS = 1000

cdef enum NeighbourState:
    UNKNOWN = 0                 # unresolved, or lost
    KNOWN = 1
    FAILED = 2                  # resolution failed

cdef struct Routes:
    uint32_t* starts            # [ranges] ascending, host order; range i ends before starts[i + 1]
    uint32_t* vias              # [ranges] an address, ON_LINK or NO_ROUTE
    uint8_t* interfaces         # [ranges] number of the egress interface
    uint32_t ranges

cdef struct Neighbour:
    uint32_t address            # host order; 0: an empty slot
    uint8_t mac[6]
    uint8_t state               # NeighbourState
    uint8_t used                # a packet was sent to it since the last `take_used`
    uint32_t requested_ms       # last resolve request, ms modulo 2^32
    uint32_t waiting            # bytes of pending frames

cdef struct Neighbours:
    Neighbour* slots            # [NEIGHBOURS] open addressing
    uint32_t count              # slots in use; atomic

cdef struct AddressSet:
    uint32_t* slots             # open addressing, host order, 0: empty
    uint32_t mask

cdef inline uint32_t spread(uint32_t address) noexcept nogil:
    """Multiplicative hash that spreads the addresses of a subnet."""
    return <uint32_t>((<uint64_t>address * <uint64_t>0x9E3779B97F4A7C15) >> 40)

cdef inline bint set_contains(const AddressSet* addresses, uint32_t address) noexcept nogil:
    cdef uint32_t i
    if addresses.slots == NULL:
        return False
    i = spread(address) & addresses.mask
    while addresses.slots[i]:
        if addresses.slots[i] == address:
            return True
        i = (i + 1) & addresses.mask
    return False

cdef inline uint32_t route_to(const Routes* routes, uint32_t destination, uint32_t* interface) noexcept nogil:
    """The next hop (host order) of a destination, and its egress interface; NO_ROUTE: none."""
    cdef uint32_t low = upper_bound32(routes.starts, sizeof(uint32_t), routes.ranges, destination)
    if low == 0:
        return NO_ROUTE
    interface[0] = routes.interfaces[low - 1]
    return routes.vias[low - 1] if routes.vias[low - 1] != ON_LINK else destination

cdef inline Neighbour* neighbour_at(const Neighbours* neighbours, uint32_t address) noexcept nogil:
    """The slot of the address, or the empty one for it."""
    cdef uint32_t i = spread(address) & (NEIGHBOURS - 1)
    while neighbours.slots[i].address and neighbours.slots[i].address != address:
        i = (i + 1) & (NEIGHBOURS - 1)
    return &neighbours.slots[i]

cdef inline Neighbour* neighbour_of(Neighbours* neighbours, uint32_t address) noexcept nogil:
    """Finds or adds the neighbour; NULL: the table is full."""
    cdef Neighbour* neighbour = neighbour_at(neighbours, address)
    if neighbour.address == 0:
        if neighbours.count >= NEIGHBOURS_MOST:
            return NULL
        store_relaxed(&neighbours.count, neighbours.count + 1)
        neighbour.address = address
    return neighbour

cdef bint neighbours_new(Neighbours* neighbours) noexcept nogil
cdef void neighbours_delete(Neighbours* neighbours) noexcept nogil
cdef bint neighbour_is(const Neighbours* neighbours, uint32_t address, const uint8_t* mac, uint8_t state) noexcept nogil
cdef bint neighbour_learn(Neighbours* neighbours, uint32_t address, const uint8_t* mac, uint8_t state) noexcept nogil
cdef void neighbours_lose(Neighbours* neighbours) noexcept nogil
cdef bint neighbours_forget(Neighbours* neighbours, uint32_t now_ms) noexcept nogil
cdef bint routes_replace(Routes* routes, const uint32_t* starts, const uint32_t* vias, const uint8_t* interfaces,
                         uint32_t ranges) noexcept nogil
cdef void routes_delete(Routes* routes) noexcept nogil
cdef bint set_replace(AddressSet* addresses, const uint32_t* members, uint32_t count) noexcept nogil
cdef void set_delete(AddressSet* addresses) noexcept nogil

"""Where a packet goes next on a link: routes as disjoint ranges, neighbours by address, a waiting room. No sockets."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore.frame cimport Frame
from natcore.kernel cimport virtio_net_hdr

cdef enum:
    ON_LINK = 0                 # via: the destination is its own next hop
    NO_ROUTE = 0xFFFFFFFF       # via: nothing leads there over this link

    NEIGHBOURS = 65536          # slots of a table; a power of two
    NEIGHBOURS_MOST = 49152     # in use
    WAITING_ROOM = 64           # frames that wait for their next hop, of both links
    WAITING_EACH = 3            # of them for one next hop
    WAITING_MS = 1000           # then they are dropped
    ASK_AGAIN_MS = 1000

cdef enum NeighbourState:
    UNKNOWN = 0                 # asked for, or was known once
    KNOWN = 1
    FAILED = 2                  # it did not answer

cdef struct Neighbour:
    uint32_t address            # host order; 0: an empty slot
    uint8_t mac[6]
    uint8_t state               # NeighbourState
    uint8_t used                # by a packet since the last `take_used`
    uint32_t asked_ms           # modulo 2^32; when its resolution was asked for
    uint32_t waiting            # frames

cdef struct NextHops:
    uint32_t* starts            # [ranges] ascending, host order; range i ends before starts[i + 1]
    uint32_t* vias              # [ranges] an address, ON_LINK or NO_ROUTE
    uint32_t ranges
    Neighbour* neighbours       # [NEIGHBOURS] open addressing
    uint32_t count              # slots in use

cdef struct Waiting:            # a frame that was translated and has no next hop yet
    uint8_t* data               # FRAME_ROOM bytes of its own
    Frame frame
    virtio_net_hdr offload
    uint32_t address            # of the next hop
    uint32_t since_ms
    uint8_t side                # that it leaves by
    bint taken

cdef struct AddressSet:
    uint32_t* slots             # open addressing, host order, 0: empty
    uint32_t mask

cdef inline uint32_t spread(uint32_t address) noexcept nogil:
    """Multiplicative hash; what is near in a subnet ends up apart."""
    return <uint32_t>((<uint64_t>address * <uint64_t>0x9E3779B97F4A7C15) >> 40)

cdef inline bint holds(const AddressSet* addresses, uint32_t address) noexcept nogil:
    cdef uint32_t i
    if addresses.slots == NULL:
        return False
    i = spread(address) & addresses.mask
    while addresses.slots[i]:
        if addresses.slots[i] == address:
            return True
        i = (i + 1) & addresses.mask
    return False

cdef inline uint32_t via_of(const NextHops* hops, uint32_t destination) noexcept nogil:
    cdef uint32_t low = 0, high = hops.ranges, middle
    while low < high:
        middle = (low + high) >> 1
        if hops.starts[middle] <= destination:
            low = middle + 1
        else:
            high = middle
    return hops.vias[low - 1] if low else NO_ROUTE

cdef inline Neighbour* neighbour_at(const NextHops* hops, uint32_t address) noexcept nogil:
    """The slot that holds the address, or the empty one where it belongs."""
    cdef uint32_t i = spread(address) & (NEIGHBOURS - 1)
    while hops.neighbours[i].address and hops.neighbours[i].address != address:
        i = (i + 1) & (NEIGHBOURS - 1)
    return &hops.neighbours[i]

cdef inline Neighbour* next_hop(NextHops* hops, uint32_t destination) noexcept nogil:
    """The neighbour that a destination (host order) is reached by, known or not; NULL: no route, or no room."""
    cdef uint32_t via = via_of(hops, destination)
    cdef Neighbour* neighbour
    if via == NO_ROUTE:
        return NULL
    neighbour = neighbour_at(hops, destination if via == ON_LINK else via)
    if neighbour.address == 0:
        if hops.count >= NEIGHBOURS_MOST:
            return NULL
        hops.count += 1
        neighbour.address = destination if via == ON_LINK else via
    return neighbour

cdef bint hops_new(NextHops* hops) noexcept nogil
cdef void hops_delete(NextHops* hops) noexcept nogil
cdef bint routes_replace(NextHops* hops, const uint32_t* starts, const uint32_t* vias, uint32_t ranges) noexcept nogil
cdef bint neighbour_learn(NextHops* hops, uint32_t address, const uint8_t* mac, uint8_t state) noexcept nogil
cdef bint neighbours_forget(NextHops* hops, uint32_t now_ms) noexcept nogil
cdef bint set_replace(AddressSet* addresses, const uint32_t* members, uint32_t count) noexcept nogil
cdef void set_delete(AddressSet* addresses) noexcept nogil
cdef bint waiting_new(Waiting* room) noexcept nogil
cdef void waiting_delete(Waiting* room) noexcept nogil
cdef Waiting* waiting_take(Waiting* room, Neighbour* neighbour) noexcept nogil
cdef void waiting_free(Waiting* waiting, NextHops* hops) noexcept nogil

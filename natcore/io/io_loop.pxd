"""Joins the ports of a plane, next hops and a translator with a clock: the loop that moves packets, without the GIL."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from natcore.io.device cimport Arrival, Device
from natcore.io.neighbors cimport AddressSet, Neighbours, Routes
from natcore.io.pending_frames cimport WaitingRoom
from natcore.frame cimport Frame
from natcore.workers.inside_mtu cimport Paths
from natcore.workers.worker cimport Worker

cdef enum:
    BATCH = 256                 # frames translated while the worker is held once
    WISHES = 256
    PORTS_MOST = 16             # of a plane: the inside ones and the outside one
    ANYWHERE = 2                # after the Sides
    ANOTHER = 0xFFFFFFFF        # worker's loop announces

cdef struct Port:               # an interface, as the loop sees it
    Device* device              # NULL: it is away
    uint8_t mac[6]
    uint8_t side                # Side
    bint queued                 # something is, to be flushed
    uint32_t address            # big-endian, 0: none: what the gateway's own errors on this link come from
    Neighbours neighbours
    uint64_t left_to_kernel     # frames: not IPv4, not for us, or for the host's own addresses
    uint64_t arp_answered
    uint64_t unresolved         # packets whose next hop did not answer, or for which too many waited

cdef struct Wish:               # a neighbour that should be resolved
    uint32_t address            # host order
    uint32_t port

cdef struct Loop:
    Worker* worker
    Port ports[PORTS_MOST]      # the inside ones, then the outside one
    uint32_t count              # of them
    Routes routes[3]            # over the ports of a Side, or over all (ANYWHERE)
    uint32_t mtus[PORTS_MOST]   # bytes of an IPv4 packet; 0: not known yet
    Paths paths                 # for the translator, where inside ports differ in it
    uint64_t no_route[2]        # by Side: packets that no route over its ports leads to the goal
    uint32_t announced          # of the outside addresses, by gratuitous ARP since the outside port came up; or ANOTHER
    AddressSet local            # the host's own addresses
    WaitingRoom room
    uint32_t learned            # a neighbour changed: look through the room
    Wish wishes[WISHES]
    uint32_t wish_count
    bint ask                    # tell the control side of new wishes
    int wake_fd                 # eventfd, written by the control side: look up from poll
    int ask_fd                  # eventfd, written here: there are wishes
    uint32_t stop
    uint32_t park               # the control side wants the loop to return for a moment
    int64_t offset_ns           # gateway's clock - CLOCK_MONOTONIC
    uint64_t serviced_ns
    uint32_t turn               # port to be served first
    uint8_t* generated          # room for a frame of the gateway's own
    Frame frames[BATCH]
    Arrival arrivals[BATCH]

cdef uint32_t work(Loop* loop, uint32_t budget) noexcept nogil
cdef void run(Loop* loop) noexcept nogil
cdef void clear_errors(Loop* loop) noexcept nogil
cdef void close_room(Loop* loop) noexcept nogil
cdef void signal_fd(int fd) noexcept nogil
cdef void drain_fd(int fd) noexcept nogil
cdef uint64_t clock_of(const Loop* loop) noexcept nogil

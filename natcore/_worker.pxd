"""Joins two rings, next hops and a translator with a clock: the loop that moves packets, without the GIL."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from natcore._nexthop cimport WAITING_ROOM, AddressSet, NextHops, Waiting
from natcore._ring cimport Arrival, PacketRing, Ring
from natcore.frame cimport Frame
from natcore.state cimport Worker

cdef enum:
    BATCH = 256                 # frames translated while the worker is held once
    WISHES = 256

cdef struct Port:               # one side's interface, as the loop sees it
    Ring* ring                  # NULL: it is away
    uint8_t mac[6]
    uint32_t announced          # of the outside addresses, by gratuitous ARP since it came up
    NextHops hops
    uint64_t left_to_kernel     # frames: not IPv4, not for us, or for the host's own addresses
    uint64_t arp_answered
    uint64_t no_route           # packets that no route over this link leads to the goal
    uint64_t unresolved         # packets whose next hop did not answer, or for which too many waited

cdef struct Wish:               # a neighbour that should be resolved
    uint32_t address            # host order
    uint32_t side

cdef struct Loop:
    Worker* worker
    Port ports[2]               # by Side
    AddressSet local            # the host's own addresses
    Waiting room[WAITING_ROOM]
    uint32_t waiting            # frames in it
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
    uint32_t turn               # side to be served first
    uint8_t* generated          # room for a frame of the gateway's own
    Frame frames[BATCH]
    Arrival arrivals[BATCH]

cdef uint32_t work(Loop* loop, uint32_t budget) noexcept nogil
cdef void run(Loop* loop) noexcept nogil
cdef void clear_errors(Loop* loop) noexcept nogil
cdef void close_room(Loop* loop) noexcept nogil
cdef void pause() noexcept nogil
cdef void signal_fd(int fd) noexcept nogil
cdef void drain_fd(int fd) noexcept nogil
cdef uint64_t clock_of(const Loop* loop) noexcept nogil

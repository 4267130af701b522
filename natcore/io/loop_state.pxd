"""What a plane's I/O loop (io_loop.pyx) keeps: its interfaces, next hops, worker, and frames of the current batch."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from natcore.io.deferred_frames cimport DeferredFrames
from natcore.io.device cimport Arrival, Device
from natcore.io.frame_view cimport ArrivedFrames
from natcore.io.neighbors cimport AddressSet, Neighbours, Routes
from natcore.io.pending_frames cimport PendingFrames
from natcore.frame cimport Frame
from natcore.workers.inside_mtu cimport PathMtus
from natcore.workers.worker cimport Worker

cdef enum:
    BATCH = 256                 # frames per batch, translated with the worker locked once
    RESOLVE_REQUESTS = 256
    INTERFACES_MOST = 16        # of a plane: inside ones and the outside one
    VIEWS_MOST = 8               # of a plane
    ANYWHERE = 2                # index in routes, after the Sides
    OTHER_WORKER = 0xFFFFFFFF        # in `announced`: the loop of another worker announces

cdef struct Interface:          # of a plane: its numbers are indices in Loop.interfaces
    Device* device              # NULL: detached
    Device* tap                 # NULL, or: brings ICMP and fragments for shared addresses, which the kernel gets too
    uint8_t mac[6]
    uint8_t side                # Side
    bint queued                 # frames are queued to be flushed
    uint32_t address            # big-endian, 0: none: source of the gateway's ICMP errors on this link
    Neighbours neighbours
    uint64_t left_to_kernel     # frames not for the gateway: not IPv4, or for the host's own addresses
    uint64_t arp_answered
    uint64_t fenced             # frames that came while the gateway may not translate
    uint64_t unresolved         # packets with a next hop that did not answer, or with too many frames pending for it

cdef struct ResolveRequest:               # request to resolve a neighbour
    uint32_t address            # host order
    uint32_t interface          # its number

cdef struct Loop:
    Worker* worker
    Interface interfaces[INTERFACES_MOST]  # inside ones first, then the outside one
    uint32_t count              # of them
    Routes routes[3]            # over the interfaces of a Side, or over all (ANYWHERE)
    uint32_t mtus[INTERFACES_MOST]  # bytes of an IPv4 packet; 0: unknown
    PathMtus path_mtus          # MTUs of inside interfaces where they differ
    uint64_t no_route[2]        # by Side: packets without a route over its interfaces
    uint32_t announced          # by gratuitous ARP since the link came up: 1 for its own, and outside ones, or OTHER_WORKER
    AddressSet local            # the host's own addresses
    PendingFrames pending
    DeferredFrames deferred
    uint32_t asked_cycle        # for which the feed was woken last
    uint32_t learned            # a neighbour changed: process pending frames
    ResolveRequest requests[RESOLVE_REQUESTS]
    uint32_t request_count
    bint has_requests           # there are new requests for the control side
    int wake_fd                 # eventfd, written by the control side: ends poll
    int requests_fd             # eventfd, written here: there are requests
    uint32_t stop
    uint32_t park               # the control side wants the loop to return
    uint64_t offset_ns          # atomic: gateway's clock - CLOCK_MONOTONIC, modulo 2^64
    uint64_t timers_ns
    uint64_t turned_ns          # atomic: CLOCK_MONOTONIC at the last turn; 0: none yet
    uint32_t serve_first        # interface to serve first
    ArrivedFrames* views[VIEWS_MOST]  # by place; NULL: none there
    uint32_t view_count         # of them; 0: no one looks
    bint redirects[INTERFACES_MOST]   # XDP programs can send by the interface (fast_path.pyx)
    uint32_t offered            # pseudo-random: which forwarded packet is looked at next for the fast path
    uint32_t offer_below        # it is, where `offered` is less: a quarter of them, fewer where offers find no place
    uint32_t hops               # next hops of the fast path
    uint8_t* generated          # buffer for a frame that the gateway originates
    Frame frames[BATCH]
    Arrival arrivals[BATCH]

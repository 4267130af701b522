"""AF_XDP sockets of one interface, one per queue, over a umem shared by the loop's interfaces. No NAT."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from natcore.io.device cimport Device, Driver
from natcore.io.xsk cimport Queue
from natcore.io.umem cimport FrameMemory, Umem
from natcore.io.kernel cimport virtio_net_hdr

cdef enum:
    QUEUES_MOST = 64            # queues of one interface at most

cdef struct Sockets:
    Device device               # first member: a driver's structure begins with its Device
    Umem* umem
    uint32_t count
    uint32_t turn               # queue to read first
    bint finish                 # virtual link: complete checksums (checksum_offload.pxd)
    virtio_net_hdr no_offload   # offload of every frame: none
    Queue queues[QUEUES_MOST]
    uint64_t frames_received
    uint64_t frames_sent        # frames that the kernel accepted
    uint64_t send_dropped       # no space in the ring or the umem, or the link is down
    uint64_t send_errors        # longer than a chunk

cdef class XdpSockets(Driver):
    cdef Sockets sockets
    cdef FrameMemory _memory    # kept alive
    cdef uint64_t _ring_drops
    cdef object _poll           # epoll over several queues
    cdef bint _zero_copy
    cdef int _watch(self) except -1
    cdef void _free(self) noexcept

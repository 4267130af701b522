"""AF_XDP sockets of one interface, one for each of its queues, over frame memory that a loop's interfaces share. No NAT."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from natcore.io.device cimport Device, Driver
from natcore.io.xsk cimport Queue
from natcore.io.umem cimport FrameMemory, Memory
from natcore.io.kernel cimport virtio_net_hdr

cdef enum:
    QUEUES_MOST = 64            # of one interface

cdef struct Sockets:
    Device device               # first
    Memory* memory
    uint32_t count
    uint32_t turn               # queue to be read first
    bint finish                 # a virtual link: finish checksums (see finish_checksum)
    virtio_net_hdr nothing      # what every frame needs of a device
    Queue queues[QUEUES_MOST]
    uint64_t frames_received
    uint64_t frames_sent        # the kernel took
    uint64_t send_dropped       # no room in the ring or the memory, or the link is down
    uint64_t send_errors        # longer than a place

cdef class XdpSockets(Driver):
    cdef Sockets sockets
    cdef FrameMemory _memory    # lives as long
    cdef uint64_t _ring_drops
    cdef object _poll           # of several queues
    cdef bint _zero_copy
    cdef int _watch(self) except -1
    cdef void _free(self) noexcept

"""Opens and closes the AF_XDP socket of a queue."""
from libc.errno cimport EBUSY, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

import time

from natcore.io.system_errors cimport checked
from natcore.io.umem cimport FREE, Umem, free_chunk
from natcore.io.kernel cimport (
    AF_XDP, MAP_FAILED, MAP_POPULATE, MAP_SHARED, PROT_READ, PROT_WRITE, SOCK_CLOEXEC, SOCK_RAW, SOL_SOCKET, SOL_XDP,
    SO_SNDBUFFORCE, XDP_COMPLETION_PAGES, XDP_FILL_PAGES, XDP_MAX_TX_SKB_BUDGET, XDP_MMAP_OFFSETS, XDP_RECEIVE_PAGES,
    XDP_RX_RING, XDP_SEND_PAGES, XDP_TX_RING, XDP_UMEM_COMPLETION_RING, XDP_UMEM_FILL_RING, XDP_UMEM_REG,
    XDP_USE_NEED_WAKEUP, c_bind, c_close, c_socket, getsockopt, mmap, munmap, setsockopt, sockaddr, sockaddr_xdp,
    xdp_desc, xdp_mmap_offsets, xdp_ring_offset, xdp_umem_reg,
)

cdef enum:
    BIND_TRIES = 100            # a queue just closed stays busy for a moment
    SEND_BUDGET = 256           # frames that the kernel sends per call; 32 where it cannot be set
    SEND_BUFFER_BYTES = 16 << 20

assert sizeof(xdp_desc) == 16


cdef int _map(KernelRing* ring, int fd, const xdp_ring_offset* at, uint64_t pages, uint32_t entries,
              size_t slot_bytes) except -1:
    cdef void* base
    ring.bytes = at.desc + entries * slot_bytes
    base = mmap(NULL, ring.bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, <long>pages)
    if base == MAP_FAILED:
        checked(-1, "mmap of an AF_XDP ring")
    ring.base = <uint8_t*>base
    ring.producer = <uint32_t*>(ring.base + at.producer)
    ring.consumer = <uint32_t*>(ring.base + at.consumer)
    ring.flags = <uint32_t*>(ring.base + at.flags)
    ring.slots = ring.base + at.desc
    ring.mask = entries - 1
    return 0


cdef int queue_open(Queue* queue, Umem* umem, int index, uint32_t number, uint32_t entries) except -1:
    """Opens the socket of one queue with its four rings."""
    cdef xdp_umem_reg region
    cdef xdp_mmap_offsets at
    cdef sockaddr_xdp address
    cdef uint32_t length = sizeof(at)
    cdef int budget = SEND_BUDGET, size = SEND_BUFFER_BYTES, tries = 0
    queue.fd = checked(c_socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0), "socket(AF_XDP)")
    memset(&region, 0, sizeof(region))
    region.addr = <uint64_t>umem.area
    region.len = <uint64_t>umem.chunks << umem.chunk_shift
    region.chunk_size = umem.chunk_bytes
    checked(setsockopt(queue.fd, SOL_XDP, XDP_UMEM_REG, &region, sizeof(region)), "XDP_UMEM_REG")
    checked(setsockopt(queue.fd, SOL_XDP, XDP_UMEM_FILL_RING, &entries, 4), "XDP_UMEM_FILL_RING")
    checked(setsockopt(queue.fd, SOL_XDP, XDP_UMEM_COMPLETION_RING, &entries, 4), "XDP_UMEM_COMPLETION_RING")
    checked(setsockopt(queue.fd, SOL_XDP, XDP_RX_RING, &entries, 4), "XDP_RX_RING")
    checked(setsockopt(queue.fd, SOL_XDP, XDP_TX_RING, &entries, 4), "XDP_TX_RING")
    setsockopt(queue.fd, SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &budget, sizeof(budget))       # Linux 6.17
    setsockopt(queue.fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size))
    checked(getsockopt(queue.fd, SOL_XDP, XDP_MMAP_OFFSETS, &at, &length), "XDP_MMAP_OFFSETS")
    _map(&queue.rx, queue.fd, &at.rx, XDP_RECEIVE_PAGES, entries, sizeof(xdp_desc))
    _map(&queue.tx, queue.fd, &at.tx, XDP_SEND_PAGES, entries, sizeof(xdp_desc))
    _map(&queue.fill, queue.fd, &at.fr, XDP_FILL_PAGES, entries, 8)
    _map(&queue.completion, queue.fd, &at.cr, XDP_COMPLETION_PAGES, entries, 8)
    memset(&address, 0, sizeof(address))
    address.sxdp_family = AF_XDP
    address.sxdp_flags = XDP_USE_NEED_WAKEUP        # zero copy where the driver supports it
    address.sxdp_ifindex = <uint32_t>index
    address.sxdp_queue_id = number
    while c_bind(queue.fd, <sockaddr*>&address, sizeof(address)) < 0:
        tries += 1
        if errno != EBUSY or tries == BIND_TRIES:
            checked(-1, f"bind of queue {number}")
        time.sleep(0.02)
    return 0


cdef void _unmap(KernelRing* ring) noexcept nogil:
    if ring.base != NULL:
        munmap(ring.base, ring.bytes)
    ring.base = NULL


cdef void queue_close(Queue* queue, Umem* umem) noexcept nogil:
    """Idempotent. Chunks that the queue held are free again."""
    cdef uint32_t i
    if queue.holder == FREE:
        return
    if queue.fd >= 0:
        c_close(queue.fd)
    queue.fd = -1
    _unmap(&queue.rx)
    _unmap(&queue.tx)
    _unmap(&queue.fill)
    _unmap(&queue.completion)
    for i in range(umem.chunks):
        if umem.holders[i] == queue.holder:
            free_chunk(umem, i)
    umem.queues[queue.holder] = False
    queue.holder = FREE

"""AF_XDP sockets of one interface: receives what its XDP program redirects, sends without copying.

All sockets register the same umem, so that a frame received by one is sent by another from where it lies.
"""
from libc.errno cimport EBUSY, ENETDOWN, ENXIO, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset

import select

from natcore.io.device cimport FRAME_CAPACITY, Arrival, Device
from natcore.io.xsk cimport KernelRing, Queue, queue_close, queue_open
from natcore.io.umem cimport FIRST_QUEUE, HEADROOM, HOLDERS, LOOP, FrameMemory, Umem, free_chunk
from natcore.base.compiler cimport bswap16, count_up, likely, load_acquire, load_relaxed64, prefetch, store_release
from natcore.io.kernel cimport (
    MSG_DONTWAIT, PACKET_HOST, SOL_SOCKET, SOL_XDP, SO_ERROR, XDP_OPTIONS, XDP_OPTIONS_ZEROCOPY, XDP_RING_NEED_WAKEUP,
    XDP_STATISTICS, c_recv, c_send, getsockopt, virtio_net_hdr, xdp_desc, xdp_options, xdp_statistics,
)
from natcore.packet.checksum_offload cimport finish_checksum
from natcore.base.headers cimport ETHERTYPE_QINQ, ETHERTYPE_VLAN, VLAN_BYTES, EthernetHeader

cdef enum:
    KICKS = 72                  # wakeups of the kernel before the rest is left for the next call


# ---- in --------------------------------------------------------------------------------------------------------------

cdef inline void _untag(Arrival* arrival) noexcept nogil:
    """Removes a priority tag (802.1p); frames tagged with a VLAN do not come here."""
    cdef uint16_t ethertype = (<EthernetHeader*>arrival.data).ethertype
    if likely(ethertype != bswap16(ETHERTYPE_VLAN) and ethertype != bswap16(ETHERTYPE_QINQ)):
        return
    memmove(arrival.data + VLAN_BYTES, arrival.data, 12)
    arrival.data += VLAN_BYTES
    arrival.length -= VLAN_BYTES


cdef uint32_t _read(Sockets* sockets, Queue* queue, Arrival* arrivals, uint32_t most) noexcept nogil:
    cdef KernelRing* ring = &queue.rx
    cdef Umem* umem = sockets.umem
    cdef uint32_t count = load_acquire(ring.producer) - ring.next, i
    cdef xdp_desc* slot
    if count > most:
        count = most
    for i in range(count):
        slot = &(<xdp_desc*>ring.slots)[(ring.next + i) & ring.mask]
        umem.holders[slot.addr >> umem.chunk_shift] = LOOP
        arrivals[i].data = umem.area + slot.addr
        arrivals[i].length = slot.len
        arrivals[i].packet_type = PACKET_HOST       # checked by the XDP program
        arrivals[i].tagged = False
        arrivals[i].offload = &sockets.no_offload
        prefetch(arrivals[i].data)
    for i in range(count):
        _untag(&arrivals[i])
    if sockets.finish:
        for i in range(count):
            finish_checksum(arrivals[i].data, arrivals[i].length)
    ring.next += count
    return count


cdef uint32_t _receive(Device* device, Arrival* arrivals, uint32_t most) noexcept nogil:
    cdef Sockets* sockets = <Sockets*>device
    cdef uint32_t count = 0, i
    for i in range(sockets.count):
        count += _read(sockets, &sockets.queues[(sockets.turn + i) % sockets.count], arrivals + count, most - count)
    sockets.turn = (sockets.turn + 1) % sockets.count
    count_up(&sockets.frames_received, count)
    return count


cdef inline void _return_read(Umem* umem, Queue* queue) noexcept nogil:
    """Returns the chunks of received frames, except those queued to be sent."""
    cdef KernelRing* ring = &queue.rx
    cdef uint32_t chunk
    if queue.returned == ring.next:
        return
    while queue.returned != ring.next:
        chunk = <uint32_t>((<xdp_desc*>ring.slots)[queue.returned & ring.mask].addr >> umem.chunk_shift)
        if umem.holders[chunk] == LOOP:
            free_chunk(umem, chunk)
        queue.returned += 1
    store_release(ring.consumer, ring.next)


cdef inline void _return_sent(Umem* umem, Queue* queue) noexcept nogil:
    """Returns the chunks of sent frames."""
    cdef KernelRing* ring = &queue.completion
    cdef uint32_t until = load_acquire(ring.producer)
    cdef uint64_t chunk
    if until == ring.next:
        return
    while ring.next != until:
        chunk = (<uint64_t*>ring.slots)[ring.next & ring.mask] >> umem.chunk_shift
        if chunk < umem.chunks:                   # otherwise a descriptor that was voided
            free_chunk(umem, <uint32_t>chunk)
        ring.next += 1
    store_release(ring.consumer, until)


cdef inline void _fill(Umem* umem, Queue* queue) noexcept nogil:
    """Gives the kernel chunks to receive into."""
    cdef KernelRing* ring = &queue.fill
    cdef uint32_t space = ring.mask + 1 - (ring.next - load_acquire(ring.consumer)), chunk
    if space == 0 or umem.free_count == 0:
        return
    while space and umem.free_count:
        umem.free_count -= 1
        chunk = umem.free[umem.free_count]
        umem.holders[chunk] = queue.holder
        (<uint64_t*>ring.slots)[ring.next & ring.mask] = <uint64_t>chunk << umem.chunk_shift
        ring.next += 1
        space -= 1
    store_release(ring.producer, ring.next)
    if load_acquire(ring.flags) & XDP_RING_NEED_WAKEUP:
        c_recv(queue.fd, NULL, 0, MSG_DONTWAIT)


cdef void _complete(Device* device) noexcept nogil:
    cdef Sockets* sockets = <Sockets*>device
    cdef Queue* queue
    cdef uint32_t i
    for i in range(sockets.count):
        queue = &sockets.queues[i]
        if queue.unsent:
            _ask(sockets, queue)
        _return_read(sockets.umem, queue)
        _return_sent(sockets.umem, queue)
        _fill(sockets.umem, queue)


# ---- out -------------------------------------------------------------------------------------------------------------

cdef bint _send(Device* device, uint8_t* data, uint32_t length, const virtio_net_hdr* offload) noexcept nogil:
    cdef Sockets* sockets = <Sockets*>device
    cdef Umem* umem = sockets.umem
    cdef Queue* queue = &sockets.queues[0]
    cdef KernelRing* ring = &queue.tx
    cdef uint64_t offset = <uint64_t>(data - umem.area)
    cdef uint32_t chunk = <uint32_t>(offset >> umem.chunk_shift)
    cdef xdp_desc* slot
    if ring.next - load_acquire(ring.consumer) > ring.mask:
        _flush_queue(sockets, queue)
        if ring.next - load_acquire(ring.consumer) > ring.mask:
            count_up(&sockets.send_dropped, 1)
            return False
    if not likely(data >= umem.area and chunk < umem.chunks and umem.holders[chunk] == LOOP):
        if length > umem.chunk_bytes - HEADROOM:
            count_up(&sockets.send_errors, 1)
            return False
        if umem.free_count == 0:
            _return_sent(umem, queue)
        if umem.free_count == 0:
            count_up(&sockets.send_dropped, 1)
            return False
        umem.free_count -= 1
        chunk = umem.free[umem.free_count]
        offset = (<uint64_t>chunk << umem.chunk_shift) + HEADROOM
        memcpy(umem.area + offset, data, length)
    umem.holders[chunk] = queue.holder
    slot = &(<xdp_desc*>ring.slots)[ring.next & ring.mask]
    slot.addr = offset
    slot.len = length
    slot.options = 0
    ring.next += 1
    return False


cdef void _flush(Device* device) noexcept nogil:
    cdef Sockets* sockets = <Sockets*>device
    _flush_queue(sockets, &sockets.queues[0])       # all frames leave by the first queue, in order


cdef void _flush_queue(Sockets* sockets, Queue* queue) noexcept nogil:
    count_up(&sockets.frames_sent, <uint32_t>(queue.tx.next - queue.tx.producer[0]))
    store_release(queue.tx.producer, queue.tx.next)
    _ask(sockets, queue)


cdef void _ask(Sockets* sockets, Queue* queue) noexcept nogil:
    """Makes the kernel send what is queued; in copy mode it sends a limited number per call, with EAGAIN."""
    cdef uint32_t _i
    cdef int reason
    queue.unsent = False
    if not load_acquire(queue.tx.flags) & XDP_RING_NEED_WAKEUP:
        return
    for _i in range(KICKS):
        if c_send(queue.fd, NULL, 0, MSG_DONTWAIT) >= 0:
            while queue.void_slots and c_send(queue.fd, NULL, 0, MSG_DONTWAIT) >= 0:
                queue.void_slots -= 1               # each stops the kernel once
            return
        reason = errno
        if reason == EBUSY:                         # the device dropped one
            sockets.frames_sent -= 1
            count_up(&sockets.send_dropped, 1)
        elif reason == ENETDOWN or reason == ENXIO:
            _take_back(sockets, queue)
            return
    queue.unsent = True


cdef void _take_back(Sockets* sockets, Queue* queue) noexcept nogil:
    """The link is down: drops what is queued, which must not be sent later. The kernel skips descriptors without a chunk."""
    cdef KernelRing* ring = &queue.tx
    cdef uint32_t i = load_acquire(ring.consumer), chunk
    cdef xdp_desc* slot
    while i != ring.next:
        slot = &(<xdp_desc*>ring.slots)[i & ring.mask]
        chunk = <uint32_t>(slot.addr >> sockets.umem.chunk_shift)
        if chunk < sockets.umem.chunks:
            free_chunk(sockets.umem, chunk)
            slot.addr = <uint64_t>-1
            queue.void_slots += 1
            sockets.frames_sent -= 1
            count_up(&sockets.send_dropped, 1)
        i += 1


cdef void _clear_error(Device* device) noexcept nogil:
    cdef Sockets* sockets = <Sockets*>device
    cdef int error = 0
    cdef uint32_t length = sizeof(error), i
    for i in range(sockets.count):
        getsockopt(sockets.queues[i].fd, SOL_SOCKET, SO_ERROR, &error, &length)


cdef class XdpSockets(Driver):
    """The sockets of an interface's queues first to first + queues - 1, open until `close`.

    memory: umem shared with the loop's other interfaces. index: interface index in this network namespace. entries: of each
    ring, a power of two. virtual: senders may leave checksums to an offload that does not exist. Frames arrive once `fds` are
    in the map of the interface's XDP program.
    Raises OSError: EPERM without CAP_NET_RAW, ENODEV, EINVAL for a missing queue, EBUSY for one in use, ENOBUFS if the limit
    of locked memory is too low.
    """

    def __cinit__(self, FrameMemory memory not None, int index, uint32_t queues=1, uint32_t entries=4096,
                  bint virtual=False, uint32_t first=0):
        cdef uint32_t i, holder
        memset(&self.sockets, 0, sizeof(Sockets))
        self.device = &self.sockets.device
        self.device.fd = -1
        self.device.receive, self.device.complete, self.device.send = _receive, _complete, _send
        self.device.flush, self.device.clear_error = _flush, _clear_error
        self._memory = memory
        self._ring_drops = 0
        self.sockets.umem = &memory.umem
        self.sockets.finish = virtual
        if not 1 <= queues <= QUEUES_MOST:
            raise ValueError(f"queues must be between 1 and {QUEUES_MOST}, got {queues}")
        try:
            for i in range(queues):
                holder = FIRST_QUEUE
                while holder < HOLDERS and memory.umem.queues[holder]:
                    holder += 1
                if holder == HOLDERS:
                    raise ValueError(f"queues of all interfaces together must be at most {HOLDERS - FIRST_QUEUE}")
                memory.umem.queues[holder] = True
                self.sockets.queues[i].holder = <uint8_t>holder
                self.sockets.queues[i].fd = -1
                self.sockets.count = i + 1
                queue_open(&self.sockets.queues[i], &memory.umem, index, first + i, entries)
            self._watch()
        except BaseException:
            self._free()
            raise

    cdef int _watch(self) except -1:
        """One pollable descriptor for all queues."""
        cdef xdp_options options
        cdef uint32_t length = sizeof(options)
        getsockopt(self.sockets.queues[0].fd, SOL_XDP, XDP_OPTIONS, &options, &length)
        self._zero_copy = options.flags & XDP_OPTIONS_ZEROCOPY != 0
        if self.sockets.count == 1:
            self.device.fd = self.sockets.queues[0].fd
            return 0
        self._poll = select.epoll()
        for fd in self.fds:
            self._poll.register(fd, select.EPOLLIN)
        self.device.fd = self._poll.fileno()
        return 0

    def __dealloc__(self):
        self._free()

    cdef void _free(self) noexcept:
        cdef uint32_t i
        for i in range(self.sockets.count):
            queue_close(&self.sockets.queues[i], self.sockets.umem)
        self.device.fd = -1

    @property
    def fds(self) -> list[int]:
        """The sockets, by queue."""
        return [self.sockets.queues[i].fd for i in range(self.sockets.count)]

    @property
    def zero_copy(self) -> bool:
        """Whether the driver works in zero-copy mode."""
        return self._zero_copy

    def counters(self) -> dict[str, int]:
        """Cumulative: received, truncated (0), ring_drops (ring full), sent, send_dropped, send_errors."""
        cdef xdp_statistics statistics
        cdef uint32_t length, i
        cdef uint64_t drops = 0
        for i in range(self.sockets.count):
            length = sizeof(statistics)
            memset(&statistics, 0, sizeof(statistics))
            if (self.sockets.queues[i].fd >= 0
                    and getsockopt(self.sockets.queues[i].fd, SOL_XDP, XDP_STATISTICS, &statistics, &length) == 0):
                drops += statistics.rx_dropped + statistics.rx_ring_full
        return {
            "received": load_relaxed64(&self.sockets.frames_received), "truncated": 0,
            "ring_drops": self._ring_drops + drops, "sent": load_relaxed64(&self.sockets.frames_sent),
            "send_dropped": load_relaxed64(&self.sockets.send_dropped),
            "send_errors": load_relaxed64(&self.sockets.send_errors),
        }

    def send(self, frame: bytes) -> None:
        """Queues and sends one Ethernet frame as it is."""
        cdef const uint8_t[::1] data = frame
        if not 14 <= data.shape[0] <= FRAME_CAPACITY:
            raise ValueError(f"frame must be between 14 and {FRAME_CAPACITY} bytes, got {data.shape[0]}")
        if self.device.fd < 0:
            raise ValueError("the sockets are closed")
        _send(self.device, <uint8_t*>&data[0], <uint32_t>data.shape[0], NULL)
        _flush(self.device)
        _complete(self.device)

    def receive(self) -> list[bytes]:
        """Frames received so far. For tests and probes, not for traffic."""
        cdef Arrival arrival
        frames = []
        if self.device.fd < 0:
            return frames
        _complete(self.device)
        while _receive(self.device, &arrival, 1):
            frames.append(arrival.data[:arrival.length])
            _complete(self.device)
        return frames

    def close(self) -> None:
        """Idempotent; the counters stay."""
        self._ring_drops = self.counters()["ring_drops"]
        self._free()
        if self._poll is not None:
            self._poll.close()

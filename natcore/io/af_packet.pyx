"""AF_PACKET rings of one interface.

PACKET_VNET_HDR is set before the ring; blocks hold 64 KB frames; no QDISC_BYPASS, which cannot segment and which
neither shaping nor a capture on the interface would see.
"""
from libc.errno cimport EAGAIN, EINTR, ENETDOWN, ENOBUFS, ENXIO, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from natcore.io.system_errors cimport checked
from natcore.io.super_frames cimport (
    BIG_BYTES, is_big, is_ipv4, is_splitting, split_begin, split_close, split_free, split_next, split_open,
)
from natcore.io.device cimport FRAME_CAPACITY, Arrival, Device, Driver, of_vlan
from natcore.io.fanout cimport fanout_block_all
from natcore.io.tpacket_v2 cimport frames_complete, frames_free, frames_open, frames_receive, frames_take_over
from natcore.base.compiler cimport count_up, load_acquire, load_relaxed64, prefetch, store_release, unlikely
from natcore.io.kernel cimport (
    AF_PACKET, ETH_P_ALL, MAP_FAILED, MAP_SHARED, MSG_DONTWAIT, PACKET_IGNORE_OUTGOING, PACKET_LOSS, PACKET_RX_RING,
    PACKET_STATISTICS, PACKET_TX_RING, PACKET_VERSION, PACKET_VNET_HDR, PROT_READ, PROT_WRITE, SOCK_CLOEXEC, SOCK_RAW,
    SOL_PACKET, SOL_SOCKET, SO_ERROR, SO_SNDBUF, SO_SNDBUFFORCE, TPACKET_ALIGN, TPACKET_V2, TPACKET_V3,
    TP_STATUS_AVAILABLE, TP_STATUS_KERNEL, TP_STATUS_SEND_REQUEST, TP_STATUS_USER, c_bind,
    c_close, c_send, c_socket, getsockopt, htons, mmap, munmap, sendmmsg, setsockopt, sockaddr, sockaddr_ll,
    tpacket2_hdr, tpacket3_hdr, tpacket_block_desc, tpacket_req, tpacket_req3, tpacket_stats_v3, virtio_net_hdr,
)

cdef enum:
    BLOCK_BYTES = BIG_BYTES         # the longest super-frame (IPv4 BIG TCP); longer ones are truncated
    BLOCK_COUNT = 64                # 32 MB: 200,000 small frames; in light traffic 64 ms, as blocks retire partly filled
    SEND_BLOCK_BYTES = 128 * 1024   # contiguous memory of transmit slots
    RETIRE_MS = 1                   # a partly filled block is passed to user space after this: the latency of light traffic
    SLOT_BYTES = 2048
    SLOT_COUNT = 2048
    ORDINARY_MTU = 1900             # fits a slot, with headers
    JUMBO_SLOT_BYTES = 16384
    JUMBO_SLOT_COUNT = 256
    SEND_BUFFER_BYTES = 16 << 20    # more than all slots together
    SEND_TRIES = 8                  # before frames that a full queue refuses are dropped

assert sizeof(virtio_net_hdr) == 10

cdef struct Sockets:                # of a ring that another process has left
    int receive
    int transmit
    int large

cdef struct Place:                  # where it stopped
    bint at_once
    uint32_t bytes                  # of a block, or of a slot to receive into; and how many there are
    uint32_t count
    uint32_t next                   # the next one to read
    uint32_t cursor                 # offset of the next frame in the block; 0: not begun
    uint32_t left                   # frames there that were not read
    uint32_t slot_bytes             # of the transmit ring
    uint32_t slot_count
    uint32_t slot                   # the next one to fill


cdef inline bint next_frame(Ring* ring, Arrival* arrival) noexcept nogil:
    """The next frame of the current block; false at its end (see `complete`) or if none has arrived."""
    cdef tpacket_block_desc* block = <tpacket_block_desc*>(ring.blocks + <size_t>ring.block * ring.block_bytes)
    cdef tpacket3_hdr* header
    if unlikely(is_splitting(&ring.split)):
        return split_next(&ring.split, arrival)
    while True:
        if ring.cursor == NULL:
            if not load_acquire(&block.hdr.bh1.block_status) & <uint32_t>TP_STATUS_USER:
                return False
            ring.cursor = <tpacket3_hdr*>(<uint8_t*>block + block.hdr.bh1.offset_to_first_pkt)
            ring.left = block.hdr.bh1.num_pkts
        if ring.left == 0:
            return False
        header = ring.cursor
        ring.left -= 1
        ring.cursor = <tpacket3_hdr*>(<uint8_t*>header + header.tp_next_offset)
        if ring.left:
            prefetch(ring.cursor)
        count_up(&ring.received, 1)
        arrival.data = <uint8_t*>header + header.tp_mac
        if unlikely(header.tp_snaplen < header.tp_len) and is_ipv4(arrival.data):
            count_up(&ring.truncated, 1)
            continue
        arrival.length = header.tp_snaplen      # non-IPv4 frames are left to the kernel, which has them whole
        arrival.offload = <virtio_net_hdr*>(arrival.data - sizeof(virtio_net_hdr))
        arrival.tagged = of_vlan(header.tp_status, header.hv1.tp_vlan_tci)
        arrival.packet_type = (<sockaddr_ll*>(<uint8_t*>header + TPACKET_ALIGN(sizeof(tpacket3_hdr)))).sll_pkttype
        if unlikely(is_big(arrival.length)) and split_begin(&ring.split, arrival):
            return split_next(&ring.split, arrival)
        return True


cdef uint32_t receive(Device* device, Arrival* arrivals, uint32_t most) noexcept nogil:
    """Receives frames of the current block; 0 at its end or if none has arrived."""
    cdef uint32_t count = 0
    while count < most and next_frame(<Ring*>device, &arrivals[count]):
        count += 1
    return count


cdef void complete(Device* device) noexcept nogil:
    """Returns a block to the kernel after it was read to its end."""
    cdef Ring* ring = <Ring*>device
    cdef tpacket_block_desc* block
    split_free(&ring.split)
    if ring.cursor == NULL or ring.left or is_splitting(&ring.split):
        return
    block = <tpacket_block_desc*>(ring.blocks + <size_t>ring.block * ring.block_bytes)
    store_release(&block.hdr.bh1.block_status, TP_STATUS_KERNEL)
    ring.block = ring.block + 1 if ring.block + 1 < ring.block_count else 0
    ring.cursor = NULL


cdef uint32_t receive_at_once(Device* device, Arrival* arrivals, uint32_t most) noexcept nogil:
    return frames_receive(&(<Ring*>device).frames, arrivals, most)


cdef void complete_at_once(Device* device) noexcept nogil:
    frames_complete(&(<Ring*>device).frames)


cdef bint send(Device* device, uint8_t* data, uint32_t length, const virtio_net_hdr* offload) noexcept nogil:
    """Queues a frame, copied into a slot; large frames are not copied (true). Frames leave in order."""
    cdef Ring* ring = <Ring*>device
    cdef size_t ahead = TPACKET_ALIGN(sizeof(tpacket2_hdr))
    cdef tpacket2_hdr* header
    cdef virtio_net_hdr* copy
    if length + sizeof(virtio_net_hdr) + ahead > ring.slot_bytes or (offload != NULL and offload.gso_type):
        _send_large(ring, data, length, offload)
        return True
    if ring.large:
        _flush_large(ring)
    header = <tpacket2_hdr*>(ring.slots + <size_t>ring.slot * ring.slot_bytes)
    if load_acquire(&header.tp_status) != <uint32_t>TP_STATUS_AVAILABLE:
        _flush_slots(ring)
        if load_acquire(&header.tp_status) != <uint32_t>TP_STATUS_AVAILABLE:
            count_up(&ring.send_dropped, 1)
            return False
    copy = <virtio_net_hdr*>(<uint8_t*>header + ahead)
    if offload == NULL:
        memset(copy, 0, sizeof(virtio_net_hdr))
    else:
        copy[0] = offload[0]
    copy.hdr_len = <uint16_t>length     # makes the kernel copy the frame instead of mapping the slot: faster on veth
    memcpy(<uint8_t*>copy + sizeof(virtio_net_hdr), data, length)
    header.tp_len = length + <uint32_t>sizeof(virtio_net_hdr)
    store_release(&header.tp_status, TP_STATUS_SEND_REQUEST)
    ring.slot = ring.slot + 1 if ring.slot + 1 < ring.slot_count else 0
    ring.queued += 1
    return False


cdef void flush(Device* device) noexcept nogil:
    """Passes queued frames to the kernel; refused ones are counted and dropped."""
    cdef Ring* ring = <Ring*>device
    if ring.queued:
        _flush_slots(ring)
    if ring.large:
        _flush_large(ring)


cdef void clear_error(Device* device) noexcept nogil:
    """Clears the pending error of the receiving socket."""
    cdef int error = 0
    cdef uint32_t length = sizeof(error)
    getsockopt(device.fd, SOL_SOCKET, SO_ERROR, &error, &length)


cdef void _flush_slots(Ring* ring) noexcept nogil:
    cdef uint32_t _tries
    cdef int reason = 0
    if ring.queued == 0:
        return
    for _tries in range(SEND_TRIES):
        reason = 0 if c_send(ring.transmit_fd, NULL, 0, MSG_DONTWAIT) >= 0 else errno
        if not _waits(ring, 1):         # the kernel takes slots in order: the last one taken means all
            count_up(&ring.sent, ring.queued)
            ring.queued = 0
            return
        if reason == ENETDOWN or reason == ENXIO:
            break
    _rewind(ring, reason)


cdef bint _waits(Ring* ring, uint32_t back) noexcept nogil:
    """Whether the slot filled `back` frames ago has not been taken by the kernel."""
    cdef uint32_t index = ring.slot - back if ring.slot >= back else ring.slot + ring.slot_count - back
    cdef tpacket2_hdr* header = <tpacket2_hdr*>(ring.slots + <size_t>index * ring.slot_bytes)
    return load_acquire(&header.tp_status) == <uint32_t>TP_STATUS_SEND_REQUEST


cdef void _rewind(Ring* ring, int reason) noexcept nogil:
    """Reclaims slots that the kernel did not take: it continues where it stopped, so the ring must too."""
    cdef uint32_t refused = 0
    cdef tpacket2_hdr* header
    while refused < ring.queued and _waits(ring, 1):
        ring.slot = ring.slot - 1 if ring.slot else ring.slot_count - 1
        header = <tpacket2_hdr*>(ring.slots + <size_t>ring.slot * ring.slot_bytes)
        store_release(&header.tp_status, TP_STATUS_AVAILABLE)
        refused += 1
    count_up(&ring.sent, ring.queued - refused)
    ring.queued = 0
    _count_refused(ring, refused, reason)


cdef void _count_refused(Ring* ring, uint32_t refused, int reason) noexcept nogil:
    if reason == 0 or reason == ENOBUFS or reason == EAGAIN or reason == ENETDOWN or reason == ENXIO:
        count_up(&ring.send_dropped, refused)
    else:
        count_up(&ring.send_errors, refused)
        ring.send_errno = reason


cdef void _send_large(Ring* ring, uint8_t* data, uint32_t length, const virtio_net_hdr* offload) noexcept nogil:
    cdef uint32_t i
    if ring.queued:
        _flush_slots(ring)
    if ring.large == LARGE_BATCH:
        _flush_large(ring)
    i = ring.large
    if offload == NULL:
        memset(&ring.offloads[i], 0, sizeof(virtio_net_hdr))
    else:
        ring.offloads[i] = offload[0]
    ring.pieces[i][0].iov_base = &ring.offloads[i]
    ring.pieces[i][0].iov_len = sizeof(virtio_net_hdr)
    ring.pieces[i][1].iov_base = data
    ring.pieces[i][1].iov_len = length
    ring.messages[i].msg_hdr.msg_iov = ring.pieces[i]
    ring.messages[i].msg_hdr.msg_iovlen = 2
    ring.large = i + 1


cdef void _flush_large(Ring* ring) noexcept nogil:
    cdef uint32_t done = 0
    cdef int taken
    while done < ring.large:
        taken = sendmmsg(ring.large_fd, &ring.messages[done], ring.large - done, MSG_DONTWAIT)
        if taken > 0:
            count_up(&ring.sent, <uint32_t>taken)
            done += <uint32_t>taken
        elif errno != EINTR:
            _count_refused(ring, 1, errno)
            done += 1
    ring.large = 0


cdef int _set(int fd, int name, int value, str step) except -1:
    return checked(setsockopt(fd, SOL_PACKET, name, &value, sizeof(value)), step)


cdef int _socket() except -1:
    return checked(c_socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0), "socket(AF_PACKET)")


cdef int _bind(int fd, int index, uint16_t protocol) except -1:
    cdef sockaddr_ll address
    memset(&address, 0, sizeof(address))
    address.sll_family = AF_PACKET
    address.sll_protocol = htons(protocol)
    address.sll_ifindex = index
    return checked(c_bind(fd, <sockaddr*>&address, sizeof(address)), "bind")


cdef uint8_t* _map(int fd, size_t length) except NULL:
    cdef void* base = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    if base == MAP_FAILED:
        checked(-1, "mmap of a packet ring")
    return <uint8_t*>base


cdef int _send_buffer(int fd) except -1:
    cdef int size = SEND_BUFFER_BYTES
    if setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) < 0:     # without CAP_NET_ADMIN
        checked(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size)), "SO_SNDBUF")
    return 0


cdef int _open_receive(Ring* ring, int index, uint32_t mtu, bint at_once, bint shared) except -1:
    ring.device.fd = _socket()
    _set(ring.device.fd, PACKET_VNET_HDR, 1, "PACKET_VNET_HDR")    # EBUSY after the ring
    _set(ring.device.fd, PACKET_IGNORE_OUTGOING, 1, "PACKET_IGNORE_OUTGOING")
    if at_once:
        frames_open(&ring.frames, ring.device.fd, mtu)
        ring.device.receive, ring.device.complete = receive_at_once, complete_at_once
    else:
        _open_blocks(ring)
        ring.device.receive, ring.device.complete = receive, complete
    if shared:
        fanout_block_all(ring.device.fd)                         # it must be bound before it joins a group
    return _bind(ring.device.fd, index, ETH_P_ALL)          # ETH_P_IP would miss what the kernel bypass drops


cdef int _open_blocks(Ring* ring) except -1:
    cdef tpacket_req3 request
    _set(ring.device.fd, PACKET_VERSION, TPACKET_V3, "PACKET_VERSION")
    memset(&request, 0, sizeof(request))
    request.tp_block_size = BLOCK_BYTES
    request.tp_block_nr = BLOCK_COUNT
    request.tp_frame_size = SLOT_BYTES
    request.tp_frame_nr = BLOCK_BYTES // SLOT_BYTES * BLOCK_COUNT
    request.tp_retire_blk_tov = RETIRE_MS
    checked(setsockopt(ring.device.fd, SOL_PACKET, PACKET_RX_RING, &request, sizeof(request)), "PACKET_RX_RING")
    ring.block_bytes, ring.block_count = BLOCK_BYTES, BLOCK_COUNT
    ring.blocks = _map(ring.device.fd, <size_t>BLOCK_BYTES * BLOCK_COUNT)
    if not split_open(&ring.split):
        raise MemoryError("no memory for large frames")
    return 0


cdef int _open_send(Ring* ring, int index, uint32_t mtu) except -1:
    cdef tpacket_req request
    ring.transmit_fd = _socket()
    ring.slot_bytes = SLOT_BYTES if mtu <= ORDINARY_MTU else JUMBO_SLOT_BYTES
    ring.slot_count = SLOT_COUNT if mtu <= ORDINARY_MTU else JUMBO_SLOT_COUNT
    _set(ring.transmit_fd, PACKET_VERSION, TPACKET_V2, "PACKET_VERSION")
    _set(ring.transmit_fd, PACKET_VNET_HDR, 1, "PACKET_VNET_HDR")
    _set(ring.transmit_fd, PACKET_LOSS, 1, "PACKET_LOSS")       # skip a frame that the kernel cannot send
    memset(&request, 0, sizeof(request))
    request.tp_block_size = SEND_BLOCK_BYTES
    request.tp_block_nr = ring.slot_bytes * ring.slot_count // SEND_BLOCK_BYTES
    request.tp_frame_size = ring.slot_bytes
    request.tp_frame_nr = ring.slot_count
    checked(setsockopt(ring.transmit_fd, SOL_PACKET, PACKET_TX_RING, &request, sizeof(request)), "PACKET_TX_RING")
    ring.slots = _map(ring.transmit_fd, <size_t>ring.slot_bytes * ring.slot_count)
    _send_buffer(ring.transmit_fd)
    _bind(ring.transmit_fd, index, 0)                           # protocol 0: receives nothing
    ring.large_fd = _socket()
    _set(ring.large_fd, PACKET_VNET_HDR, 1, "PACKET_VNET_HDR")
    _send_buffer(ring.large_fd)
    return _bind(ring.large_fd, index, 0)


cdef int _take_over(Ring* ring, Sockets* sockets, const Place* place) except -1:
    """Goes on with the sockets of another process's ring, from where that one stopped. Raises OSError, ValueError."""
    if place.next >= place.count or place.slot >= place.slot_count or place.cursor >= place.bytes:
        raise ValueError("the place of the ring is not in it")
    ring.device.fd, ring.transmit_fd, ring.large_fd = sockets.receive, sockets.transmit, sockets.large
    ring.slot_bytes, ring.slot_count, ring.slot = place.slot_bytes, place.slot_count, place.slot
    ring.slots = _map(ring.transmit_fd, <size_t>ring.slot_bytes * ring.slot_count)
    if place.at_once:
        frames_take_over(&ring.frames, ring.device.fd, place.bytes, place.count, place.next)
        ring.device.receive, ring.device.complete = receive_at_once, complete_at_once
        return 0
    ring.block_bytes, ring.block_count, ring.block = place.bytes, place.count, place.next
    ring.device.receive, ring.device.complete = receive, complete
    ring.blocks = _map(ring.device.fd, <size_t>ring.block_bytes * ring.block_count)
    if place.cursor:
        ring.cursor = <tpacket3_hdr*>(ring.blocks + <size_t>ring.block * ring.block_bytes + place.cursor)
        ring.left = place.left
    if not split_open(&ring.split):
        raise MemoryError("no memory for large frames")
    return 0


cdef void _free(Ring* ring) noexcept nogil:
    """Closes everything; counters stay."""
    if ring.blocks != NULL:
        munmap(ring.blocks, <size_t>ring.block_bytes * ring.block_count)
    split_close(&ring.split)
    frames_free(&ring.frames)
    if ring.slots != NULL:
        munmap(ring.slots, <size_t>ring.slot_bytes * ring.slot_count)
    if ring.device.fd >= 0:
        c_close(ring.device.fd)
    if ring.transmit_fd >= 0:
        c_close(ring.transmit_fd)
    if ring.large_fd >= 0:
        c_close(ring.large_fd)
    ring.blocks = ring.slots = NULL
    ring.cursor = NULL
    ring.queued = ring.large = ring.left = 0
    ring.device.fd = ring.transmit_fd = ring.large_fd = -1


cdef class PacketRing(Driver):
    """The rings of one interface, open until `close`.

    index: the interface's number in this network namespace; mtu: bytes, decides how large a slot is. at_once: each
    frame is passed on when it comes, not in blocks: less delay in light traffic, more work for each in heavy.
    shared: the interface's frames are not this ring's alone, and none comes before it joins others (_fanout.join).
    left: the sockets (now this ring's) and the place of a ring that another process has left; the rest is that ring's then.
    Raises OSError: EPERM without CAP_NET_RAW, ENODEV for an index that is not there, ENOMEM.
    """

    def __cinit__(self, int index, uint32_t mtu=1500, bint at_once=False, bint shared=False, left=None):
        cdef Sockets sockets
        cdef Place place
        memset(&self.ring, 0, sizeof(Ring))
        self.device = &self.ring.device
        self.device.send, self.device.flush, self.device.clear_error = send, flush, clear_error
        self.ring.device.fd = self.ring.transmit_fd = self.ring.large_fd = -1
        self._ring_drops = 0
        if left is not None:
            (sockets.receive, sockets.transmit, sockets.large), numbers = left
            place.at_once, place.bytes, place.count, place.next, place.cursor, place.left = numbers[:6]
            place.slot_bytes, place.slot_count, place.slot = numbers[6:]
            try:
                _take_over(&self.ring, &sockets, &place)
            except BaseException:
                self.close()
                raise
            return
        try:
            _open_receive(&self.ring, index, mtu, at_once, shared)
            _open_send(&self.ring, index, mtu)
        except BaseException:
            self.close()
            raise

    def __dealloc__(self):
        _free(&self.ring)

    def counters(self) -> dict[str, int]:
        """Cumulative: received, truncated, ring_drops (ring full), sent, send_dropped, send_errors."""
        cdef tpacket_stats_v3 statistics
        cdef uint32_t length = sizeof(statistics)
        memset(&statistics, 0, sizeof(statistics))
        if self.device.fd >= 0 and getsockopt(self.device.fd, SOL_PACKET, PACKET_STATISTICS, &statistics, &length) == 0:
            self._ring_drops += statistics.tp_drops         # reset by reading
        return {
            "received": load_relaxed64(&self.ring.received) + load_relaxed64(&self.ring.frames.received),
            "truncated": load_relaxed64(&self.ring.truncated) + load_relaxed64(&self.ring.frames.truncated),
            "ring_drops": self._ring_drops, "sent": load_relaxed64(&self.ring.sent),
            "send_dropped": load_relaxed64(&self.ring.send_dropped), "send_errors": load_relaxed64(&self.ring.send_errors),
        }

    def leave(self) -> tuple[tuple[int, int, int], tuple[int, ...]]:
        """Gives the sockets, which are the caller's from now on, and the place, for a ring of another process to go on there
        with every frame that has come and was not read. This one is closed. Call it after the loop ended."""
        cdef Ring* ring = &self.ring
        cdef uint8_t* block = ring.blocks + <size_t>ring.block * ring.block_bytes
        if ring.device.fd < 0:
            raise ValueError("the ring is closed")
        self.counters()
        count_up(&ring.truncated, is_splitting(&ring.split) or is_splitting(&ring.frames.split))   # its rest is lost
        sockets = ring.device.fd, ring.transmit_fd, ring.large_fd
        if ring.blocks == NULL:
            place = 1, ring.frames.slot_bytes, ring.frames.slot_count, ring.frames.next, 0, 0
        else:
            cursor = 0 if ring.cursor == NULL else <uint8_t*>ring.cursor - block
            place = 0, ring.block_bytes, ring.block_count, ring.block, cursor, ring.left
        place += ring.slot_bytes, ring.slot_count, ring.slot
        ring.device.fd = ring.transmit_fd = ring.large_fd = -1
        _free(ring)
        return sockets, place

    def send(self, frame: bytes) -> None:
        """Queues and sends one Ethernet frame as it is."""
        cdef const uint8_t[::1] data = frame
        if not 14 <= data.shape[0] <= FRAME_CAPACITY:
            raise ValueError(f"frame must be between 14 and {FRAME_CAPACITY} bytes, got {data.shape[0]}")
        if self.ring.device.fd < 0:
            raise ValueError("the ring is closed")
        send(self.device, <uint8_t*>&data[0], <uint32_t>data.shape[0], NULL)
        flush(self.device)

    def receive(self) -> list[tuple[bytes, int, bool, tuple[int, int, int, int, int, int]]]:
        """Frames received so far: (frame, packet type, tagged, virtio-net header). For tests and probes, not for traffic."""
        cdef Arrival arrival
        cdef virtio_net_hdr offload
        frames = []
        if self.ring.device.fd < 0:
            return frames
        while True:
            before, idle = len(frames), self.ring.cursor == NULL
            while self.device.receive(self.device, &arrival, 1):
                offload = arrival.offload[0]
                needs = (offload.flags, offload.gso_type, offload.hdr_len, offload.gso_size, offload.csum_start,
                         offload.csum_offset)
                frames.append((arrival.data[:arrival.length], arrival.packet_type, bool(arrival.tagged), needs))
            idle = idle and self.ring.cursor == NULL
            self.device.complete(self.device)
            if idle and len(frames) == before:
                return frames

    def close(self) -> None:
        """Idempotent."""
        if self.ring.device.fd >= 0:
            self.counters()
        _free(&self.ring)

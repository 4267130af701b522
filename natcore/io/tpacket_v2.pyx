"""TPACKET_V2 receive ring: each frame in a slot; a longer one is received from the socket's queue."""
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset

from natcore.io.system_errors cimport checked
from natcore.io.super_frames cimport (
    BIG_BYTES, is_big, is_ipv4, is_splitting, split_begin, split_close, split_free, split_next, split_open,
)
from natcore.io.device cimport FRAME_CAPACITY, Arrival, of_vlan
from natcore.base.compiler cimport count_up, load_acquire, prefetch, store_release, unlikely
from natcore.io.kernel cimport (
    MAP_FAILED, MAP_SHARED, MSG_DONTWAIT, PACKET_COPY_THRESH, PACKET_RX_RING, PACKET_VERSION, PROT_READ, PROT_WRITE,
    SOL_PACKET, SOL_SOCKET, SO_RCVBUF, SO_RCVBUFFORCE, TPACKET_ALIGN, TPACKET_V2, TP_STATUS_COPY, TP_STATUS_KERNEL,
    TP_STATUS_USER, c_recv, mmap, munmap, setsockopt, sockaddr_ll, tpacket2_hdr, tpacket_req,
    virtio_net_hdr,
)
from natcore.base.pages cimport table_delete, table_new

cdef enum:
    PLACE_BYTES = 2048
    PLACE_COUNT = 4096
    ORDINARY_MTU = 1900         # fits a slot, with headers
    JUMBO_PLACE_BYTES = 16384
    JUMBO_PLACE_COUNT = 512
    BLOCK_BYTES = 128 * 1024    # contiguous memory of the ring
    LARGE_BYTES = FRAME_CAPACITY + 16
    BIGGEST_BYTES = BIG_BYTES + 16
    QUEUE_BYTES = 16 << 20      # of large frames, beside the ring


cdef inline bint fetch(FrameRing* ring, const tpacket2_hdr* header, Arrival* arrival) noexcept nogil:
    """Receives a frame that does not fit its slot: the whole frame is in the socket's queue, in the same order."""
    cdef bint big = is_big(header.tp_len)
    cdef uint8_t* capacity = ring.big if big else ring.large + <size_t>ring.large_count * LARGE_BYTES
    cdef ssize_t length = 0
    if header.tp_status & <uint32_t>TP_STATUS_COPY:
        length = c_recv(ring.fd, capacity, BIGGEST_BYTES if big else LARGE_BYTES, MSG_DONTWAIT)
    if big and not is_ipv4(arrival.data):
        arrival.length = header.tp_snaplen      # left to the kernel, which has it whole
        return True
    if length != <ssize_t>(header.tp_len + sizeof(virtio_net_hdr)):
        return False
    arrival.data = capacity + sizeof(virtio_net_hdr)
    arrival.length = header.tp_len
    ring.large_count += not big
    return True


cdef uint32_t frames_receive(FrameRing* ring, Arrival* arrivals, uint32_t most) noexcept nogil:
    """See Device. Stops while the buffers of large frames are full."""
    cdef uint32_t count = 0, status
    cdef tpacket2_hdr* header
    cdef Arrival* arrival
    while count < most and ring.read < ring.slot_count and ring.large_count < LARGE_AT_ONCE:
        if unlikely(is_splitting(&ring.split)):
            if not split_next(&ring.split, &arrivals[count]):
                break
            count += 1
            continue
        header = <tpacket2_hdr*>(ring.slots + <size_t>ring.next * ring.slot_bytes)
        status = load_acquire(&header.tp_status)
        if not status & <uint32_t>TP_STATUS_USER:
            break
        arrival = &arrivals[count]
        ring.next = ring.next + 1 if ring.next + 1 < ring.slot_count else 0
        prefetch(ring.slots + <size_t>ring.next * ring.slot_bytes)
        ring.read += 1
        count_up(&ring.received, 1)
        arrival.data = <uint8_t*>header + header.tp_mac
        arrival.length = header.tp_len
        if unlikely(header.tp_snaplen < header.tp_len) and not fetch(ring, header, arrival):
            count_up(&ring.truncated, 1)
            continue
        arrival.offload = <virtio_net_hdr*>(arrival.data - sizeof(virtio_net_hdr))
        arrival.tagged = of_vlan(status, header.tp_vlan_tci)
        arrival.packet_type = (<sockaddr_ll*>(<uint8_t*>header + TPACKET_ALIGN(sizeof(tpacket2_hdr)))).sll_pkttype
        if unlikely(is_big(arrival.length)):
            count_up(&ring.truncated, not split_begin(&ring.split, arrival))     # which has no place of its own
            continue
        count += 1
    return count


cdef void frames_complete(FrameRing* ring) noexcept nogil:
    """Returns every slot that was read to the kernel."""
    cdef uint32_t at = ring.next - ring.read if ring.next >= ring.read else ring.next + ring.slot_count - ring.read
    while ring.read:
        store_release(&(<tpacket2_hdr*>(ring.slots + <size_t>at * ring.slot_bytes)).tp_status, TP_STATUS_KERNEL)
        at = at + 1 if at + 1 < ring.slot_count else 0
        ring.read -= 1
    ring.large_count = 0
    split_free(&ring.split)


cdef int _set(int fd, int level, int name, int value, str step) except -1:
    return checked(setsockopt(fd, level, name, &value, sizeof(value)), step)


cdef int frames_open(FrameRing* ring, int fd, uint32_t mtu) except -1:
    """Sets up the ring of a packet socket that has PACKET_VNET_HDR already. Raises OSError."""
    cdef tpacket_req request
    cdef int size = QUEUE_BYTES
    memset(ring, 0, sizeof(FrameRing))
    ring.fd = fd
    _set(fd, SOL_PACKET, PACKET_VERSION, TPACKET_V2, "PACKET_VERSION")
    _set(fd, SOL_PACKET, PACKET_COPY_THRESH, 1, "PACKET_COPY_THRESH")
    if setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)) < 0:     # without CAP_NET_ADMIN
        _set(fd, SOL_SOCKET, SO_RCVBUF, QUEUE_BYTES, "SO_RCVBUF")
    ring.slot_bytes = PLACE_BYTES if mtu <= ORDINARY_MTU else JUMBO_PLACE_BYTES
    ring.slot_count = PLACE_COUNT if mtu <= ORDINARY_MTU else JUMBO_PLACE_COUNT
    memset(&request, 0, sizeof(request))
    request.tp_block_size = BLOCK_BYTES
    request.tp_block_nr = ring.slot_bytes * ring.slot_count // BLOCK_BYTES
    request.tp_frame_size = ring.slot_bytes
    request.tp_frame_nr = ring.slot_count
    if setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &request, sizeof(request)) < 0:
        checked(-1, "PACKET_RX_RING")
    return _map(ring)


cdef int frames_take_over(FrameRing* ring, int fd, uint32_t slot_bytes, uint32_t slot_count, uint32_t next) except -1:
    """Goes on with the ring of a packet socket that another process has set up, at the slot `next`. Raises OSError."""
    memset(ring, 0, sizeof(FrameRing))
    ring.fd, ring.slot_bytes, ring.slot_count, ring.next = fd, slot_bytes, slot_count, next
    return _map(ring)


cdef int _map(FrameRing* ring) except -1:
    cdef void* base = mmap(NULL, <size_t>ring.slot_bytes * ring.slot_count, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, 0)
    if base == MAP_FAILED:
        checked(-1, "mmap of a packet ring")
    ring.slots = <uint8_t*>base
    ring.large = <uint8_t*>table_new(<size_t>LARGE_AT_ONCE * LARGE_BYTES)
    ring.big = <uint8_t*>table_new(BIGGEST_BYTES)
    if ring.large == NULL or ring.big == NULL or not split_open(&ring.split):
        raise MemoryError("no memory for large frames")
    return 0


cdef void frames_free(FrameRing* ring) noexcept nogil:
    """Frees the memory; counters stay."""
    if ring.slots != NULL:
        munmap(ring.slots, <size_t>ring.slot_bytes * ring.slot_count)
    table_delete(ring.large, <size_t>LARGE_AT_ONCE * LARGE_BYTES)
    table_delete(ring.big, BIGGEST_BYTES)
    split_close(&ring.split)
    ring.slots = ring.large = ring.big = NULL
    ring.read = ring.large_count = 0

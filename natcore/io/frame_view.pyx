"""FrameView: a ring of frames for one reader, filled by a plane's loops."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from natcore.base.compiler cimport bswap16
from natcore.base.headers cimport (
    ETHERNET_BYTES, ETHERTYPE_IPV4, ICMP_TIME_EXCEEDED, ICMP_UNREACHABLE, IPV4_OFFSET, PROTOCOL_ICMP, PROTOCOL_TCP,
    PROTOCOL_UDP, EthernetHeader, Ipv4Header,
)
from natcore.base.pages cimport table_delete, table_new
from natcore.base.spinlock cimport spin_lock, spin_read, spin_unlock
from natcore.frame cimport Frame
from natcore.packet.verdict cimport OUTSIDE, UNTRANSLATED
from natcore.tables.criteria cimport criteria_of, meets
from natcore.tables.sessions cimport ROLE_INSIDE, ROLE_OUTSIDE, ROLE_REMOTE

cdef enum:
    RING_MOST = 1 << 30
    ICMP_ERROR_BYTES = 8        # of an ICMP error's header, before the packet that it quotes

cdef struct Endpoints:          # of an IPv4 packet, big-endian; 0: unknown
    uint32_t ip[2]              # source, destination
    uint16_t port[2]
    uint8_t protocol


# ---- on a batch's way ------------------------------------------------------------------------------------------------

cdef bint arrived_new(ArrivedFrames* before, View* view) noexcept nogil:
    before.bytes = <uint8_t*>malloc(<uint64_t>VIEW_FRAMES * view.snaplen)
    before.view = view if before.bytes != NULL else NULL
    return before.view != NULL


cdef void arrived_delete(ArrivedFrames* before) noexcept nogil:
    free(before.bytes)
    before.bytes = NULL
    before.view = NULL


cdef void view_arrive(ArrivedFrames* before, const Frame* frames, uint32_t count) noexcept nogil:
    """Copies the frames of a batch, before they are translated."""
    cdef uint32_t i
    for i in range(count):
        before.lengths[i] = frames[i].length
        memcpy(&before.bytes[<uint64_t>i * before.view.snaplen], frames[i].data, min(frames[i].length, before.view.snaplen))


cdef void read_packet(const uint8_t* data, uint32_t length, Endpoints* found) noexcept nogil:
    """Addresses and ports of an IPv4 packet; what it does not have is 0. Any bytes do."""
    cdef const Ipv4Header* ip = <const Ipv4Header*>data
    cdef uint32_t header
    memset(found, 0, sizeof(Endpoints))
    if length < sizeof(Ipv4Header):
        return
    found.ip[0], found.ip[1] = ip.source, ip.destination
    found.protocol = ip.protocol
    header = (ip.version_ihl & 15) * 4
    if ((ip.protocol == PROTOCOL_TCP or ip.protocol == PROTOCOL_UDP) and not ip.fragment & bswap16(IPV4_OFFSET)
            and header >= sizeof(Ipv4Header) and length >= header + 4):
        memcpy(found.port, data + header, 4)


cdef void read_frame(const uint8_t* data, uint32_t length, Endpoints* found) noexcept nogil:
    """The same of a frame."""
    cdef bint has_packet = (length >= ETHERNET_BYTES
                            and (<const EthernetHeader*>data).ethertype == bswap16(ETHERTYPE_IPV4))
    read_packet(data + ETHERNET_BYTES, length - ETHERNET_BYTES if has_packet else 0, found)


cdef bint is_wanted(const View* view, const Frame* frame, const uint8_t* before, uint32_t kept, bint forwarded) noexcept nogil:
    cdef Endpoints came, leaves
    cdef uint32_t ip[3]
    cdef uint16_t port[3]
    cdef uint32_t inside = 0, remote = 1                # of source and destination which is which
    if view.drops and frame.verdict < 128:
        return False
    read_frame(before, kept, &came)
    if forwarded:
        read_frame(frame.data, frame.length, &leaves)
    else:
        memset(&leaves, 0, sizeof(Endpoints))
    if frame.side == OUTSIDE:
        inside, remote = 1, 0
        ip[ROLE_INSIDE], port[ROLE_INSIDE] = leaves.ip[inside], leaves.port[inside]
        ip[ROLE_OUTSIDE], port[ROLE_OUTSIDE] = came.ip[inside], came.port[inside]
    else:
        ip[ROLE_INSIDE], port[ROLE_INSIDE] = came.ip[inside], came.port[inside]
        ip[ROLE_OUTSIDE], port[ROLE_OUTSIDE] = leaves.ip[inside], leaves.port[inside]
    ip[ROLE_REMOTE], port[ROLE_REMOTE] = came.ip[remote], came.port[remote]
    return meets(&view.criteria, ip, port, came.protocol)


cdef bint quoted_of(const uint8_t* data, uint32_t length, Endpoints* found) noexcept nogil:
    """The endpoints of the packet that an ICMP error of the gateway's quotes; false: the frame is no such error."""
    cdef uint32_t at = ETHERNET_BYTES + sizeof(Ipv4Header), quote = at + ICMP_ERROR_BYTES
    if length < quote or (<const Ipv4Header*>(data + ETHERNET_BYTES)).protocol != PROTOCOL_ICMP or (
            data[at] != ICMP_UNREACHABLE and data[at] != ICMP_TIME_EXCEEDED):
        return False
    read_packet(data + quote, length - quote, found)
    return True


cdef bint is_generated_wanted(const View* view, const uint8_t* data, uint32_t length, uint8_t send_to,
                              uint8_t cause) noexcept nogil:
    """As is_wanted, of a frame that the gateway originates: by the packet that an error quotes, else by its own addresses."""
    cdef Endpoints leaves, quoted
    cdef uint32_t ip[3]
    cdef uint16_t port[3]
    cdef uint32_t ours, remote
    if view.drops and cause < 128:
        return False
    memset(ip, 0, sizeof(ip))
    memset(port, 0, sizeof(port))
    read_frame(data, length, &leaves)
    if quoted_of(data, length, &quoted):                # it goes back to where the quoted packet came from
        ours = ROLE_OUTSIDE if send_to == OUTSIDE else ROLE_INSIDE
        remote = 0 if send_to == OUTSIDE else 1
    else:
        quoted = leaves
        ours = ROLE_OUTSIDE if send_to == OUTSIDE else ROLE_INSIDE
        remote = 1 if send_to == OUTSIDE else 0
    ip[ours], port[ours] = quoted.ip[1 - remote], quoted.port[1 - remote]
    ip[ROLE_REMOTE], port[ROLE_REMOTE] = quoted.ip[remote], quoted.port[remote]
    return meets(&view.criteria, ip, port, leaves.protocol) or meets(&view.criteria, ip, port, quoted.protocol)


cdef void ring_write(View* view, const void* data, uint32_t count) noexcept nogil:
    """Appends bytes; there must be place."""
    cdef uint64_t at = view.head & (view.capacity - 1), first = min(<uint64_t>count, view.capacity - at)
    memcpy(&view.ring[at], data, first)
    memcpy(view.ring, <const uint8_t*>data + first, count - first)
    view.head += count


cdef void keep(View* view, ViewedFrame* seen, const uint8_t* came, const uint8_t* leaves) noexcept nogil:
    """Puts a frame into the ring, or counts it as lost."""
    cdef uint64_t nothing = 0
    cdef uint32_t bytes = <uint32_t>sizeof(ViewedFrame) + seen.kept[0] + seen.kept[1]
    seen.total = (bytes + 7) & ~<uint32_t>7
    spin_lock(&view.spin)
    if view.capacity - (view.head - view.tail) >= seen.total:
        ring_write(view, seen, sizeof(ViewedFrame))
        ring_write(view, came, seen.kept[0])
        ring_write(view, leaves, seen.kept[1])
        ring_write(view, &nothing, seen.total - bytes)
    else:
        view.lost += 1
    spin_unlock(&view.spin)


cdef void view_leave(ArrivedFrames* before, const Frame* frames, uint32_t count, uint8_t interface, uint32_t worker,
                     bint forwarded_only, uint64_t now_ns) noexcept nogil:
    """Keeps what meets the criteria, after the batch was translated and queued."""
    cdef View* view = before.view
    cdef const uint8_t* came
    cdef uint32_t i
    cdef bint forwarded
    cdef ViewedFrame seen
    for i in range(count):
        came = &before.bytes[<uint64_t>i * view.snaplen]
        seen.length[0] = before.lengths[i]
        seen.kept[0] = min(before.lengths[i], view.snaplen)
        forwarded = frames[i].verdict <= UNTRANSLATED
        if forwarded_only and not forwarded or not is_wanted(view, &frames[i], came, seen.kept[0], forwarded):
            continue
        seen.length[1] = frames[i].length if forwarded else 0
        seen.kept[1] = min(seen.length[1], view.snaplen)
        seen.verdict, seen.side, seen.interface, seen.worker = frames[i].verdict, frames[i].side, interface, <uint8_t>worker
        seen.at_ns = now_ns
        keep(view, &seen, came, frames[i].data)


cdef void view_generated(ArrivedFrames* before, const uint8_t* data, uint32_t length, uint8_t send_to, uint8_t cause,
                         uint8_t interface, uint32_t worker, uint64_t now_ns) noexcept nogil:
    """Keeps a frame that the gateway originates, if it meets the criteria. It has not come: its first length is 0."""
    cdef View* view = before.view
    cdef ViewedFrame seen
    if not is_generated_wanted(view, data, length, send_to, cause):
        return
    memset(&seen, 0, sizeof(ViewedFrame))
    seen.length[1] = length
    seen.kept[1] = min(length, view.snaplen)
    seen.verdict, seen.side, seen.interface, seen.worker = cause, send_to, interface, <uint8_t>worker
    seen.at_ns = now_ns
    keep(view, &seen, data, data)


# ---- for its reader --------------------------------------------------------------------------------------------------

cdef class FrameView:
    """Frames that meet criteria (tables/criteria.pxd), or of these only drops; attached to loops by PlaneLoop.attach_view.

    capacity: bytes of the ring, a power of two. snaplen: bytes of a frame that are kept.
    """

    def __cinit__(self, addresses, masks, ports, int protocol, bint drops, uint32_t snaplen, uint64_t capacity):
        if not 64 <= snaplen <= 1 << 18 or capacity & (capacity - 1) or not 2 * snaplen + 4096 <= capacity <= RING_MOST:
            raise ValueError(f"a ring of {capacity} bytes for frames of {snaplen}")
        self.view.criteria = criteria_of(addresses, masks, ports, protocol, 0)
        self.view.drops = drops
        self.view.snaplen = snaplen
        self.view.ring = <uint8_t*>table_new(capacity)
        if self.view.ring == NULL:
            raise MemoryError
        self.view.capacity = capacity
        self.view.spin.needed = 1

    def __dealloc__(self):
        table_delete(self.view.ring, self.view.capacity)

    @property
    def lost(self):
        """Frames that found no place in the ring, so far."""
        return spin_read(&self.view.spin, &self.view.lost)

    def take(self, int most=1024):
        """[(at_ns, verdict, side, interface, worker, length as it came, bytes of that, length as it leaves, bytes of that), …],
        oldest first."""
        cdef View* view = &self.view
        cdef ViewedFrame seen
        cdef bytearray data
        cdef uint8_t[::1] out
        cdef uint64_t there
        cdef list found = []
        while len(found) < most:
            with nogil:
                spin_lock(&view.spin)
                there = view.head - view.tail
                spin_unlock(&view.spin)
            if there == 0:
                break
            self.peek(&seen, 0, sizeof(ViewedFrame))       # what is between tail and head changes only here
            data = bytearray(seen.kept[0] + seen.kept[1] + 1)
            out = data
            self.peek(&out[0], sizeof(ViewedFrame), seen.kept[0] + seen.kept[1])
            found.append((seen.at_ns, seen.verdict, seen.side, seen.interface, seen.worker, seen.length[0],
                          bytes(data[:seen.kept[0]]), seen.length[1], bytes(data[seen.kept[0]:seen.kept[0] + seen.kept[1]])))
            with nogil:
                spin_lock(&view.spin)
                view.tail += seen.total
                spin_unlock(&view.spin)
        return found

    cdef void peek(self, void* out, uint64_t offset, uint32_t count) noexcept:
        cdef uint64_t at = (self.view.tail + offset) & (self.view.capacity - 1)
        cdef uint64_t first = min(<uint64_t>count, self.view.capacity - at)
        memcpy(out, &self.view.ring[at], first)
        memcpy(<uint8_t*>out + first, self.view.ring, count - first)


assert sizeof(ViewedFrame) == 32

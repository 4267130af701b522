"""Captured: where the frames of a capture lie in the file's bytes, and what a gateway would have got of each.

A frame is without link header and tags, as long as the wire had it, with checksums that an offload left out; a super-frame is
the segments that a card makes of it. Only headers are kept, but of an ICMP error, which is kept whole. What is left out and
what was mended is counted by number; python/natcore/capture/prepared.py has the names.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from natcore.api.captured cimport PORTS_L4, PORTS_NONE, PORTS_QUERY, ROW_BYTES, CapturedFrame
from natcore.base.checksum cimport add, checksum, fold
from natcore.base.compiler cimport bswap16, bswap32
from natcore.base.headers cimport (
    ETHERNET_BYTES, ETHERTYPE_IPV4, ETHERTYPE_QINQ, ETHERTYPE_VLAN, IPV4_DF, IPV4_FRAGMENT, IPV4_OFFSET, PROTOCOL_ICMP,
    PROTOCOL_TCP, PROTOCOL_UDP, TCP_CWR, TCP_FIN, TCP_HEADER_BYTES, TCP_PSH, IcmpHeader, Ipv4Header, TcpHeader, UdpHeader,
    VLAN_BYTES, is_reply, is_request, load16, load32,
)
from natcore.packet.verdict cimport INSIDE, OUTSIDE

cdef enum:
    ETHERTYPE_OLD_QINQ = 0x9100
    ETHERTYPE_IPV6 = 0x86DD
    BLOCK_BYTES = 12            # the least that a block of pcapng has
    LINK_ETHERNET = 1           # LINKTYPE_… of pcap
    LINK_COOKED = 113
    LINK_COOKED_2 = 276
    COOKED_TO_HOST = 2          # packet types of Linux: 0 to 2 came in, 4 went out
    COOKED_OUTGOING = 4
    DIRECTION_UNKNOWN = 0       # as natcore.capture.reader has them
    DIRECTION_INCOMING = 1
    DIRECTION_OUTGOING = 2
    NAMED_INSIDE = 1            # bits of an interface
    NAMED_OUTSIDE = 2

cdef enum:                      # how sides are told
    BY_PREFIX = 0
    BY_MAC = 1
    BY_INTERFACE = 2

cdef enum:                      # why a frame is left out: LEFT_OUT of python/natcore/capture/prepared.py
    NOT_LEFT_OUT = 0
    LINK_TYPE = 1               # with the link type
    CUT_HEADERS = 2
    NOT_IPV4 = 3
    ETHERTYPE = 4               # with the EtherType
    IP_VERSION = 5              # with the version
    NOT_GATEWAYS = 6
    BETWEEN_INSIDE = 7
    OTHER_HOSTS = 8
    NOT_NAMED = 9
    LEAVES_OUTSIDE = 10
    CUT_ERROR = 11
    TOO_LONG = 12

cdef enum:                      # what was mended: MENDED of python/natcore/capture/prepared.py
    MENDED_CUT = 0
    MENDED_LENGTH_0 = 1
    MENDED_IPV4_CHECKSUM = 2
    MENDED_SUPER_FRAMES = 3
    MENDED_PARTIAL_CHECKSUM = 4
    MENDED_KINDS = 5

cdef struct Seen:               # a frame of the batch
    const uint8_t* ip           # its IPv4 header, in the file's bytes
    int64_t captured            # bytes of it that are there, from ip on
    int64_t length              # of the IPv4 packet, as its header has it, or as the frame is long
    int64_t there               # the same, or less: as long as the frame is
    uint32_t parts              # frames to make of it; 0: it is left out
    uint32_t reason             # NOT_LEFT_OUT or why
    uint32_t value              # of the reason
    uint8_t header              # bytes of the IPv4 header
    uint8_t side
    uint8_t ports
    bint is_error
    bint is_super
    bint is_wrong               # total length and checksum are to be written


def frame_starts(const uint8_t[::1] data not None, Py_ssize_t at, Py_ssize_t end, uint32_t header, bint swapped,
                 int64_t[::1] starts not None):
    """Finds the frames of a classic capture that lie whole between at and end.

    header: bytes of a frame's header, in which the bytes that follow are at 8. swapped: big-endian. starts: written, the places
    of the headers. Returns how many, and where the next one begins.
    """
    cdef Py_ssize_t count = 0
    cdef uint32_t kept
    with nogil:
        while end - at >= header and count < starts.shape[0]:
            kept = load32(&data[at + 8])
            kept = bswap32(kept) if swapped else kept
            if kept > end - at - header:
                break
            starts[count] = at
            count += 1
            at += header + kept
    return count, at


def block_starts(const uint8_t[::1] data not None, Py_ssize_t at, Py_ssize_t end, uint32_t kind, bint swapped,
                 int64_t[::1] starts not None):
    """Finds the blocks of one kind of a pcapng capture that follow each other and lie whole between at and end.

    starts: written, the places of the blocks. Returns how many, and where the next one begins.
    """
    cdef Py_ssize_t count = 0
    cdef uint32_t found, total
    with nogil:
        while end - at >= BLOCK_BYTES and count < starts.shape[0]:
            found, total = load32(&data[at]), load32(&data[at + 4])
            if swapped:
                found, total = bswap32(found), bswap32(total)
            if found != kind or total & 3 or total < BLOCK_BYTES or total > end - at:
                break
            starts[count] = at
            count += 1
            at += total
    return count, at


cdef inline uint32_t sum_of_header(const uint8_t* ip, uint32_t bytes) noexcept nogil:
    return fold(add(ip, bytes, 0))


cdef class Preparation:
    """Prepares batches; look, then fill.

    mtu: bytes of an IPv4 packet; longer TCP packets are cut. inside: prefixes as (address, mask), in host order. macs: the
    gateway's, as numbers; or none. named: numbers of the system's interfaces, with NAMED_… bits, and how sides are told.
    """
    cdef int64_t mtu
    cdef int how
    cdef const uint32_t[:, ::1] inside
    cdef const uint64_t[::1] macs
    cdef const int64_t[:, ::1] numbers
    cdef Seen* seen
    cdef Py_ssize_t capacity, count
    cdef uint64_t mended[MENDED_KINDS]
    cdef int32_t next_message

    def __cinit__(self, int64_t mtu, int how, const uint32_t[:, ::1] inside not None, const uint64_t[::1] macs not None,
                  const int64_t[:, ::1] numbers not None):
        self.mtu = mtu
        self.how = how
        self.inside = inside
        self.macs = macs
        self.numbers = numbers

    def __dealloc__(self):
        free(self.seen)

    def look(self, const uint8_t[::1] data not None, const int64_t[::1] start not None, const int64_t[::1] captured not None,
             const int64_t[::1] original not None, const int64_t[::1] interface not None,
             const uint8_t[::1] direction not None, const uint16_t[::1] links not None, const uint8_t[::1] named not None):
        """Looks at a batch: data with 192 bytes behind the last frame at least; links and NAMED_… bits by interface. Returns
        how many frames it makes. The arrays must stay until fill."""
        cdef Py_ssize_t i, total = 0
        cdef Seen* seen
        self.count = start.shape[0]
        if self.count > self.capacity:
            seen = <Seen*>realloc(self.seen, self.count * sizeof(Seen))
            if seen == NULL:
                raise MemoryError
            self.seen, self.capacity = seen, self.count
        with nogil:
            for i in range(self.count):
                seen = &self.seen[i]
                memset(seen, 0, sizeof(Seen))
                self.find(seen, &data[0] + start[i], captured[i], original[i], links[interface[i]], direction[i],
                          named[interface[i]])
                total += seen.parts
        return total

    def left_out(self, uint32_t[:, ::1] out not None):
        """Writes reason and value of the frames that the last look left out; returns how many."""
        cdef Py_ssize_t i, count = 0
        for i in range(self.count):
            if self.seen[i].reason:
                out[count, 0], out[count, 1] = self.seen[i].reason, self.seen[i].value
                count += 1
        return count

    def take_mended(self):
        """How often each was mended since the call before."""
        counts = [self.mended[i] for i in range(MENDED_KINDS)]
        memset(self.mended, 0, sizeof(self.mended))
        return counts

    def fill(self, const int64_t[::1] time_ns not None, uint8_t[:, ::1] rows not None, CapturedFrame[::1] frames not None):
        """Writes the frames that the last look found; returns the ICMP errors' whole frames by number."""
        cdef Py_ssize_t i, at = 0
        cdef uint32_t part
        cdef Seen* seen
        messages = {}
        with nogil:
            for i in range(self.count):
                seen = &self.seen[i]
                for part in range(seen.parts):
                    self.write(seen, part, time_ns[i], &rows[at, 0], &frames[at])
                    at += 1
                if seen.parts and seen.is_error:
                    frames[at - 1].message = self.next_message
                    self.next_message += 1
        at = 0
        for i in range(self.count):
            seen = &self.seen[i]
            if seen.parts and seen.is_error:
                messages[frames[at].message] = whole(seen, &rows[at, 0])
            at += seen.parts
        return messages

    # ---- what a frame is ---------------------------------------------------------------------------------------------------

    cdef void find(self, Seen* seen, const uint8_t* frame, int64_t captured, int64_t original, uint16_t link, uint8_t direction,
                   uint8_t named) noexcept nogil:
        """Finds the IPv4 packet of a frame, and the side that it came from."""
        cdef const uint8_t* mac_to = NULL
        cdef const uint8_t* mac_from = NULL
        cdef uint32_t size, kind, type
        if link == LINK_ETHERNET:
            size, mac_to, mac_from = ETHERNET_BYTES, frame, frame + 6
        elif link == LINK_COOKED:
            size, mac_from = 16, frame + 6
        elif link == LINK_COOKED_2:
            size, mac_from = 20, frame + 12
        elif link == 12 or link == 101 or link == 228:
            size = 0
        else:
            leave_out(seen, LINK_TYPE, link)
            return
        if captured < size:
            leave_out(seen, CUT_HEADERS if original > captured else NOT_IPV4, 0)
            return
        if size:
            kind = bswap16(load16(frame if link == LINK_COOKED_2 else frame + size - 2))
        else:
            kind = ETHERTYPE_IPV6 if captured > 0 and frame[0] >> 4 == 6 else ETHERTYPE_IPV4
        if link == LINK_COOKED or link == LINK_COOKED_2:
            type = frame[10] if link == LINK_COOKED_2 else bswap16(load16(frame))
            if direction == DIRECTION_UNKNOWN and type <= COOKED_TO_HOST:
                direction = DIRECTION_INCOMING
            elif direction == DIRECTION_UNKNOWN and type == COOKED_OUTGOING:
                direction = DIRECTION_OUTGOING
        if link == LINK_COOKED_2:
            named = self.named_number(bswap32(load32(frame + 4)))
        while is_tag(kind) and size + VLAN_BYTES <= captured:
            kind = bswap16(load16(frame + size + 2))
            size += VLAN_BYTES
        seen.ip, seen.captured = frame + size, captured - size
        original -= size
        if is_tag(kind) and original >= VLAN_BYTES:
            leave_out(seen, CUT_HEADERS, 0)
        elif kind != ETHERTYPE_IPV4:
            leave_out(seen, ETHERTYPE, kind)
        elif seen.captured < <int64_t>sizeof(Ipv4Header):
            leave_out(seen, CUT_HEADERS if original >= <int64_t>sizeof(Ipv4Header) else NOT_IPV4, 0)
        elif seen.ip[0] >> 4 != 4:
            leave_out(seen, IP_VERSION, seen.ip[0] >> 4)
        elif self.tell_side(seen, mac_to, mac_from, direction, named):
            self.measure(seen, original)

    cdef uint8_t named_number(self, uint32_t number) noexcept nogil:
        """NAMED_… bits of an interface by the system's number."""
        cdef Py_ssize_t i
        for i in range(self.numbers.shape[0]):
            if self.numbers[i, 0] == number:
                return <uint8_t>self.numbers[i, 1]
        return 0

    cdef bint tell_side(self, Seen* seen, const uint8_t* mac_to, const uint8_t* mac_from, uint8_t direction,
                        uint8_t named) noexcept nogil:
        """Tells the side that a frame came from, as natcore.capture.sides.Sides does; False: none, and it is left out."""
        cdef const Ipv4Header* ip = <const Ipv4Header*>seen.ip
        cdef bint from_inside, other
        if self.how == BY_INTERFACE:
            if named & NAMED_INSIDE:
                seen.side = OUTSIDE if direction == DIRECTION_OUTGOING else INSIDE
                return True
            if named & NAMED_OUTSIDE and direction != DIRECTION_OUTGOING:
                seen.side = OUTSIDE
                return True
            leave_out(seen, LEAVES_OUTSIDE if named & NAMED_OUTSIDE else NOT_NAMED, 0)
            return False
        if self.how == BY_MAC:
            from_inside, other = self.is_gateways(mac_to), self.is_gateways(mac_from)
            if not from_inside and not other:
                leave_out(seen, NOT_GATEWAYS, 0)
                return False
        else:
            from_inside, other = self.is_inside(bswap32(ip.source)), self.is_inside(bswap32(ip.destination))
            if from_inside == other:
                leave_out(seen, BETWEEN_INSIDE if other else OTHER_HOSTS, 0)
                return False
        seen.side = INSIDE if from_inside else OUTSIDE
        return True

    cdef bint is_gateways(self, const uint8_t* mac) noexcept nogil:
        cdef Py_ssize_t i
        cdef uint64_t number
        if mac == NULL:
            return False
        number = <uint64_t>bswap32(load32(mac)) << 16 | bswap16(load16(mac + 4))
        for i in range(self.macs.shape[0]):
            if self.macs[i] == number:
                return True
        return False

    cdef bint is_inside(self, uint32_t address) noexcept nogil:
        cdef Py_ssize_t i
        for i in range(self.inside.shape[0]):
            if address & self.inside[i, 1] == self.inside[i, 0]:
                return True
        return False

    cdef void measure(self, Seen* seen, int64_t original) noexcept nogil:
        """Finds how long the packet is, what of it is there, and what is to be mended. original: bytes that it had on the
        wire, from the IPv4 header on."""
        cdef const Ipv4Header* ip = <const Ipv4Header*>seen.ip
        cdef uint32_t header = (ip.version_ihl & 15) * 4
        cdef const uint8_t* l4 = seen.ip + header
        cdef uint32_t total = bswap16(ip.total_length), fragment = bswap16(ip.fragment)
        cdef bint is_first = fragment & IPV4_OFFSET == 0, is_whole = fragment & IPV4_FRAGMENT == 0
        cdef bint is_tcp = is_first and ip.protocol == PROTOCOL_TCP, is_udp = is_first and ip.protocol == PROTOCOL_UDP
        cdef bint is_icmp = is_first and ip.protocol == PROTOCOL_ICMP
        cdef bint is_query = is_icmp and (is_request(l4[0]) or is_reply(l4[0]))
        cdef bint no_length = total == 0 and original > <int64_t>sizeof(Ipv4Header)
        cdef bint has_l4, no_checksum, is_above
        cdef int64_t needed = header + (TCP_HEADER_BYTES if is_tcp else <uint32_t>sizeof(UdpHeader) if is_udp or is_icmp else 0)
        seen.header = <uint8_t>header
        seen.length = original if no_length else total
        seen.there = min(seen.length, original)
        has_l4 = seen.captured >= needed
        if not has_l4 and original >= needed:
            leave_out(seen, CUT_HEADERS, 0)
            return
        if has_l4:
            seen.ports = PORTS_L4 if is_tcp or is_udp else PORTS_QUERY if is_query else PORTS_NONE
            seen.is_error = is_icmp and not is_query
        if seen.captured < seen.there:
            if seen.is_error:
                leave_out(seen, CUT_ERROR, 0)
                return
            self.mended[MENDED_CUT] += 1
        no_checksum = (ip.checksum == 0 and header >= sizeof(Ipv4Header) and seen.captured >= header
                       and sum_of_header(seen.ip, header) != 0xFFFF)
        seen.is_wrong = no_length or no_checksum
        if no_length:
            self.mended[MENDED_LENGTH_0] += 1
        elif no_checksum:
            self.mended[MENDED_IPV4_CHECKSUM] += 1
        is_above = seen.there > self.mtu        # one that is shorter than it says is the gateway's to drop
        seen.is_super = is_above and is_tcp and has_l4 and is_whole
        if is_above and not seen.is_super and (seen.there > 0xFFFF or fragment & IPV4_DF):
            leave_out(seen, TOO_LONG, 0)
            return
        seen.parts = 1
        if seen.is_super:
            self.mended[MENDED_SUPER_FRAMES] += 1
            seen.parts = <uint32_t>max((seen.there - ahead_of(seen) + self.step_of(seen) - 1) // self.step_of(seen), 1)
        elif (is_tcp or is_udp) and has_l4 and is_whole and seen.length >= header:
            if pseudo_of(ip, seen.length - header) == ((<TcpHeader*>l4).checksum if is_tcp else (<UdpHeader*>l4).checksum):
                self.mended[MENDED_PARTIAL_CHECKSUM] += 1

    cdef int64_t step_of(self, const Seen* seen) noexcept nogil:
        """Data bytes of a super-frame's segment."""
        return max(self.mtu - ahead_of(seen), 1)

    # ---- what is written ---------------------------------------------------------------------------------------------------

    cdef void write(self, const Seen* seen, uint32_t part, int64_t time_ns, uint8_t* row, CapturedFrame* frame) noexcept nogil:
        """Writes a frame, or the segment `part` of a super-frame."""
        cdef size_t kept = min(<size_t>seen.captured, <size_t>(ROW_BYTES - ETHERNET_BYTES))
        cdef Ipv4Header* ip = <Ipv4Header*>(row + ETHERNET_BYTES)
        cdef const uint8_t* l4 = row + ETHERNET_BYTES + seen.header
        memset(row, 0, ETHERNET_BYTES)
        row[12] = ETHERTYPE_IPV4 >> 8
        memcpy(row + ETHERNET_BYTES, seen.ip, kept)
        memset(row + ETHERNET_BYTES + kept, 0, ROW_BYTES - ETHERNET_BYTES - kept)
        frame.time_ns = time_ns
        frame.source, frame.destination = bswap32(ip.source), bswap32(ip.destination)
        frame.length = <uint32_t>(ETHERNET_BYTES + seen.there)
        frame.message = -1
        frame.ports, frame.protocol, frame.side = seen.ports, ip.protocol, seen.side
        frame.l4 = ETHERNET_BYTES + seen.header
        frame.source_port = frame.destination_port = 0
        if seen.ports == PORTS_L4:
            frame.source_port = bswap16((<UdpHeader*>l4).source_port)
            frame.destination_port = bswap16((<UdpHeader*>l4).destination_port)
        elif seen.ports == PORTS_QUERY:
            frame.source_port = frame.destination_port = bswap16((<IcmpHeader*>l4).identifier)
        if seen.is_super:
            self.cut(seen, part, row, frame)
        elif seen.is_wrong:
            finish(ip, seen.header, <uint16_t>seen.length)

    cdef void cut(self, const Seen* seen, uint32_t part, uint8_t* row, CapturedFrame* frame) noexcept nogil:
        """Makes a super-frame's headers those of the segment that a card makes."""
        cdef Ipv4Header* ip = <Ipv4Header*>(row + ETHERNET_BYTES)
        cdef TcpHeader* tcp = <TcpHeader*>(row + frame.l4)
        cdef int64_t ahead = ahead_of(seen), step = self.step_of(seen), done = part * step
        cdef bint is_last = part == seen.parts - 1
        cdef int64_t length = ahead + (seen.there - ahead - done if is_last else step)
        frame.length = <uint32_t>(ETHERNET_BYTES + length)
        ip.identification = bswap16(<uint16_t>(bswap16(ip.identification) + part))
        tcp.sequence = bswap32(<uint32_t>(bswap32(tcp.sequence) + done))
        if not is_last:
            tcp.flags &= ~(TCP_FIN | TCP_PSH) & 0xFF
        if part:
            tcp.flags &= ~TCP_CWR & 0xFF
        finish(ip, seen.header, <uint16_t>length)


cdef inline bint is_tag(uint32_t kind) noexcept nogil:
    return kind == ETHERTYPE_VLAN or kind == ETHERTYPE_QINQ or kind == ETHERTYPE_OLD_QINQ


cdef inline void leave_out(Seen* seen, uint32_t reason, uint32_t value) noexcept nogil:
    seen.reason, seen.value = reason, value


cdef inline int64_t ahead_of(const Seen* seen) noexcept nogil:
    """Bytes of a TCP packet ahead of its data."""
    cdef uint32_t offset = (<const TcpHeader*>(seen.ip + seen.header)).data_offset >> 4
    return seen.header + 4 * max(offset, <uint32_t>5)


cdef inline uint16_t pseudo_of(const Ipv4Header* ip, int64_t l4_bytes) noexcept nogil:
    """The sum over the pseudo-header, big-endian, which is what an offload leaves in place of a checksum."""
    cdef uint32_t rest = bswap32((<uint32_t>ip.protocol << 16) + (<uint32_t>l4_bytes & 0xFFFF))
    return fold(<uint64_t>ip.source + ip.destination + rest)


cdef inline void finish(Ipv4Header* ip, uint32_t header, uint16_t length) noexcept nogil:
    """Writes total length and checksum."""
    ip.total_length = bswap16(length)
    ip.checksum = 0
    ip.checksum = checksum(<const uint8_t*>ip, header, 0)


cdef bytes whole(const Seen* seen, const uint8_t* row):
    """The whole frame: headers from its row, the rest from the file's bytes."""
    cdef Py_ssize_t headers = ETHERNET_BYTES + seen.header, size = ETHERNET_BYTES + seen.captured
    cdef bytes made = PyBytes_FromStringAndSize(NULL, size)
    memcpy(PyBytes_AS_STRING(made) + ETHERNET_BYTES, seen.ip, seen.captured)
    memcpy(PyBytes_AS_STRING(made), row, min(headers, size))
    return made

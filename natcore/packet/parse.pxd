"""Parsing: validates a frame, checking every length against the frame, and fills in the packet context."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from natcore.base.checksum cimport add, fold
from natcore.base.flow_hash cimport HashKey, flow_hash
from natcore.frame cimport FRAME_CROSSING, FRAME_GSO, Frame
from natcore.base.compiler cimport bswap16, unlikely
from natcore.base.hash_table cimport Bucket
from natcore.packet.verdict cimport (
    DROP_CHECKSUM, DROP_MALFORMED, DROP_UNSUPPORTED, INSIDE, PENDING,
)
from natcore.base.headers cimport (
    ETHERNET_BYTES, ETHERTYPE_IPV4, ETHERTYPE_QINQ, ETHERTYPE_VLAN, IPV4_FRAGMENT,
    PROTOCOL_AH, PROTOCOL_DCCP, PROTOCOL_HOP_BY_HOP, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_UDPLITE, VLAN_BYTES,
    EthernetHeader, IcmpHeader, Ipv4Header, TcpHeader, UdpHeader, is_reply, is_request, load16, load32, load64,
)

cdef enum:                      # PacketKind
    KIND_SESSION = 0            # may belong to a session: its key is complete
    KIND_ICMP = 1               # other ICMP messages
    KIND_OTHER = 2              # protocols that cannot be translated
    KIND_FRAGMENT = 3           # only the IPv4 header is parsed

cdef enum:                      # Options: of the IPv4 header
    OPTIONS_NONE = 0
    OPTIONS_HARMLESS = 1        # passed by default by RFC 7126, or unknown (RFC 1812 section 5.3.13.1)
    OPTIONS_UNWANTED = 2        # dropped by default by RFC 7126
    OPTIONS_SOURCE_ROUTE = 3    # a source route, which would bypass translation
    OPTIONS_MALFORMED = 4

cdef enum:                      # Option: type octet (RFC 791, IANA)
    OPTION_END = 0
    OPTION_NOP = 1
    OPTION_LSRR = 131
    OPTION_SSRR = 137

cdef enum:
    TCP_CHECKSUM_AT = 16
    UDP_CHECKSUM_AT = 6
    PLAIN = 0x45                # low byte of the first header word: version 4, five words of header
    FRAGMENT_SHIFT = 48         # position of the fragment field in that word
    TCP_AND_UDP = 1 << PROTOCOL_TCP | 1 << PROTOCOL_UDP     # one bit per protocol

cdef struct Packet:             # the packet context: what the stages know of a packet
    uint64_t addresses          # source and destination as in the packet
    uint64_t hash               # hash of the session key
    const Bucket* bucket        # home bucket in the index, or NULL
    Ipv4Header* ip
    uint8_t* l4
    uint32_t ports              # source and destination as in the packet; ICMP query: identifier, remote 0
    uint32_t candidate          # session found by tag, or NONE
    uint16_t total_length       # bytes, including the IPv4 header
    uint16_t payload            # TCP: bytes behind its header; otherwise 0
    uint8_t protocol
    uint8_t kind                # PacketKind
    uint8_t verdict             # PENDING, or the drop by the parser
    uint8_t checksum_at         # offset of the checksum in the TCP or UDP header; 0: other protocols
    uint8_t options             # Options found by parse_network
    uint8_t unused[7]           # 64 bytes

cdef inline uint32_t link_length(const Frame* frame) noexcept nogil:
    """Bytes of the Ethernet header with up to two tags, if IPv4 follows; 0: it does not. More than the frame's length: the
    frame is too short."""
    cdef uint32_t at = 12, _tags
    cdef uint16_t ethertype
    for _tags in range(3):
        if frame.length < at + 2:
            return at + 2
        memcpy(&ethertype, frame.data + at, 2)
        ethertype = bswap16(ethertype)
        at += 2
        if ethertype == ETHERTYPE_IPV4:
            return at
        if ethertype != ETHERTYPE_VLAN and ethertype != ETHERTYPE_QINQ:
            return 0
        at += 2
    return 0

cdef inline uint64_t header_total(uint64_t first, uint64_t second, uint32_t last) noexcept nogil:
    """Sum of the five words of an IPv4 header without options, not folded."""
    cdef uint64_t total = first + second
    total += <uint64_t>last + (total < second)      # plus the carry
    return total + (total < last)

cdef inline uint16_t header_sum(const Ipv4Header* ip, uint32_t words) noexcept nogil:
    """0xFFFF if the IPv4 header checksum is correct. words: of 32 bits, 5 or more."""
    cdef const uint8_t* at = <const uint8_t*>ip
    cdef uint64_t total = header_total(load64(at), load64(at + 8), load32(at + 16))
    return fold(total) if words == 5 else fold(add(at + 20, (words - 5) * 4, fold(total)))

cdef inline bint is_tcp_or_udp(uint8_t protocol) noexcept nogil:
    """One test for both: packets of the two protocols come mixed, and separate branches would be mispredicted half the time."""
    return protocol < 64 and <uint64_t>TCP_AND_UDP >> protocol & 1

cdef inline uint8_t parse_transport(Packet* packet, uint32_t side, uint32_t rest) noexcept nogil:
    """Parses the layer-4 header in the `rest` remaining bytes: lengths and ports."""
    cdef uint32_t length
    cdef const IcmpHeader* icmp
    packet.payload = 0
    packet.checksum_at = 0
    if packet.protocol == PROTOCOL_TCP:
        if rest < 20:
            return DROP_MALFORMED
        length = ((<const TcpHeader*>packet.l4).data_offset >> 4) * 4
        if length < 20 or length > rest:
            return DROP_MALFORMED
        packet.payload = <uint16_t>(rest - length)
        packet.checksum_at = TCP_CHECKSUM_AT
    elif packet.protocol == PROTOCOL_UDP:
        if rest < 8:
            return DROP_MALFORMED
        length = bswap16((<const UdpHeader*>packet.l4).length)
        if length < 8 or length > rest:
            return DROP_MALFORMED
        packet.checksum_at = UDP_CHECKSUM_AT
    elif packet.protocol == PROTOCOL_ICMP:
        if rest < 8:
            return DROP_MALFORMED
        icmp = <const IcmpHeader*>packet.l4
        if not (is_request(icmp.type) if side == INSIDE else is_reply(icmp.type)):
            packet.kind = KIND_ICMP
        packet.ports = icmp.identifier if side == INSIDE else <uint32_t>icmp.identifier << 16
        return PENDING
    else:                                           # addresses are the whole key
        packet.ports = 0
        if packet.protocol == PROTOCOL_DCCP or packet.protocol == PROTOCOL_UDPLITE or packet.protocol == PROTOCOL_AH:
            packet.kind = KIND_OTHER                # the checksum covers the addresses
        return PENDING
    memcpy(&packet.ports, packet.l4, 4)
    return PENDING

cdef inline bint is_unwanted(uint8_t option) noexcept nogil:
    """Options that RFC 7126 drops by default: Record Route, Timestamp, Stream Identifier, and obsolete ones: Probe and Reply
    MTU, ENCODE, Traceroute, VISA, EIP, Address Extension, SDMDD, DPS, UMP."""
    return (option == 7 or option == 68 or option == 136 or option == 11 or option == 12 or option == 15 or option == 82
            or option == 142 or option == 145 or option == 147 or option == 149 or option == 151 or option == 152)

cdef inline uint8_t options_of(const uint8_t* at, uint32_t bytes) noexcept nogil:
    """Classifies the options of an IPv4 header: the worst of them."""
    cdef uint32_t i = 0, length
    cdef uint8_t found = OPTIONS_HARMLESS
    while i < bytes and at[i] != OPTION_END:
        if at[i] == OPTION_NOP:
            i += 1
            continue
        length = at[i + 1] if i + 1 < bytes else 0
        if length < 2 or length > bytes - i:
            return OPTIONS_MALFORMED
        if at[i] == OPTION_LSRR or at[i] == OPTION_SSRR:
            found = OPTIONS_SOURCE_ROUTE
        elif found < OPTIONS_UNWANTED:
            found = OPTIONS_UNWANTED if is_unwanted(at[i]) else OPTIONS_HARMLESS
        i += length
    return found

cdef inline uint8_t parse_network(Frame* frame, Packet* packet, bint ethernet) noexcept nogil:
    """Parses link and IPv4 header; PENDING or a drop. Cuts the frame's length to the packet."""
    cdef uint32_t link = 0, words, total
    cdef Ipv4Header* ip
    if ethernet:
        link = ETHERNET_BYTES
        if (frame.length < ETHERNET_BYTES + 20
                or (<const EthernetHeader*>frame.data).ethertype != bswap16(ETHERTYPE_IPV4)):
            link = link_length(frame)
            if link == 0:
                return DROP_UNSUPPORTED
    if frame.length < link + 20:
        return DROP_MALFORMED
    ip = <Ipv4Header*>(frame.data + link)
    words = ip.version_ihl & 15
    total = bswap16(ip.total_length)
    if ip.version_ihl >> 4 != 4 or words < 5 or total < words * 4 or total > frame.length - link:
        return DROP_UNSUPPORTED if not ethernet and ip.version_ihl >> 4 == 6 else DROP_MALFORMED    # IPv6, without EtherType
    if header_sum(ip, words) != 0xFFFF:
        return DROP_CHECKSUM
    packet.options = OPTIONS_NONE
    if unlikely(words > 5):
        packet.options = options_of(<const uint8_t*>ip + 20, (words - 5) * 4)
        if packet.options == OPTIONS_MALFORMED:
            return DROP_MALFORMED
    frame.length = link + total
    packet.ip = ip
    packet.l4 = <uint8_t*>ip + words * 4
    packet.total_length = <uint16_t>total
    packet.protocol = ip.protocol
    packet.kind = KIND_SESSION
    if unlikely(ip.fragment & bswap16(IPV4_FRAGMENT)):
        packet.kind = KIND_FRAGMENT
    if unlikely(ip.protocol == PROTOCOL_HOP_BY_HOP):        # only IPv6 uses it (RFC 8200 section 4.3)
        return DROP_UNSUPPORTED
    memcpy(&packet.addresses, &ip.source, 8)
    return PENDING

cdef inline uint8_t parse(Frame* frame, Packet* packet, bint ethernet, const HashKey* key) noexcept nogil:
    """Parses a frame; PENDING with a complete context (except fragments), or a drop."""
    cdef uint8_t verdict = parse_network(frame, packet, ethernet)
    if verdict != PENDING or packet.kind == KIND_FRAGMENT:
        return verdict
    verdict = parse_transport(packet, frame.side, packet.total_length - <uint32_t>(packet.l4 - <uint8_t*>packet.ip))
    if verdict == PENDING and packet.kind == KIND_SESSION:
        packet.hash = flow_hash(key, packet.addresses, packet.ports, packet.protocol)
    return verdict

cdef inline bint parse_plain(Frame* frame, Packet* packet, bint ethernet, uint8_t lowest_ttl, uint32_t mtu,
                             const HashKey* key) noexcept nogil:
    """A whole, untagged packet of TCP or UDP, without IPv4 options, that time to live and mtu let pass: nearly all are one.

    The checks are those of parse, on whole words and without branching on TCP or UDP, which come mixed. False: use parse.
    """
    cdef uint32_t link = ETHERNET_BYTES if ethernet else 0, capacity = frame.length - link, total, rest, tcp, least, length
    cdef uint8_t* ip = frame.data + link
    cdef uint64_t first, second
    cdef uint32_t last
    cdef uint8_t protocol
    if unlikely(frame.length < link + 28 or frame.flags & (FRAME_GSO | FRAME_CROSSING)
                or (ethernet and load16(frame.data + 12) != bswap16(ETHERTYPE_IPV4))):
        return False
    first = load64(ip)
    second = load64(ip + 8)
    last = load32(ip + 16)
    total = bswap16(<uint16_t>(first >> 16))
    protocol = <uint8_t>(second >> 8)
    capacity = capacity if capacity < mtu else mtu
    if unlikely(first & (<uint64_t>bswap16(IPV4_FRAGMENT) << FRAGMENT_SHIFT | 0xFF) != PLAIN or total > capacity
                or <uint8_t>second < lowest_ttl or not is_tcp_or_udp(protocol)
                or fold(header_total(first, second, last)) != 0xFFFF):
        return False
    tcp = protocol == PROTOCOL_TCP
    least = 8 + 12 * tcp
    rest = total - 20
    if unlikely(<int>rest < <int>least):
        return False
    length = bswap16(load16(ip + 24 + 8 * tcp))     # UDP: length; TCP: data offset in words, and flags
    length = length >> 10 & 0x3C if tcp else length
    if unlikely(length - least > rest - least):     # a length below the minimum wraps around
        return False
    frame.length = link + total
    packet.addresses = second >> 32 | <uint64_t>last << 32
    packet.ports = load32(ip + 20)
    packet.ip = <Ipv4Header*>ip
    packet.l4 = ip + 20
    packet.total_length = <uint16_t>total
    packet.payload = <uint16_t>(rest - length) & <uint16_t>-<int>tcp
    packet.protocol = protocol
    packet.kind = KIND_SESSION
    packet.checksum_at = <uint8_t>(UDP_CHECKSUM_AT + (TCP_CHECKSUM_AT - UDP_CHECKSUM_AT) * tcp)
    packet.hash = flow_hash(key, second >> 32 | <uint64_t>last << 32, load32(ip + 20), protocol)
    return True

cdef inline uint32_t payload_offset(const Packet* packet) noexcept nogil:
    """Bytes of the IPv4 and layer-4 headers together."""
    cdef uint32_t headers = <uint32_t>(packet.l4 - <uint8_t*>packet.ip)
    if packet.protocol == PROTOCOL_TCP:
        return headers + ((<const TcpHeader*>packet.l4).data_offset >> 4) * 4
    return headers + 8                              # UDP

cdef inline uint32_t gso_payload(const Frame* frame, const Packet* packet) noexcept nogil:
    """Payload bytes of a super-frame of TCP or UDP, to be segmented; 0: not a super-frame, regardless of the caller's flags."""
    cdef uint32_t headers
    if (not frame.flags & FRAME_GSO or frame.gso_size == 0 or not is_tcp_or_udp(packet.protocol)
            or packet.ip.fragment & bswap16(IPV4_FRAGMENT)):
        return 0
    headers = payload_offset(packet)
    return packet.total_length - headers if packet.total_length > headers else 0

cdef inline uint32_t wire_length(const Frame* frame, const Packet* packet) noexcept nogil:
    """Length of the largest IPv4 packet on the wire; each segment of a super-frame has headers of its own."""
    cdef uint32_t payload = gso_payload(frame, packet)
    return packet.total_length - payload + frame.gso_size if payload > frame.gso_size else packet.total_length

cdef inline uint32_t wire_packets(const Frame* frame, const Packet* packet) noexcept nogil:
    """Number of IPv4 packets on the wire."""
    cdef uint32_t payload = gso_payload(frame, packet)
    return 1 if payload <= frame.gso_size else (payload + frame.gso_size - 1) // frame.gso_size

cdef inline uint32_t wire_bytes(const Packet* packet, uint32_t packets) noexcept nogil:
    """IPv4 bytes on the wire, of all packets together."""
    if packets == 1:
        return packet.total_length
    return packet.total_length + (packets - 1) * payload_offset(packet)

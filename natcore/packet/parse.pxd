"""The first stage: a frame is checked, every length against the frame, before anything in it is believed."""
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

cdef enum:                      # FlightKind
    KIND_SESSION = 0            # what a session may own: its key is complete
    KIND_ICMP = 1               # another ICMP message
    KIND_OTHER = 2              # a protocol that no address may change under
    KIND_FRAGMENT = 3           # only its IPv4 header has been looked at

cdef enum:                      # Options: of the IPv4 header
    OPTIONS_NONE = 0
    OPTIONS_HARMLESS = 1        # what RFC 7126 lets pass by default, and unknown ones (RFC 1812 section 5.3.13.1)
    OPTIONS_UNWANTED = 2        # what RFC 7126 drops by default
    OPTIONS_ROUTE = 3           # a source route, which would lead around the translation
    OPTIONS_MALFORMED = 4

cdef enum:                      # Option: its type's octet (RFC 791, IANA)
    OPTION_END = 0
    OPTION_NOP = 1
    OPTION_LSRR = 131
    OPTION_SSRR = 137

cdef enum:
    TCP_CHECKSUM_AT = 16
    UDP_CHECKSUM_AT = 6
    PLAIN = 0x45                # version 4 and five words of header, in the low byte of its first word
    FRAGMENT_SHIFT = 48         # where the fragment field is in it
    TCP_AND_UDP = 1 << PROTOCOL_TCP | 1 << PROTOCOL_UDP     # a bit a protocol

cdef struct Flight:             # a packet on its way through the stages
    uint64_t addresses          # source and destination as they lie in the packet
    uint64_t hash               # of the key
    const Bucket* bucket        # where the index begins to look, or NULL
    Ipv4Header* ip
    uint8_t* l4
    uint32_t ports              # source and destination likewise; a query's id, and 0 for the remote
    uint32_t candidate          # session that the index names, or NONE
    uint16_t total_length       # bytes, IPv4 header included
    uint16_t payload            # TCP: bytes behind its header; others: 0
    uint8_t protocol
    uint8_t kind                # FlightKind
    uint8_t verdict             # PENDING, or why it was dropped here
    uint8_t checksum_at         # bytes into the header of TCP or UDP; 0: it is neither
    uint8_t options             # Options, as parse_network found them
    uint8_t unused[7]           # 64 bytes

cdef inline uint32_t link_length(const Frame* frame) noexcept nogil:
    """Bytes of the Ethernet header with up to two tags when IPv4 follows; 0: it does not. More than the frame has:
    it is too short to tell."""
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
    """The sum of an IPv4 header's five words, to be folded."""
    cdef uint64_t total = first + second
    total += <uint64_t>last + (total < second)      # with the carry
    return total + (total < last)

cdef inline uint16_t header_sum(const Ipv4Header* ip, uint32_t words) noexcept nogil:
    """0xFFFF where the IPv4 header's checksum is right. words: of 32 bits, 5 or more."""
    cdef const uint8_t* at = <const uint8_t*>ip
    cdef uint64_t total = header_total(load64(at), load64(at + 8), load32(at + 16))
    return fold(total) if words == 5 else fold(add(at + 20, (words - 5) * 4, fold(total)))

cdef inline bint is_tcp_or_udp(uint8_t protocol) noexcept nogil:
    """One test, not two: packets of the two come mixed, and a branch between them is guessed wrong half the time."""
    return protocol < 64 and <uint64_t>TCP_AND_UDP >> protocol & 1

cdef inline uint8_t parse_transport(Flight* flight, uint32_t side, uint32_t rest) noexcept nogil:
    """The layer-4 header in the rest bytes of the packet: its lengths, its ports."""
    cdef uint32_t length
    cdef const IcmpHeader* icmp
    flight.payload = 0
    flight.checksum_at = 0
    if flight.protocol == PROTOCOL_TCP:
        if rest < 20:
            return DROP_MALFORMED
        length = ((<const TcpHeader*>flight.l4).data_offset >> 4) * 4
        if length < 20 or length > rest:
            return DROP_MALFORMED
        flight.payload = <uint16_t>(rest - length)
        flight.checksum_at = TCP_CHECKSUM_AT
    elif flight.protocol == PROTOCOL_UDP:
        if rest < 8:
            return DROP_MALFORMED
        length = bswap16((<const UdpHeader*>flight.l4).length)
        if length < 8 or length > rest:
            return DROP_MALFORMED
        flight.checksum_at = UDP_CHECKSUM_AT
    elif flight.protocol == PROTOCOL_ICMP:
        if rest < 8:
            return DROP_MALFORMED
        icmp = <const IcmpHeader*>flight.l4
        if not (is_request(icmp.type) if side == INSIDE else is_reply(icmp.type)):
            flight.kind = KIND_ICMP
        flight.ports = icmp.identifier if side == INSIDE else <uint32_t>icmp.identifier << 16
        return PENDING
    else:                                           # addresses are all that a session of it has
        flight.ports = 0
        if flight.protocol == PROTOCOL_DCCP or flight.protocol == PROTOCOL_UDPLITE or flight.protocol == PROTOCOL_AH:
            flight.kind = KIND_OTHER                # their checksum covers the addresses
        return PENDING
    memcpy(&flight.ports, flight.l4, 4)
    return PENDING

cdef inline bint is_unwanted(uint8_t option) noexcept nogil:
    """What RFC 7126 drops by default: Record Route, Timestamp, Stream Identifier, and what is obsolete: Probe and Reply
    MTU, ENCODE, Traceroute, VISA, EIP, Address Extension, SDMDD, DPS, UMP."""
    return (option == 7 or option == 68 or option == 136 or option == 11 or option == 12 or option == 15 or option == 82
            or option == 142 or option == 145 or option == 147 or option == 149 or option == 151 or option == 152)

cdef inline uint8_t options_of(const uint8_t* at, uint32_t bytes) noexcept nogil:
    """What the options of an IPv4 header are; Options: the worst of them."""
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
            found = OPTIONS_ROUTE
        elif found < OPTIONS_UNWANTED:
            found = OPTIONS_UNWANTED if is_unwanted(at[i]) else OPTIONS_HARMLESS
        i += length
    return found

cdef inline uint8_t parse_network(Frame* frame, Flight* flight, bint ethernet) noexcept nogil:
    """PENDING with what the IPv4 header says, or a drop. The frame's length is cut to what the packet is."""
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
        return DROP_UNSUPPORTED if not ethernet and ip.version_ihl >> 4 == 6 else DROP_MALFORMED    # IPv6 has no EtherType here
    if header_sum(ip, words) != 0xFFFF:
        return DROP_CHECKSUM
    flight.options = OPTIONS_NONE
    if unlikely(words > 5):
        flight.options = options_of(<const uint8_t*>ip + 20, (words - 5) * 4)
        if flight.options == OPTIONS_MALFORMED:
            return DROP_MALFORMED
    frame.length = link + total
    flight.ip = ip
    flight.l4 = <uint8_t*>ip + words * 4
    flight.total_length = <uint16_t>total
    flight.protocol = ip.protocol
    flight.kind = KIND_SESSION
    if unlikely(ip.fragment & bswap16(IPV4_FRAGMENT)):
        flight.kind = KIND_FRAGMENT
    if unlikely(ip.protocol == PROTOCOL_HOP_BY_HOP):        # IPv6's alone (RFC 8200 4.3): nothing is to be translated
        return DROP_UNSUPPORTED
    memcpy(&flight.addresses, &ip.source, 8)
    return PENDING

cdef inline uint8_t parse(Frame* frame, Flight* flight, bint ethernet, const HashKey* key) noexcept nogil:
    """PENDING with a complete flight (a fragment's is not), or a drop."""
    cdef uint8_t verdict = parse_network(frame, flight, ethernet)
    if verdict != PENDING or flight.kind == KIND_FRAGMENT:
        return verdict
    verdict = parse_transport(flight, frame.side, flight.total_length - <uint32_t>(flight.l4 - <uint8_t*>flight.ip))
    if verdict == PENDING and flight.kind == KIND_SESSION:
        flight.hash = flow_hash(key, flight.addresses, flight.ports, flight.protocol)
    return verdict

cdef inline bint parse_plain(Frame* frame, Flight* flight, bint ethernet, uint8_t lowest_ttl, uint32_t mtu,
                             const HashKey* key) noexcept nogil:
    """A whole, untagged packet of TCP or UDP, without IPv4 options, that time to live and mtu let pass: nearly all are one.

    What parse checks is checked here on words, without a branch between TCP and UDP, which come mixed. False: parse it.
    """
    cdef uint32_t link = ETHERNET_BYTES if ethernet else 0, room = frame.length - link, total, rest, tcp, least, length
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
    room = room if room < mtu else mtu
    if unlikely(first & (<uint64_t>bswap16(IPV4_FRAGMENT) << FRAGMENT_SHIFT | 0xFF) != PLAIN or total > room
                or <uint8_t>second < lowest_ttl or not is_tcp_or_udp(protocol)
                or fold(header_total(first, second, last)) != 0xFFFF):
        return False
    tcp = protocol == PROTOCOL_TCP
    least = 8 + 12 * tcp
    rest = total - 20
    if unlikely(<int>rest < <int>least):
        return False
    length = bswap16(load16(ip + 24 + 8 * tcp))     # UDP: its length; TCP: the data offset, in words, and flags
    length = length >> 10 & 0x3C if tcp else length
    if unlikely(length - least > rest - least):     # below its least it wraps around
        return False
    frame.length = link + total
    flight.addresses = second >> 32 | <uint64_t>last << 32
    flight.ports = load32(ip + 20)
    flight.ip = <Ipv4Header*>ip
    flight.l4 = ip + 20
    flight.total_length = <uint16_t>total
    flight.payload = <uint16_t>(rest - length) & <uint16_t>-<int>tcp
    flight.protocol = protocol
    flight.kind = KIND_SESSION
    flight.checksum_at = <uint8_t>(UDP_CHECKSUM_AT + (TCP_CHECKSUM_AT - UDP_CHECKSUM_AT) * tcp)
    flight.hash = flow_hash(key, second >> 32 | <uint64_t>last << 32, load32(ip + 20), protocol)
    return True

cdef inline uint32_t payload_offset(const Flight* flight) noexcept nogil:
    """Bytes of the IPv4 and layer-4 headers together."""
    cdef uint32_t headers = <uint32_t>(flight.l4 - <uint8_t*>flight.ip)
    if flight.protocol == PROTOCOL_TCP:
        return headers + ((<const TcpHeader*>flight.l4).data_offset >> 4) * 4
    return headers + 8                              # UDP

cdef inline uint32_t segmented(const Frame* frame, const Flight* flight) noexcept nogil:
    """Payload bytes of a super-frame of TCP or UDP, which will be cut into segments; 0: the frame is none, whatever its
    caller says of it."""
    cdef uint32_t headers
    if (not frame.flags & FRAME_GSO or frame.gso_size == 0 or not is_tcp_or_udp(flight.protocol)
            or flight.ip.fragment & bswap16(IPV4_FRAGMENT)):
        return 0
    headers = payload_offset(flight)
    return flight.total_length - headers if flight.total_length > headers else 0

cdef inline uint32_t wire_length(const Frame* frame, const Flight* flight) noexcept nogil:
    """Bytes of the largest IPv4 packet that the frame becomes on the wire: a super-frame's segments have headers each."""
    cdef uint32_t payload = segmented(frame, flight)
    return flight.total_length - payload + frame.gso_size if payload > frame.gso_size else flight.total_length

cdef inline uint32_t wire_packets(const Frame* frame, const Flight* flight) noexcept nogil:
    """IPv4 packets that the frame becomes on the wire."""
    cdef uint32_t payload = segmented(frame, flight)
    return 1 if payload <= frame.gso_size else (payload + frame.gso_size - 1) // frame.gso_size

cdef inline uint32_t wire_bytes(const Flight* flight, uint32_t packets) noexcept nogil:
    """IPv4 bytes of all of them."""
    if packets == 1:
        return flight.total_length
    return flight.total_length + (packets - 1) * payload_offset(flight)

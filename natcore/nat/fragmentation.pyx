"""Fragmentation: the frame becomes the first fragment, the others go to the outbox with the same link header."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from natcore.tables.outbox cimport Outbox, outbox_space, outbox_push
from natcore.packet.parse cimport Packet
from natcore.base.checksum cimport checksum
from natcore.frame cimport FRAME_CSUM_PARTIAL, FRAME_GSO, FRAME_UNFINISHED, Frame
from natcore.base.compiler cimport bswap16
from natcore.base.headers cimport (
    IPV4_DF, IPV4_MORE, IPV4_OPTION_COPIED, IPV4_OPTION_END, IPV4_OPTION_NONE, PROTOCOL_TCP, Ipv4Header,
    TcpHeader, UdpHeader,
)

cdef enum:
    ENTRY_OVERHEAD = 64          # upper bound of a fragment's overhead in the outbox


cdef inline uint32_t header_bytes(const Packet* packet) noexcept nogil:
    return <uint32_t>(packet.l4 - <const uint8_t*>packet.ip)


cdef bint may_fragment(const Outbox* outbox, const Frame* frame, const Packet* packet, uint32_t mtu) noexcept nogil:
    """Whether the packet may be fragmented for the mtu, and the outbox has space for the fragments."""
    cdef uint32_t header = header_bytes(packet), link = <uint32_t>(<const uint8_t*>packet.ip - frame.data), each
    if packet.ip.fragment & bswap16(IPV4_DF) or frame.flags & (FRAME_GSO | FRAME_UNFINISHED) or mtu < header + 8:
        return False
    each = (mtu - header) & ~<uint32_t>7
    return (outbox_space(outbox, frame.side)
            >= packet.total_length + (packet.total_length // each + 1) * (link + header + ENTRY_OVERHEAD))


cdef void finish_checksum(Frame* frame, const Packet* packet) noexcept nogil:
    """Completes a partial layer-4 checksum, since no device can do so for fragments."""
    cdef uint16_t sum = checksum(packet.l4, packet.total_length - header_bytes(packet), 0)
    if packet.protocol == PROTOCOL_TCP:
        (<TcpHeader*>packet.l4).checksum = sum
    else:
        (<UdpHeader*>packet.l4).checksum = sum or 0xFFFF
    frame.flags &= ~FRAME_CSUM_PARTIAL


cdef uint32_t copy_header(const Ipv4Header* ip, uint8_t* out) noexcept nogil:
    """Writes the header of later fragments: of the options only those to be copied (RFC 791 section 3.1); its length."""
    cdef const uint8_t* options = <const uint8_t*>ip
    cdef uint32_t at = 20, end = (ip.version_ihl & 15) * 4, done = 20, length
    memcpy(out, ip, 20)
    while at < end and options[at] != IPV4_OPTION_END:
        length = 1 if options[at] == IPV4_OPTION_NONE else options[at + 1] if at + 1 < end else 0
        if length == 0 or length > end - at or (length == 1 and options[at] != IPV4_OPTION_NONE):
            break                                   # malformed: only the first fragment carries them
        if options[at] & IPV4_OPTION_COPIED:
            memcpy(out + done, options + at, length)
            done += length
        at += length
    while done % 4:
        out[done] = IPV4_OPTION_END
        done += 1
    out[0] = <uint8_t>(0x40 | done // 4)
    return done


cdef void finish_header(Ipv4Header* ip, uint32_t total, uint32_t fragment) noexcept nogil:
    """Sets length, flags and offset (host order), and the checksum."""
    ip.total_length = bswap16(<uint16_t>total)
    ip.fragment = bswap16(<uint16_t>fragment)
    ip.checksum = 0
    ip.checksum = checksum(<const uint8_t*>ip, (ip.version_ihl & 15) * 4, 0)


cdef void fragment_packet(Outbox* outbox, Frame* frame, const Packet* packet, uint32_t mtu, uint8_t send_to,
                          uint8_t cause) noexcept nogil:
    """Cuts the frame down to its first fragment, after `may_fragment`. send_to: Side; cause: Verdict of the others."""
    cdef uint8_t header[60]
    cdef uint32_t first = header_bytes(packet), link = <uint32_t>(<const uint8_t*>packet.ip - frame.data)
    cdef uint32_t left = packet.total_length - first, words = bswap16(packet.ip.fragment)
    cdef uint32_t taken = (mtu - first) & ~<uint32_t>7, length = copy_header(packet.ip, header), part, more
    cdef const uint8_t* data = packet.l4 + taken
    cdef uint8_t* out
    if frame.flags & FRAME_CSUM_PARTIAL:
        finish_checksum(frame, packet)
    finish_header(packet.ip, first + taken, words | IPV4_MORE)
    frame.length = link + first + taken
    left -= taken
    words += taken // 8
    while left:
        part, more = left, words & IPV4_MORE
        if length + left > mtu:
            part, more = (mtu - length) & ~<uint32_t>7, IPV4_MORE
        out = outbox_push(outbox, link + length + part, frame.side, send_to, cause)
        memcpy(out, frame.data, link)
        memcpy(out + link, header, length)
        memcpy(out + link + length, data, part)
        finish_header(<Ipv4Header*>(out + link), length + part, (words & ~<uint32_t>IPV4_MORE) | more)
        outbox.generated += 1
        data += part
        left -= part
        words += part // 8

"""MSS clamping: lowers the maximum segment size of a SYN to what the path carries; never raises or adds the option."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from natcore.packet.parse cimport Packet
from natcore.base.checksum cimport delta16, update
from natcore.frame cimport FRAME_CSUM_PARTIAL, Frame
from natcore.base.compiler cimport bswap16
from natcore.base.headers cimport TCP_HEADER_BYTES, TCP_OPTION_END, TCP_OPTION_MSS, TCP_OPTION_NOP, TcpHeader

cdef enum:
    MSS_BYTES = 4               # kind, length, value (RFC 9293 section 3.2)
    MSS_AT_MOST = 10            # options in 40 bytes

cdef inline uint32_t find_mss(const uint8_t* options, uint32_t length, uint32_t* at) noexcept nogil:
    """Offsets of the MSS options; how many. 0 also where an option is malformed."""
    cdef uint32_t i = 0, found = 0, bytes
    while i < length and options[i] != TCP_OPTION_END:
        if options[i] == TCP_OPTION_NOP:
            i += 1
            continue
        bytes = options[i + 1] if i + 1 < length else 0
        if bytes < 2 or bytes > length - i:
            return 0
        if options[i] == TCP_OPTION_MSS:
            if bytes != MSS_BYTES:
                return 0
            at[found] = i
            found += 1
        i += bytes
    return found

cdef inline void clamp_mss(const Frame* frame, Packet* packet, uint16_t limit) noexcept nogil:
    """Lowers the MSS options of a validated SYN to limit (host order) and updates its checksum (RFC 1624), unless that is
    partial: then it does not cover options."""
    cdef TcpHeader* tcp = <TcpHeader*>packet.l4
    cdef uint8_t* options = packet.l4 + TCP_HEADER_BYTES
    cdef uint32_t at[MSS_AT_MOST]
    cdef uint32_t i, count = find_mss(options, (tcp.data_offset >> 4) * 4 - TCP_HEADER_BYTES, at)
    cdef uint16_t old, new = bswap16(limit)
    for i in range(count):
        memcpy(&old, options + at[i] + 2, 2)
        if bswap16(old) <= limit:
            continue
        memcpy(options + at[i] + 2, &new, 2)
        if frame.flags & FRAME_CSUM_PARTIAL:
            continue
        if at[i] & 1:                               # odd offset: the value lies in two words, bytes swapped
            tcp.checksum = update(tcp.checksum, delta16(bswap16(old), bswap16(new)))
        else:
            tcp.checksum = update(tcp.checksum, delta16(old, new))

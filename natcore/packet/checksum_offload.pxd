"""Completes layer-4 checksums that a sender on a virtual link left to checksum offload."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from natcore.base.checksum cimport add, fold
from natcore.base.compiler cimport bswap16
from natcore.base.headers cimport ETHERNET_BYTES, IPV4_MORE, IPV4_OFFSET, PROTOCOL_TCP, PROTOCOL_UDP, Ipv4Header

cdef inline void finish_checksum(uint8_t* frame, uint32_t length) noexcept nogil:
    """Completes the checksum of an Ethernet frame of length bytes, if it was left partial; the frame itself does not tell.

    A partial checksum is the sum over the pseudo-header, not complemented; a complete one may have the same value.
    Fragments always have complete checksums.
    """
    cdef Ipv4Header* ip = <Ipv4Header*>(frame + ETHERNET_BYTES)
    cdef uint32_t header, size, place
    cdef uint64_t pseudo
    cdef uint8_t* segment
    cdef uint16_t field, total
    if length < ETHERNET_BYTES + sizeof(Ipv4Header):
        return
    if ip.protocol == PROTOCOL_TCP:
        place = 16
    elif ip.protocol == PROTOCOL_UDP:
        place = 6
    else:
        return
    header = (ip.version_ihl & 15) * 4
    size = bswap16(ip.total_length)
    if (ip.fragment & bswap16(IPV4_OFFSET | IPV4_MORE) or header < sizeof(Ipv4Header) or size < header + place + 2
            or size > length - ETHERNET_BYTES):
        return
    size -= header
    segment = <uint8_t*>ip + header
    memcpy(&field, segment + place, 2)
    pseudo = <uint64_t>ip.source + ip.destination + bswap16(ip.protocol) + bswap16(<uint16_t>size)
    if field != fold(pseudo):
        return
    total = fold(add(segment, size, 0))         # the field already holds the pseudo-header's sum
    if fold(<uint64_t>total + pseudo) == 0xFFFF:
        return                                  # it was complete
    field = <uint16_t>~total
    if field == 0 and ip.protocol == PROTOCOL_UDP:
        field = 0xFFFF                          # RFC 768: 0 means no checksum
    memcpy(segment + place, &field, 2)

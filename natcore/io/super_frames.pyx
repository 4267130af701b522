"""Splits super-frames over 64 KB: each part is a copy with its own headers, as if the sender had split there."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from natcore.io.device cimport FRAME_CAPACITY, Arrival
from natcore.base.checksum cimport delta16, fold, update
from natcore.base.compiler cimport bswap16, bswap32
from natcore.io.kernel cimport (
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, virtio_net_hdr,
)
from natcore.base.pages cimport table_delete, table_new
from natcore.base.headers cimport (
    ETHERNET_BYTES, IPV4_FRAGMENT, PROTOCOL_TCP, TCP_CWR, TCP_FIN, TCP_PSH, Ipv4Header, TcpHeader,
)

cdef enum:
    PART_BYTES = FRAME_CAPACITY + 16  # bytes, including the virtio-net header
    CHECKSUM_AT = 16                # bytes into the TCP header


cdef bint split_open(Split* split) noexcept nogil:
    """Allocates the buffers, untouched until needed. False: out of memory."""
    split.parts = <uint8_t*>table_new(<size_t>SPLIT_PARTS * PART_BYTES)
    split.used = split.done = split.length = 0
    return split.parts != NULL


cdef void split_close(Split* split) noexcept nogil:
    table_delete(split.parts, <size_t>SPLIT_PARTS * PART_BYTES)
    split.parts = NULL
    split.used = split.done = split.length = 0


cdef bint split_begin(Split* split, const Arrival* arrival) noexcept nogil:
    """Begins to split the frame if it is IPv4 BIG TCP: `split_next` returns its parts. False: it is not."""
    cdef const Ipv4Header* ip = <const Ipv4Header*>(arrival.data + ETHERNET_BYTES)
    cdef const TcpHeader* tcp
    cdef uint32_t words = ip.version_ihl & 15, segment = arrival.offload.gso_size, space
    if (not is_ipv4(arrival.data) or arrival.tagged
            or arrival.offload.gso_type & ~VIRTIO_NET_HDR_GSO_ECN != VIRTIO_NET_HDR_GSO_TCPV4 or segment == 0
            or ip.total_length or ip.version_ihl >> 4 != 4 or words < 5 or ip.protocol != PROTOCOL_TCP
            or ip.fragment & bswap16(IPV4_FRAGMENT)):
        return False
    split.transport = ETHERNET_BYTES + words * 4
    tcp = <const TcpHeader*>(arrival.data + split.transport)
    words = tcp.data_offset >> 4
    split.headers = split.transport + words * 4
    space = 0xFFFF + ETHERNET_BYTES - split.headers
    if words < 5 or split.headers >= arrival.length or segment > space:
        return False
    split.each = space // segment * segment
    split.payload = arrival.data + split.headers
    split.length = arrival.length - split.headers
    split.done = 0
    split.offload = arrival.offload[0]
    split.packet_type = arrival.packet_type
    memcpy(split.header, arrival.data, split.headers)
    return True


cdef bint split_next(Split* split, Arrival* arrival) noexcept nogil:
    """The next part; false: none, or no buffer until `split_free`."""
    cdef uint32_t bytes = min(split.each, split.length - split.done), segment = split.offload.gso_size
    cdef uint32_t total = split.headers - ETHERNET_BYTES + bytes
    cdef uint8_t* data
    cdef Ipv4Header* ip
    cdef TcpHeader* tcp
    if bytes == 0 or split.used == SPLIT_PARTS:
        return False
    data = split.parts + <size_t>split.used * PART_BYTES + sizeof(virtio_net_hdr)
    split.used += 1
    memcpy(data, split.header, split.headers)
    memcpy(data + split.headers, split.payload + split.done, bytes)
    ip = <Ipv4Header*>(data + ETHERNET_BYTES)
    ip.total_length = bswap16(<uint16_t>total)
    ip.checksum = update(ip.checksum, delta16(0, ip.total_length))      # a wrong one stays wrong
    if split.done:
        _renumber(ip, <uint16_t>(bswap16(ip.identification) + split.done // segment))
    tcp = <TcpHeader*>(data + split.transport)
    tcp.sequence = bswap32(bswap32(tcp.sequence) + split.done)
    if split.done:
        tcp.flags &= ~TCP_CWR                                           # RFC 3168: only in the first segment
    split.done += bytes
    if split.done < split.length:
        tcp.flags &= ~(TCP_FIN | TCP_PSH)                               # only in the last segment
    tcp.checksum = fold(<uint64_t>ip.source + ip.destination + bswap16(PROTOCOL_TCP)
                        + bswap16(<uint16_t>(ETHERNET_BYTES + total - split.transport)))
    arrival.data = data
    arrival.length = ETHERNET_BYTES + total
    arrival.packet_type = split.packet_type
    arrival.tagged = False
    arrival.offload = <virtio_net_hdr*>(data - sizeof(virtio_net_hdr))
    _set_offload(arrival.offload, split, bytes)
    return True


cdef inline void _renumber(Ipv4Header* ip, uint16_t number) noexcept nogil:
    ip.checksum = update(ip.checksum, delta16(ip.identification, bswap16(number)))
    ip.identification = bswap16(number)


cdef inline void _set_offload(virtio_net_hdr* offload, const Split* split, uint32_t bytes) noexcept nogil:
    """Sets the offload metadata of the part."""
    offload[0] = split.offload
    offload.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM
    offload.hdr_len = <uint16_t>split.headers
    offload.csum_start = <uint16_t>split.transport
    offload.csum_offset = CHECKSUM_AT
    if bytes <= offload.gso_size:
        offload.gso_type = VIRTIO_NET_HDR_GSO_NONE
        offload.gso_size = 0

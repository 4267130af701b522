"""Splits super-frames over 64 KB: each part is a copy with its own headers, as if the sender had split there."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from natcore.io.device cimport FRAME_ROOM, Arrival
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
    PLACE = FRAME_ROOM + 16         # bytes, including the virtio-net header
    CHECKSUM_AT = 16                # bytes into the TCP header


cdef bint cut_open(Cut* cut) noexcept nogil:
    """Allocates the buffers, untouched until needed. False: out of memory."""
    cut.places = <uint8_t*>table_new(<size_t>CUT_PLACES * PLACE)
    cut.used = cut.done = cut.length = 0
    return cut.places != NULL


cdef void cut_close(Cut* cut) noexcept nogil:
    table_delete(cut.places, <size_t>CUT_PLACES * PLACE)
    cut.places = NULL
    cut.used = cut.done = cut.length = 0


cdef bint cut_begin(Cut* cut, const Arrival* arrival) noexcept nogil:
    """Begins to split the frame if it is IPv4 BIG TCP: `cut_next` returns its parts. False: it is not."""
    cdef const Ipv4Header* ip = <const Ipv4Header*>(arrival.data + ETHERNET_BYTES)
    cdef const TcpHeader* tcp
    cdef uint32_t words = ip.version_ihl & 15, segment = arrival.offload.gso_size, space
    if (not is_ipv4(arrival.data) or arrival.tagged
            or arrival.offload.gso_type & ~VIRTIO_NET_HDR_GSO_ECN != VIRTIO_NET_HDR_GSO_TCPV4 or segment == 0
            or ip.total_length or ip.version_ihl >> 4 != 4 or words < 5 or ip.protocol != PROTOCOL_TCP
            or ip.fragment & bswap16(IPV4_FRAGMENT)):
        return False
    cut.transport = ETHERNET_BYTES + words * 4
    tcp = <const TcpHeader*>(arrival.data + cut.transport)
    words = tcp.data_offset >> 4
    cut.headers = cut.transport + words * 4
    space = 0xFFFF + ETHERNET_BYTES - cut.headers
    if words < 5 or cut.headers >= arrival.length or segment > space:
        return False
    cut.each = space // segment * segment
    cut.payload = arrival.data + cut.headers
    cut.length = arrival.length - cut.headers
    cut.done = 0
    cut.offload = arrival.offload[0]
    cut.packet_type = arrival.packet_type
    memcpy(cut.header, arrival.data, cut.headers)
    return True


cdef bint cut_next(Cut* cut, Arrival* arrival) noexcept nogil:
    """The next part; false: none, or no buffer until `cut_free`."""
    cdef uint32_t bytes = min(cut.each, cut.length - cut.done), segment = cut.offload.gso_size
    cdef uint32_t total = cut.headers - ETHERNET_BYTES + bytes
    cdef uint8_t* data
    cdef Ipv4Header* ip
    cdef TcpHeader* tcp
    if bytes == 0 or cut.used == CUT_PLACES:
        return False
    data = cut.places + <size_t>cut.used * PLACE + sizeof(virtio_net_hdr)
    cut.used += 1
    memcpy(data, cut.header, cut.headers)
    memcpy(data + cut.headers, cut.payload + cut.done, bytes)
    ip = <Ipv4Header*>(data + ETHERNET_BYTES)
    ip.total_length = bswap16(<uint16_t>total)
    ip.checksum = update(ip.checksum, delta16(0, ip.total_length))      # a wrong one stays wrong
    if cut.done:
        _renumber(ip, <uint16_t>(bswap16(ip.identification) + cut.done // segment))
    tcp = <TcpHeader*>(data + cut.transport)
    tcp.sequence = bswap32(bswap32(tcp.sequence) + cut.done)
    if cut.done:
        tcp.flags &= ~TCP_CWR                                           # RFC 3168: only in the first segment
    cut.done += bytes
    if cut.done < cut.length:
        tcp.flags &= ~(TCP_FIN | TCP_PSH)                               # only in the last segment
    tcp.checksum = fold(<uint64_t>ip.source + ip.destination + bswap16(PROTOCOL_TCP)
                        + bswap16(<uint16_t>(ETHERNET_BYTES + total - cut.transport)))
    arrival.data = data
    arrival.length = ETHERNET_BYTES + total
    arrival.packet_type = cut.packet_type
    arrival.tagged = False
    arrival.offload = <virtio_net_hdr*>(data - sizeof(virtio_net_hdr))
    _tell(arrival.offload, cut, bytes)
    return True


cdef inline void _renumber(Ipv4Header* ip, uint16_t number) noexcept nogil:
    ip.checksum = update(ip.checksum, delta16(ip.identification, bswap16(number)))
    ip.identification = bswap16(number)


cdef inline void _tell(virtio_net_hdr* offload, const Cut* cut, uint32_t bytes) noexcept nogil:
    """Sets the offload metadata of the part."""
    offload[0] = cut.offload
    offload.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM
    offload.hdr_len = <uint16_t>cut.headers
    offload.csum_start = <uint16_t>cut.transport
    offload.csum_offset = CHECKSUM_AT
    if bytes <= offload.gso_size:
        offload.gso_type = VIRTIO_NET_HDR_GSO_NONE
        offload.gso_size = 0

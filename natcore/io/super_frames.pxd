"""IPv4 BIG TCP: splits super-frames over 64 KB, which have total length 0, into super-frames with a valid length."""
from libc.stdint cimport uint8_t, uint32_t

from natcore.io.device cimport Arrival
from natcore.base.compiler cimport bswap16
from natcore.io.kernel cimport virtio_net_hdr
from natcore.base.headers cimport ETHERNET_BYTES, ETHERTYPE_IPV4, EthernetHeader

cdef enum:
    SPLIT_PARTS = 32                # super-frames between two `split_free`; one over 64 KB becomes nine at most
    SPLIT_HEADERS = 14 + 60 + 60    # bytes at most: Ethernet, IPv4, TCP
    BIG_BYTES = 1 << 19             # bytes of the longest frame: the kernel's GSO_MAX_SIZE is 8 x 65,535

cdef struct Split:
    uint8_t* parts                  # [SPLIT_PARTS] frames, a virtio-net header before each
    uint32_t used
    const uint8_t* payload          # payload of the frame being split
    uint32_t length                 # bytes of payload
    uint32_t done
    uint32_t each                   # payload bytes of a part: whole segments
    uint32_t transport              # offset of the TCP header
    uint32_t headers                # offset of the payload
    uint8_t header[SPLIT_HEADERS]   # copied: those in the frame may have been rewritten since
    virtio_net_hdr offload
    uint8_t packet_type

cdef bint split_open(Split* split) noexcept nogil
cdef void split_close(Split* split) noexcept nogil
cdef bint split_begin(Split* split, const Arrival* arrival) noexcept nogil
cdef bint split_next(Split* split, Arrival* arrival) noexcept nogil

cdef inline bint is_big(uint32_t length) noexcept nogil:
    """Whether an Ethernet frame's IPv4 packet exceeds what total length can express."""
    return length > ETHERNET_BYTES + 0xFFFF

cdef inline bint is_ipv4(const uint8_t* frame) noexcept nogil:
    return (<const EthernetHeader*>frame).ethertype == bswap16(ETHERTYPE_IPV4)

cdef inline bint is_splitting(const Split* split) noexcept nogil:
    """Whether parts of a frame are left; it must stay in place."""
    return split.done < split.length

cdef inline void split_free(Split* split) noexcept nogil:
    """Releases the buffers of all parts returned so far."""
    split.used = 0

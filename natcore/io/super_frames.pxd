"""IPv4 BIG TCP: a super-frame over 64 KB, which says total length 0, is cut into super-frames that the field can tell of."""
from libc.stdint cimport uint8_t, uint32_t

from natcore.io.device cimport Arrival
from natcore.base.compiler cimport bswap16
from natcore.io.kernel cimport virtio_net_hdr
from natcore.base.headers cimport ETHERNET_BYTES, ETHERTYPE_IPV4, EthernetHeader

cdef enum:
    CUT_PLACES = 32                 # super-frames between two `cut_free`; one over 64 KB becomes at most nine
    CUT_HEADERS = 14 + 60 + 60      # bytes at most: Ethernet, IPv4, TCP
    BIG_ROOM = 1 << 19              # bytes of the longest frame: the kernel's GSO_MAX_SIZE is 8 x 65,535

cdef struct Cut:
    uint8_t* places                 # [CUT_PLACES] frames, a virtio-net header before each
    uint32_t used
    const uint8_t* payload          # of the frame being cut, from its first byte
    uint32_t length                 # bytes of it
    uint32_t done
    uint32_t each                   # bytes of it in a piece: whole segments
    uint32_t transport              # bytes before the TCP header
    uint32_t headers                # bytes before the payload
    uint8_t header[CUT_HEADERS]     # as they came: those in the frame may have been rewritten since
    virtio_net_hdr offload
    uint8_t packet_type

cdef bint cut_open(Cut* cut) noexcept nogil
cdef void cut_close(Cut* cut) noexcept nogil
cdef bint cut_begin(Cut* cut, const Arrival* arrival) noexcept nogil
cdef bint cut_next(Cut* cut, Arrival* arrival) noexcept nogil

cdef inline bint is_big(uint32_t length) noexcept nogil:
    """Whether an Ethernet frame's IPv4 packet is longer than its total length can say."""
    return length > ETHERNET_BYTES + 0xFFFF

cdef inline bint is_ipv4(const uint8_t* frame) noexcept nogil:
    return (<const EthernetHeader*>frame).ethertype == bswap16(ETHERTYPE_IPV4)

cdef inline bint cutting(const Cut* cut) noexcept nogil:
    """Whether pieces are left of a frame that was begun; it must stay where it is."""
    return cut.done < cut.length

cdef inline void cut_free(Cut* cut) noexcept nogil:
    """Nobody needs the pieces handed out any more."""
    cut.used = 0

"""AF_PACKET rings of one interface: frames in by TPACKET_V3, out by TPACKET_V2 or, the large ones, by sendmmsg. No NAT."""
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "linux/virtio_net.h" nogil:
    enum:
        VIRTIO_NET_HDR_F_NEEDS_CSUM
        VIRTIO_NET_HDR_GSO_NONE
    struct virtio_net_hdr:          # what the kernel says, and is told, about offloads; host order on the wire's own machine
        uint8_t flags
        uint8_t gso_type
        uint16_t hdr_len            # bytes of headers; for an ordinary frame its length: the kernel copies it as one piece
        uint16_t gso_size           # layer-4 payload bytes of a segment
        uint16_t csum_start         # bytes from the frame's first
        uint16_t csum_offset        # bytes from csum_start

cdef extern from "linux/if_packet.h" nogil:
    enum:
        PACKET_HOST
        PACKET_BROADCAST
        PACKET_MULTICAST
    struct tpacket3_hdr:
        uint32_t tp_next_offset
        uint32_t tp_snaplen
        uint32_t tp_len
        uint32_t tp_status
        uint16_t tp_mac

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "<sys/socket.h>" nogil:
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    struct mmsghdr:
        msghdr msg_hdr

cdef enum:
    LARGE_BATCH = 32                # frames of one sendmmsg
    FRAME_ROOM = 65536 + 256        # bytes of the largest frame: 64 KB of IPv4 and a link header

cdef struct Arrival:                # one frame in the receive ring; valid until `complete`
    uint8_t *data
    uint32_t length                 # bytes
    uint8_t packet_type             # PACKET_HOST, …
    uint8_t tagged                  # an 802.1Q tag was taken off: it belongs to a VLAN interface
    virtio_net_hdr *offload

cdef struct Ring:
    int fd                          # the receive ring's socket
    uint8_t *blocks
    uint32_t block_bytes
    uint32_t block_count
    uint32_t block                  # the next one to read
    tpacket3_hdr *cursor            # the next frame in it; NULL: not begun
    uint32_t left                   # frames not read yet in it

    int slot_fd                     # the transmit ring's socket
    uint8_t *slots
    uint32_t slot_bytes
    uint32_t slot_count
    uint32_t slot                   # the next one to fill
    uint32_t queued                 # filled and not handed over

    int large_fd                    # what does not fit a slot: GSO, jumbo
    uint32_t large                  # queued there; the frames stay the caller's until `flush`
    mmsghdr messages[LARGE_BATCH]
    iovec pieces[LARGE_BATCH][2]    # the virtio-net header, the frame
    virtio_net_hdr offloads[LARGE_BATCH]

    uint64_t received               # frames read
    uint64_t truncated              # longer than a block: never passed on
    uint64_t sent                   # frames the kernel took
    uint64_t send_dropped           # refused: no room after some tries (a full queue), or the link is down
    uint64_t send_errors            # refused for another reason
    int32_t send_errno              # the last such reason

cdef bint receive(Ring *ring, Arrival *arrival) noexcept nogil
cdef bint complete(Ring *ring) noexcept nogil
cdef bint send(Ring *ring, uint8_t *data, uint32_t length, const virtio_net_hdr *offload) noexcept nogil
cdef void flush(Ring *ring) noexcept nogil
cdef void clear_error(Ring *ring) noexcept nogil

cdef class PacketRing:
    cdef Ring ring
    cdef uint64_t _ring_drops

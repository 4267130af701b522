"""Kernel interfaces of packet sockets and AF_XDP: declarations only."""
from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef extern from "linux/virtio_net.h" nogil:
    enum:
        VIRTIO_NET_HDR_F_NEEDS_CSUM
        VIRTIO_NET_HDR_GSO_NONE
        VIRTIO_NET_HDR_GSO_TCPV4
        VIRTIO_NET_HDR_GSO_ECN      # a flag beside the type
    struct virtio_net_hdr:          # offload metadata, host order
        unsigned char flags
        unsigned char gso_type
        uint16_t hdr_len            # bytes of headers; without GSO the whole frame, so that it is copied
        uint16_t gso_size           # layer-4 payload bytes of a segment
        uint16_t csum_start         # bytes from the start of the frame
        uint16_t csum_offset        # bytes from csum_start

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void* address, size_t length)
    int madvise(void* address, size_t length, int advice)
    enum:
        PROT_READ
        PROT_WRITE
        MAP_SHARED
        MAP_PRIVATE
        MAP_ANONYMOUS
        MAP_POPULATE
        MADV_HUGEPAGE
    void* MAP_FAILED

cdef extern from "<arpa/inet.h>" nogil:
    uint16_t htons(uint16_t value)

cdef extern from "<unistd.h>" nogil:
    int c_close "close" (int fd)

cdef extern from "<sys/socket.h>" nogil:
    enum:
        AF_PACKET
        AF_XDP
        SOCK_RAW
        SOCK_CLOEXEC
        SOL_SOCKET
        SO_SNDBUF
        SO_SNDBUFFORCE
        SO_RCVBUF
        SO_RCVBUFFORCE
        SO_ERROR
        SO_ATTACH_FILTER
        SO_DETACH_FILTER
        SOL_PACKET
        SOL_XDP
        MSG_DONTWAIT
    struct sockaddr:
        pass
    struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
    struct mmsghdr:
        msghdr msg_hdr
    int c_socket "socket" (int domain, int type, int protocol)
    int c_bind "bind" (int fd, const sockaddr* address, uint32_t length)
    int setsockopt(int fd, int level, int name, const void* value, uint32_t length)
    int getsockopt(int fd, int level, int name, void* value, uint32_t* length)
    ssize_t c_send "send" (int fd, const void* data, size_t length, int flags)
    ssize_t c_recv "recv" (int fd, void* data, size_t length, int flags)
    int sendmmsg(int fd, mmsghdr* messages, unsigned int count, int flags)

cdef extern from "linux/if_ether.h" nogil:
    enum:
        ETH_P_ALL

cdef extern from "linux/filter.h" nogil:
    struct sock_filter:             # a classic BPF instruction
        uint16_t code
    struct sock_fprog:
        unsigned short len
        sock_filter* filter

cdef extern from * nogil:
    """
    #include <linux/if_packet.h>
    #ifndef PACKET_FANOUT_FLAG_IGNORE_OUTGOING      /* missing in older headers; older kernels ignore it */
    #define PACKET_FANOUT_FLAG_IGNORE_OUTGOING 0x4000
    #endif
    """
    enum:
        PACKET_FANOUT_FLAG_IGNORE_OUTGOING

cdef extern from "linux/if_packet.h" nogil:
    enum:
        PACKET_FANOUT
        PACKET_FANOUT_DATA
        PACKET_FANOUT_CBPF
        PACKET_FANOUT_FLAG_UNIQUEID
        PACKET_HOST
        PACKET_BROADCAST
        PACKET_RX_RING
        PACKET_TX_RING
        PACKET_VERSION
        PACKET_LOSS
        PACKET_COPY_THRESH
        PACKET_VNET_HDR
        PACKET_IGNORE_OUTGOING
        PACKET_STATISTICS
        TPACKET_V2
        TPACKET_V3
        TP_STATUS_KERNEL
        TP_STATUS_USER
        TP_STATUS_COPY
        TP_STATUS_VLAN_VALID
        TP_STATUS_AVAILABLE
        TP_STATUS_SEND_REQUEST
    struct sockaddr_ll:
        unsigned short sll_family
        uint16_t sll_protocol
        int sll_ifindex
        unsigned char sll_pkttype
    struct tpacket_req3:
        unsigned int tp_block_size
        unsigned int tp_block_nr
        unsigned int tp_frame_size
        unsigned int tp_frame_nr
        unsigned int tp_retire_blk_tov
    struct tpacket_req:
        unsigned int tp_block_size
        unsigned int tp_block_nr
        unsigned int tp_frame_size
        unsigned int tp_frame_nr
    struct tpacket_hdr_v1:
        uint32_t block_status
        uint32_t num_pkts
        uint32_t offset_to_first_pkt
    union tpacket_bd_header_u:
        tpacket_hdr_v1 bh1
    struct tpacket_block_desc:
        tpacket_bd_header_u hdr
    struct tpacket2_hdr:
        uint32_t tp_status
        uint32_t tp_len
        uint32_t tp_snaplen
        uint16_t tp_mac
        uint16_t tp_vlan_tci
    struct tpacket_hdr_variant1:
        uint32_t tp_vlan_tci
    struct tpacket3_hdr:
        uint32_t tp_next_offset
        uint32_t tp_snaplen
        uint32_t tp_len
        uint32_t tp_status
        uint16_t tp_mac
        tpacket_hdr_variant1 hv1
    struct tpacket_stats_v3:
        unsigned int tp_packets
        unsigned int tp_drops
    size_t TPACKET_ALIGN(size_t bytes)

cdef extern from * nogil:
    """
    #include <linux/if_xdp.h>
    #ifndef XDP_MAX_TX_SKB_BUDGET           /* Linux 6.17 */
    #define XDP_MAX_TX_SKB_BUDGET 9
    #endif
    """
    enum:
        XDP_USE_NEED_WAKEUP
        XDP_RING_NEED_WAKEUP
        XDP_MMAP_OFFSETS
        XDP_RX_RING
        XDP_TX_RING
        XDP_UMEM_REG
        XDP_UMEM_FILL_RING
        XDP_UMEM_COMPLETION_RING
        XDP_STATISTICS
        XDP_OPTIONS
        XDP_OPTIONS_ZEROCOPY
        XDP_MAX_TX_SKB_BUDGET
    uint64_t XDP_RECEIVE_PAGES "XDP_PGOFF_RX_RING"      # mmap offset of the ring
    uint64_t XDP_SEND_PAGES "XDP_PGOFF_TX_RING"
    uint64_t XDP_FILL_PAGES "XDP_UMEM_PGOFF_FILL_RING"
    uint64_t XDP_COMPLETION_PAGES "XDP_UMEM_PGOFF_COMPLETION_RING"
    struct sockaddr_xdp:
        uint16_t sxdp_family
        uint16_t sxdp_flags
        uint32_t sxdp_ifindex
        uint32_t sxdp_queue_id
    struct xdp_ring_offset:         # byte offsets in the mapping
        uint64_t producer
        uint64_t consumer
        uint64_t desc
        uint64_t flags
    struct xdp_mmap_offsets:
        xdp_ring_offset rx
        xdp_ring_offset tx
        xdp_ring_offset fr
        xdp_ring_offset cr
    struct xdp_umem_reg:
        uint64_t addr
        uint64_t len
        uint32_t chunk_size
        uint32_t headroom
        uint32_t flags
    struct xdp_desc:
        uint64_t addr               # byte offset in the umem
        uint32_t len
        uint32_t options
    struct xdp_statistics:
        uint64_t rx_dropped
        uint64_t rx_ring_full
    struct xdp_options:
        uint32_t flags

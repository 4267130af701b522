"""AF_PACKET rings of one interface: receive by TPACKET_V3, transmit by TPACKET_V2, large frames by sendmmsg. No NAT."""
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from natcore.io.super_frames cimport Split
from natcore.io.device cimport Device, Driver
from natcore.io.tpacket_v2 cimport FrameRing
from natcore.io.kernel cimport iovec, mmsghdr, tpacket3_hdr, virtio_net_hdr

cdef enum:
    LARGE_BATCH = 32                # frames per sendmmsg

cdef struct Ring:
    Device device                   # its fd: the receive ring's socket
    uint8_t* blocks
    uint32_t block_bytes
    uint32_t block_count
    uint32_t block                  # next one to read
    tpacket3_hdr* cursor            # next frame in it; NULL: not begun
    uint32_t left                   # unread frames in it
    FrameRing frames                # frame by frame (TPACKET_V2), instead of blocks
    Split split                     # segmentation of the frame before the cursor

    int transmit_fd                     # the transmit ring's socket
    uint8_t* slots
    uint32_t slot_bytes
    uint32_t slot_count
    uint32_t slot                   # next one to fill
    uint32_t queued                 # filled, not passed to the kernel yet

    int large_fd                    # for frames that do not fit a slot: GSO, jumbo
    uint32_t large                  # queued there; not copied: data must stay until `flush`
    mmsghdr messages[LARGE_BATCH]
    iovec pieces[LARGE_BATCH][2]    # the virtio-net header, the frame
    virtio_net_hdr offloads[LARGE_BATCH]

    uint64_t received               # frames read
    uint64_t truncated              # longer than a block: not passed on
    uint64_t sent                   # frames that the kernel accepted
    uint64_t send_dropped           # no space after some tries (queue full), or the link is down
    uint64_t send_errors            # refused for another reason
    int32_t send_errno              # the last such reason

cdef class PacketRing(Driver):
    cdef Ring ring
    cdef uint64_t _ring_drops

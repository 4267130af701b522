"""AF_PACKET rings of one interface: frames in by TPACKET_V3, out by TPACKET_V2, the large ones by sendmmsg. No NAT."""
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from natcore.io.super_frames cimport Cut
from natcore.io.device cimport Device, Driver
from natcore.io.tpacket_v2 cimport FrameRing
from natcore.io.kernel cimport iovec, mmsghdr, tpacket3_hdr, virtio_net_hdr

cdef enum:
    LARGE_BATCH = 32                # frames of one sendmmsg

cdef struct Ring:
    Device device                   # its fd: the receive ring's socket
    uint8_t* blocks
    uint32_t block_bytes
    uint32_t block_count
    uint32_t block                  # the next one to read
    tpacket3_hdr* cursor            # the next frame in it; NULL: not begun
    uint32_t left                   # frames not read yet in it
    FrameRing frames                # instead of the blocks
    Cut cut                         # of the frame before the cursor

    int slot_fd                     # the transmit ring's socket
    uint8_t* slots
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

cdef class PacketRing(Driver):
    cdef Ring ring
    cdef uint64_t _ring_drops

"""Device: the interface between the I/O loop and a driver, frames in and out of one network interface."""
from libc.stdint cimport uint8_t, uint32_t

from natcore.io.kernel cimport TP_STATUS_VLAN_VALID, virtio_net_hdr

cdef enum:
    FRAME_CAPACITY = 65536 + 256  # bytes of the largest frame: 64 KB of IPv4 and a link header

cdef struct Arrival:                # a received frame, valid until `complete`
    uint8_t* data
    uint32_t length                 # bytes
    uint8_t packet_type             # PACKET_HOST, …
    uint8_t tagged                  # the kernel removed an 802.1Q tag of a VLAN: the frame belongs to that VLAN's interface
    virtio_net_hdr* offload

cdef inline bint of_vlan(uint32_t status, uint32_t tci) noexcept nogil:
    """Whether a packet socket's frame had a VLAN tag. VLAN 0 is only a priority (802.1p)."""
    return status & <uint32_t>TP_STATUS_VLAN_VALID and tci & 0xFFF

cdef struct Device

# receives at most so many frames; 0: none has arrived, or `complete` must come first
ctypedef uint32_t (*Receive)(Device* device, Arrival* arrivals, uint32_t most) noexcept nogil
# returns received buffers to the kernel as far as possible; frames sent from them must be flushed before
ctypedef void (*Complete)(Device* device) noexcept nogil
# queues a frame; true: not copied, data must stay unchanged until `flush`. offload: what is left to the device, or NULL
ctypedef bint (*Send)(Device* device, uint8_t* data, uint32_t length, const virtio_net_hdr* offload) noexcept nogil
# passes queued frames to the kernel; refused ones are counted and dropped
ctypedef void (*Flush)(Device* device) noexcept nogil
# clears the socket error left by a link that went down; frames arrive again once it is up
ctypedef void (*ClearError)(Device* device) noexcept nogil

cdef struct Device:
    int fd                          # readable when frames are available; -1: closed
    Receive receive
    Complete complete
    Send send
    Flush flush
    ClearError clear_error

cdef class Driver:
    cdef Device* device             # in the subclass's structure, as long as the object

"""What the loop needs of a driver: frames in and out of one interface. A driver's structure begins with a Device."""
from libc.stdint cimport uint8_t, uint32_t

from natcore.io.kernel cimport TP_STATUS_VLAN_VALID, virtio_net_hdr

cdef enum:
    FRAME_ROOM = 65536 + 256        # bytes of the largest frame: 64 KB of IPv4 and a link header

cdef struct Arrival:                # one received frame; valid until `complete`
    uint8_t* data
    uint32_t length                 # bytes
    uint8_t packet_type             # PACKET_HOST, …
    uint8_t tagged                  # an 802.1Q tag was taken off that names a VLAN: it belongs to that VLAN's interface
    virtio_net_hdr* offload

cdef inline bint of_vlan(uint32_t status, uint32_t tci) noexcept nogil:
    """Whether a packet socket's frame had a tag that names a VLAN. Number 0 is none: a priority alone (802.1p)."""
    return status & <uint32_t>TP_STATUS_VLAN_VALID and tci & 0xFFF

cdef struct Device

# the next frames, at most so many, into an array; 0: nothing has arrived, or `complete` comes first
ctypedef uint32_t (*Receive)(Device* device, Arrival* arrivals, uint32_t most) noexcept nogil
# what was received goes back to the kernel, as far as it can; all that was made of it must have been flushed
ctypedef void (*Complete)(Device* device) noexcept nogil
# queues a frame; true if it was not copied: data must then stay as it is until `flush`. offload: what the frame needs of
# the device, or NULL
ctypedef bint (*Send)(Device* device, uint8_t* data, uint32_t length, const virtio_net_hdr* offload) noexcept nogil
# hands what is queued to the kernel; what it refuses is counted and gone
ctypedef void (*Flush)(Device* device) noexcept nogil
# takes the error off the descriptor that a link leaves which went down; frames come by themselves when it is up
ctypedef void (*ClearError)(Device* device) noexcept nogil

cdef struct Device:
    int fd                          # readable when frames wait; -1: closed
    Receive receive
    Complete complete
    Send send
    Flush flush
    ClearError clear_error

cdef class Driver:
    cdef Device* device             # the subclass's own structure, as long as the object

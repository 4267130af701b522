"""ICMP that the gateway itself sends: errors about what it refuses, replies to echo requests; and where they wait."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore.frame cimport Frame
from natcore.hints cimport bswap32
from natcore.spin cimport Spin
from natcore.wire cimport Ipv4Header

cdef enum:
    OUTBOX_BYTES = 1 << 21
    ICMP_QUOTE_LIMIT = 576      # bytes of an error at most (RFC 1812 section 4.3.2.3)

cdef struct Outbox:             # frames that wait to be sent, one after the other
    uint8_t* buffer
    uint32_t head               # bytes written
    uint32_t tail               # bytes taken
    uint32_t rate               # errors a second at most
    uint32_t sent               # errors in this second
    uint64_t second             # of now
    uint64_t generated
    uint64_t lost               # no room
    Spin spin                   # while one writes a message or takes a frame; fragments are written with all workers held

cdef inline uint32_t outbox_room(const Outbox* outbox) noexcept nogil:
    return OUTBOX_BYTES - outbox.head

cdef inline uint32_t outbox_bytes(const Outbox* outbox) noexcept nogil:
    """Bytes that the frames take which wait."""
    return outbox.head - outbox.tail

cdef inline uint32_t own_source(uint32_t link_address) noexcept nogil:
    """What the gateway's errors come from: its own address on that link, big-endian, or 192.0.0.8 (RFC 7600)."""
    return link_address or bswap32(<uint32_t>0xC0000008)

cdef bint outbox_new(Outbox* outbox, uint32_t rate) noexcept nogil
cdef void outbox_delete(Outbox* outbox) noexcept nogil
cdef uint32_t outbox_take(Outbox* outbox, uint8_t* out, uint32_t room, uint8_t* send_to, uint8_t* cause) noexcept nogil
cdef uint32_t outbox_waiting(const Outbox* outbox) noexcept nogil
cdef uint32_t outbox_next(const Outbox* outbox) noexcept nogil
cdef uint8_t* parcel_begin(Outbox* outbox, uint32_t length, uint8_t send_to, uint8_t cause) noexcept nogil
cdef void parcel_seal(uint8_t* frame, uint32_t length, uint8_t send_to) noexcept nogil
cdef void parcel_cancel(Outbox* outbox, uint32_t length) noexcept nogil
cdef void icmp_error(Outbox* outbox, const Frame* frame, const Ipv4Header* ip, uint32_t source, uint8_t type,
                     uint8_t code, uint16_t mtu, uint8_t cause, uint64_t now_ns) noexcept nogil
cdef void echo_reply(Outbox* outbox, const Frame* frame, const Ipv4Header* ip, uint8_t cause) noexcept nogil

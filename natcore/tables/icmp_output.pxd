"""ICMP that the gateway itself sends: errors about what it refuses, replies to echo requests; and where they wait."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore.frame cimport Frame
from natcore.base.compiler cimport bswap32
from natcore.base.spinlock cimport Spin
from natcore.base.headers cimport Ipv4Header

cdef enum:
    OUTBOX_BYTES = 1 << 21
    ICMP_QUOTE_LIMIT = 576      # bytes of an error at most (RFC 1812 section 4.3.2.3)
    BUDGET_SOURCES = 64         # in a second, each of which has its own share
    SHARE_AT_LEAST = 8          # errors a second; more where a quarter of the rate is more

cdef struct Budget:             # of the errors of a second that one side may cause
    uint64_t second             # of now
    uint32_t sent
    uint32_t count              # of sources
    uint32_t source[64]         # big-endian
    uint32_t sent_to[64]
    uint32_t others             # sent to those beyond them, together

cdef struct Outbox:             # frames that wait to be sent, one after the other
    uint8_t* buffer
    uint32_t head               # bytes written
    uint32_t tail               # bytes taken
    uint32_t rate               # errors a second at most, of each budget
    Budget budgets[4]           # by side, and whether it is 'fragmentation needed': path MTU discovery waits for nobody
    uint64_t generated
    uint64_t lost               # no room
    uint64_t withheld           # errors that were over a budget
    Spin spin                   # while one writes a message or takes a frame; fragments are written with all workers held

cdef inline uint32_t outbox_room(const Outbox* outbox, uint32_t side) noexcept nogil:
    """Bytes that a packet from a side may fill. Half is the inside's (0) alone: no stranger takes what its fragments need."""
    cdef uint32_t end = OUTBOX_BYTES if side == 0 else OUTBOX_BYTES // 2
    return end - outbox.head if end > outbox.head else 0

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
cdef uint8_t* parcel_begin(Outbox* outbox, uint32_t length, uint32_t side, uint8_t send_to, uint8_t cause) noexcept nogil
cdef void parcel_seal(uint8_t* frame, uint32_t length, uint8_t send_to) noexcept nogil
cdef void parcel_cancel(Outbox* outbox, uint32_t length) noexcept nogil
cdef void icmp_error(Outbox* outbox, const Frame* frame, const Ipv4Header* ip, uint32_t source, uint8_t type,
                     uint8_t code, uint16_t mtu, uint8_t cause, uint64_t now_ns) noexcept nogil
cdef void echo_reply(Outbox* outbox, const Frame* frame, const Ipv4Header* ip, uint8_t cause) noexcept nogil

"""The outbox: generated frames until they are sent. ICMP messages (nat/icmp_messages), fragments made of a packet that was too
long (nat/fragmentation), fragments that were held for their first one (nat/fragment_path)."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from natcore.base.spinlock cimport Spinlock

cdef enum:
    OUTBOX_BYTES = 1 << 21
    BUDGET_SOURCES = 64         # sources with a share of their own, each second

cdef struct ErrorBudget:        # ICMP errors that one side may cause in one second
    uint64_t second             # second of the gateway's clock
    uint32_t sent               # errors sent in it
    uint32_t count              # sources seen in it
    uint32_t source[64]         # big-endian
    uint32_t sent_to[64]        # errors sent to each source
    uint32_t others             # errors sent to all further sources together

cdef struct Outbox:             # frames waiting to be sent, in a linear buffer
    uint8_t* buffer
    uint32_t head               # bytes written; atomic, as tail: a worker's loop looks whether there are frames
    uint32_t tail               # bytes taken
    uint32_t rate               # ICMP errors a second at most, of each budget
    ErrorBudget budgets[4]      # by side, and apart 'fragmentation needed', which path MTU discovery depends on
    uint64_t generated          # ICMP messages and fragments that were made
    uint64_t lost               # frames dropped for lack of space
    uint64_t withheld           # ICMP errors over a budget
    Spinlock spin               # held while a message is written or taken; fragments are written with all workers locked
    const void* lock            # lock of all workers, which serves in place of spin

cdef inline uint32_t outbox_space(const Outbox* outbox, uint32_t side) noexcept nogil:
    """Bytes available to packets from a side. Half is reserved for the inside (0), so that outside traffic cannot use it up."""
    cdef uint32_t end = OUTBOX_BYTES if side == 0 else OUTBOX_BYTES // 2
    return end - outbox.head if end > outbox.head else 0

cdef inline uint32_t outbox_bytes(const Outbox* outbox) noexcept nogil:
    """Bytes that the waiting frames occupy."""
    return outbox.head - outbox.tail

cdef bint outbox_new(Outbox* outbox) noexcept nogil
cdef void outbox_delete(Outbox* outbox) noexcept nogil
cdef uint32_t outbox_take(Outbox* outbox, uint8_t* out, uint32_t space, uint8_t* send_to, uint8_t* cause) noexcept nogil
cdef uint32_t outbox_waiting(const Outbox* outbox) noexcept nogil
cdef uint32_t outbox_frames(const Outbox* outbox) noexcept nogil
cdef uint32_t outbox_next(const Outbox* outbox) noexcept nogil
cdef uint8_t* outbox_push(Outbox* outbox, uint32_t length, uint32_t side, uint8_t send_to, uint8_t cause) noexcept nogil
cdef void outbox_amend(uint8_t* frame, uint32_t length, uint8_t send_to) noexcept nogil
cdef void outbox_cancel(Outbox* outbox, uint32_t length) noexcept nogil

"""The flow log: packets entering and leaving each interface, summed by 5-tuple and action.

Disabled, it costs one test per batch; enabled, each packet is read twice.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from natcore.base.flow_hash cimport HashKey
from natcore.frame cimport Frame
from natcore.base.compiler cimport fetch_add
from natcore.base.spinlock cimport Spinlock

cdef enum:
    FLOWS_BATCH = 256           # frames between flows_arrive and flows_leave, at most

cdef enum:                      # FlowDirection: as seen by the interface
    FLOW_IN = 0
    FLOW_OUT = 1

cdef enum:                      # FlowAction
    FLOW_ACCEPT = 0
    FLOW_REJECT = 1

cdef struct FlowKey:
    uint64_t addresses          # source and destination as in the packet
    uint32_t ports              # likewise; ICMP: the identifier on the inside host's side; 0: none
    uint8_t protocol
    uint8_t interface           # Side
    uint8_t direction           # FlowDirection
    uint8_t action              # FlowAction

cdef struct FlowRow:
    FlowKey key
    uint64_t bytes              # IPv4 total lengths
    uint64_t packets            # IPv4 packets
    int64_t start_time          # first and last packet; microseconds since 1970
    int64_t end_time

cdef struct FlowSeen:           # a packet received, before its verdict is known
    FlowKey key
    uint32_t packets            # 0: no readable 5-tuple
    uint32_t bytes

cdef struct Flows:
    FlowRow* rows               # [capacity]; the newest of a key is the one being summed
    uint32_t* index             # [places] row + 1 by key, 0: empty; linear probing
    uint32_t capacity
    uint32_t places             # a power of two, at least twice the capacity
    uint32_t count
    HashKey hash_key
    int64_t window_us
    uint64_t lost               # packets without a row, for lack of space
    uint64_t unreadable         # packets without a 5-tuple: not IPv4 or malformed
    bint ethernet
    uint32_t users              # batches between flows_acquire and flows_release
    Spinlock spin                   # protects the rows

cdef inline void flows_acquire(Flows* flows) noexcept nogil:
    """Keeps the flow log in use until flows_release, even if the worker is unlocked meanwhile. The worker must be locked."""
    fetch_add(&flows.users, 1)

cdef inline void flows_release(Flows* flows) noexcept nogil:
    fetch_add(&flows.users, <uint32_t>-1)

cdef bint flows_new(Flows* flows, uint32_t capacity, const HashKey* key, int64_t window_us, bint ethernet) noexcept nogil
cdef void flows_delete(Flows* flows) noexcept nogil
cdef void flows_arrive(const Flows* flows, FlowSeen* seen, const Frame* frames, uint32_t count) noexcept nogil
cdef void flows_leave(Flows* flows, FlowSeen* seen, const Frame* frames, uint32_t count, int64_t now_us) noexcept nogil
cdef void flows_sent(Flows* flows, const Frame* frame, uint8_t side, int64_t now_us) noexcept nogil
cdef void flows_unsent(Flows* flows, const Frame* frame) noexcept nogil
cdef void flows_clear(Flows* flows) noexcept nogil

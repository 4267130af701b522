"""SYN hold-off: unsolicited SYNs are held for 6 s, in order of arrival, before an ICMP error answers them (RFC 5382 REQ-4)."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from natcore.frame cimport Frame
from natcore.base.compiler cimport store_relaxed
from natcore.base.lock_checker cimport assert_held
from natcore.base.pages cimport table_delete, table_new
from natcore.base.spinlock cimport Spinlock, spin_lock, spin_unlock

cdef enum:
    HELD_SYNS = 1024
    SYN_HOLDOFF_SHARE = 256     # held SYNs of one source at most: a quarter
    HELD_SYN_BYTES = 576        # bytes of a frame that are stored, as much as an error quotes
    SYN_HOLDOFF_SECONDS = 6     # RFC 5382 REQ-4

cdef struct HeldSyn:            # a held SYN
    uint64_t due_ns             # end of its hold-off
    uint32_t length             # stored bytes of its frame
    uint32_t link_bytes         # bytes of its link header
    uint8_t cause               # Verdict that it was dropped with
    uint8_t data[576]

cdef struct SynHoldoff:
    HeldSyn* slots              # [HELD_SYNS] NULL: off
    uint32_t sources[1024]      # [HELD_SYNS] sources, big-endian
    uint32_t head               # SYNs ever held, modulo 2^32; atomic: read by loops
    uint32_t tail               # SYNs ever taken out, modulo 2^32
    uint64_t lost               # SYNs not held for lack of space or share: never answered
    Spinlock spin               # protects additions; SYNs are taken out with all workers locked
    const void* lock            # of all workers

cdef inline bint syn_holdoff_new(SynHoldoff* queue) noexcept nogil:
    queue.slots = <HeldSyn*>table_new(HELD_SYNS * sizeof(HeldSyn))
    return queue.slots != NULL

cdef inline void syn_holdoff_delete(SynHoldoff* queue) noexcept nogil:
    table_delete(queue.slots, HELD_SYNS * sizeof(HeldSyn))
    queue.slots = NULL

cdef inline bint is_at_share(const SynHoldoff* queue, uint32_t source) noexcept nogil:
    """Whether the source is at its share of held SYNs."""
    cdef uint32_t waiting = queue.head - queue.tail, count = 0, i
    if waiting < SYN_HOLDOFF_SHARE:
        return False
    for i in range(waiting):
        count += queue.sources[(queue.tail + i) % HELD_SYNS] == source
    return count >= SYN_HOLDOFF_SHARE

cdef inline void syn_holdoff_hold(SynHoldoff* queue, const Frame* frame, uint32_t link_bytes, uint32_t source,
                                  uint8_t cause, uint64_t now_ns) noexcept nogil:
    """Holds a copy of the frame, or counts it as lost. source: its address, big-endian."""
    cdef HeldSyn* slot
    spin_lock(&queue.spin)
    if queue.head - queue.tail == HELD_SYNS or is_at_share(queue, source):
        queue.lost += 1
        spin_unlock(&queue.spin)
        return
    slot = &queue.slots[queue.head % HELD_SYNS]
    queue.sources[queue.head % HELD_SYNS] = source
    store_relaxed(&queue.head, queue.head + 1)
    slot.due_ns = now_ns + <uint64_t>SYN_HOLDOFF_SECONDS * 1000000000
    slot.length = frame.length if frame.length < HELD_SYN_BYTES else HELD_SYN_BYTES
    slot.link_bytes = link_bytes
    slot.cause = cause
    memcpy(slot.data, frame.data, slot.length)
    spin_unlock(&queue.spin)

cdef inline HeldSyn* syn_holdoff_due(SynHoldoff* queue, uint64_t now_ns) noexcept nogil:
    """The next SYN with an expired hold-off, or NULL; valid until the next one is held."""
    cdef HeldSyn* slot
    assert_held(queue.lock, "SYN hold-off: syn_holdoff_due")
    if queue.head == queue.tail:
        return NULL
    slot = &queue.slots[queue.tail % HELD_SYNS]
    if slot.due_ns > now_ns:
        return NULL
    queue.tail += 1
    return slot

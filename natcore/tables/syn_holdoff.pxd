"""SYNs from outside that nothing lets in: they wait for 6 s, in the order in which they came, before they are answered."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from natcore.frame cimport Frame
from natcore.base.compiler cimport store_relaxed
from natcore.base.lock_checker cimport assert_held
from natcore.base.pages cimport table_delete, table_new
from natcore.base.spinlock cimport Spin, spin_lock, spin_unlock

cdef enum:
    UNSOLICITED_SLOTS = 1024
    UNSOLICITED_SHARE = 256     # that one source has at most, a quarter
    UNSOLICITED_ROOM = 576      # bytes of a frame that are kept: no error quotes more
    UNSOLICITED_SECONDS = 6     # RFC 5382 REQ-4

cdef struct Unsolicited:        # a SYN that waits
    uint64_t due_ns
    uint32_t length             # bytes of its frame that are kept
    uint32_t link_bytes         # of its link header
    uint8_t cause               # Verdict that it was dropped with
    uint8_t data[576]

cdef struct UnsolicitedQueue:
    Unsolicited* slots          # [UNSOLICITED_SLOTS] NULL: policy is silent
    uint32_t sources[1024]      # [UNSOLICITED_SLOTS] of the same, big-endian
    uint32_t head               # how many came, modulo 2^32; atomic: a worker's loop looks whether there are any
    uint32_t tail               # how many were looked at again
    uint64_t lost               # they found no slot, or their source had its share: nobody answers them
    Spin spin                   # for what is kept; who holds all workers looks again
    const void* lock            # of all workers

cdef inline bint unsolicited_new(UnsolicitedQueue* queue) noexcept nogil:
    queue.slots = <Unsolicited*>table_new(UNSOLICITED_SLOTS * sizeof(Unsolicited))
    return queue.slots != NULL

cdef inline void unsolicited_delete(UnsolicitedQueue* queue) noexcept nogil:
    table_delete(queue.slots, UNSOLICITED_SLOTS * sizeof(Unsolicited))
    queue.slots = NULL

cdef inline bint has_share(const UnsolicitedQueue* queue, uint32_t source) noexcept nogil:
    """Whether as many wait of a source as may."""
    cdef uint32_t waiting = queue.head - queue.tail, count = 0, i
    if waiting < UNSOLICITED_SHARE:
        return False
    for i in range(waiting):
        count += queue.sources[(queue.tail + i) % UNSOLICITED_SLOTS] == source
    return count >= UNSOLICITED_SHARE

cdef inline void unsolicited_keep(UnsolicitedQueue* queue, const Frame* frame, uint32_t link_bytes, uint32_t source,
                                  uint8_t cause, uint64_t now_ns) noexcept nogil:
    """The frame waits; one too many does not, and is counted. source: its address, big-endian."""
    cdef Unsolicited* slot
    spin_lock(&queue.spin)
    if queue.head - queue.tail == UNSOLICITED_SLOTS or has_share(queue, source):
        queue.lost += 1
        spin_unlock(&queue.spin)
        return
    slot = &queue.slots[queue.head % UNSOLICITED_SLOTS]
    queue.sources[queue.head % UNSOLICITED_SLOTS] = source
    store_relaxed(&queue.head, queue.head + 1)
    slot.due_ns = now_ns + <uint64_t>UNSOLICITED_SECONDS * 1000000000
    slot.length = frame.length if frame.length < UNSOLICITED_ROOM else UNSOLICITED_ROOM
    slot.link_bytes = link_bytes
    slot.cause = cause
    memcpy(slot.data, frame.data, slot.length)
    spin_unlock(&queue.spin)

cdef inline Unsolicited* unsolicited_due(UnsolicitedQueue* queue, uint64_t now_ns) noexcept nogil:
    """The next one that has waited long enough, or NULL; valid until the next is kept."""
    cdef Unsolicited* slot
    assert_held(queue.lock, "SYN hold-off: unsolicited_due")
    if queue.head == queue.tail:
        return NULL
    slot = &queue.slots[queue.tail % UNSOLICITED_SLOTS]
    if slot.due_ns > now_ns:
        return NULL
    queue.tail += 1
    return slot

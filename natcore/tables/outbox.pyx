"""The outbox: frames wait in order, each behind a header of its own; it is emptied before it begins anew."""
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from natcore.base.compiler cimport load_relaxed, store_relaxed
from natcore.base.pages cimport table_delete, table_new
from natcore.base.spinlock cimport assert_spin, spin_lock, spin_unlock

cdef struct OutboxEntry:             # header of each frame in the outbox
    uint32_t length
    uint32_t space              # bytes up to the next header
    uint8_t send_to
    uint8_t cause
    uint8_t unused[6]


cdef bint outbox_new(Outbox* outbox) noexcept nogil:
    memset(outbox, 0, sizeof(Outbox))
    outbox.buffer = <uint8_t*>table_new(OUTBOX_BYTES)
    return outbox.buffer != NULL


cdef void outbox_delete(Outbox* outbox) noexcept nogil:
    table_delete(outbox.buffer, OUTBOX_BYTES)
    outbox.buffer = NULL


cdef uint32_t outbox_waiting(const Outbox* outbox) noexcept nogil:
    """Length of the next frame, in bytes; 0: none."""
    return 0 if outbox.tail == outbox.head else (<const OutboxEntry*>(outbox.buffer + outbox.tail)).length


cdef uint32_t outbox_next(const Outbox* outbox) noexcept nogil:
    """Bytes that the next frame occupies in the outbox; there must be one."""
    return (<const OutboxEntry*>(outbox.buffer + outbox.tail)).space


cdef uint32_t outbox_frames(const Outbox* outbox) noexcept nogil:
    """How many frames wait."""
    cdef uint32_t at = outbox.tail, count = 0
    while at != outbox.head:
        at += (<const OutboxEntry*>(outbox.buffer + at)).space
        count += 1
    return count


cdef uint32_t outbox_take(Outbox* outbox, uint8_t* out, uint32_t space, uint8_t* send_to,
                          uint8_t* cause) noexcept nogil:
    """Copies the next frame to out; its length in bytes, 0: none. Frames longer than space are discarded and counted."""
    cdef uint32_t length
    if load_relaxed(&outbox.tail) == load_relaxed(&outbox.head):    # a frame written just now is taken the next time
        return 0
    spin_lock(&outbox.spin)
    length = outbox_pop(outbox, out, space, send_to, cause)
    spin_unlock(&outbox.spin)
    return length


cdef uint32_t outbox_pop(Outbox* outbox, uint8_t* out, uint32_t space, uint8_t* send_to, uint8_t* cause) noexcept nogil:
    cdef const OutboxEntry* entry
    cdef const uint8_t* frame
    assert_spin(&outbox.spin, outbox.lock, "outbox: outbox_pop")
    while outbox.tail != outbox.head:
        entry = <const OutboxEntry*>(outbox.buffer + outbox.tail)
        frame = outbox.buffer + outbox.tail + sizeof(OutboxEntry)
        store_relaxed(&outbox.tail, outbox.tail + entry.space)
        if outbox.tail == outbox.head:
            store_relaxed(&outbox.tail, 0)
            store_relaxed(&outbox.head, 0)
        if entry.length <= space:
            memcpy(out, frame, entry.length)
            send_to[0] = entry.send_to
            cause[0] = entry.cause
            return entry.length
        outbox.lost += 1
    return 0


cdef inline uint32_t entry_bytes(uint32_t length) noexcept nogil:
    return <uint32_t>sizeof(OutboxEntry) + ((length + 7) & ~<uint32_t>7)


cdef uint8_t* outbox_push(Outbox* outbox, uint32_t length, uint32_t side, uint8_t send_to, uint8_t cause) noexcept nogil:
    """Appends a frame of length bytes to be written by the caller; NULL: no space. side: of the packet that caused it."""
    cdef uint32_t need = entry_bytes(length)
    cdef OutboxEntry* entry
    assert_spin(&outbox.spin, outbox.lock, "outbox: outbox_push")
    if outbox_space(outbox, side) < need:
        return NULL
    entry = <OutboxEntry*>(outbox.buffer + outbox.head)
    entry.length = length
    entry.space = need
    entry.send_to = send_to
    entry.cause = cause
    store_relaxed(&outbox.head, outbox.head + need)
    return <uint8_t*>(entry + 1)


cdef void outbox_amend(uint8_t* frame, uint32_t length, uint8_t send_to) noexcept nogil:
    """Corrects length and egress side of a frame just written."""
    cdef OutboxEntry* entry = <OutboxEntry*>frame - 1
    entry.length = length
    entry.send_to = send_to


cdef void outbox_cancel(Outbox* outbox, uint32_t length) noexcept nogil:
    """Removes the last frame, which was begun with this length."""
    store_relaxed(&outbox.head, outbox.head - entry_bytes(length))

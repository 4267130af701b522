"""The journal's ring: rows are written and read in order. A full ring loses and counts rows; it never blocks a packet."""
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from natcore.log.events cimport RECORDS_LOST, event_note
from natcore.base.compiler cimport load_acquire64, store_relaxed64, store_release64, unlikely
from natcore.base.pages cimport table_delete, table_new
from natcore.base.spinlock cimport assert_spin, spin_lock_inner, spin_unlock


cdef bint journal_new(Journal* journal, uint64_t capacity) noexcept nogil:
    journal.capacity = capacity
    journal.ring = <Record*>table_new(capacity * sizeof(Record))
    journal.lifecycle = <Record*>table_new(capacity * sizeof(Record))
    journal.lost_until = -1
    return journal.ring != NULL and journal.lifecycle != NULL


cdef void journal_delete(Journal* journal) noexcept nogil:
    cdef Overflow* overflow
    while journal.oldest:
        overflow = <Overflow*>journal.oldest
        journal.oldest = overflow.next
        free(overflow)
    table_delete(journal.ring, journal.capacity * sizeof(Record))
    table_delete(journal.lifecycle, journal.capacity * sizeof(Record))
    journal.ring = journal.lifecycle = NULL


cdef void journal_forget(Journal* journal) noexcept nogil:
    """Drops the rows that wait, also those for watchers, and overflows no more: in a forked child they are the parent's. No
    other thread may use the journal."""
    cdef RowTap* tap = journal.taps
    cdef Overflow* overflow
    while journal.oldest:
        overflow = <Overflow*>journal.oldest
        journal.oldest = overflow.next
        free(overflow)
    journal.newest = journal.oldest_read = journal.overflow_limit = 0
    journal.overflowing = journal.in_overflow = journal.in_lifecycle = 0
    journal.overflow_read = journal.overflow_written
    journal.tail, journal.tail_at = journal.head, journal.head_at
    journal.lifecycle_tail, journal.lifecycle_tail_at = journal.lifecycle_head, journal.lifecycle_head_at
    while tap != NULL:
        tap.tail = tap.head
        tap = tap.next


cdef Record* journal_slot(Journal* journal, uint8_t kind) noexcept nogil:
    """Space for the next row, until journal_commit; NULL: the row is lost, and counted."""
    cdef Record* row = NULL
    spin_lock_inner(&journal.spin)
    if journal.overflow_limit == 0 and kind != RECORD_WINDOW:
        if journal.lifecycle_head - load_acquire64(&journal.lifecycle_tail) < journal.capacity:
            journal.in_lifecycle = 1
            return &journal.lifecycle[journal.lifecycle_head_at]
        store_relaxed64(&journal.lifecycle_lost, journal.lifecycle_lost + 1)
        spin_unlock(&journal.spin)
        return NULL
    if journal.head - load_acquire64(&journal.tail) < journal.capacity:
        return &journal.ring[journal.head_at]
    if journal.overflow_limit:
        row = overflow_slot(journal)
    if row == NULL:
        if is_block_row(kind):
            store_relaxed64(&journal.blocks_lost, journal.blocks_lost + 1)
        store_relaxed64(&journal.lost, journal.lost + 1)
        spin_unlock(&journal.spin)
    else:
        journal.in_overflow = 1
    return row


cdef void journal_note_lost(Journal* journal, int64_t start_us, int64_t end_us, uint64_t now_ns) noexcept nogil:
    """Records the time span of a lost row (microseconds since 1970)."""
    spin_lock_inner(&journal.spin)
    if journal.lost_until < journal.lost_from:
        journal.lost_from, journal.lost_until = start_us, end_us
    else:
        journal.lost_from = min(journal.lost_from, start_us)
        journal.lost_until = max(journal.lost_until, end_us)
    spin_unlock(&journal.spin)
    if journal.events != NULL:
        event_note(journal.events, RECORDS_LOST, 0, 0, 0, 0, 0, now_ns)


cdef Record* overflow_slot(Journal* journal) noexcept nogil:
    """Space in an overflow chunk. Only the sweep allocates chunks; packets may use what is left."""
    cdef Overflow* overflow = <Overflow*>journal.newest
    cdef Overflow* more
    assert_spin(&journal.spin, NULL, "journal: overflow_slot")
    if journal.overflow_written - load_acquire64(&journal.overflow_read) >= journal.overflow_limit:
        return NULL
    if overflow == NULL or overflow.count == OVERFLOW_ROWS or overflow.at_head != journal.head:
        if not journal.overflowing:
            return NULL
        more = <Overflow*>malloc(sizeof(Overflow))
        if more == NULL:
            return NULL
        more.next = more.count = 0
        more.at_head = journal.head
        store_release64(&overflow.next if overflow != NULL else &journal.oldest, <uint64_t>more)
        journal.newest = <uint64_t>more
        overflow = more
    return &overflow.rows[overflow.count]


cdef void journal_commit(Journal* journal) noexcept nogil:
    """Completes the row of journal_slot."""
    cdef Overflow* overflow
    cdef uint64_t order = journal.order
    assert_spin(&journal.spin, NULL, "journal: journal_commit")
    store_release64(&journal.order, order + 1)
    if journal.in_lifecycle:
        journal.in_lifecycle = 0
        journal.lifecycle[journal.lifecycle_head_at].number = order
        journal.lifecycle_head_at = journal.lifecycle_head_at + 1 if journal.lifecycle_head_at + 1 < journal.capacity else 0
        store_release64(&journal.lifecycle_head, journal.lifecycle_head + 1)
        spin_unlock(&journal.spin)
        return
    if unlikely(journal.in_overflow):
        journal.in_overflow = 0
        overflow = <Overflow*>journal.newest
        overflow.rows[overflow.count].number = order
        journal.overflow_written += 1
        store_release64(&overflow.count, overflow.count + 1)
        spin_unlock(&journal.spin)
        return
    journal.ring[journal.head_at].number = order
    journal.head_at = journal.head_at + 1 if journal.head_at + 1 < journal.capacity else 0
    store_release64(&journal.head, journal.head + 1)
    spin_unlock(&journal.spin)


cdef Overflow* overflow_waiting(Journal* journal) noexcept nogil:
    """The next overflow chunk with unread rows; NULL: none. Chunks read to their end are freed."""
    cdef Overflow* overflow = <Overflow*>load_acquire64(&journal.oldest)
    cdef uint64_t after
    while overflow != NULL and journal.oldest_read == load_acquire64(&overflow.count):
        after = load_acquire64(&overflow.next)
        if after == 0 or journal.oldest_read != load_acquire64(&overflow.count):       # written meanwhile
            return overflow if journal.oldest_read != load_acquire64(&overflow.count) else NULL
        free(overflow)
        journal.oldest = after
        journal.oldest_read = 0
        overflow = <Overflow*>after
    return overflow


cdef uint64_t ring_drain(Journal* journal, Record* rows, uint64_t count) noexcept nogil:
    """Moves count rows out of the ring, in at most two copies."""
    cdef uint64_t done = 0, piece
    while done < count:
        piece = journal.capacity - journal.tail_at
        piece = piece if piece < count - done else count - done
        memcpy(&rows[done], &journal.ring[journal.tail_at], piece * sizeof(Record))
        journal.tail_at = journal.tail_at + piece if journal.tail_at + piece < journal.capacity else 0
        done += piece
    store_release64(&journal.tail, journal.tail + count)
    return count


cdef uint64_t overflow_drain(Journal* journal, const Overflow* overflow, Record* rows, uint64_t capacity) noexcept nogil:
    cdef uint64_t count = overflow.count - journal.oldest_read
    count = count if count < capacity else capacity
    memcpy(rows, &overflow.rows[journal.oldest_read], count * sizeof(Record))
    journal.oldest_read += count
    store_release64(&journal.overflow_read, journal.overflow_read + count)
    return count


cdef uint64_t main_drain(Journal* journal, Record* rows, uint64_t capacity) noexcept nogil:
    """Moves rows of the ring and its overflow chunks, as many as available and as fit."""
    cdef uint64_t filled = 0, waiting
    cdef Overflow* overflow
    while filled < capacity:
        overflow = overflow_waiting(journal)
        waiting = (overflow.at_head if overflow != NULL else load_acquire64(&journal.head)) - journal.tail
        filled += ring_drain(journal, &rows[filled], waiting if waiting < capacity - filled else capacity - filled)
        if overflow == NULL:
            break
        if filled < capacity:
            filled += overflow_drain(journal, overflow, &rows[filled], capacity - filled)
    return filled


cdef const Record* main_next(Journal* journal) noexcept nogil:
    """The row that main_drain moves next; NULL: none."""
    cdef Overflow* overflow = overflow_waiting(journal)
    if overflow != NULL and overflow.at_head == journal.tail:
        return &overflow.rows[journal.oldest_read]
    return NULL if load_acquire64(&journal.head) == journal.tail else &journal.ring[journal.tail_at]


cdef uint64_t merged_drain(Journal* journal, Record* rows, uint64_t capacity) noexcept nogil:
    """Moves rows of both rings in the order of writing; rows written meanwhile are left for the next call."""
    cdef uint64_t filled = 0, until
    cdef const Record* lifecycle
    cdef const Record* other
    spin_lock_inner(&journal.spin)            # of several workers: what was written before is in its ring
    until = load_acquire64(&journal.order)
    spin_unlock(&journal.spin)
    while filled < capacity:
        other = main_next(journal)
        lifecycle = NULL
        if load_acquire64(&journal.lifecycle_head) != journal.lifecycle_tail:
            lifecycle = &journal.lifecycle[journal.lifecycle_tail_at]
        if lifecycle != NULL and (other == NULL or lifecycle.number < other.number):
            if lifecycle.number >= until:
                break
            memcpy(&rows[filled], lifecycle, sizeof(Record))
            journal.lifecycle_tail_at = journal.lifecycle_tail_at + 1 if journal.lifecycle_tail_at + 1 < journal.capacity else 0
            store_release64(&journal.lifecycle_tail, journal.lifecycle_tail + 1)
        elif other == NULL or other.number >= until:
            break
        else:
            main_drain(journal, &rows[filled], 1)
        filled += 1
    return filled


cdef uint64_t journal_drain(Journal* journal, Record* rows, uint64_t capacity, uint64_t* number) noexcept nogil:
    """Moves up to capacity rows out in the order of writing; how many. Rows of sessions are numbered from number on, which
    becomes the next one's; a row of a port block has the number of the session's row that comes next."""
    cdef uint64_t filled, next_number = number[0], i
    if journal.overflow_limit and load_acquire64(&journal.lifecycle_head) == journal.lifecycle_tail:
        filled = main_drain(journal, rows, capacity)
    else:
        filled = merged_drain(journal, rows, capacity)
    for i in range(filled):
        rows[i].number = next_number
        next_number += not is_block_row(rows[i].kind)
    store_relaxed64(number, next_number)
    return filled


assert sizeof(Record) == 96

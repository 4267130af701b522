"""The journal's ring: rows are written and read in order; a full ring loses the row and counts it, never stops a packet."""
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from natcore.hints cimport load_acquire64, store_release64, unlikely
from natcore.memory cimport table_delete, table_new


cdef bint journal_new(Journal* journal, uint64_t capacity) noexcept nogil:
    journal.capacity = capacity
    journal.ring = <Record*>table_new(capacity * sizeof(Record))
    return journal.ring != NULL


cdef void journal_delete(Journal* journal) noexcept nogil:
    cdef Aside* aside
    while journal.oldest:
        aside = <Aside*>journal.oldest
        journal.oldest = aside.next
        free(aside)
    table_delete(journal.ring, journal.capacity * sizeof(Record))
    journal.ring = NULL


cdef Record* journal_slot(Journal* journal) noexcept nogil:
    """Where the next row goes; NULL when there is no room: the row is then lost, and counted here."""
    cdef Record* row = NULL
    if journal.head - load_acquire64(&journal.tail) < journal.capacity:
        return &journal.ring[journal.head_at]
    if journal.aside_limit:
        row = aside_slot(journal)
    if row == NULL:
        journal.lost += 1
    else:
        journal.is_aside = 1
    return row


cdef Record* aside_slot(Journal* journal) noexcept nogil:
    """Beside the ring; for a packet's row no room is made, it may take what is left of the sweep's."""
    cdef Aside* aside = <Aside*>journal.newest
    cdef Aside* more
    if journal.aside_written - load_acquire64(&journal.aside_read) >= journal.aside_limit:
        return NULL
    if aside == NULL or aside.count == ASIDE_ROWS or aside.at_head != journal.head:
        if not journal.widened:
            return NULL
        more = <Aside*>malloc(sizeof(Aside))
        if more == NULL:
            return NULL
        more.next = more.count = 0
        more.at_head = journal.head
        store_release64(&aside.next if aside != NULL else &journal.oldest, <uint64_t>more)
        journal.newest = <uint64_t>more
        aside = more
    return &aside.rows[aside.count]


cdef void journal_commit(Journal* journal) noexcept nogil:
    """The row of journal_slot is complete."""
    cdef Aside* aside
    if unlikely(journal.is_aside):
        journal.is_aside = 0
        aside = <Aside*>journal.newest
        journal.aside_written += 1
        store_release64(&aside.count, aside.count + 1)
        return
    journal.head_at = journal.head_at + 1 if journal.head_at + 1 < journal.capacity else 0
    store_release64(&journal.head, journal.head + 1)


cdef Aside* aside_waiting(Journal* journal) noexcept nogil:
    """The rows beside the ring that are next, NULL: there are none. What has been read to its end is freed."""
    cdef Aside* aside = <Aside*>load_acquire64(&journal.oldest)
    cdef uint64_t after
    while aside != NULL and journal.oldest_read == load_acquire64(&aside.count):
        after = load_acquire64(&aside.next)
        if after == 0 or journal.oldest_read != load_acquire64(&aside.count):       # it was written to meanwhile
            return aside if journal.oldest_read != load_acquire64(&aside.count) else NULL
        free(aside)
        journal.oldest = after
        journal.oldest_read = 0
        aside = <Aside*>after
    return aside


cdef uint64_t ring_drain(Journal* journal, Record* rows, uint64_t count) noexcept nogil:
    """Moves count rows out of the ring, at most two pieces of it."""
    cdef uint64_t done = 0, piece
    while done < count:
        piece = journal.capacity - journal.tail_at
        piece = piece if piece < count - done else count - done
        memcpy(&rows[done], &journal.ring[journal.tail_at], piece * sizeof(Record))
        journal.tail_at = journal.tail_at + piece if journal.tail_at + piece < journal.capacity else 0
        done += piece
    store_release64(&journal.tail, journal.tail + count)
    return count


cdef uint64_t aside_drain(Journal* journal, const Aside* aside, Record* rows, uint64_t room) noexcept nogil:
    cdef uint64_t count = aside.count - journal.oldest_read
    count = count if count < room else room
    memcpy(rows, &aside.rows[journal.oldest_read], count * sizeof(Record))
    journal.oldest_read += count
    store_release64(&journal.aside_read, journal.aside_read + count)
    return count


cdef uint64_t journal_drain(Journal* journal, Record* rows, uint64_t room, uint64_t number) noexcept nogil:
    """Moves up to room rows out in the order in which they were written, numbered from number; how many."""
    cdef uint64_t filled = 0, waiting, i
    cdef Aside* aside
    while filled < room:
        aside = aside_waiting(journal)
        waiting = (aside.at_head if aside != NULL else load_acquire64(&journal.head)) - journal.tail
        filled += ring_drain(journal, &rows[filled], waiting if waiting < room - filled else room - filled)
        if aside == NULL:
            break
        if filled < room:
            filled += aside_drain(journal, aside, &rows[filled], room - filled)
    for i in range(filled):
        rows[i].number = number + i
    return filled


assert sizeof(Record) == 96

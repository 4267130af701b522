"""The journal's ring: rows are written and read in order; a full ring loses the row and counts it, never stops a packet."""
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from natcore.hints cimport load_acquire64, store_release64
from natcore.memory cimport table_delete, table_new
from natcore.spin cimport spin_lock, spin_unlock


cdef bint journal_new(Journal* journal, uint64_t capacity) noexcept nogil:
    journal.capacity = capacity
    journal.ring = <Record*>table_new(capacity * sizeof(Record))
    return journal.ring != NULL


cdef void journal_delete(Journal* journal) noexcept nogil:
    table_delete(journal.ring, journal.capacity * sizeof(Record))
    journal.ring = NULL


cdef Record* journal_slot(Journal* journal) noexcept nogil:
    """Where the next row goes, until journal_commit; NULL when the ring is full: the row is then lost, and counted here."""
    spin_lock(&journal.spin)
    if journal.head - load_acquire64(&journal.tail) >= journal.capacity:
        journal.lost += 1
        spin_unlock(&journal.spin)
        return NULL
    return &journal.ring[journal.head_at]


cdef void journal_commit(Journal* journal) noexcept nogil:
    """The row of journal_slot is complete."""
    journal.head_at = journal.head_at + 1 if journal.head_at + 1 < journal.capacity else 0
    store_release64(&journal.head, journal.head + 1)
    spin_unlock(&journal.spin)


cdef uint64_t journal_drain(Journal* journal, Record* rows, uint64_t room, uint64_t number) noexcept nogil:
    """Moves up to room rows out, numbered from number; how many."""
    cdef uint64_t waiting = load_acquire64(&journal.head) - journal.tail
    cdef uint64_t count = waiting if waiting < room else room, i
    for i in range(count):
        memcpy(&rows[i], &journal.ring[journal.tail_at], sizeof(Record))
        rows[i].number = number + i
        journal.tail_at = journal.tail_at + 1 if journal.tail_at + 1 < journal.capacity else 0
    store_release64(&journal.tail, journal.tail + count)
    return count


assert sizeof(Record) == 96

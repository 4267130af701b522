"""The journal: rows of the session log, in a ring between a gateway's workers and one consumer.

While no session log runs, rows of session begin and end have a ring of their own, so that they do not displace window rows,
which is all that most callers read. While one runs, the sweep may overflow a full ring into extra memory: it writes many rows
at once and cannot wait for the reader.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from natcore.log.events cimport Events
from natcore.base.compiler cimport load_acquire64
from natcore.base.spinlock cimport Spinlock

cdef enum:                      # RecordKind
    RECORD_WINDOW = 0
    RECORD_CREATE = 1
    RECORD_END = 2              # 3 to 7 are made in Python: python/natcore/dtypes.py
    RECORD_BLOCK_ALLOCATED = 8  # only while a session log runs, as the next
    RECORD_BLOCK_RELEASED = 9   # 10 to 12 are made in Python, likewise

cdef enum:                      # RecordFlag
    RECORD_OPENED_OUTSIDE = 1
    RECORD_ASSIGNED_BEFORE = 2  # a port block, when the log started

cdef struct Record:             # RECORD of python/natcore/dtypes.py
    uint64_t bytes_from_pub
    uint64_t pkts_from_pub
    uint64_t bytes_from_vpc
    uint64_t pkts_from_vpc
    int64_t start_time          # microseconds since 1970
    int64_t end_time
    uint64_t session
    uint64_t number             # assigned when the row is drained; a block's: the number of the next row of a session
    uint32_t pri_ip             # addresses and ports in host order
    uint32_t pub_ip
    uint32_t nat_ip
    uint32_t eip
    uint16_t pri_port
    uint16_t pub_port
    uint16_t nat_port
    uint8_t protocol
    uint8_t kind
    uint16_t flags
    uint16_t unused[3]

cdef struct RowTap:             # copies of create and end rows for someone who watches; it takes nothing from the journal
    RowTap* next
    Record* rows                # [capacity]
    uint64_t capacity
    uint64_t head               # rows ever written
    uint64_t tail               # rows ever read
    uint64_t lost               # rows that found no place
    Spinlock spin               # of the ring; needed whatever the number of workers: the reader locks none

cdef enum:
    OVERFLOW_ROWS = 1024

cdef struct Overflow:              # overflow chunk: ordered after the first at_head rows of the ring
    uint64_t next               # Overflow*; 0: none yet
    uint64_t count              # rows written
    uint64_t at_head
    Record rows[1024]           # OVERFLOW_ROWS

cdef struct Journal:            # producers write the first part, the consumer the second
    Record* ring
    uint64_t capacity           # rows
    uint64_t head               # rows ever written to the ring
    uint64_t head_at            # head modulo capacity
    uint64_t lost               # window rows lost, and all kinds while a session log runs
    uint64_t lifecycle_lost     # begin and end rows lost while none runs
    uint64_t blocks_lost        # of `lost`: rows of port blocks
    int64_t lost_from           # of the lost rows, microseconds since 1970: earliest start
    int64_t lost_until          # latest end; before lost_from: none lost
    uint64_t newest             # Overflow*
    uint64_t overflow_written      # rows since the start
    uint64_t overflow_limit        # rows that may wait in overflow chunks; 0: no session log runs
    uint32_t overflowing            # sweeps in progress, which may overflow a full ring
    uint32_t in_overflow           # the row of journal_slot is in an overflow chunk
    Spinlock spin                   # held from journal_slot to journal_commit
    Record* lifecycle           # [capacity] begin and end rows while no session log runs
    uint64_t lifecycle_head
    uint64_t lifecycle_head_at
    uint64_t order              # rows ever written, to any ring; stored in `number` until drained
    uint32_t in_lifecycle       # the row of journal_slot is in `lifecycle`
    Events* events              # receives RECORDS_LOST
    RowTap* taps                # NULL: no one watches; changed with all workers locked
    uint64_t unused
    uint64_t tail               # rows ever read from the ring
    uint64_t tail_at
    uint64_t oldest             # Overflow*, read up to oldest_read; the producer sets the first
    uint64_t oldest_read
    uint64_t overflow_read         # rows ever read
    uint64_t lifecycle_tail
    uint64_t lifecycle_tail_at

cdef inline uint64_t journal_space(Journal* journal) noexcept nogil:
    """Lower bound of rows that fit: the consumer may be reading, and workers writing."""
    cdef uint64_t tail = load_acquire64(&journal.tail)
    return journal.capacity - (load_acquire64(&journal.head) - tail)

cdef inline uint64_t journal_space_for_bulk(Journal* journal) noexcept nogil:
    """Rows that bulk writers may add at once: half of the ring is reserved for rows that packets cause."""
    cdef uint64_t space = journal_space(journal), left = journal.capacity // 2
    return space - left if space > left else 0

cdef inline uint64_t journal_waiting(Journal* journal) noexcept nogil:
    """Rows that can be drained; for the consumer."""
    # the tails before the heads
    cdef uint64_t tail = load_acquire64(&journal.tail), overflow_read = load_acquire64(&journal.overflow_read)
    cdef uint64_t lifecycle_tail = load_acquire64(&journal.lifecycle_tail)
    return (load_acquire64(&journal.head) - tail + load_acquire64(&journal.overflow_written) - overflow_read
            + load_acquire64(&journal.lifecycle_head) - lifecycle_tail)

cdef inline bint journal_is_short(Journal* journal) noexcept nogil:
    """Whether the sweep waits for the consumer with the last two rows of a session: it leaves a quarter of the ring to the
    rows of packets, which cannot wait."""
    return journal.overflow_limit and journal_space(journal) < 2 + journal.capacity // 4

cdef bint journal_new(Journal* journal, uint64_t capacity) noexcept nogil
cdef void journal_delete(Journal* journal) noexcept nogil
cdef void journal_forget(Journal* journal) noexcept nogil
cdef inline int64_t label_us(int64_t epoch_ns, uint64_t ns) noexcept nogil:
    """A time of the gateway's clock as rows have it: Unix microseconds, rounded down. epoch_ns: Unix time at now = 0."""
    cdef int64_t unix_ns = epoch_ns + <int64_t>ns
    return unix_ns // 1000 - (1 if unix_ns < 0 and unix_ns % 1000 else 0)

cdef inline bint is_block_row(uint8_t kind) noexcept nogil:
    return kind == RECORD_BLOCK_ALLOCATED or kind == RECORD_BLOCK_RELEASED

cdef uint64_t journal_drain(Journal* journal, Record* rows, uint64_t capacity, uint64_t* number) noexcept nogil
cdef Record* journal_slot(Journal* journal, uint8_t kind) noexcept nogil
cdef void journal_note_lost(Journal* journal, int64_t start_us, int64_t end_us, uint64_t now_ns) noexcept nogil
cdef void journal_commit(Journal* journal) noexcept nogil

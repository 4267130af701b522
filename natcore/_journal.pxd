"""The journal: rows of the session log on their way out, a ring with one producer (the worker) and one consumer."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from natcore.hints cimport load_acquire64

cdef enum:                      # RecordKind
    RECORD_WINDOW = 0
    RECORD_CREATE = 1
    RECORD_END = 2              # 3, a gap row, is made in Python: python/natcore/records.py

cdef enum:                      # RecordFlag
    RECORD_OPENED_OUTSIDE = 1

cdef struct Record:             # RECORD of python/natcore/records.py
    uint64_t bytes_from_pub
    uint64_t pkts_from_pub
    uint64_t bytes_from_vpc
    uint64_t pkts_from_vpc
    int64_t start_time          # microseconds since 1970
    int64_t end_time
    uint64_t session
    uint64_t number             # set when the row is drained
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

cdef struct Journal:
    Record* ring
    uint64_t capacity           # rows
    uint64_t head               # rows written since the start; the producer's
    uint64_t head_at            # head modulo capacity
    uint64_t lost               # rows that found the ring full
    uint64_t read               # whether somebody takes rows: what can wait for room then does
    uint64_t unused[3]
    uint64_t tail               # rows read since the start; the consumer's
    uint64_t tail_at

cdef inline uint64_t journal_room(Journal* journal) noexcept nogil:
    """Rows that still fit, at least: the consumer may be reading."""
    return journal.capacity - (journal.head - load_acquire64(&journal.tail))

cdef inline bint journal_is_short(Journal* journal) noexcept nogil:
    """Whether a session's last two rows had better wait until the reader has made room."""
    return journal.read and journal_room(journal) < 2

cdef bint journal_new(Journal* journal, uint64_t capacity) noexcept nogil
cdef void journal_delete(Journal* journal) noexcept nogil
cdef uint64_t journal_drain(Journal* journal, Record* rows, uint64_t room, uint64_t number) noexcept nogil
cdef Record* journal_slot(Journal* journal) noexcept nogil
cdef void journal_commit(Journal* journal) noexcept nogil

"""Writes the rows of port blocks while a session log runs. What is assigned when a log starts, its first rows say.

A subscriber has its block from no later than the first row says to no earlier than the second one says: the first has the
allocating worker's clock, rounded down to ms, and the second the gateway's, which is ahead of every worker's.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from natcore.base.compiler cimport bswap32, load_acquire64, load_relaxed64
from natcore.log.journal cimport (
    RECORD_BLOCK_ALLOCATED, RECORD_BLOCK_RELEASED, Record, journal_commit, journal_note_lost, journal_slot, label_us,
)
from natcore.tables.port_blocks cimport Block, block_at


cdef uint64_t time_of(const Blocks* blocks, uint32_t now_ms) noexcept nogil:
    """A worker's time in ms as ns of the gateway's clock; 0: a test's table, which has none."""
    cdef uint64_t clock_ms
    if blocks.clock_ns == NULL:
        return 0
    clock_ms = load_acquire64(blocks.clock_ns) // 1000000
    return (clock_ms - <uint32_t>(<uint32_t>clock_ms - now_ms)) * 1000000


cdef int64_t label_of(const Blocks* blocks, uint64_t ns) noexcept nogil:
    return label_us(<int64_t>load_relaxed64(<const uint64_t*>blocks.epoch_ns), ns)


cdef void block_row_fill(const Blocks* blocks, uint32_t reference, const BlockPlace* place, uint8_t kind, uint64_t end_ns,
                         Record* row) noexcept nogil:
    """Fills a row of the block's assignment, the last one if it has been returned."""
    cdef const Block* block = block_at(blocks, reference)
    memset(row, 0, sizeof(Record))
    row.start_time = label_of(blocks, block.born_ns)
    row.end_time = label_of(blocks, end_ns)
    row.session = block.number
    row.pri_ip = bswap32(block.owner)
    row.nat_ip = bswap32(place.ip)
    row.eip = place.eip
    row.nat_port = <unsigned short>place.first_port
    row.pub_port = <unsigned short>place.last_port
    row.kind = kind


cdef void row_write(const Blocks* blocks, uint32_t reference, const BlockPlace* place, uint8_t kind,
                    uint64_t end_ns) noexcept nogil:
    cdef Record* row
    if blocks.journal == NULL or load_relaxed64(&blocks.journal.overflow_limit) == 0:      # no session log runs
        return
    row = journal_slot(blocks.journal, kind)
    if row != NULL:
        block_row_fill(blocks, reference, place, kind, end_ns, row)
        journal_commit(blocks.journal)
    else:
        journal_note_lost(blocks.journal, label_of(blocks, block_at(blocks, reference).born_ns), label_of(blocks, end_ns),
                          end_ns)


cdef void allocated_row_write(const Blocks* blocks, uint32_t reference, const BlockPlace* place) noexcept nogil:
    """The row of a block that has just been assigned."""
    row_write(blocks, reference, place, RECORD_BLOCK_ALLOCATED, block_at(blocks, reference).born_ns)


cdef void released_row_write(const Blocks* blocks, uint32_t reference, const BlockPlace* place) noexcept nogil:
    """The row of a block that has just been returned, or is about to be."""
    if blocks.clock_ns != NULL:
        row_write(blocks, reference, place, RECORD_BLOCK_RELEASED, load_acquire64(blocks.clock_ns))

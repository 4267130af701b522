"""Rows of the session log about port blocks: one when a block is assigned to a subscriber, one when it is returned."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from natcore.log.journal cimport Record
from natcore.tables.port_blocks cimport Blocks

cdef struct BlockPlace:         # what a block is
    uint32_t ip                 # outside address, big-endian
    uint32_t eip                # host order; 0: none
    uint32_t first_port
    uint32_t last_port

cdef uint64_t time_of(const Blocks* blocks, uint32_t now_ms) noexcept nogil
cdef void block_row_fill(const Blocks* blocks, uint32_t reference, const BlockPlace* place, uint8_t kind, uint64_t end_ns,
                         Record* row) noexcept nogil
cdef void allocated_row_write(const Blocks* blocks, uint32_t reference, const BlockPlace* place) noexcept nogil
cdef void released_row_write(const Blocks* blocks, uint32_t reference, const BlockPlace* place) noexcept nogil

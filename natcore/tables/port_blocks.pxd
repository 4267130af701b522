"""Port blocks (ports="block"): contiguous ports of an outside address assigned to one subscriber, for all protocols."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from natcore.base.flow_hash cimport HashKey
from natcore.log.journal cimport Journal

cdef enum:
    BLOCK_CHAINS = 65536
    BLOCKS_AT_MOST = 256        # blocks of one subscriber at most

cdef struct Block:
    uint32_t owner              # inside address, big-endian; valid while taken
    uint32_t ports              # in use or held down, of the three protocols; at 0 the block is returned
    uint32_t next               # next block in the owner's hash chain, as a reference, or NONE
    uint32_t taken              # 1: assigned
    uint64_t number             # of this assignment, from 1; the last one's after the block was returned, as the next
    uint64_t born_ns            # when it was assigned, gateway's clock

cdef struct Blocks:
    uint32_t per_address        # blocks of an outside address; 0: port blocks are off
    uint32_t per_owner          # blocks of a subscriber at most
    uint32_t capacity           # outside addresses
    Block** of                  # [capacity] by index of the address, [per_address] each; NULL: unused index
    uint32_t* free              # [capacity] unassigned blocks
    uint32_t* chains            # [BLOCK_CHAINS] first block by a hash of the owner, as a reference plus one; 0: none
    uint64_t taken              # blocks ever assigned
    uint64_t released           # blocks ever returned
    Journal* journal            # gets rows of what is assigned and returned; NULL: a test's table, as the next two
    const uint64_t* clock_ns    # the gateway's clock
    const int64_t* epoch_ns     # Unix time at now = 0

cdef struct BlockIterator:               # iterator over the blocks of one owner
    uint32_t owner
    uint32_t at                 # current reference

cdef inline uint32_t block_reference(uint32_t address, uint32_t block) noexcept nogil:
    return address << 16 | block

cdef inline Block* block_at(const Blocks* blocks, uint32_t reference) noexcept nogil:
    return &blocks.of[reference >> 16][reference & 0xFFFF]

cdef bint blocks_new(Blocks* blocks, uint32_t capacity, uint32_t per_address) noexcept nogil
cdef void blocks_delete(Blocks* blocks) noexcept nogil
cdef bint blocks_add(Blocks* blocks, uint32_t address) noexcept nogil
cdef void blocks_drop(Blocks* blocks, const HashKey* key, uint32_t address) noexcept nogil
cdef uint32_t block_first(const Blocks* blocks, const HashKey* key, uint32_t owner, BlockIterator* walk) noexcept nogil
cdef uint32_t block_next(const Blocks* blocks, BlockIterator* walk) noexcept nogil
cdef void block_assign(Blocks* blocks, const HashKey* key, uint32_t reference, uint32_t owner,
                       uint64_t now_ns) noexcept nogil
cdef void block_return_unused(Blocks* blocks, const HashKey* key, uint32_t reference) noexcept nogil
cdef bint block_count_down(Blocks* blocks, const HashKey* key, uint32_t reference) noexcept nogil

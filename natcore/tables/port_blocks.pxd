"""Port blocks (ports="block"): contiguous ports of an outside address that are one subscriber's, for all protocols together."""
from libc.stdint cimport uint32_t, uint64_t

from natcore.base.flow_hash cimport HashKey

cdef enum:
    BLOCK_CHAINS = 65536
    BLOCKS_AT_MOST = 256        # that a subscriber may have
    NO_BLOCK = 0xFFFFFFFF

cdef struct Block:
    uint32_t owner              # inside address, big-endian, while it is taken
    uint32_t ports              # in use or held down, of the three protocols; its owner has it until there are none
    uint32_t next               # reference of the next block in the owner's chain, or NO_BLOCK
    uint32_t taken              # 0: it is nobody's

cdef struct Blocks:
    uint32_t per_address        # blocks of an outside address; 0: there are none
    uint32_t per_owner          # blocks that a subscriber may have
    uint32_t capacity           # outside addresses
    Block** of                  # [capacity] by number of the address, [per_address] each; NULL: not an address
    uint32_t* free              # [capacity] blocks that are nobody's
    uint32_t* chains            # [BLOCK_CHAINS] reference of the first block by a hash of the owner, and one; 0: none
    uint64_t taken              # blocks given to a subscriber, ever
    uint64_t released           # and given back

cdef struct Walk:               # over the blocks of one owner
    uint32_t owner
    uint32_t at                 # reference

cdef inline uint32_t block_reference(uint32_t address, uint32_t block) noexcept nogil:
    return address << 16 | block

cdef inline Block* block_at(const Blocks* blocks, uint32_t reference) noexcept nogil:
    return &blocks.of[reference >> 16][reference & 0xFFFF]

cdef bint blocks_new(Blocks* blocks, uint32_t capacity, uint32_t per_address, uint32_t per_owner) noexcept nogil
cdef void blocks_delete(Blocks* blocks) noexcept nogil
cdef bint blocks_add(Blocks* blocks, uint32_t address) noexcept nogil
cdef void blocks_drop(Blocks* blocks, const HashKey* key, uint32_t address) noexcept nogil
cdef uint32_t block_first(const Blocks* blocks, const HashKey* key, uint32_t owner, Walk* walk) noexcept nogil
cdef uint32_t block_next(const Blocks* blocks, Walk* walk) noexcept nogil
cdef void block_give(Blocks* blocks, const HashKey* key, uint32_t reference, uint32_t owner) noexcept nogil
cdef void block_leave(Blocks* blocks, const HashKey* key, uint32_t reference) noexcept nogil

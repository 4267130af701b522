"""Assigns port blocks to subscribers: a new one when theirs are full, returned with its last port. No search per packet."""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from natcore.base.flow_hash cimport flow_hash
from natcore.base.sentinels cimport NONE
from natcore.base.pages cimport table_delete, table_new


cdef bint blocks_new(Blocks* blocks, uint32_t capacity, uint32_t per_address) noexcept nogil:
    """Tables for capacity outside addresses."""
    blocks.capacity = capacity
    blocks.per_address = per_address
    blocks.of = <Block**>table_new(<uint64_t>capacity * sizeof(Block*))
    blocks.free = <uint32_t*>table_new(<uint64_t>capacity * sizeof(uint32_t))
    blocks.chains = <uint32_t*>table_new(BLOCK_CHAINS * sizeof(uint32_t))
    return blocks.of != NULL and blocks.free != NULL and blocks.chains != NULL


cdef void blocks_delete(Blocks* blocks) noexcept nogil:
    cdef uint32_t address
    if blocks.of != NULL:
        for address in range(blocks.capacity):
            if blocks.of[address] != NULL:
                table_delete(blocks.of[address], <uint64_t>blocks.per_address * sizeof(Block))
        table_delete(blocks.of, <uint64_t>blocks.capacity * sizeof(Block*))
    table_delete(blocks.free, <uint64_t>blocks.capacity * sizeof(uint32_t))
    table_delete(blocks.chains, BLOCK_CHAINS * sizeof(uint32_t))
    memset(blocks, 0, sizeof(Blocks))


cdef bint blocks_add(Blocks* blocks, uint32_t address) noexcept nogil:
    """Adds the blocks of a new outside address, all unassigned; False: no memory."""
    if blocks.per_address == 0:
        return True
    blocks.of[address] = <Block*>table_new(<uint64_t>blocks.per_address * sizeof(Block))
    blocks.free[address] = blocks.per_address
    return blocks.of[address] != NULL


cdef void blocks_drop(Blocks* blocks, const HashKey* key, uint32_t address) noexcept nogil:
    """Removes the blocks of an outside address, including ones with ports held down."""
    cdef uint32_t block
    if blocks.per_address == 0 or blocks.of[address] == NULL:
        return
    for block in range(blocks.per_address):
        if blocks.of[address][block].taken:
            release(blocks, key, block_reference(address, block))
    table_delete(blocks.of[address], <uint64_t>blocks.per_address * sizeof(Block))
    blocks.of[address] = NULL


cdef uint32_t* chain_of(const Blocks* blocks, const HashKey* key, uint32_t owner) noexcept nogil:
    return &blocks.chains[flow_hash(key, owner, 0, 0) & (BLOCK_CHAINS - 1)]


cdef uint32_t block_first(const Blocks* blocks, const HashKey* key, uint32_t owner, BlockIterator* walk) noexcept nogil:
    """The owner's first block, or NONE; block_next continues."""
    walk.owner = owner
    walk.at = chain_of(blocks, key, owner)[0] - 1               # 0, none, becomes NONE
    if walk.at != NONE and block_at(blocks, walk.at).owner != owner:
        return block_next(blocks, walk)
    return walk.at


cdef uint32_t block_next(const Blocks* blocks, BlockIterator* walk) noexcept nogil:
    while walk.at != NONE:
        walk.at = block_at(blocks, walk.at).next
        if walk.at != NONE and block_at(blocks, walk.at).owner == walk.owner:
            break
    return walk.at


cdef void block_assign(Blocks* blocks, const HashKey* key, uint32_t reference, uint32_t owner,
                       uint64_t now_ns) noexcept nogil:
    """Assigns an unassigned block to the owner."""
    cdef Block* block = block_at(blocks, reference)
    cdef uint32_t* chain = chain_of(blocks, key, owner)
    block.owner = owner
    block.taken = 1
    block.ports = 0
    block.next = chain[0] - 1
    chain[0] = reference + 1
    blocks.free[reference >> 16] -= 1
    blocks.taken += 1
    block.number = blocks.taken
    block.born_ns = now_ns


cdef void release(Blocks* blocks, const HashKey* key, uint32_t reference) noexcept nogil:
    cdef Block* block = block_at(blocks, reference)
    cdef Block* before
    cdef uint32_t* chain = chain_of(blocks, key, block.owner)
    cdef uint32_t at = chain[0] - 1
    if at == reference:
        chain[0] = block.next + 1
    else:
        before = block_at(blocks, at)
        while before.next != reference:
            before = block_at(blocks, before.next)
        before.next = block.next
    block.taken = 0
    blocks.free[reference >> 16] += 1
    blocks.released += 1


cdef void block_return_unused(Blocks* blocks, const HashKey* key, uint32_t reference) noexcept nogil:
    """Returns a block that is assigned and has no port, in use or held down."""
    if block_at(blocks, reference).taken and block_at(blocks, reference).ports == 0:
        release(blocks, key, reference)


cdef bint block_count_down(Blocks* blocks, const HashKey* key, uint32_t reference) noexcept nogil:
    """Counts one port less in use or held down; True: that was the last one, and the block is returned."""
    cdef Block* block = block_at(blocks, reference)
    block.ports -= 1
    if block.ports == 0:
        release(blocks, key, reference)
        return True
    return False

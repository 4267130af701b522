"""The port policies beside the plain draw: blocks, computed blocks, overloading."""
from libc.stdint cimport uint32_t, uint64_t

from natcore.tables.block_rows cimport BlockPlace, allocated_row_write, time_of
from natcore.tables.port_blocks cimport (
    BLOCKS_AT_MOST, Block, BlockIterator, block_first, block_assign, block_next, block_reference,
)
from natcore.tables.port_overload cimport (
    ALL_PARTS, PART_PORTS, EndpointPair, overload_add, overload_find, overload_remove, overload_taken,
)
from natcore.tables.ports cimport (
    PORT_OF_HOST, PORT_RESERVED, PORT_SPACES, PORTS_BLOCK, PORTS_DETERMINISTIC, PORTS_OVERLOAD, PortMap, Ports,
    worker_preferring,
    in_ports, in_ranges, random_next, nth_set, ones64, pick_by_policy, allocate_from_map, port_release, port_reuse,
    port_use, reclaim,
    set_free, space_of, place_of_block,
)
from natcore.base.compiler cimport bswap16
from natcore.base.sentinels cimport NONE
from natcore.base.chacha20 cimport random_below
from natcore.base.spinlock cimport assert_spin


cdef enum:
    SHARED_PROBES = 16          # random ports tried for a remote endpoint


cdef uint64_t EVEN = 0x5555555555555555ULL      # the even ports of a bitmap word


# ---- within a block --------------------------------------------------------------------------------------------------

cdef inline uint64_t part_of(uint32_t word, uint32_t first, uint32_t end) noexcept nogil:
    """Bits of a word for ports from first to end - 1."""
    cdef uint64_t bits = <uint64_t>-1
    if word == first >> 6:
        bits &= <uint64_t>-1 << (first & 63)
    if word == end >> 6:
        bits &= ~(<uint64_t>-1 << (end & 63))
    return bits


cdef uint32_t nth_within(const uint64_t* bitmap, uint64_t flip, uint64_t mask, uint32_t first, uint32_t end,
                         uint32_t n) noexcept nogil:
    """The n-th port from first to end - 1 with a set bit in the bitmap (flip all ones: a clear bit), or NONE."""
    cdef uint32_t word, ones
    cdef uint64_t bits
    for word in range(first >> 6, (end + 63) >> 6):
        bits = (bitmap[word] ^ flip) & mask & part_of(word, first, end)
        ones = ones64(bits)
        if n < ones:
            return word * 64 + nth_set(bits, n)
        n -= ones
    return NONE


cdef uint32_t count_within(const uint64_t* bitmap, uint64_t flip, uint64_t mask, uint32_t first, uint32_t end) noexcept nogil:
    cdef uint32_t word, count = 0
    for word in range(first >> 6, (end + 63) >> 6):
        count += ones64((bitmap[word] ^ flip) & mask & part_of(word, first, end))
    return count


cdef uint32_t pick_within(Ports* ports, const PortMap* map, uint32_t first, uint64_t mask) noexcept nogil:
    """A free port of the block that begins at first, each equally likely; NONE: all are in use."""
    cdef uint32_t end = first + ports.block_size, count = count_within(map.used, <uint64_t>-1, mask, first, end)
    return nth_within(map.used, <uint64_t>-1, mask, first, end, random_below(&ports.random, count)) if count else NONE


cdef uint32_t allocate_within(Ports* ports, PortMap* map, uint32_t first, uint32_t inside_port) noexcept nogil:
    """Allocates a free port of a block, or NONE."""
    cdef uint32_t port = NONE
    if map.free == 0:
        return NONE
    if ports.parity:
        port = pick_within(ports, map, first, ~EVEN if inside_port & 1 else EVEN)
    if port == NONE:
        port = pick_within(ports, map, first, <uint64_t>-1)
    if port != NONE:
        port_use(ports, map, port)
    return port


cdef uint32_t reuse_within(Ports* ports, PortMap* map, uint32_t first, uint32_t* until_ms) noexcept nogil:
    """Reuses a random port of a block that is held down for the block's owner; or NONE."""
    cdef uint32_t end = first + ports.block_size, port, count
    count = count_within(map.held, 0, <uint64_t>-1, first, end) if map.held_count else 0
    if count == 0:
        return NONE
    port = nth_within(map.held, 0, <uint64_t>-1, first, end, random_below(&ports.random, count))
    until_ms[0] = port_reuse(ports, map, port)
    return port


cdef inline uint32_t begin_of(const Ports* ports, uint32_t block) noexcept nogil:
    """The first port of a block."""
    return ports.allowed[block * ports.block_size]


# ---- port blocks -----------------------------------------------------------------------------------------------------

cdef uint32_t new_block(Ports* ports, uint32_t address, const PortMap* map) noexcept nogil:
    """A random unassigned block with a port that is not reserved; or NONE."""
    cdef uint32_t start, block = NONE
    if ports.blocks.free[address] == 0:
        return NONE
    start = random_below(&ports.random, ports.block_count)
    if ports.workers > 1:
        block = block_from(ports, address, map, start, True)
    return block_from(ports, address, map, start, False) if block == NONE else block


cdef uint32_t block_from(const Ports* ports, uint32_t address, const PortMap* map, uint32_t start, bint own) noexcept nogil:
    """The first such block from start on; or NONE. own: only blocks that the allocating worker prefers."""
    cdef uint32_t step, block, first
    cdef const Block* blocks = ports.blocks.of[address]
    for step in range(ports.block_count):
        block = start + step if start + step < ports.block_count else start + step - ports.block_count
        if not blocks[block].taken:
            first = begin_of(ports, block)
            if own and worker_preferring(ports, first) != ports.allocating:
                continue
            if nth_within(map.used, <uint64_t>-1, <uint64_t>-1, first, first + ports.block_size, 0) != NONE:
                return block
    return NONE


cdef uint32_t allocate_from_own_blocks(Ports* ports, uint32_t address, PortMap* map, const PortRequest* request,
                                       uint32_t* count, uint32_t* until_ms) noexcept nogil:
    """Allocates from the owner's blocks at the address, a random one first; or NONE. count: its blocks, at all addresses."""
    cdef BlockIterator walk
    cdef uint32_t[BLOCKS_AT_MOST] firsts
    cdef uint32_t own = 0, start, step, port
    cdef uint32_t at = block_first(&ports.blocks, &ports.key, request.owner, &walk)
    while at != NONE:
        count[0] += 1
        if at >> 16 == address:
            firsts[own] = begin_of(ports, at & 0xFFFF)
            own += 1
        at = block_next(&ports.blocks, &walk)
    if own == 0:
        return NONE
    start = random_below(&ports.random, own)
    for step in range(own):
        port = allocate_within(ports, map, firsts[(start + step) % own], bswap16(request.inside_port))
        if port != NONE:
            return port
    for step in range(own):
        port = reuse_within(ports, map, firsts[step], until_ms)
        if port != NONE:
            return port
    return NONE


cdef uint32_t blocks_in_use(Ports* ports, uint32_t owner, uint32_t now_ms) noexcept nogil:
    """Number of the owner's blocks, at all addresses, after expired hold-downs are freed."""
    cdef BlockIterator walk
    cdef uint32_t[BLOCKS_AT_MOST] addresses
    cdef uint32_t count = 0, left = 0, i, space
    cdef uint32_t at = block_first(&ports.blocks, &ports.key, owner, &walk)
    assert_spin(&ports.spin, ports.lock, "ports: blocks_in_use")
    while at != NONE:
        addresses[count] = at >> 16
        count += 1
        at = block_next(&ports.blocks, &walk)
    for i in range(count):
        for space in range(PORT_SPACES):
            reclaim(ports, &ports.addresses[addresses[i]].maps[space], &ports.looks, now_ms)
    at = block_first(&ports.blocks, &ports.key, owner, &walk)
    while at != NONE:
        left += 1
        at = block_next(&ports.blocks, &walk)
    return left


cdef uint32_t allocate_from_blocks(Ports* ports, uint32_t address, PortMap* map, const PortRequest* request, uint32_t now_ms,
                                   uint32_t* until_ms) noexcept nogil:
    """Allocates from the owner's blocks, or from a new one if they are full; NONE: the address has no block left."""
    cdef uint32_t count = 0, block, space
    cdef BlockPlace place
    cdef uint32_t port = allocate_from_own_blocks(ports, address, map, request, &count, until_ms)
    if port != NONE:
        return port
    if count >= ports.blocks.per_owner and blocks_in_use(ports, request.owner, now_ms) >= ports.blocks.per_owner:
        return OVER_QUOTA
    block = new_block(ports, address, map)
    if block == NONE:
        for space in range(PORT_SPACES):                # free blocks with an expired hold-down
            reclaim(ports, &ports.addresses[address].maps[space], &ports.looks, now_ms)
        block = new_block(ports, address, map)
    if block == NONE:
        return NONE
    block_assign(&ports.blocks, &ports.key, block_reference(address, block), request.owner, time_of(&ports.blocks, now_ms))
    place = place_of_block(ports, block_reference(address, block))
    allocated_row_write(&ports.blocks, block_reference(address, block), &place)
    return allocate_within(ports, map, begin_of(ports, block), bswap16(request.inside_port))


cdef uint32_t address_with_block(const Ports* ports, uint32_t owner) noexcept nogil:
    """Index of an outside address where the owner has a block; or NONE."""
    cdef BlockIterator walk
    cdef uint32_t at
    if ports.blocks.per_address == 0:
        return NONE
    at = block_first(&ports.blocks, &ports.key, owner, &walk)
    return at >> 16 if at != NONE else NONE


# ---- the other policies ----------------------------------------------------------------------------------------------

cdef uint32_t allocate_from_computed_block(Ports* ports, PortMap* map, const PortRequest* request, uint32_t now_ms,
                                           uint32_t* until_ms) noexcept nogil:
    """Allocates from the owner's computed block (RFC 7422); OVER_QUOTA: all its ports are in use."""
    cdef uint32_t first = begin_of(ports, request.block)
    cdef uint32_t port = allocate_within(ports, map, first, bswap16(request.inside_port))
    if port == NONE:
        port = reuse_within(ports, map, first, until_ms)
    return OVER_QUOTA if port == NONE else port


cdef void pair_of(const Ports* ports, uint32_t address, const PortRequest* request, uint32_t port,
                  EndpointPair* ends) noexcept nogil:
    ends.outside_ip = ports.addresses[address].ip
    ends.outside_port = bswap16(<unsigned short>port)
    ends.remote_ip = request.remote_ip
    ends.remote_port = request.remote_port
    ends.protocol = request.protocol


cdef uint32_t allocate_overloaded(Ports* ports, uint32_t address, PortMap* map, const PortRequest* request) noexcept nogil:
    """Allocates an unused port, otherwise one unused towards this remote endpoint, each equally likely; or NONE.

    A few are tried at random, then the usable ones are counted.
    """
    cdef EndpointPair ends
    cdef uint32_t _try, port, taken
    cdef uint64_t random = request.random
    assert_spin(&ports.spin, ports.lock, "ports: allocate_overloaded")
    if map.free:
        port = pick_by_policy(ports, map, bswap16(request.inside_port), request.random, ports.allocating)
        port_use(ports, map, port)
        map.cells[port] = 1
        return port
    pair_of(ports, address, request, 0, &ends)
    taken = overload_taken(&ports.overload, &ports.key, &ends, ALL_PARTS) + map.reserved
    if taken >= ports.range_size:
        return NONE
    for _try in range(SHARED_PROBES):
        port = ports.allowed[in_ports(random, ports.range_size)]
        if may_share(ports, map, port, &ends):
            map.cells[port] += 1
            return port
        random = random_next(random)
    port = nth_shared(ports, map, &ends, in_ports(random, ports.range_size - taken))
    map.cells[port] += 1
    return port


cdef inline bint is_reserved(uint32_t cell) noexcept nogil:
    """Whether a used port's cell says that a DNAT entry or the host has it."""
    return cell == PORT_RESERVED or cell == PORT_OF_HOST


cdef uint32_t ports_of_part(const Ports* ports, const PortMap* map, uint32_t part) noexcept nogil:
    """Ports of the ranges in a part that are not reserved."""
    cdef uint32_t word, port, count = 0
    for word in range(part * (PART_PORTS // 64), (part + 1) * (PART_PORTS // 64)):
        count += ones64(ports.ranges[word])
    if map.reserved:
        for port in range(part * PART_PORTS, (part + 1) * PART_PORTS):
            count -= in_ranges(ports, port) and is_reserved(map.cells[port])
    return count


cdef uint32_t nth_shared(const Ports* ports, const PortMap* map, EndpointPair* ends, uint32_t n) noexcept nogil:
    """The n-th port that can be shared towards the remote endpoint of ends; there must be more than n."""
    cdef uint32_t part = ports.allowed[0] // PART_PORTS, left, port
    while True:
        left = ports_of_part(ports, map, part)
        left -= overload_taken(&ports.overload, &ports.key, ends, part) if left else 0
        if n < left:
            break
        n -= left
        part += 1
    port = part * PART_PORTS
    while True:
        if in_ranges(ports, port) and may_share(ports, map, port, ends):
            if n == 0:
                return port
            n -= 1
        port += 1


cdef bint may_share(const Ports* ports, const PortMap* map, uint32_t port, EndpointPair* ends) noexcept nogil:
    """Whether a port is neither reserved nor used towards the remote endpoint of ends."""
    if is_reserved(map.cells[port]):
        return False
    ends.outside_port = bswap16(<unsigned short>port)
    return overload_find(&ports.overload, &ports.key, ends) == NONE


# ---- by policy -------------------------------------------------------------------------------------------------------

cdef uint32_t allocate_port(Ports* ports, uint32_t address, const PortRequest* request, uint32_t now_ms,
                            uint32_t* until_ms) noexcept nogil:
    """Allocates a port of an outside address (host order): then assign or unassign it. NONE, OVER_QUOTA: failed.

    until_ms: end of the hold-down that was lifted, to be restored if the port is unassigned unused.
    """
    cdef PortMap* map = &ports.addresses[address].maps[space_of(request.protocol)]
    until_ms[0] = now_ms
    if ports.parity:                                    # a port with an expired hold-down may be the preferred one
        reclaim(ports, map, &ports.looks, now_ms)
    if ports.policy == PORTS_BLOCK:
        return allocate_from_blocks(ports, address, map, request, now_ms, until_ms)
    if ports.policy == PORTS_DETERMINISTIC:
        return allocate_from_computed_block(ports, map, request, now_ms, until_ms)
    if ports.policy == PORTS_OVERLOAD:
        return allocate_overloaded(ports, address, map, request)
    return allocate_from_map(ports, map, request.owner, bswap16(request.inside_port), request.random, now_ms, until_ms)


cdef bint assign_overloaded(Ports* ports, uint32_t address, const PortRequest* request, uint32_t port,
                            uint32_t mapping) noexcept nogil:
    """assign_port of a port that several mappings may share."""
    cdef EndpointPair ends
    pair_of(ports, address, request, port, &ends)
    ends.mapping = mapping
    ends.worker = <uint8_t>ports.allocating
    return overload_add(&ports.overload, &ports.key, &ends)


cdef void unassign_port(Ports* ports, uint32_t address, const PortRequest* request, uint32_t port, uint32_t until_ms,
                        uint32_t now_ms) noexcept nogil:
    """Releases a mapping's port and holds it down until until_ms; an overloaded port is not held down, since its filtering
    is address- and port-dependent (RFC 6888 REQ-8 C)."""
    cdef PortMap* map = &ports.addresses[address].maps[space_of(request.protocol)]
    cdef EndpointPair ends
    assert_spin(&ports.spin, ports.lock, "ports: unassign_port")
    if ports.policy != PORTS_OVERLOAD:
        port_release(ports, map, port, request.owner, until_ms, now_ms)
        return
    pair_of(ports, address, request, port, &ends)
    overload_remove(&ports.overload, &ports.key, &ends)
    map.cells[port] -= 1
    if map.cells[port] == 0:
        set_free(ports, map, port)

"""Port maps: O(1) allocation that fails only when no port is free; a freed port is held down for its last owner."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from natcore.tables.block_rows cimport released_row_write
from natcore.tables.port_blocks cimport Block, block_at, block_count_down, block_reference
from natcore.tables.port_blocks cimport blocks_add, blocks_delete, blocks_drop, blocks_new
from natcore.tables.port_overload cimport overload_delete
from natcore.base.flow_hash cimport flow_hash
from natcore.base.compiler cimport bswap32, ctz64, load_relaxed64, store_relaxed, store_relaxed64
from natcore.base.sentinels cimport NONE, NO_LIMIT
from natcore.base.hash_table cimport index_delete, index_find, index_insert, index_new, index_remove
from natcore.base.lock_checker cimport assert_held
from natcore.base.pages cimport table_delete, table_new

cdef extern from "<sys/mman.h>" nogil:
    int madvise(void* address, uint64_t length, int advice) noexcept
    int MADV_NOHUGEPAGE


cdef bint ports_new(Ports* ports, uint32_t capacity) noexcept nogil:
    """Tables for capacity outside addresses; no port can be allocated yet."""
    cdef uint32_t space
    ports.capacity = capacity
    ports.count = ports.live = 0
    ports.addresses = <Address*>table_new(<uint64_t>capacity * sizeof(Address))
    if ports.addresses != NULL:         # most gateways use a few of its lines: no huge page for these
        madvise(ports.addresses, <uint64_t>capacity * sizeof(Address), MADV_NOHUGEPAGE)
    memset(ports.ranges, 0, sizeof(ports.ranges))
    memset(ports.ports_in, 0, sizeof(ports.ports_in))
    memset(ports.addresses_free, 0, sizeof(ports.addresses_free))
    memset(ports.addresses_held, 0, sizeof(ports.addresses_held))
    memset(ports.addresses_free_count, 0, sizeof(ports.addresses_free_count))
    ports.range_size = 0
    ports.unit = PORT_UNIT
    ports.lowest = 0xFFFFFFFF
    ports.highest = 0
    ports.workers = 1
    for space in range(PORT_SPACES):
        ports.next_release[space] = <uint32_t*>table_new(<uint64_t>capacity * sizeof(uint32_t))
        if ports.next_release[space] == NULL:
            return False
    return index_new(&ports.index, capacity) and ports.addresses != NULL


cdef void ports_delete(Ports* ports) noexcept nogil:
    cdef uint32_t i
    for i in range(ports.count):
        if ports.addresses[i].memory != NULL:
            table_delete(ports.addresses[i].memory, PORT_SPACES * MAP_BYTES)
        table_delete(ports.addresses[i].host, sizeof(HostPorts))
    table_delete(ports.addresses, <uint64_t>ports.capacity * sizeof(Address))
    for i in range(PORT_SPACES):
        table_delete(ports.next_release[i], <uint64_t>ports.capacity * sizeof(uint32_t))
    index_delete(&ports.index)
    if ports.blocks.per_address:
        blocks_delete(&ports.blocks)
    if ports.overload.pairs != NULL:
        overload_delete(&ports.overload)
    ports.addresses = NULL
    ports.count = 0


cdef void ports_allow(Ports* ports, uint32_t first, uint32_t last) noexcept nogil:
    """Adds ports first to last to the ranges. Call it before the first address is added, in ascending order."""
    cdef uint32_t port
    for port in range(first, last + 1):
        ports.ranges[port >> 6] |= <uint64_t>1 << (port & 63)
        ports.ports_in[port >> 10] += <uint32_t>1 << ((port & 1) << 4)
        ports.ports_in[GROUPS + (port >> 13)] += <uint32_t>1 << ((port & 1) << 4)
        ports.allowed[ports.range_size] = <uint16_t>port
        ports.range_size += 1
    ports.contiguous = ports.range_size == 1 + last - ports.allowed[0]


cdef bint ports_divide(Ports* ports, uint32_t block_size, bint assigned) noexcept nogil:
    """Divides the ranges into blocks, which are assigned to subscribers, or computed. False: no memory.

    Call it after ports_allow, with ranges of whole blocks, before the first address is added.
    """
    cdef uint32_t i
    ports.block_size = block_size
    ports.block_count = ports.range_size // block_size
    for i in range(ports.range_size):
        ports.block_of[ports.allowed[i]] = <uint16_t>(i // block_size)
    return not assigned or blocks_new(&ports.blocks, ports.capacity, ports.block_count)


cdef inline uint32_t nth_port(const Ports* ports, uint32_t n) noexcept nogil:
    """The n-th port of the ranges; a contiguous range needs no lookup."""
    cdef uint32_t port = ports.allowed[0] + n
    return port if ports.contiguous else ports.allowed[n]


cdef inline bint address_has_key(const void* ports, uint32_t number, const void* ip) noexcept nogil:
    return (<const Ports*>ports).addresses[number].ip == (<const uint32_t*>ip)[0]


cdef uint32_t address_search(const Ports* ports, uint32_t ip) noexcept nogil:
    """address_find, within the range of all addresses."""
    return index_find(&ports.index, flow_hash(&ports.key, ip, 0, 0), address_has_key, ports, &ip)


cdef uint32_t address_add(Ports* ports, uint32_t ip, uint32_t eip) noexcept nogil:
    """Adds a reference to the outside address ip; its index, or NONE: limit or memory. eip: of a new one; another one's
    stays."""
    cdef uint32_t number = address_find(ports, ip)
    assert_held(ports.lock, "ports: address_add")
    if number != NONE:
        ports.addresses[number].references += 1
        return number
    if ports.live == ports.capacity:
        return NONE
    number = ports.count
    if ports.live < ports.count:
        number = 0
        while ports.addresses[number].memory != NULL:
            number += 1
    return number if address_open(ports, number, ip, eip) else NONE


cdef bint address_open(Ports* ports, uint32_t number, uint32_t ip, uint32_t eip) noexcept nogil:
    """Adds the outside address ip under an unused number, with one reference; False: no memory. It must be new."""
    cdef uint32_t space
    cdef Address* address
    cdef PortMap* map
    cdef uint8_t* at
    assert_held(ports.lock, "ports: address_open")
    address = &ports.addresses[number]
    at = <uint8_t*>table_new(PORT_SPACES * MAP_BYTES)
    if at == NULL:
        return False
    if not (blocks_add(&ports.blocks, number) and index_insert(&ports.index, flow_hash(&ports.key, ip, 0, 0), number)):
        blocks_drop(&ports.blocks, &ports.key, number)
        table_delete(at, PORT_SPACES * MAP_BYTES)
        return False
    if number >= ports.count:
        store_relaxed(&ports.count, number + 1)
    address.ip = ip
    ports.lowest = min(ports.lowest, bswap32(ip))
    ports.highest = max(ports.highest, bswap32(ip))
    address.eip = eip
    address.references = 1
    address.memory = at
    ports.live += 1
    for space in range(PORT_SPACES):
        map = &address.maps[space]
        map.cells = <uint32_t*>at
        map.owners = <uint32_t*>(at + PORTS * 4)
        map.used = <uint64_t*>(at + PORTS * 8)
        map.held = <uint64_t*>(at + PORTS * 8 + BITMAP_BYTES)
        map.held_by = <uint16_t*>(at + PORTS * 8 + BITMAP_BYTES * 2)
        map.workers = at + PORTS * 8 + BITMAP_BYTES * 2 + OWNER_SLOTS * 2
        map.taken_in = <uint32_t*>(at + PORTS * 9 + BITMAP_BYTES * 2 + OWNER_SLOTS * 2)
        map.address = number
        map.free = ports.range_size
        map.held_count = map.next_word = map.words_left = map.reserved = map.warned = 0
        if map.free:
            mark_address_free(ports, map, 1)
        at += MAP_BYTES
    return True


cdef bint address_drop(Ports* ports, uint32_t number) noexcept nogil:
    """Drops a reference; True: that was the last one and the address is removed. Its mappings must have ended."""
    cdef Address* address = &ports.addresses[number]
    cdef uint32_t space, block
    cdef BlockPlace place
    assert_held(ports.lock, "ports: address_drop")
    address.references -= 1
    if address.references:
        return False
    index_remove(&ports.index, flow_hash(&ports.key, address.ip, 0, 0), number)
    for block in range(ports.blocks.per_address):
        if ports.blocks.of[number][block].taken:            # its ports are held down
            place = place_of_block(ports, block_reference(number, block))
            released_row_write(&ports.blocks, block_reference(number, block), &place)
    blocks_drop(&ports.blocks, &ports.key, number)
    for space in range(PORT_SPACES):
        ports.addresses_free_count[space] -= has_free_port(ports, space, number)
        ports.addresses_free[space][number >> 6] &= ~(<uint64_t>1 << (number & 63))
        ports.addresses_held[space][number >> 6] &= ~(<uint64_t>1 << (number & 63))
    table_delete(address.memory, PORT_SPACES * MAP_BYTES)
    table_delete(address.host, sizeof(HostPorts))
    address.memory = NULL
    address.host = NULL
    address.ip = 0
    ports.live -= 1
    while ports.count and ports.addresses[ports.count - 1].memory == NULL:  # as a gateway has it that is restored
        store_relaxed(&ports.count, ports.count - 1)
    return True


# ---- addresses that the gateway's host has too -----------------------------------------------------------------------

cdef bint address_share(Ports* ports, uint32_t number, const uint64_t* wanted) noexcept nogil:
    """The host has these TCP and UDP ports of the address: [HOST_SPACES][PORT_WORDS] bits. False: no memory.

    A port that a mapping or a DNAT entry has stays the gateway's; the next call may give it to the host.
    """
    cdef Address* address = &ports.addresses[number]
    cdef HostPorts* host = address.host
    cdef uint32_t space, word, port
    cdef uint64_t changed, bit
    assert_held(ports.lock, "ports: address_share")
    if host == NULL:
        host = <HostPorts*>table_new(sizeof(HostPorts))
        if host == NULL:
            return False
        address.host = host
    memcpy(host.wanted, wanted, sizeof(host.wanted))
    for space in range(HOST_SPACES):
        for word in range(PORT_WORDS):
            changed = host.now[space][word] ^ host.wanted[space][word]
            while changed:
                port = word * 64 + ctz64(changed)
                bit = changed & (0 - changed)
                changed ^= bit
                if not host.wanted[space][word] & bit:
                    ports_unreserve(ports, &address.maps[space], port, port)
                elif port_mapping(&address.maps[space], <uint16_t>port) == NONE:
                    ports_reserve(ports, &address.maps[space], port, port)
                    address.maps[space].cells[port] = PORT_OF_HOST
                else:
                    continue
                host.now[space][word] ^= bit
    return True


cdef void address_unshare(Ports* ports, uint32_t number) noexcept nogil:
    """The address is the gateway's alone again."""
    cdef uint64_t nothing[2 * 1024]
    cdef HostPorts* host = ports.addresses[number].host
    if host == NULL:
        return
    memset(nothing, 0, sizeof(nothing))
    address_share(ports, number, nothing)
    ports.addresses[number].host = NULL
    table_delete(host, sizeof(HostPorts))


cdef uint32_t owner_slot(uint32_t owner) noexcept nogil:
    return (owner * <uint32_t>2654435761) >> 20


cdef inline Block* block_under(const Ports* ports, const PortMap* map, uint32_t port) noexcept nogil:
    return block_at(&ports.blocks, block_reference(map.address, ports.block_of[port]))


cdef inline uint32_t space_at(const Ports* ports, const PortMap* map) noexcept nogil:
    """The port space of a map."""
    return <uint32_t>(map - ports.addresses[map.address].maps)


cdef inline void count_free(Ports* ports, PortMap* map, uint32_t port, int by) noexcept nogil:
    """A port of the ranges became free (by: 1) or used (-1)."""
    cdef uint32_t one = <uint32_t>by << ((port & 1) << 4)
    map.taken_in[port >> 10] -= one
    map.taken_in[GROUPS + (port >> 13)] -= one
    map.free += by
    if map.free == (by > 0):                            # the first free port, or none left
        mark_address_free(ports, map, by)


cdef void mark_address_free(Ports* ports, const PortMap* map, int by) noexcept nogil:
    cdef uint32_t space = space_at(ports, map)
    store_relaxed64(&ports.addresses_free[space][map.address >> 6],
                    ports.addresses_free[space][map.address >> 6] ^ <uint64_t>1 << (map.address & 63))
    store_relaxed(&ports.addresses_free_count[space], ports.addresses_free_count[space] + by)


cdef inline void mark_address_held(Ports* ports, const PortMap* map) noexcept nogil:
    """Flips the held-down bit of an address: the first port was held down, or the last one freed."""
    ports.addresses_held[space_at(ports, map)][map.address >> 6] ^= <uint64_t>1 << (map.address & 63)


cdef void set_free(Ports* ports, PortMap* map, uint32_t port) noexcept nogil:
    """Frees a port that was in use or held down."""
    cdef uint32_t reference
    cdef BlockPlace place
    assert_spin(&ports.spin, ports.lock, "ports: set_free")
    store_relaxed64(&map.used[port >> 6], map.used[port >> 6] & ~(<uint64_t>1 << (port & 63)))
    count_free(ports, map, port, 1)
    if ports.blocks.per_address:
        reference = block_reference(map.address, ports.block_of[port])
        if block_count_down(&ports.blocks, &ports.key, reference):
            place = place_of_block(ports, reference)
            released_row_write(&ports.blocks, reference, &place)


cdef uint32_t end_hold_down(Ports* ports, PortMap* map, uint32_t port) noexcept nogil:
    """Ends a port's hold-down; when it would have ended."""
    assert_spin(&ports.spin, ports.lock, "ports: end_hold_down")
    map.held[port >> 6] &= ~(<uint64_t>1 << (port & 63))
    map.held_by[owner_slot(map.owners[port])] -= 1
    map.held_count -= 1
    if map.held_count == 0:
        mark_address_held(ports, map)
    return map.cells[port]


cdef void free_held(Ports* ports, PortMap* map, uint32_t port) noexcept nogil:
    """Frees a port that was held down."""
    end_hold_down(ports, map, port)
    set_free(ports, map, port)


cdef bint is_due(const Ports* ports, const PortMap* map, uint32_t now_ms) noexcept nogil:
    """Whether a hold-down may be over."""
    return map.held_count and <int>(ports.next_release[space_at(ports, map)][map.address] - now_ms) <= 0


cdef void reclaim(Ports* ports, PortMap* map, uint32_t* looks, uint32_t now_ms) noexcept nogil:
    """Frees ports with an expired hold-down. looks: held-down ports it may still examine; the next call continues there. A
    complete round finds when the next hold-down expires."""
    cdef uint32_t word, port, cost
    cdef uint64_t bits
    assert_spin(&ports.spin, ports.lock, "ports: reclaim")
    if not is_due(ports, map, now_ms):
        return
    if map.words_left == 0:
        map.words_left = PORT_WORDS
        map.soonest = now_ms + 0x7FFFFFFF
    while map.words_left and looks[0]:
        word = map.next_word
        bits = map.held[word]
        cost = 0
        while bits:
            port = word * 64 + ctz64(bits)
            bits &= bits - 1
            cost += 1
            if <int>(map.cells[port] - now_ms) <= 0:
                free_held(ports, map, port)
                cost += LOOKS_FREEING
            elif <int>(map.cells[port] - map.soonest) < 0:
                map.soonest = map.cells[port]
        looks[0] = looks[0] - cost if looks[0] > cost else 0
        map.next_word = (word + 1) & (PORT_WORDS - 1)
        map.words_left -= 1
    if map.words_left == 0:
        ports.next_release[space_at(ports, map)][map.address] = map.soonest


cdef void ports_reclaim(Ports* ports, uint32_t addresses, uint32_t looks, uint32_t now_ms) noexcept nogil:
    """Reclaims ports of the next `addresses` addresses, as far as looks reach (NO_LIMIT: all)."""
    cdef uint32_t left = min(addresses, ports.count), space, i
    cdef bint endless = looks == NO_LIMIT
    while left and looks:
        i = ports.reclaim_at if ports.reclaim_at < ports.count else 0
        for space in range(PORT_SPACES):
            if (ports.addresses_held[space][i >> 6] >> (i & 63)) & 1:
                reclaim(ports, &ports.addresses[i].maps[space], &looks, now_ms)
                looks = NO_LIMIT if endless else looks
        if looks:
            ports.reclaim_at = i + 1
        left -= 1


cdef inline bint is_held_for(const PortMap* map, uint32_t port, uint32_t owner) noexcept nogil:
    """Whether a port is held down for this owner."""
    return (map.held[port >> 6] >> (port & 63)) & 1 and map.owners[port] == owner


cdef inline uint64_t own_of_word(const PortMap* map, uint32_t word, uint32_t owner) noexcept nogil:
    """Bits of the ports of a word that are held down for this owner."""
    cdef const uint32_t* owners = &map.owners[word * 64]
    cdef uint64_t bits = map.held[word], own = 0
    cdef uint32_t i, some = 0
    if bits == 0:
        return 0
    for i in range(64):                                 # nearly always none: compare without branches
        some |= owners[i] == owner
    if some == 0:
        return 0
    while bits:
        i = ctz64(bits)
        if owners[i] == owner:
            own |= <uint64_t>1 << i
        bits &= bits - 1
    return own


cdef uint32_t held_for_owner(PortMap* map, uint32_t owner, uint64_t random) noexcept nogil:
    """A random port that is held down for this owner, which may reuse it at once (RFC 6888 REQ-8 withholds it from others);
    or NONE."""
    cdef uint32_t word, count = 0, found
    cdef uint64_t own
    if map.held_count == 0 or map.held_by[owner_slot(owner)] == 0:
        return NONE
    for word in range(PORT_WORDS):
        count += ones64(own_of_word(map, word, owner))
    if count == 0:
        return NONE
    found = in_ports(random, count)
    for word in range(PORT_WORDS):
        own = own_of_word(map, word, owner)
        if found < ones64(own):
            return word * 64 + nth_set(own, found)
        found -= ones64(own)
    return NONE


# ---- random choice of a free port ------------------------------------------------------------------------------------

cdef uint32_t nth_set(uint64_t bits, uint32_t n) noexcept nogil:
    """Position of the n-th set bit, from 0."""
    cdef uint32_t base = 0, ones = ones64(bits & 0xFFFFFFFFULL)
    if n >= ones:
        n -= ones
        base = 32
        bits >>= 32
    ones = ones64(bits & 0xFFFF)
    if n >= ones:
        n -= ones
        base += 16
        bits >>= 16
    while n:
        bits &= bits - 1
        n -= 1
    return base + ctz64(bits)


cdef inline uint64_t free_of_word(const Ports* ports, const PortMap* map, uint32_t word, uint64_t mask) noexcept nogil:
    return ports.ranges[word] & ~load_relaxed64(&map.used[word]) & mask


cdef inline uint32_t free_in(const Ports* ports, const PortMap* map, uint32_t at, uint64_t mask) noexcept nogil:
    """Free ports of a group or super with the parity that the word mask selects."""
    cdef uint32_t counts = ports.ports_in[at] - map.taken_in[at]
    return (counts & 0xFFFF if mask & 1 else 0) + (counts >> 16 if mask & 2 else 0)


cdef inline uint32_t next_own(const Ports* ports, uint32_t word, uint32_t worker) noexcept nogil:
    """The next word that this worker prefers, where a unit is a word (worker_preferring)."""
    if word % LANES + ports.workers < LANES:
        return word + ports.workers
    return (word | (LANES - 1)) + 1 + worker


cdef uint32_t pick_own(const Ports* ports, const PortMap* map, uint64_t mask, uint64_t random, uint32_t worker) noexcept nogil:
    """A free port among the words that this worker prefers; or NONE."""
    cdef uint32_t word = worker, count = 0, found, ones
    while word < PORT_WORDS:
        count += ones64(free_of_word(ports, map, word, mask))
        word = next_own(ports, word, worker)
    if count == 0:
        return NONE
    found = in_ports(random, count)
    word = worker
    ones = ones64(free_of_word(ports, map, word, mask))
    while found >= ones:
        found -= ones
        word = next_own(ports, word, worker)
        ones = ones64(free_of_word(ports, map, word, mask))
    return word * 64 + nth_set(free_of_word(ports, map, word, mask), found)


cdef uint32_t pick_counted(const Ports* ports, const PortMap* map, uint64_t mask, uint64_t random) noexcept nogil:
    """A free port, chosen by the counters of groups; or NONE."""
    cdef uint32_t count = 0, found, at, ones
    for at in range(GROUPS, GROUPS + SUPERS):
        count += free_in(ports, map, at, mask)
    if count == 0:
        return NONE
    found = in_ports(random, count)
    at = GROUPS
    ones = free_in(ports, map, at, mask)
    while found >= ones:
        found -= ones
        at += 1
        ones = free_in(ports, map, at, mask)
    at = (at - GROUPS) * 8
    ones = free_in(ports, map, at, mask)
    while found >= ones:
        found -= ones
        at += 1
        ones = free_in(ports, map, at, mask)
    at *= 16
    ones = ones64(free_of_word(ports, map, at, mask))
    while found >= ones:
        found -= ones
        at += 1
        ones = ones64(free_of_word(ports, map, at, mask))
    return at * 64 + nth_set(free_of_word(ports, map, at, mask), found)


cdef inline uint32_t probe(const Ports* ports, const PortMap* map, uint64_t mask, uint64_t* random,
                           uint32_t worker) noexcept nogil:
    """A free port among a few random tries; or NONE."""
    cdef uint32_t port, _try
    for _try in range(PROBES if ports.workers == 1 else PROBES * 4):
        port = nth_port(ports, in_ports(random[0], ports.range_size))
        if ((~load_relaxed64(&map.used[port >> 6]) & mask) >> (port & 63) & 1
                and (ports.workers == 1 or worker_preferring(ports, port) == worker)):
            return port
        random[0] = random_next(random[0])
    return NONE


cdef inline uint32_t pick(const Ports* ports, const PortMap* map, uint64_t mask, uint64_t random,
                          uint32_t worker) noexcept nogil:
    """A free port, each equally likely (RFC 6056); or NONE. Tries a few at random, then counts the free ones. Call it under
    the lock, which keeps counters and bitmap consistent.

    mask: acceptable ports of each word. With several workers each searches its preferred words first.
    """
    cdef uint32_t port = probe(ports, map, mask, &random, worker)
    if port != NONE:
        return port
    port = pick_own(ports, map, mask, random, worker) if ports.workers > 1 else NONE
    return pick_counted(ports, map, mask, random) if port == NONE else port


# ---- an address of a pool --------------------------------------------------------------------------------------------

cdef uint32_t address_try(const Ports* ports, uint32_t space, const Pool* pool, uint64_t* random) noexcept nogil:
    """A pool address with a free port, among a few random tries; or NONE."""
    cdef uint32_t _try, i
    for _try in range(2 * PROBES):
        i = pool.addresses[in_pool(random[0], pool.size)]
        if has_free_port(ports, space, i):
            return i
        random[0] = random_next(random[0])
    return NONE


cdef inline uint64_t free_addresses_of_word(const Ports* ports, uint32_t space, const Pool* pool, uint32_t word) noexcept nogil:
    """Bits of the pool addresses with a free port, in one word of the pool's bitmap."""
    return load_relaxed64(&ports.addresses_free[space][pool.first_word + word]) & pool.members[word]


cdef uint32_t address_pick(const Ports* ports, uint32_t space, const Pool* pool, uint64_t random) noexcept nogil:
    """A pool address with a free port, each equally likely; or NONE. Under the lock."""
    cdef uint32_t word = 0, count = 0, found, ones
    cdef uint32_t guess = address_try(ports, space, pool, &random)
    if guess != NONE or ports.addresses_free_count[space] == 0:
        return guess
    for word in range(pool.words):
        count += ones64(free_addresses_of_word(ports, space, pool, word))
    if count == 0:
        return NONE
    found = in_pool(random, count)
    for word in range(pool.words):
        ones = ones64(free_addresses_of_word(ports, space, pool, word))
        if found < ones:
            return (pool.first_word + word) * 64 + nth_set(free_addresses_of_word(ports, space, pool, word), found)
        found -= ones
    return NONE


cdef uint32_t address_due(const Ports* ports, uint32_t space, const Pool* pool, uint32_t start, uint32_t now_ms) noexcept nogil:
    """The first pool address from start on where a hold-down may be over; or NONE. Examines DUE_SEARCH_MOST."""
    cdef uint32_t step, i
    for step in range(min(pool.size, <uint32_t>DUE_SEARCH_MOST)):
        i = pool.addresses[start + step if start + step < pool.size else start + step - pool.size]
        if (ports.addresses_held[space][i >> 6] >> (i & 63)) & 1 and <int>(ports.next_release[space][i] - now_ms) <= 0:
            return i
    return NONE


cdef uint32_t pick_by_policy(const Ports* ports, const PortMap* map, uint32_t preferred, uint64_t random,
                             uint32_t worker) noexcept nogil:
    """A free port by the policy's preference; or NONE. preferred: the inside port, host order."""
    cdef uint32_t port = NONE
    if ports.policy == PORTS_PRESERVE and free_of_word(ports, map, preferred >> 6, <uint64_t>1 << (preferred & 63)):
        return preferred
    if ports.parity:
        port = pick(ports, map, <uint64_t>0xAAAAAAAAAAAAAAAAULL if preferred & 1 else <uint64_t>0x5555555555555555ULL,
                    random, worker)
    return pick(ports, map, <uint64_t>-1, random, worker) if port == NONE else port


cdef uint32_t port_predict(const Ports* ports, const PortMap* map, uint32_t preferred, uint64_t random,
                           uint32_t worker) noexcept nogil:
    """Predicts pick_by_policy without the lock, while other workers change the map; NONE: no prediction."""
    cdef uint64_t mask = <uint64_t>-1
    if ports.policy == PORTS_PRESERVE and free_of_word(ports, map, preferred >> 6, <uint64_t>1 << (preferred & 63)):
        return preferred
    if ports.parity:
        mask = <uint64_t>0xAAAAAAAAAAAAAAAAULL if preferred & 1 else <uint64_t>0x5555555555555555ULL
    return probe(ports, map, mask, &random, worker)


cdef inline void mark_used(Ports* ports, PortMap* map, uint32_t port) noexcept nogil:
    store_relaxed64(&map.used[port >> 6], map.used[port >> 6] | <uint64_t>1 << (port & 63))
    count_free(ports, map, port, -1)
    if ports.blocks.per_address:
        block_under(ports, map, port).ports += 1


cdef void port_use(Ports* ports, PortMap* map, uint32_t port) noexcept nogil:
    """Marks a free port as used; a block that contains it must be assigned already."""
    assert_spin(&ports.spin, ports.lock, "ports: port_use")
    mark_used(ports, map, port)


cdef uint32_t port_reuse(Ports* ports, PortMap* map, uint32_t port) noexcept nogil:
    """Marks a held-down port as used; until when it was held down, ms."""
    assert_spin(&ports.spin, ports.lock, "ports: port_reuse")
    return end_hold_down(ports, map, port)


cdef uint32_t allocate_random(Ports* ports, PortMap* map, uint64_t random) noexcept nogil:
    """allocate_from_map where the policy prefers no port and one is free (map.free), as for nearly all new mappings."""
    cdef uint32_t port = pick(ports, map, <uint64_t>-1, random, ports.allocating)
    assert_spin(&ports.spin, ports.lock, "ports: allocate_random")
    mark_used(ports, map, port)
    return port


cdef uint32_t allocate_from_map(Ports* ports, PortMap* map, uint32_t owner, uint32_t preferred, uint64_t random,
                                uint32_t now_ms,
                                uint32_t* until_ms) noexcept nogil:
    """Allocates a port (host order), the caller fills its cell; NONE: none is free for this owner.

    preferred: the inside port. until_ms: end of the hold-down that was lifted, to be restored if the port is released unused.
    """
    cdef uint32_t port
    assert_spin(&ports.spin, ports.lock, "ports: allocate_from_map")
    until_ms[0] = now_ms
    if map.free == 0 or ports.policy == PORTS_PRESERVE or ports.parity:
        # a port with an expired hold-down may be the preferred one
        reclaim(ports, map, &ports.looks, now_ms)
    if ports.policy == PORTS_PRESERVE and is_held_for(map, preferred, owner):
        until_ms[0] = port_reuse(ports, map, preferred)
        return preferred
    if map.free:
        port = pick_by_policy(ports, map, preferred, random, ports.allocating)
        port_use(ports, map, port)
        return port
    port = held_for_owner(map, owner, random)
    if port != NONE:
        until_ms[0] = port_reuse(ports, map, port)
    return port


cdef uint32_t ports_taken(const PortMap* map, uint32_t first, uint32_t last) noexcept nogil:
    """The first port of the range that is in use or reserved, or NONE; the host's can be reserved."""
    cdef uint32_t port, number
    for port in range(first, last + 1):
        number = port_mapping(map, <uint16_t>port)
        if number != NONE and number != PORT_OF_HOST:
            return port
    return NONE


cdef void ports_reserve(Ports* ports, PortMap* map, uint32_t first, uint32_t last) noexcept nogil:
    """Reserves ports that are not in use (ports_taken); a hold-down ends, and the host has them no more."""
    cdef uint32_t port
    assert_spin(&ports.spin, ports.lock, "ports: ports_reserve")
    for port in range(first, last + 1):
        if port_mapping(map, <uint16_t>port) == PORT_OF_HOST:
            map.cells[port] = PORT_RESERVED
            ports.addresses[map.address].host.now[space_at(ports, map)][port >> 6] &= ~(<uint64_t>1 << (port & 63))
            continue
        if (map.held[port >> 6] >> (port & 63)) & 1:
            free_held(ports, map, port)
        map.used[port >> 6] |= <uint64_t>1 << (port & 63)
        map.cells[port] = PORT_RESERVED
        if in_ranges(ports, port):
            count_free(ports, map, port, -1)
            map.reserved += 1


cdef void ports_unreserve(Ports* ports, PortMap* map, uint32_t first, uint32_t last) noexcept nogil:
    """Frees reserved ports, or gives them to the host that wants them."""
    cdef uint32_t port, space = space_at(ports, map)
    cdef HostPorts* host = ports.addresses[map.address].host if space < HOST_SPACES else NULL
    cdef uint64_t bit
    assert_spin(&ports.spin, ports.lock, "ports: ports_unreserve")
    for port in range(first, last + 1):
        bit = <uint64_t>1 << (port & 63)
        if host != NULL and host.wanted[space][port >> 6] & bit:
            map.cells[port] = PORT_OF_HOST
            host.now[space][port >> 6] |= bit
            continue
        map.used[port >> 6] &= ~(<uint64_t>1 << (port & 63))
        if in_ranges(ports, port):
            count_free(ports, map, port, 1)
            map.reserved -= 1


cdef void port_release(Ports* ports, PortMap* map, uint32_t port, uint32_t owner, uint32_t until_ms,
                       uint32_t now_ms) noexcept nogil:
    """Releases a port and holds it down until until_ms."""
    cdef uint64_t bit = <uint64_t>1 << (port & 63)
    assert_spin(&ports.spin, ports.lock, "ports: port_release")
    if <int>(until_ms - now_ms) <= 0:
        set_free(ports, map, port)
        return
    map.held[port >> 6] |= bit
    map.cells[port] = until_ms
    map.owners[port] = owner
    map.held_by[owner_slot(owner)] += 1
    if map.held_count == 0 or <int>(until_ms - ports.next_release[space_at(ports, map)][map.address]) < 0:
        ports.next_release[space_at(ports, map)][map.address] = until_ms
    if map.words_left and <int>(until_ms - map.soonest) < 0:   # a round may have passed it
        map.soonest = until_ms
    if map.held_count == 0:
        mark_address_held(ports, map)
    map.held_count += 1

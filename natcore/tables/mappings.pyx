"""Opens and closes mappings: the first pairs a subscriber with an outside address, closing the last one frees it."""
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from natcore.tables.port_allocation cimport (
    OVER_QUOTA, PortRequest, address_with_block, allocate_port, assign_port, unassign_port,
)
from natcore.tables.ports cimport (
    POOL_SEARCH_MOST, RECENT_KEPT, LOOKS, PORTS_BLOCK, PORTS_DETERMINISTIC, PORTS_OVERLOAD, PORTS_RANDOM, RecentAllocation,
    PortMap, Ports, address_due, address_pick, allocate_random, has_free_port, in_pool, owner_slot, random_after, random_take,
    space_of,
)
from natcore.base.compiler cimport bswap16, bswap32, likely, prefetch_write, unlikely
from natcore.base.sentinels cimport NONE
from natcore.base.hash_table cimport (
    bucket_of, index_delete, index_find, index_insert, index_new, index_remove,
)
from natcore.base.linked_list cimport Link, link, unlink
from natcore.base.lock_checker cimport assert_held
from natcore.base.pages cimport table_delete, table_new
from natcore.base.freelist cimport freelist_init, freelist_give, freelist_take
from natcore.base.spinlock cimport spin_lock, spin_unlock

cdef extern from * nogil:
    """
    #ifdef NATCORE_TESTING              /* remember allocations: the tests' oracle follows random choices (draws_since) */
    #define natcore_testing 1
    #else
    #define natcore_testing 0
    #endif
    """
    bint TESTING "natcore_testing"

cdef enum:
    ALLOCATION_ATTEMPTS = 4     # addresses of a pool where an allocation is attempted for one packet


cdef bint mappings_new(Mappings* table, uint32_t max_mappings, uint32_t max_subscribers, bint listed) noexcept nogil:
    """listed: keep a list of each subscriber's mappings, as quotas and port blocks need it."""
    table.mappings = <Mapping*>table_new(<uint64_t>max_mappings * sizeof(Mapping))
    table.subscribers = <Subscriber*>table_new(<uint64_t>max_subscribers * sizeof(Subscriber))
    freelist_init(&table.mapping_slots, table.mappings, sizeof(Mapping), max_mappings)
    freelist_init(&table.subscriber_slots, table.subscribers, sizeof(Subscriber), max_subscribers)
    table.by_subscriber = NULL
    table.cursors = NULL
    if listed and not lists_new(table, &table.by_subscriber, &table.cursors):
        return False
    return (table.mappings != NULL and table.subscribers != NULL and index_new(&table.by_inside, max_mappings)
            and index_new(&table.by_ip, max_subscribers))


cdef bint lists_new(const Mappings* table, Link** by_subscriber, MappingCursor** cursors) noexcept nogil:
    """Memory for lists of each subscriber's mappings; False: there is none."""
    by_subscriber[0] = <Link*>table_new(<uint64_t>table.mapping_slots.capacity * sizeof(Link))
    cursors[0] = <MappingCursor*>table_new(<uint64_t>table.subscriber_slots.capacity * sizeof(MappingCursor))
    if by_subscriber[0] != NULL and cursors[0] != NULL:
        return True
    lists_delete(table, by_subscriber[0], cursors[0])
    by_subscriber[0] = NULL
    cursors[0] = NULL
    return False


cdef void lists_delete(const Mappings* table, Link* by_subscriber, MappingCursor* cursors) noexcept nogil:
    table_delete(by_subscriber, <uint64_t>table.mapping_slots.capacity * sizeof(Link))
    table_delete(cursors, <uint64_t>table.subscriber_slots.capacity * sizeof(MappingCursor))


cdef void lists_begin(Mappings* table, Link* by_subscriber, MappingCursor* cursors) noexcept nogil:
    """Lists the mappings that there are, and those to come."""
    cdef uint32_t i
    assert_held(table.lock, "mappings: lists_begin")
    table.by_subscriber, table.cursors = by_subscriber, cursors
    for i in range(table.subscriber_slots.fresh):
        cursors[i].first = NONE
        cursors[i].examined = 0
    for i in range(table.mapping_slots.fresh):
        if not table.mappings[i].flags & (MAPPING_FREE | MAPPING_STATIC):
            link(by_subscriber, &cursors[table.mappings[i].subscriber].first, i)


cdef void mappings_delete(Mappings* table) noexcept nogil:
    table_delete(table.mappings, <uint64_t>table.mapping_slots.capacity * sizeof(Mapping))
    table_delete(table.subscribers, <uint64_t>table.subscriber_slots.capacity * sizeof(Subscriber))
    lists_delete(table, table.by_subscriber, table.cursors)
    table.mappings = NULL
    table.subscribers = NULL
    table.by_subscriber = NULL
    table.cursors = NULL
    index_delete(&table.by_inside)
    index_delete(&table.by_ip)


cdef void key_of(const Mapping* mapping, MappingKey* key) noexcept nogil:
    key.inside_ip = mapping.inside_ip
    key.remote_ip = mapping.remote_ip
    key.inside_port = mapping.inside_port
    key.remote_port = mapping.remote_port
    key.protocol = mapping.protocol
    key.flags = mapping.flags & (MAPPING_STATIC | MAPPING_PORTLESS)


cdef void mapping_prefetch_open(const Mappings* table, uint32_t inside_ip, uint16_t inside_port,
                                uint8_t protocol) noexcept nogil:
    """Prefetches what admitting a new session of an inside endpoint will read."""
    prefetch_write(bucket_of(&table.by_inside, flow_hash(&table.key, inside_ip, inside_port, protocol)))
    prefetch_write(bucket_of(&table.by_ip, flow_hash(&table.key, inside_ip, 0, 0)))


cdef void mapping_prefetch_close(const Mappings* table, uint32_t number) noexcept nogil:
    """Prefetches what closing a mapping will write; the mapping itself should be cached."""
    cdef const Mapping* mapping = &table.mappings[number]
    cdef const PortMap* map
    cdef MappingKey key
    key_of(mapping, &key)
    prefetch_write(bucket_of(&table.by_inside, mapping_hash(table, &key)))
    if mapping.flags & (MAPPING_STATIC | MAPPING_PORTLESS):
        return
    map = &table.ports.addresses[mapping.address].maps[space_of(mapping.protocol)]
    prefetch_write(&map.used[bswap16(mapping.outside_port) >> 6])
    prefetch_write(&map.cells[bswap16(mapping.outside_port)])
    prefetch_write(&table.subscribers[mapping.subscriber])


cdef inline bint mapping_has_key(const void* table, uint32_t number, const void* wanted) noexcept nogil:
    cdef const Mapping* mapping = &(<const Mappings*>table).mappings[number]
    cdef const MappingKey* key = <const MappingKey*>wanted
    return (mapping.inside_ip == key.inside_ip and mapping.inside_port == key.inside_port
            and mapping.remote_ip == key.remote_ip and mapping.remote_port == key.remote_port
            and mapping.protocol == key.protocol
            and (mapping.flags ^ key.flags) & (MAPPING_STATIC | MAPPING_DRAINING) == 0)


cdef uint32_t mapping_search(const Mappings* table, const MappingKey* key) noexcept nogil:
    """mapping_find, where its bucket has the hash or overflowed."""
    return index_find(&table.by_inside, mapping_hash(table, key), mapping_has_key, table, key)


cdef inline bint subscriber_has_key(const void* table, uint32_t number, const void* ip) noexcept nogil:
    return (<const Mappings*>table).subscribers[number].ip == (<const uint32_t*>ip)[0]


cdef uint32_t subscriber_find(const Mappings* table, uint32_t ip) noexcept nogil:
    """The subscriber with this address (big-endian), or NONE."""
    assert_held(table.lock, "mappings: subscriber_find")
    return index_find(&table.by_ip, flow_hash(&table.key, ip, 0, 0), subscriber_has_key, table, &ip)


cdef struct Allocated:              # result of a port allocation
    uint32_t address            # index of the outside address
    uint32_t until_ms           # end of the hold-down that was lifted for its owner; in the past: the port was free


cdef void request_of(const MappingKey* key, PortRequest* request) noexcept nogil:
    request.owner = key.inside_ip
    request.inside_port = key.inside_port
    request.remote_ip = key.remote_ip
    request.remote_port = key.remote_port
    request.protocol = key.protocol
    request.block = 0
    request.random = 0


cdef inline uint32_t allocate_from(Mappings* table, const MappingKey* key, PortRequest* request, uint32_t now_ms,
                                   Allocated* allocated) noexcept nogil:
    """Allocates a port of the chosen outside address; 0 for a protocol without ports; NONE, OVER_QUOTA: failed."""
    cdef Ports* ports = table.ports
    cdef PortMap* map = &ports.addresses[allocated.address].maps[space_of(request.protocol)]
    allocated.until_ms = now_ms
    if key.flags & MAPPING_PORTLESS:
        return 0
    if likely(ports.policy == PORTS_RANDOM and not ports.parity and map.free != 0):
        return allocate_random(ports, map, request.random)
    return allocate_port(table.ports, allocated.address, request, now_ms, &allocated.until_ms)


cdef uint32_t allocate_by_inside_address(Mappings* table, const MappingKey* key, const Pool* pool, PortRequest* request,
                                         uint32_t now_ms,
                                         Allocated* allocated) noexcept nogil:
    """RFC 7422: the inside address alone determines the outside address and the port block; portless protocols likewise."""
    cdef uint32_t host = bswap32(key.inside_ip) - pool.first
    allocated.address = pool.addresses[host // table.ports.block_count]
    request.block = host % table.ports.block_count
    return allocate_from(table, key, request, now_ms, allocated)


cdef uint32_t start_of(const Mappings* table, const Pool* pool, const PortRequest* request) noexcept nogil:
    """Where in the pool to begin for an owner: the address where it still has a block, otherwise random."""
    cdef uint32_t home = address_with_block(table.ports, request.owner), i
    if home != NONE:
        for i in range(pool.size):
            if pool.addresses[i] == home:
                return i
    return in_pool(request.random, pool.size)


cdef uint32_t allocate_by_pooling(Mappings* table, Subscriber* subscriber, const MappingKey* key, const Pool* pool,
                                  PortRequest* request, uint32_t now_ms, Allocated* allocated) noexcept nogil:
    """Allocates address and port: from the subscriber's paired address first, then from the pool. NONE: no port is free.

    OVER_QUOTA: the subscriber's quota is used up.
    """
    cdef uint32_t port
    cdef bint paired = subscriber.mappings and subscriber.entry == pool.entry
    if table.ports.policy == PORTS_DETERMINISTIC:
        return allocate_by_inside_address(table, key, pool, request, now_ms, allocated)
    if paired and table.pooling != POOLING_ARBITRARY and not pool.alone:
        allocated.address = subscriber.address
        port = allocate_from(table, key, request, now_ms, allocated)
        if port < OVER_QUOTA or table.pooling == POOLING_PAIRED:
            return port
    if key.flags & MAPPING_PORTLESS:
        allocated.address = pool.addresses[start_of(table, pool, request)]
        port = allocate_from(table, key, request, now_ms, allocated)
    elif table.ports.policy == PORTS_BLOCK or table.ports.policy == PORTS_OVERLOAD:
        port = allocate_in_turn(table, key, pool, request, now_ms, allocated)
    else:
        port = allocate_from_pool(table, key, pool, request, now_ms, allocated)
    if port < OVER_QUOTA and not paired:
        subscriber.address = allocated.address
        subscriber.entry = pool.entry
    return port


cdef uint32_t allocate_from_pool(Mappings* table, const MappingKey* key, const Pool* pool, PortRequest* request,
                                 uint32_t now_ms, Allocated* allocated) noexcept nogil:
    """Tries, in this order: an address with a free port; one where a hold-down is over; one with a port held down for this
    owner."""
    cdef Ports* ports = table.ports
    cdef uint32_t space = space_of(key.protocol), start = in_pool(request.random, pool.size), step, _try, port
    cdef const PortMap* map
    allocated.address = pool.addresses[start]
    if unlikely(not has_free_port(ports, space, allocated.address)):
        allocated.address = address_pick(ports, space, pool, request.random)
    if allocated.address != NONE:
        return allocate_from(table, key, request, now_ms, allocated)
    for _try in range(ALLOCATION_ATTEMPTS):
        allocated.address = address_due(ports, space, pool, start, now_ms)
        if allocated.address == NONE:
            break
        port = allocate_from(table, key, request, now_ms, allocated)
        if port != NONE:
            return port
    for step in range(min(pool.size, <uint32_t>POOL_SEARCH_MOST)):
        allocated.address = pool.addresses[start + step if start + step < pool.size else start + step - pool.size]
        map = &ports.addresses[allocated.address].maps[space]
        if map.held_count and map.held_by[owner_slot(request.owner)]:
            return allocate_from(table, key, request, now_ms, allocated)
    return NONE


cdef uint32_t allocate_in_turn(Mappings* table, const MappingKey* key, const Pool* pool, PortRequest* request, uint32_t now_ms,
                               Allocated* allocated) noexcept nogil:
    """Allocates where an address with free ports may have none for this owner: tries addresses in turn, from the owner's own
    or a random one on. Blocks: ALLOCATION_ATTEMPTS of those with a free block; overload, where a test is cheap:
    POOL_SEARCH_MOST."""
    cdef Ports* ports = table.ports
    cdef uint32_t start = start_of(table, pool, request), step, port, why = NONE
    cdef uint32_t tries = POOL_SEARCH_MOST if ports.policy == PORTS_OVERLOAD else ALLOCATION_ATTEMPTS
    for step in range(pool.size):
        allocated.address = pool.addresses[start + step if start + step < pool.size else start + step - pool.size]
        if (step and pool.size > POOL_SEARCH_MOST
                and not may_have_port(ports, space_of(key.protocol), allocated.address, now_ms)):
            continue
        port = allocate_from(table, key, request, now_ms, allocated)
        if port < OVER_QUOTA:
            return port
        why = port if port == OVER_QUOTA else why
        tries -= pool.size > POOL_SEARCH_MOST
        if tries == 0:
            break
    return why


cdef inline bint may_have_port(const Ports* ports, uint32_t space, uint32_t address, uint32_t now_ms) noexcept nogil:
    """Whether an address may have a port for an owner without ports there."""
    if ports.policy == PORTS_OVERLOAD:
        return True
    return (ports.blocks.free[address]
            or ((ports.addresses_held[space][address >> 6] >> (address & 63)) & 1
                and <int>(ports.next_release[space][address] - now_ms) <= 0))


cdef inline uint32_t insert_mapping(Mappings* table, const MappingKey* key, uint32_t entry, uint32_t outside_ip,
                                    uint16_t outside_port, uint32_t address, uint32_t subscriber) noexcept nogil:
    """Inserts the mapping; NONE: probe limit reached, the slot is free again."""
    cdef uint32_t number = freelist_take(&table.mapping_slots)
    cdef Mapping* mapping = &table.mappings[number]
    mapping.inside_ip = key.inside_ip
    mapping.remote_ip = key.remote_ip
    mapping.inside_port = key.inside_port
    mapping.remote_port = key.remote_port
    mapping.outside_ip = outside_ip
    mapping.outside_port = outside_port
    mapping.protocol = key.protocol
    mapping.flags = key.flags
    mapping.address = address
    mapping.entry = entry
    mapping.subscriber = subscriber
    mapping.sessions = mapping.opened_outside = 0
    mapping.first = NONE
    mapping.held_until = 0
    if index_insert(&table.by_inside, mapping_hash(table, key), number):
        return number
    mapping.flags = MAPPING_FREE
    freelist_give(&table.mapping_slots, number)
    return NONE


cdef uint32_t subscriber_join(Mappings* table, uint32_t ip) noexcept nogil:
    """Finds or adds the subscriber; NONE: probe limit reached. A slot must be free."""
    cdef uint32_t who = subscriber_find(table, ip)
    assert_held(table.lock, "mappings: subscriber_join")
    if who != NONE:
        return who
    who = freelist_take(&table.subscriber_slots)
    memset(&table.subscribers[who], 0, sizeof(Subscriber))
    table.subscribers[who].ip = ip
    if table.cursors != NULL:
        table.cursors[who].first = NONE
        table.cursors[who].examined = 0
    if index_insert(&table.by_ip, flow_hash(&table.key, ip, 0, 0), who):
        return who
    freelist_give(&table.subscriber_slots, who)
    return NONE


cdef inline bint is_removable(const Subscriber* subscriber, uint32_t now_ms) noexcept nogil:
    """Whether a subscriber can be removed: no mappings, and no rate counter of the current second that removal would reset."""
    return subscriber.mappings == 0 and not (subscriber.opened and now_ms - subscriber.second_ms < 1000)


cdef void subscriber_leave(Mappings* table, uint32_t who, uint32_t now_ms) noexcept nogil:
    """Removes a subscriber without mappings, now or in a later sweep."""
    cdef Subscriber* subscriber = &table.subscribers[who]
    assert_held(table.lock, "mappings: subscriber_leave")
    if is_removable(subscriber, now_ms):
        index_remove(&table.by_ip, flow_hash(&table.key, subscriber.ip, 0, 0), who)
        freelist_give(&table.subscriber_slots, who)
        subscriber.opened = 0
    elif subscriber.mappings == 0:
        table.lingering = True


cdef void subscribers_reap(Mappings* table, uint32_t lines, uint32_t now_ms) noexcept nogil:
    """Removes subscribers kept only for their rate counter once it expired; examines the next lines, one round at most."""
    cdef const Subscriber* subscriber
    assert_held(table.lock, "mappings: subscribers_reap")
    if table.reap_at == 0:
        if not table.lingering:
            return
        table.lingering = False
    while lines:
        if table.reap_at >= table.subscriber_slots.fresh:
            table.reap_at = 0
            return
        subscriber = &table.subscribers[table.reap_at]
        if subscriber.mappings == 0 and subscriber.opened:      # a free slot has none opened
            subscriber_leave(table, table.reap_at, now_ms)
        table.reap_at += 1
        lines -= 1


cdef inline void ports_lock(const Mappings* table) noexcept nogil:
    """Locks the ports on behalf of this worker, until ports_unlock."""
    spin_lock(&table.ports.spin)
    table.ports.allocating = table.worker


cdef inline void ports_unlock(const Mappings* table) noexcept nogil:
    spin_unlock(&table.ports.spin)


cdef inline void note_allocation(Ports* ports, const Mapping* mapping) noexcept nogil:
    cdef RecentAllocation* recent = &ports.recent[ports.allocations % RECENT_KEPT]
    recent.outside_ip = mapping.outside_ip
    recent.outside_port = mapping.outside_port
    ports.allocations += 1


cdef uint32_t mapping_open(Mappings* table, const MappingKey* key, const Pool* pool, uint32_t now_ms) noexcept nogil:
    """Opens a mapping without sessions. NONE: no port is free; OVER_QUOTA: the subscriber's quota is used up.

    Slots for mapping and subscriber must be free.
    """
    cdef uint32_t who = subscriber_join(table, key.inside_ip), number = NONE, port
    cdef Subscriber* subscriber
    cdef Allocated allocated
    cdef PortRequest request
    cdef bint assigned
    assert_held(table.lock, "mappings: mapping_open")
    if who == NONE:
        return NONE
    subscriber = &table.subscribers[who]
    request_of(key, &request)
    ports_lock(table)
    request.random = random_after(table.ports, 0)
    table.ports.looks = LOOKS
    port = allocate_by_pooling(table, subscriber, key, pool, &request, now_ms, &allocated)
    if port < OVER_QUOTA:   # a failed allocation consumes no random number: it may be repeated with all workers locked
        random_take(table.ports)
        number = insert_mapping(table, key, pool.entry, table.ports.addresses[allocated.address].ip, bswap16(<uint16_t>port),
                                allocated.address, who)
        if number != NONE:
            subscriber.mappings += 1
            if table.by_subscriber != NULL:
                link(table.by_subscriber, &table.cursors[who].first, number)
            table.mappings[number].held_until = allocated.until_ms
            assigned = key.flags & MAPPING_PORTLESS or assign_port(table.ports, allocated.address, &request, port, number)
            if TESTING and assigned:
                note_allocation(table.ports, &table.mappings[number])
            ports_unlock(table)
            if assigned:
                return number
            mapping_close(table, number, allocated.until_ms, now_ms)
            return NONE
        if not key.flags & MAPPING_PORTLESS:
            unassign_port(table.ports, allocated.address, &request, port, allocated.until_ms, now_ms)
    ports_unlock(table)
    subscriber_leave(table, who, now_ms)
    return OVER_QUOTA if port == OVER_QUOTA else NONE


cdef uint32_t mapping_open_static(Mappings* table, const MappingKey* key, uint32_t entry, uint32_t outside_ip,
                                  uint16_t outside_port, uint32_t address) noexcept nogil:
    """Opens a mapping with the outside endpoint that an entry defines; NONE: probe limit reached. A slot must be free."""
    assert_held(table.lock, "mappings: mapping_open_static")
    return insert_mapping(table, key, entry, outside_ip, outside_port, address, NONE)


cdef uint32_t mapping_open_given(Mappings* table, const MappingKey* key, uint32_t entry, uint32_t address,
                                 uint16_t outside_port, uint32_t now_ms) noexcept nogil:
    """Opens a mapping with the outside endpoint (port big-endian) that another gateway has allocated for it, and pairs its
    subscriber as that one did; the caller gives it its port. NONE: probe limit reached. Slots for mapping and subscriber must
    be free."""
    cdef uint32_t who = subscriber_join(table, key.inside_ip), number
    cdef Subscriber* subscriber
    assert_held(table.lock, "mappings: mapping_open_given")
    if who == NONE:
        return NONE
    number = insert_mapping(table, key, entry, table.ports.addresses[address].ip, outside_port, address, who)
    if number == NONE:
        subscriber_leave(table, who, now_ms)
        return NONE
    subscriber = &table.subscribers[who]
    if not (subscriber.mappings and subscriber.entry == entry):
        subscriber.address = address
        subscriber.entry = entry
    subscriber.mappings += 1
    if table.by_subscriber != NULL:
        link(table.by_subscriber, &table.cursors[who].first, number)
    return number


cdef void mapping_close(Mappings* table, uint32_t number, uint32_t until_ms, uint32_t now_ms) noexcept nogil:
    """Closes a mapping that has no sessions; its port is held down until until_ms."""
    cdef Mapping* mapping = &table.mappings[number]
    cdef MappingKey key
    cdef PortRequest request
    assert_held(table.lock, "mappings: mapping_close")
    key_of(mapping, &key)
    if not mapping.flags & (MAPPING_STATIC | MAPPING_PORTLESS):
        request_of(&key, &request)
        ports_lock(table)
        unassign_port(table.ports, mapping.address, &request, bswap16(mapping.outside_port), until_ms, now_ms)
        ports_unlock(table)
    remove_mapping(table, number, &key, now_ms)


cdef void mapping_remove(Mappings* table, uint32_t number, uint32_t now_ms) noexcept nogil:
    """Removes a mapping that has no sessions and was given no port."""
    cdef MappingKey key
    assert_held(table.lock, "mappings: mapping_remove")
    key_of(&table.mappings[number], &key)
    remove_mapping(table, number, &key, now_ms)


cdef inline void remove_mapping(Mappings* table, uint32_t number, const MappingKey* key, uint32_t now_ms) noexcept nogil:
    cdef Mapping* mapping = &table.mappings[number]
    index_remove(&table.by_inside, mapping_hash(table, key), number)
    if not mapping.flags & MAPPING_STATIC:
        table.subscribers[mapping.subscriber].mappings -= 1
        if table.by_subscriber != NULL:
            unlink(table.by_subscriber, &table.cursors[mapping.subscriber].first, number)
        subscriber_leave(table, mapping.subscriber, now_ms)
    mapping.flags = MAPPING_FREE
    freelist_give(&table.mapping_slots, number)


cdef uint32_t mapping_at(const Mappings* table, uint32_t address, uint32_t space, uint32_t port) noexcept nogil:
    """A mapping that uses the port (host order), or NONE. With overloaded ports this is a linear search."""
    cdef uint32_t i
    cdef const Mapping* mapping
    if table.ports.policy != PORTS_OVERLOAD:
        return table.ports.addresses[address].maps[space].cells[port]
    for i in range(table.mapping_slots.fresh):
        mapping = &table.mappings[i]
        if (not mapping.flags & (MAPPING_FREE | MAPPING_STATIC | MAPPING_PORTLESS) and mapping.address == address
                and space_of(mapping.protocol) == space and bswap16(mapping.outside_port) == port):
            return i
    return NONE


cdef void mappings_unpair(Mappings* table, uint32_t address) noexcept nogil:
    """Ends the pairing of all subscribers with an outside address; they may keep mappings of other entries."""
    cdef uint32_t i
    assert_held(table.lock, "mappings: mappings_unpair")
    for i in range(table.subscriber_slots.fresh):
        if table.subscribers[i].address == address:
            table.subscribers[i].entry = 0          # entries count from 1


assert sizeof(Mapping) == 48
assert sizeof(Subscriber) == 32

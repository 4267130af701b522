"""Opening and closing mappings: a subscriber's first one pairs it with an outside address, its last one frees it."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore._ports cimport Address, port_draw, port_release, ports_delete, ports_new, space_of
from natcore.flow cimport flow_hash
from natcore.hints cimport bswap16
from natcore.index cimport (
    NONE, Cursor, index_begin, index_delete, index_insert, index_new, index_next, index_remove,
)
from natcore.memory cimport table_delete, table_new
from natcore.random cimport random_below
from natcore.slab cimport NO_SLOT, slab_begin, slab_give, slab_take


cdef bint mappings_new(Mappings* table, uint32_t max_mappings, uint32_t max_subscribers,
                       uint32_t max_addresses) noexcept nogil:
    table.mappings = <Mapping*>table_new(<uint64_t>max_mappings * sizeof(Mapping))
    table.subscribers = <Subscriber*>table_new(<uint64_t>max_subscribers * sizeof(Subscriber))
    slab_begin(&table.mapping_slots, table.mappings, sizeof(Mapping), max_mappings)
    slab_begin(&table.subscriber_slots, table.subscribers, sizeof(Subscriber), max_subscribers)
    return (table.mappings != NULL and table.subscribers != NULL and index_new(&table.by_inside, max_mappings, 4)
            and index_new(&table.by_ip, max_subscribers, 4) and ports_new(&table.ports, max_addresses))


cdef void mappings_delete(Mappings* table) noexcept nogil:
    table_delete(table.mappings, <uint64_t>table.mapping_slots.capacity * sizeof(Mapping))
    table_delete(table.subscribers, <uint64_t>table.subscriber_slots.capacity * sizeof(Subscriber))
    table.mappings = NULL
    table.subscribers = NULL
    index_delete(&table.by_inside)
    index_delete(&table.by_ip)
    ports_delete(&table.ports)


cdef inline uint64_t inside_hash(const Mappings* table, uint32_t ip, uint16_t port, uint8_t protocol) noexcept nogil:
    return flow_hash(&table.key, ip, port, protocol)


cdef uint32_t mapping_find(const Mappings* table, uint32_t inside_ip, uint16_t inside_port,
                           uint8_t protocol) noexcept nogil:
    """The endpoint-independent mapping of an inside endpoint (RFC 4787 REQ-1), or NONE."""
    cdef Cursor cursor
    cdef uint32_t number
    cdef const Mapping* mapping
    index_begin(&table.by_inside, inside_hash(table, inside_ip, inside_port, protocol), &cursor)
    while True:
        number = index_next(&table.by_inside, &cursor)
        if number == NONE:
            return NONE
        mapping = &table.mappings[number]
        if mapping.inside_ip == inside_ip and mapping.inside_port == inside_port and mapping.protocol == protocol:
            return number


cdef uint32_t subscriber_find(const Mappings* table, uint32_t ip) noexcept nogil:
    cdef Cursor cursor
    cdef uint32_t number
    index_begin(&table.by_ip, flow_hash(&table.key, ip, 0, 0), &cursor)
    while True:
        number = index_next(&table.by_ip, &cursor)
        if number == NONE or table.subscribers[number].ip == ip:
            return number


cdef bint mappings_have_room(const Mappings* table, uint32_t inside_ip) noexcept nogil:
    """Whether one more mapping of inside_ip has its slots."""
    if table.mapping_slots.live == table.mapping_slots.capacity:
        return False
    return (table.subscriber_slots.live < table.subscriber_slots.capacity
            or subscriber_find(table, inside_ip) != NONE)


cdef uint32_t draw_paired(Mappings* table, Subscriber* subscriber, uint32_t space, uint32_t entry,
                          const uint32_t* pool, uint32_t pool_size, uint32_t now_ms,
                          uint32_t* until_ms) noexcept nogil:
    """A port of the subscriber's address (RFC 4787 REQ-2), which a new one draws from the pool; NONE: nothing is free."""
    cdef uint32_t start, step, number, port
    if subscriber.mappings and subscriber.entry == entry:
        return port_draw(&table.ports, &table.ports.addresses[subscriber.address].maps[space], subscriber.ip, now_ms,
                         until_ms)
    start = random_below(&table.ports.random, pool_size)
    for step in range(pool_size):
        number = pool[start + step if start + step < pool_size else start + step - pool_size]
        port = port_draw(&table.ports, &table.ports.addresses[number].maps[space], subscriber.ip, now_ms, until_ms)
        if port != NONE:
            subscriber.address = number
            subscriber.entry = entry
            return port
    return NONE


cdef uint32_t mapping_open(Mappings* table, uint32_t inside_ip, uint16_t inside_port, uint8_t protocol, uint32_t entry,
                           const uint32_t* pool, uint32_t pool_size, uint32_t now_ms) noexcept nogil:
    """A new mapping without sessions; NONE when no port is free. Its slots must be there (mappings_have_room)."""
    cdef uint32_t who = subscriber_find(table, inside_ip), number, port, until_ms, space = space_of(protocol)
    cdef Subscriber* subscriber
    cdef Mapping* mapping
    cdef Address* address
    cdef bint fresh = who == NONE
    if fresh:
        who = slab_take(&table.subscriber_slots)
        subscriber = &table.subscribers[who]
        subscriber.ip = inside_ip
        subscriber.mappings = subscriber.sessions = 0
    subscriber = &table.subscribers[who]
    port = draw_paired(table, subscriber, space, entry, pool, pool_size, now_ms, &until_ms)
    number = NO_SLOT
    if port != NONE:
        number = slab_take(&table.mapping_slots)
    if port == NONE or (fresh and not index_insert(&table.by_ip, flow_hash(&table.key, inside_ip, 0, 0), who)):
        if port != NONE:
            port_release(&table.ports, &table.ports.addresses[subscriber.address].maps[space], port, inside_ip,
                         until_ms, now_ms)
            slab_give(&table.mapping_slots, number)
        if fresh:
            slab_give(&table.subscriber_slots, who)
        return NONE
    address = &table.ports.addresses[subscriber.address]
    address.maps[space].cells[port] = number
    subscriber.mappings += 1
    mapping = &table.mappings[number]
    mapping.inside_ip = inside_ip
    mapping.inside_port = inside_port
    mapping.outside_ip = address.ip
    mapping.outside_port = bswap16(<uint16_t>port)
    mapping.remote_ip = 0
    mapping.remote_port = 0
    mapping.protocol = protocol
    mapping.flags = 0
    mapping.address = subscriber.address
    mapping.entry = entry
    mapping.subscriber = who
    mapping.sessions = mapping.opened_outside = 0
    mapping.first = NONE
    mapping.held_until = until_ms
    if not index_insert(&table.by_inside, inside_hash(table, inside_ip, inside_port, protocol), number):
        mapping.flags = 1                           # not indexed: closing must not look for it
        mapping_close(table, number, until_ms, now_ms)
        return NONE
    return number


cdef void mapping_close(Mappings* table, uint32_t number, uint32_t until_ms, uint32_t now_ms) noexcept nogil:
    """Ends a mapping that has no session left; its port is held down until until_ms."""
    cdef Mapping* mapping = &table.mappings[number]
    cdef Subscriber* subscriber = &table.subscribers[mapping.subscriber]
    port_release(&table.ports, &table.ports.addresses[mapping.address].maps[space_of(mapping.protocol)],
                 bswap16(mapping.outside_port), mapping.inside_ip, until_ms, now_ms)
    if not mapping.flags & 1:
        index_remove(&table.by_inside, inside_hash(table, mapping.inside_ip, mapping.inside_port, mapping.protocol),
                     number)
    subscriber.mappings -= 1
    if subscriber.mappings == 0:
        index_remove(&table.by_ip, flow_hash(&table.key, subscriber.ip, 0, 0), mapping.subscriber)
        slab_give(&table.subscriber_slots, mapping.subscriber)
    mapping.protocol = 0
    slab_give(&table.mapping_slots, number)


cdef void mappings_unpair(Mappings* table, uint32_t address) noexcept nogil:
    """No subscriber draws from an outside address any more, though it has mappings of other entries."""
    cdef uint32_t i
    for i in range(table.subscriber_slots.fresh):
        if table.subscribers[i].address == address:
            table.subscribers[i].entry = 0          # entries count from 1


assert sizeof(Mapping) == 48
assert sizeof(Subscriber) == 32

"""One outside port for many remotes: each pair of an outside and a remote endpoint is one mapping's, in an index of its own.

Beside it, how many ports are taken towards a remote endpoint, of each part of the ports and of all: so a refusal is one
look-up, and the last free port is found without a look at all the others.
"""
from libc.stdint cimport uint32_t, uint64_t

from natcore.base.flow_hash cimport flow_hash
from natcore.base.compiler cimport bswap16
from natcore.base.numbers cimport NONE
from natcore.base.hash_table cimport index_delete, index_find, index_insert, index_new, index_remove
from natcore.base.pages cimport table_delete, table_new
from natcore.base.freelist cimport freelist_init, freelist_give, freelist_take


cdef bint overload_new(Overload* table, uint32_t capacity) noexcept nogil:
    """Tables for capacity mappings."""
    table.pairs = <EndpointPair*>table_new(<uint64_t>capacity * sizeof(EndpointPair))
    table.crowds = <Crowd*>table_new(<uint64_t>capacity * 2 * sizeof(Crowd))
    freelist_init(&table.slots, table.pairs, sizeof(EndpointPair), capacity)
    freelist_init(&table.crowd_slots, table.crowds, sizeof(Crowd), capacity * 2)
    return (table.pairs != NULL and table.crowds != NULL and index_new(&table.index, capacity)
            and index_new(&table.by_part, capacity * 2))


cdef void overload_delete(Overload* table) noexcept nogil:
    table_delete(table.pairs, <uint64_t>table.slots.capacity * sizeof(EndpointPair))
    table_delete(table.crowds, <uint64_t>table.crowd_slots.capacity * sizeof(Crowd))
    index_delete(&table.index)
    index_delete(&table.by_part)
    table.pairs = NULL


cdef uint64_t hash_of(const HashKey* key, const EndpointPair* ends) noexcept nogil:
    return flow_hash(key, <uint64_t>ends.outside_ip << 32 | ends.remote_ip,
                     <uint32_t>ends.outside_port << 16 | ends.remote_port, ends.protocol)


cdef inline bint pair_has_key(const void* table, uint32_t number, const void* wanted) noexcept nogil:
    cdef const EndpointPair* pair = &(<const Overload*>table).pairs[number]
    cdef const EndpointPair* ends = <const EndpointPair*>wanted
    return (pair.outside_ip == ends.outside_ip and pair.remote_ip == ends.remote_ip
            and pair.outside_port == ends.outside_port and pair.remote_port == ends.remote_port
            and pair.protocol == ends.protocol)


cdef uint32_t overload_find(const Overload* table, const HashKey* key, const EndpointPair* ends) noexcept nogil:
    """The pair of the two endpoints, or NONE."""
    return index_find(&table.index, hash_of(key, ends), pair_has_key, table, ends)


cdef inline uint32_t part_of(const EndpointPair* ends) noexcept nogil:
    return bswap16(ends.outside_port) // PART_PORTS


cdef uint64_t crowd_hash(const HashKey* key, const EndpointPair* ends, uint32_t part) noexcept nogil:
    return flow_hash(key, <uint64_t>ends.outside_ip << 32 | ends.remote_ip, part << 16 | ends.remote_port, ends.protocol)


cdef inline bint crowd_has_key(const void* table, uint32_t number, const void* wanted) noexcept nogil:
    cdef const Crowd* crowd = &(<const Overload*>table).crowds[number]
    cdef const Crowd* key = <const Crowd*>wanted
    return (crowd.outside_ip == key.outside_ip and crowd.remote_ip == key.remote_ip
            and crowd.remote_port == key.remote_port and crowd.part == key.part and crowd.protocol == key.protocol)


cdef uint32_t crowd_find(const Overload* table, const HashKey* key, const EndpointPair* ends, uint32_t part) noexcept nogil:
    """The count of a part (ALL_PARTS: of all) towards the remote endpoint, or NONE."""
    cdef Crowd wanted
    wanted.outside_ip = ends.outside_ip
    wanted.remote_ip = ends.remote_ip
    wanted.remote_port = ends.remote_port
    wanted.part = <uint16_t>part
    wanted.protocol = ends.protocol
    return index_find(&table.by_part, crowd_hash(key, ends, part), crowd_has_key, table, &wanted)


cdef uint32_t overload_taken(const Overload* table, const HashKey* key, const EndpointPair* ends, uint32_t part) noexcept nogil:
    """Number of ports of a part, or of ALL_PARTS, in use towards the remote endpoint."""
    cdef uint32_t number = crowd_find(table, key, ends, part)
    return 0 if number == NONE else table.crowds[number].taken


cdef bint crowd_join(Overload* table, const HashKey* key, const EndpointPair* ends, uint32_t part) noexcept nogil:
    """Counts one more port; False: probe limit reached."""
    cdef uint32_t number = crowd_find(table, key, ends, part)
    cdef Crowd* crowd
    if number == NONE:
        number = freelist_take(&table.crowd_slots)          # two per mapping: one is free
        crowd = &table.crowds[number]
        crowd.outside_ip = ends.outside_ip
        crowd.remote_ip = ends.remote_ip
        crowd.remote_port = ends.remote_port
        crowd.part = <unsigned short>part
        crowd.protocol = ends.protocol
        crowd.taken = 0
        if not index_insert(&table.by_part, crowd_hash(key, ends, part), number):
            freelist_give(&table.crowd_slots, number)
            return False
    table.crowds[number].taken += 1
    return True


cdef void crowd_leave(Overload* table, const HashKey* key, const EndpointPair* ends, uint32_t part) noexcept nogil:
    cdef uint32_t number = crowd_find(table, key, ends, part)
    table.crowds[number].taken -= 1
    if table.crowds[number].taken == 0:
        index_remove(&table.by_part, crowd_hash(key, ends, part), number)
        freelist_give(&table.crowd_slots, number)


cdef bint overload_enter(Overload* table, const HashKey* key, const EndpointPair* ends) noexcept nogil:
    """Assigns the pair to its mapping; False: probe limit reached."""
    cdef uint32_t number = freelist_take(&table.slots)      # as many as mappings: one is free
    table.pairs[number] = ends[0]
    if index_insert(&table.index, hash_of(key, ends), number):
        if crowd_join(table, key, ends, ALL_PARTS):
            if crowd_join(table, key, ends, part_of(ends)):
                return True
            crowd_leave(table, key, ends, ALL_PARTS)
        index_remove(&table.index, hash_of(key, ends), number)
    freelist_give(&table.slots, number)
    return False


cdef void overload_leave(Overload* table, const HashKey* key, const EndpointPair* ends) noexcept nogil:
    """Releases the endpoint pair if it is in use."""
    cdef uint32_t number = overload_find(table, key, ends)
    if number == NONE:
        return
    index_remove(&table.index, hash_of(key, ends), number)
    freelist_give(&table.slots, number)
    crowd_leave(table, key, ends, part_of(ends))
    crowd_leave(table, key, ends, ALL_PARTS)

"""One outside port for many remotes: each pair of an outside and a remote endpoint is one mapping's, in an index of its own.

Beside it, how many ports are taken towards a remote endpoint, of each part of the ports and of all: so a refusal is one
look-up, and the last free port is found without a look at all the others.
"""
from libc.stdint cimport uint32_t, uint64_t

from natcore.base.flow_hash cimport flow_hash
from natcore.base.compiler cimport bswap16
from natcore.base.sentinels cimport NONE
from natcore.base.hash_table cimport index_delete, index_find, index_insert, index_new, index_remove
from natcore.base.pages cimport table_delete, table_new
from natcore.base.freelist cimport freelist_init, freelist_give, freelist_take


cdef bint overload_new(Overload* table, uint32_t capacity) noexcept nogil:
    """Tables for capacity mappings."""
    table.pairs = <EndpointPair*>table_new(<uint64_t>capacity * sizeof(EndpointPair))
    table.remote_counts = <RemoteCount*>table_new(<uint64_t>capacity * 2 * sizeof(RemoteCount))
    freelist_init(&table.slots, table.pairs, sizeof(EndpointPair), capacity)
    freelist_init(&table.count_slots, table.remote_counts, sizeof(RemoteCount), capacity * 2)
    return (table.pairs != NULL and table.remote_counts != NULL and index_new(&table.index, capacity)
            and index_new(&table.by_part, capacity * 2))


cdef void overload_delete(Overload* table) noexcept nogil:
    table_delete(table.pairs, <uint64_t>table.slots.capacity * sizeof(EndpointPair))
    table_delete(table.remote_counts, <uint64_t>table.count_slots.capacity * sizeof(RemoteCount))
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


cdef uint64_t count_hash(const HashKey* key, const EndpointPair* ends, uint32_t part) noexcept nogil:
    return flow_hash(key, <uint64_t>ends.outside_ip << 32 | ends.remote_ip, part << 16 | ends.remote_port, ends.protocol)


cdef inline bint count_has_key(const void* table, uint32_t number, const void* wanted) noexcept nogil:
    cdef const RemoteCount* remote = &(<const Overload*>table).remote_counts[number]
    cdef const RemoteCount* key = <const RemoteCount*>wanted
    return (remote.outside_ip == key.outside_ip and remote.remote_ip == key.remote_ip
            and remote.remote_port == key.remote_port and remote.part == key.part and remote.protocol == key.protocol)


cdef uint32_t count_find(const Overload* table, const HashKey* key, const EndpointPair* ends, uint32_t part) noexcept nogil:
    """The count of a part (ALL_PARTS: of all) towards the remote endpoint, or NONE."""
    cdef RemoteCount wanted
    wanted.outside_ip = ends.outside_ip
    wanted.remote_ip = ends.remote_ip
    wanted.remote_port = ends.remote_port
    wanted.part = <uint16_t>part
    wanted.protocol = ends.protocol
    return index_find(&table.by_part, count_hash(key, ends, part), count_has_key, table, &wanted)


cdef uint32_t overload_taken(const Overload* table, const HashKey* key, const EndpointPair* ends, uint32_t part) noexcept nogil:
    """Number of ports of a part, or of ALL_PARTS, in use towards the remote endpoint."""
    cdef uint32_t number = count_find(table, key, ends, part)
    return 0 if number == NONE else table.remote_counts[number].taken


cdef bint count_join(Overload* table, const HashKey* key, const EndpointPair* ends, uint32_t part) noexcept nogil:
    """Counts one more port; False: probe limit reached."""
    cdef uint32_t number = count_find(table, key, ends, part)
    cdef RemoteCount* remote
    if number == NONE:
        number = freelist_take(&table.count_slots)          # two per mapping: one is free
        remote = &table.remote_counts[number]
        remote.outside_ip = ends.outside_ip
        remote.remote_ip = ends.remote_ip
        remote.remote_port = ends.remote_port
        remote.part = <unsigned short>part
        remote.protocol = ends.protocol
        remote.taken = 0
        if not index_insert(&table.by_part, count_hash(key, ends, part), number):
            freelist_give(&table.count_slots, number)
            return False
    table.remote_counts[number].taken += 1
    return True


cdef void count_leave(Overload* table, const HashKey* key, const EndpointPair* ends, uint32_t part) noexcept nogil:
    cdef uint32_t number = count_find(table, key, ends, part)
    table.remote_counts[number].taken -= 1
    if table.remote_counts[number].taken == 0:
        index_remove(&table.by_part, count_hash(key, ends, part), number)
        freelist_give(&table.count_slots, number)


cdef bint overload_add(Overload* table, const HashKey* key, const EndpointPair* ends) noexcept nogil:
    """Assigns the pair to its mapping; False: probe limit reached."""
    cdef uint32_t number = freelist_take(&table.slots)      # as many as mappings: one is free
    table.pairs[number] = ends[0]
    if index_insert(&table.index, hash_of(key, ends), number):
        if count_join(table, key, ends, ALL_PARTS):
            if count_join(table, key, ends, part_of(ends)):
                return True
            count_leave(table, key, ends, ALL_PARTS)
        index_remove(&table.index, hash_of(key, ends), number)
    freelist_give(&table.slots, number)
    return False


cdef void overload_remove(Overload* table, const HashKey* key, const EndpointPair* ends) noexcept nogil:
    """Releases the endpoint pair if it is in use."""
    cdef uint32_t number = overload_find(table, key, ends)
    if number == NONE:
        return
    index_remove(&table.index, hash_of(key, ends), number)
    freelist_give(&table.slots, number)
    count_leave(table, key, ends, part_of(ends))
    count_leave(table, key, ends, ALL_PARTS)

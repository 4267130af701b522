"""One outside port for many remotes: each pair of an outside and a remote endpoint is one mapping's, in an index of its own."""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from natcore.base.flow_hash cimport flow_hash
from natcore.base.hash_table cimport NONE, Cursor, index_begin, index_delete, index_insert, index_new, index_next, index_remove
from natcore.base.pages cimport table_delete, table_new
from natcore.base.freelist cimport slab_begin, slab_give, slab_take


cdef bint overload_new(Overload* table, uint32_t capacity) noexcept nogil:
    """Room for capacity mappings."""
    table.taken = <Taken*>table_new(<uint64_t>capacity * sizeof(Taken))
    table.full = <Full*>table_new(FULL_SLOTS * sizeof(Full))
    slab_begin(&table.slots, table.taken, sizeof(Taken), capacity)
    return table.taken != NULL and table.full != NULL and index_new(&table.index, capacity)


cdef void overload_delete(Overload* table) noexcept nogil:
    table_delete(table.taken, <uint64_t>table.slots.capacity * sizeof(Taken))
    table_delete(table.full, FULL_SLOTS * sizeof(Full))
    index_delete(&table.index)
    table.taken = NULL


cdef uint64_t hash_of(const HashKey* key, const Taken* ends) noexcept nogil:
    return flow_hash(key, <uint64_t>ends.outside_ip << 32 | ends.remote_ip,
                     <uint32_t>ends.outside_port << 16 | ends.remote_port, ends.protocol)


cdef uint32_t overload_find(const Overload* table, const HashKey* key, const Taken* ends) noexcept nogil:
    """Which of taken joins the two endpoints, or NONE."""
    cdef Cursor cursor
    cdef uint32_t number
    cdef const Taken* other
    index_begin(&table.index, hash_of(key, ends), &cursor)
    while True:
        number = index_next(&table.index, &cursor)
        if number == NONE:
            return NONE
        other = &table.taken[number]
        if (other.outside_ip == ends.outside_ip and other.remote_ip == ends.remote_ip
                and other.outside_port == ends.outside_port and other.remote_port == ends.remote_port
                and other.protocol == ends.protocol):
            return number


cdef bint overload_enter(Overload* table, const HashKey* key, const Taken* ends) noexcept nogil:
    """The pair is its mapping's; False when the probe limit is met."""
    cdef uint32_t number = slab_take(&table.slots)      # as many as mappings: there always is one
    table.taken[number] = ends[0]
    if index_insert(&table.index, hash_of(key, ends), number):
        return True
    slab_give(&table.slots, number)
    return False


cdef void overload_leave(Overload* table, const HashKey* key, const Taken* ends) noexcept nogil:
    """The pair is nobody's, if it was somebody's; its remote endpoint has something left."""
    cdef uint32_t number = overload_find(table, key, ends)
    if number == NONE:
        return
    index_remove(&table.index, hash_of(key, ends), number)
    slab_give(&table.slots, number)
    if overload_is_full(table, key, ends):
        full_slot(table, key, ends).in_use = 0


cdef Full* full_slot(const Overload* table, const HashKey* key, const Taken* ends) noexcept nogil:
    return &table.full[flow_hash(key, <uint64_t>ends.outside_ip << 32 | ends.remote_ip, ends.remote_port, ends.protocol)
                       & (FULL_SLOTS - 1)]


cdef bint overload_is_full(const Overload* table, const HashKey* key, const Taken* ends) noexcept nogil:
    """Whether a search found nothing for the remote endpoint, and nothing has ended since."""
    cdef const Full* full = full_slot(table, key, ends)
    return (full.in_use and full.outside_ip == ends.outside_ip and full.remote_ip == ends.remote_ip
            and full.remote_port == ends.remote_port and full.protocol == ends.protocol)


cdef void overload_note_full(Overload* table, const HashKey* key, const Taken* ends) noexcept nogil:
    cdef Full* full = full_slot(table, key, ends)
    full.outside_ip = ends.outside_ip
    full.remote_ip = ends.remote_ip
    full.remote_port = ends.remote_port
    full.protocol = ends.protocol
    full.in_use = 1


cdef void overload_forget_full(Overload* table) noexcept nogil:
    """More ports may be drawn than before."""
    memset(table.full, 0, FULL_SLOTS * sizeof(Full))

"""Fragment tables: allocated once, touched on use, bounded in every dimension.

Datagrams are listed in order of arrival, which is the order of their deadlines. Held frames are stored in chunks, so
that the bound is in bytes, whatever the length of a fragment.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from natcore.base.flow_hash cimport flow_hash
from natcore.base.sentinels cimport NONE
from natcore.base.hash_table cimport index_delete, index_find, index_insert, index_new, index_remove
from natcore.base.linked_list cimport Link, link, unlink
from natcore.base.lock_checker cimport assert_held
from natcore.base.pages cimport table_delete, table_new
from natcore.base.freelist cimport freelist_init, freelist_give, freelist_take
from natcore.base.headers cimport load64

cdef enum:
    WORDS = DATAGRAM_UNITS // 64


cdef struct Chunk:              # header of a chunk; a part of a held frame follows
    uint32_t next               # next chunk of the same frame, or NONE; in a free chunk the free list's link
    uint32_t after              # in a frame's first chunk: first chunk of the next held frame, or NONE
    uint32_t length             # in a frame's first chunk: bytes of the frame


cdef enum:
    CHUNK_DATA = CHUNK_BYTES - 12


cdef Fragments* fragments_new() noexcept nogil:
    """Tables for one gateway, indexed by Side, so that one side cannot use up the other's; timeout_ms is set by
    configure(). NULL: no memory."""
    cdef Fragments* tables = <Fragments*>table_new(2 * sizeof(Fragments))
    cdef uint32_t side
    if tables == NULL:
        return NULL
    for side in range(2):
        if not allocate_tables(&tables[side]):
            fragments_delete(tables)
            return NULL
    return tables


cdef bint allocate_tables(Fragments* table) noexcept nogil:
    table.datagrams = <Datagram*>table_new(DATAGRAMS * sizeof(Datagram))
    table.seen = <uint64_t*>table_new(DATAGRAMS * WORDS * 8)
    table.ranges = <FragmentRange*>table_new(DATAGRAMS * RANGES_KEPT * sizeof(FragmentRange))
    table.chunks = <uint8_t*>table_new(CHUNKS * CHUNK_BYTES)
    table.sources = <SourceCount*>table_new(SOURCES * sizeof(SourceCount))
    table.by_age = <Link*>table_new(DATAGRAMS * sizeof(Link))
    table.of_source = <Link*>table_new(DATAGRAMS * sizeof(Link))
    freelist_init(&table.slots, table.datagrams, sizeof(Datagram), DATAGRAMS)
    freelist_init(&table.chunk_slots, table.chunks, CHUNK_BYTES, CHUNKS)
    table.newest = NONE
    return index_new(&table.index, DATAGRAMS) and (table.datagrams != NULL and table.seen != NULL and table.ranges != NULL
                                                   and table.chunks != NULL and table.sources != NULL
                                                   and table.by_age != NULL and table.of_source != NULL)


cdef void fragments_delete(Fragments* tables) noexcept nogil:
    cdef Fragments* table
    cdef uint32_t side
    if tables == NULL:
        return
    for side in range(2):
        table = &tables[side]
        table_delete(table.datagrams, DATAGRAMS * sizeof(Datagram))
        table_delete(table.seen, DATAGRAMS * WORDS * 8)
        table_delete(table.ranges, DATAGRAMS * RANGES_KEPT * sizeof(FragmentRange))
        table_delete(table.chunks, CHUNKS * CHUNK_BYTES)
        table_delete(table.sources, SOURCES * sizeof(SourceCount))
        table_delete(table.by_age, DATAGRAMS * sizeof(Link))
        table_delete(table.of_source, DATAGRAMS * sizeof(Link))
        index_delete(&table.index)
    table_delete(tables, 2 * sizeof(Fragments))


# ---- datagrams -------------------------------------------------------------------------------------------------------

cdef uint64_t datagram_hash(const Fragments* table, uint8_t side, uint64_t addresses, uint8_t protocol,
                            uint16_t identification) noexcept nogil:
    return flow_hash(&table.key, addresses, <uint32_t>side << 16 | identification, protocol)


cdef inline bint datagram_has_key(const void* table, uint32_t number, const void* wanted) noexcept nogil:
    cdef const Datagram* datagram = &(<const Fragments*>table).datagrams[number]
    cdef const Datagram* key = <const Datagram*>wanted
    return (datagram.addresses == key.addresses and datagram.identification == key.identification
            and datagram.protocol == key.protocol and datagram.side == key.side)


cdef uint32_t datagram_find(const Fragments* table, uint8_t side, uint64_t addresses, uint8_t protocol,
                            uint16_t identification) noexcept nogil:
    """The datagram, or NONE."""
    cdef Datagram wanted
    assert_held(table.lock, "fragments: datagram_find")
    wanted.addresses = addresses
    wanted.identification = identification
    wanted.protocol = protocol
    wanted.side = side
    return index_find(&table.index, datagram_hash(table, side, addresses, protocol, identification),
                      datagram_has_key, table, &wanted)


cdef uint32_t datagram_open(Fragments* table, uint8_t side, uint64_t addresses, uint8_t protocol, uint16_t identification,
                            bint first, uint64_t now_ms) noexcept nogil:
    """Opens a datagram. first: its first fragment is here; otherwise it waits for it, within the limits.

    NONE: too many datagrams wait. At a limit the oldest datagram, of all or of the same source, is evicted, so that
    fragments that come in order always pass.
    """
    cdef uint64_t hash = datagram_hash(table, side, addresses, protocol, identification)
    cdef uint32_t number, source = <uint32_t>addresses
    cdef uint16_t cell = <uint16_t>(flow_hash(&table.key, source, side, 0) % SOURCES)
    cdef Datagram* datagram
    cdef SourceCount* own = &table.sources[cell]
    assert_held(table.lock, "fragments: datagram_open")
    if not first and (table.waiting >= DATAGRAMS_WAITING or own.waiting >= DATAGRAMS_WAITING_EACH):
        return NONE
    number = NONE
    if own.datagrams >= DATAGRAMS_EACH:
        number = table.of_source[own.newest].previous
    elif table.slots.live == DATAGRAMS:
        number = table.by_age[table.newest].previous
    if number != NONE:
        table.evicted += not datagram_is_over(table, number, now_ms)
        datagram_close(table, number)
    number = freelist_take(&table.slots)
    if not index_insert(&table.index, hash, number):
        freelist_give(&table.slots, number)
        return NONE
    datagram = &table.datagrams[number]
    memset(datagram, 0, sizeof(Datagram))
    datagram.addresses = addresses
    datagram.identification = identification
    datagram.protocol = protocol
    datagram.side = side
    datagram.since_ms = now_ms
    datagram.source = cell
    datagram.state = DATAGRAM_WAITING
    datagram.held = datagram.held_last = NONE
    if own.datagrams == 0:
        own.newest = NONE
    link(table.by_age, &table.newest, number)
    link(table.of_source, &own.newest, number)
    own.datagrams += 1
    table.waiting += 1
    own.waiting += 1
    return number


cdef uint32_t fragment_digest(const Fragments* table, const uint8_t* data, uint32_t length) noexcept nogil:
    """A keyed digest of a fragment's bytes; without the key, collisions cannot be constructed."""
    cdef uint64_t sum = table.key.low + length, word = 0
    while length >= 8:
        sum = (sum ^ load64(data)) * <uint64_t>0x9E3779B97F4A7C15
        sum ^= sum >> 29
        data += 8
        length -= 8
    memcpy(&word, data, length)
    sum = (sum ^ word ^ table.key.high) * <uint64_t>0xBF58476D1CE4E5B9
    return <uint32_t>(sum >> 32)


cdef bint datagram_has_fragment(const Fragments* table, uint32_t number, const FragmentRange* range_) noexcept nogil:
    """Whether the same fragment came before (offset, length and bytes). Only the first RANGES_KEPT are remembered."""
    cdef const FragmentRange* ranges = table.ranges + <size_t>number * RANGES_KEPT
    cdef uint32_t i
    for i in range(table.datagrams[number].ranges):
        if ranges[i].first == range_.first and ranges[i].units == range_.units and ranges[i].sum == range_.sum:
            return True
    return False


cdef bint datagram_mark_received(Fragments* table, uint32_t number, const FragmentRange* range_) noexcept nogil:
    """Marks a fragment as received. False: it overlaps another one, or contradicts the datagram's end; the marks are then
    unusable. The fragment must end at DATAGRAM_UNITS or before."""
    cdef Datagram* datagram = &table.datagrams[number]
    cdef uint64_t* seen = table.seen + <size_t>number * WORDS
    cdef uint32_t first = range_.first, units = range_.units & ~<uint32_t>RANGE_LAST
    cdef uint32_t after = first + units, word = (datagram.high + 63) // 64, words = (after + 63) // 64
    cdef uint64_t mask
    cdef bint last = range_.units & RANGE_LAST
    assert_held(table.lock, "fragments: datagram_mark_received")
    if datagram.end and (last or after > datagram.end) or last and datagram.high > after:
        return False
    if words > word:
        memset(seen + word, 0, (words - word) * 8)
    for word in range(first // 64, words):
        mask = <uint64_t>-1
        if word == first // 64:
            mask &= <uint64_t>-1 << (first % 64)
        if word == after // 64:
            mask &= (<uint64_t>1 << (after % 64)) - 1
        if seen[word] & mask:
            return False
        seen[word] |= mask
    datagram.units += <uint16_t>units
    if after > datagram.high:
        datagram.high = <uint16_t>after
    if last:
        datagram.end = <uint16_t>after
    if datagram.ranges < RANGES_KEPT:
        table.ranges[<size_t>number * RANGES_KEPT + datagram.ranges] = range_[0]
        datagram.ranges += 1
    return True


cdef void datagram_set_state(Fragments* table, uint32_t number, uint8_t state, uint8_t verdict) noexcept nogil:
    """Sets the datagram's state; it no longer waits for its first fragment."""
    cdef Datagram* datagram = &table.datagrams[number]
    assert_held(table.lock, "fragments: datagram_set_state")
    if datagram.state == DATAGRAM_WAITING:
        table.waiting -= 1
        table.sources[datagram.source].waiting -= 1
    datagram.state = state
    datagram.verdict = verdict


cdef void datagram_break(Fragments* table, uint32_t number, uint8_t verdict) noexcept nogil:
    """Drops the datagram's held frames and all its further fragments, until it times out."""
    while table.datagrams[number].held != NONE:
        datagram_pop_held(table, number, NULL)
        table.held_dropped += 1
    datagram_set_state(table, number, DATAGRAM_BROKEN, verdict)


cdef void datagram_close(Fragments* table, uint32_t number) noexcept nogil:
    """Removes the datagram; its held frames are dropped."""
    cdef Datagram* datagram = &table.datagrams[number]
    cdef SourceCount* own = &table.sources[datagram.source]
    assert_held(table.lock, "fragments: datagram_close")
    datagram_break(table, number, 0)
    index_remove(&table.index, datagram_hash(table, datagram.side, datagram.addresses, datagram.protocol,
                                             datagram.identification), number)
    unlink(table.by_age, &table.newest, number)
    unlink(table.of_source, &own.newest, number)
    own.datagrams -= 1
    freelist_give(&table.slots, number)


cdef bint datagram_is_over(const Fragments* table, uint32_t number, uint64_t now_ms) noexcept nogil:
    """Whether the datagram timed out."""
    return now_ms >= table.datagrams[number].since_ms + table.timeout_ms


cdef void fragments_expire(Fragments* table, uint64_t now_ms, uint32_t most) noexcept nogil:
    """Removes datagrams that timed out, the oldest first, `most` at most."""
    cdef uint32_t oldest
    assert_held(table.lock, "fragments: fragments_expire")
    while most and table.newest != NONE:
        oldest = table.by_age[table.newest].previous
        if not datagram_is_over(table, oldest, now_ms):
            return
        datagram_close(table, oldest)
        most -= 1


# ---- held frames -----------------------------------------------------------------------------------------------------

cdef inline Chunk* chunk_at(const Fragments* table, uint32_t number) noexcept nogil:
    return <Chunk*>(table.chunks + <size_t>number * CHUNK_BYTES)


cdef bint datagram_hold(Fragments* table, uint32_t number, const uint8_t* frame, uint32_t length) noexcept nogil:
    """Stores a copy of the frame; False: a limit of the source, the datagram or the table is reached."""
    cdef Datagram* datagram = &table.datagrams[number]
    cdef uint32_t need = (length + CHUNK_DATA - 1) // CHUNK_DATA, first = NONE, last = NONE, at, done = 0, part
    assert_held(table.lock, "fragments: datagram_hold")
    if (need > CHUNKS - table.chunk_slots.live or table.sources[datagram.source].chunks + need > CHUNKS_EACH
            or datagram.held_count == FRAGMENTS_HELD):
        return False
    while done < length:
        at = freelist_take(&table.chunk_slots)
        if last == NONE:
            first = at
        else:
            chunk_at(table, last).next = at
        last = at
        part = length - done if length - done < CHUNK_DATA else CHUNK_DATA
        memcpy(chunk_at(table, at) + 1, frame + done, part)
        done += part
    chunk_at(table, last).next = NONE
    chunk_at(table, first).after = NONE
    chunk_at(table, first).length = length
    if datagram.held_last == NONE:
        datagram.held = first
    else:
        chunk_at(table, datagram.held_last).after = first
    datagram.held_last = first
    datagram.held_count += 1
    table.sources[datagram.source].chunks += need
    return True


cdef uint32_t datagram_next_held(const Fragments* table, uint32_t number) noexcept nogil:
    """Length of the frame held longest, in bytes; 0: none is held."""
    cdef uint32_t first = table.datagrams[number].held
    return 0 if first == NONE else chunk_at(table, first).length


cdef uint32_t datagram_next_length(const Fragments* table, uint32_t held) noexcept nogil:
    """Length of a held frame, in bytes. held: Datagram.held, or what datagram_copy_held returned."""
    return chunk_at(table, held).length


cdef uint32_t datagram_copy_held(const Fragments* table, uint32_t held, uint8_t* out) noexcept nogil:
    """Copies a held frame, which stays, to out unless that is NULL; the frame held next, or NONE."""
    cdef uint32_t at = held, left = chunk_at(table, held).length, part
    while at != NONE and out != NULL:
        part = left if left < CHUNK_DATA else CHUNK_DATA
        memcpy(out, chunk_at(table, at) + 1, part)
        out += part
        left -= part
        at = chunk_at(table, at).next
    return chunk_at(table, held).after


cdef void datagram_pop_held(Fragments* table, uint32_t number, uint8_t* out) noexcept nogil:
    """Removes the frame held longest, copying it to out unless that is NULL (dropped). One must be held."""
    cdef Datagram* datagram = &table.datagrams[number]
    cdef uint32_t at = datagram.held, next, left = chunk_at(table, at).length, part
    assert_held(table.lock, "fragments: datagram_pop_held")
    datagram.held = chunk_at(table, at).after
    if datagram.held == NONE:
        datagram.held_last = NONE
    datagram.held_count -= 1
    while at != NONE:
        next = chunk_at(table, at).next
        part = left if left < CHUNK_DATA else CHUNK_DATA
        if out != NULL:
            memcpy(out, chunk_at(table, at) + 1, part)
            out += part
        left -= part
        table.sources[datagram.source].chunks -= 1
        freelist_give(&table.chunk_slots, at)
        at = next


assert sizeof(Datagram) == 64
assert sizeof(FragmentRange) == 8

"""The tables of fragments: allocated once, touched when used, never beyond their bounds.

Datagrams lie in a list in the order of their arrival, which is that of their deadlines. What waits is kept in chunks, so
that the bound is one of bytes, whatever a fragment's length.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from natcore.flow cimport flow_hash
from natcore.index cimport (
    NONE, Cursor, index_begin, index_delete, index_insert, index_new, index_next, index_remove,
)
from natcore.memory cimport table_delete, table_new
from natcore.slab cimport slab_begin, slab_give, slab_take

cdef enum:
    WORDS = DATAGRAM_UNITS // 64


cdef struct Chunk:              # a part of a frame that waits
    uint32_t next               # of the same frame, or NONE; the first word of a free one is the slab's
    uint32_t after              # in a frame's first: the first of the frame that came next, or NONE
    uint32_t length             # in a frame's first: bytes of the frame


cdef enum:
    CHUNK_ROOM = CHUNK_BYTES - 12


cdef Fragments* fragments_new(uint64_t timeout_ms) noexcept nogil:
    """Tables for one gateway; NULL without memory. timeout_ms: how long a datagram may be under way."""
    cdef Fragments* table = <Fragments*>table_new(sizeof(Fragments))
    if table == NULL:
        return NULL
    table.datagrams = <Datagram*>table_new(DATAGRAMS * sizeof(Datagram))
    table.seen = <uint64_t*>table_new(DATAGRAMS * WORDS * 8)
    table.chunks = <uint8_t*>table_new(CHUNKS * CHUNK_BYTES)
    table.sources = <SourceCount*>table_new(SOURCES * sizeof(SourceCount))
    slab_begin(&table.slots, table.datagrams, sizeof(Datagram), DATAGRAMS)
    slab_begin(&table.rooms, table.chunks, CHUNK_BYTES, CHUNKS)
    table.timeout_ms = timeout_ms
    table.oldest = table.newest = NONE
    if not index_new(&table.index, DATAGRAMS) or not (
            table.datagrams != NULL and table.seen != NULL and table.chunks != NULL and table.sources != NULL):
        fragments_delete(table)
        return NULL
    return table


cdef void fragments_delete(Fragments* table) noexcept nogil:
    if table == NULL:
        return
    table_delete(table.datagrams, DATAGRAMS * sizeof(Datagram))
    table_delete(table.seen, DATAGRAMS * WORDS * 8)
    table_delete(table.chunks, CHUNKS * CHUNK_BYTES)
    table_delete(table.sources, SOURCES * sizeof(SourceCount))
    index_delete(&table.index)
    table_delete(table, sizeof(Fragments))


# ---- datagrams -------------------------------------------------------------------------------------------------------

cdef uint64_t datagram_hash(const Fragments* table, uint8_t side, uint64_t addresses, uint8_t protocol,
                            uint16_t identification) noexcept nogil:
    return flow_hash(&table.key, addresses, <uint32_t>side << 16 | identification, protocol)


cdef uint32_t datagram_find(const Fragments* table, uint8_t side, uint64_t addresses, uint8_t protocol,
                            uint16_t identification) noexcept nogil:
    """The datagram, or NONE."""
    cdef Cursor cursor
    cdef uint32_t number
    cdef const Datagram* datagram
    index_begin(&table.index, datagram_hash(table, side, addresses, protocol, identification), &cursor)
    while True:
        number = index_next(&table.index, &cursor)
        if number == NONE:
            return NONE
        datagram = &table.datagrams[number]
        if (datagram.addresses == addresses and datagram.identification == identification
                and datagram.protocol == protocol and datagram.side == side):
            return number


cdef uint32_t datagram_open(Fragments* table, uint8_t side, uint64_t addresses, uint8_t protocol, uint16_t identification,
                            bint first, uint64_t now_ms) noexcept nogil:
    """A datagram of which nothing has come yet. first: its first fragment is here; else it waits, as far as there may.

    NONE: too many wait already. The oldest of all makes room where none is, so that fragments in order always pass.
    """
    cdef uint64_t hash = datagram_hash(table, side, addresses, protocol, identification)
    cdef uint32_t number, source = <uint32_t>addresses
    cdef uint16_t cell = <uint16_t>(flow_hash(&table.key, source, side, 0) % SOURCES)
    cdef Datagram* datagram
    if not first and (table.waiting >= DATAGRAMS_WAITING or table.sources[cell].datagrams >= DATAGRAMS_WAITING_EACH):
        return NONE
    if table.slots.live == DATAGRAMS:
        datagram_close(table, table.oldest)
    number = slab_take(&table.slots)
    if not index_insert(&table.index, hash, number):
        slab_give(&table.slots, number)
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
    datagram.held = datagram.held_last = datagram.newer = NONE
    datagram.older = table.newest
    if table.newest != NONE:
        table.datagrams[table.newest].newer = number
    else:
        table.oldest = number
    table.newest = number
    table.waiting += 1
    table.sources[cell].datagrams += 1
    return number


cdef bint datagram_mark(Fragments* table, uint32_t number, uint32_t first, uint32_t units, bint last) noexcept nogil:
    """Notes that units of 8 bytes from first on have come; False, and the marks are worth nothing: not all of them are new,
    or the datagram would have two ends. last: no more fragments follow these. first + units: DATAGRAM_UNITS at most."""
    cdef Datagram* datagram = &table.datagrams[number]
    cdef uint64_t* seen = table.seen + <size_t>number * WORDS
    cdef uint32_t after = first + units, word = (datagram.high + 63) // 64, words = (after + 63) // 64
    cdef uint64_t mask
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
    return True


cdef void datagram_settle(Fragments* table, uint32_t number, uint8_t state, uint8_t verdict) noexcept nogil:
    """It waits no more."""
    cdef Datagram* datagram = &table.datagrams[number]
    if datagram.state == DATAGRAM_WAITING:
        table.waiting -= 1
        table.sources[datagram.source].datagrams -= 1
    datagram.state = state
    datagram.verdict = verdict


cdef void datagram_break(Fragments* table, uint32_t number, uint8_t verdict) noexcept nogil:
    """Nothing of it passes from now on, until its time is over; what waits is given up."""
    while table.datagrams[number].held != NONE:
        datagram_take(table, number, NULL)
        table.given_up += 1
    datagram_settle(table, number, DATAGRAM_BROKEN, verdict)


cdef void datagram_close(Fragments* table, uint32_t number) noexcept nogil:
    """Forgets it; what waits is given up."""
    cdef Datagram* datagram = &table.datagrams[number]
    datagram_break(table, number, 0)
    index_remove(&table.index, datagram_hash(table, datagram.side, datagram.addresses, datagram.protocol,
                                             datagram.identification), number)
    if datagram.older != NONE:
        table.datagrams[datagram.older].newer = datagram.newer
    else:
        table.oldest = datagram.newer
    if datagram.newer != NONE:
        table.datagrams[datagram.newer].older = datagram.older
    else:
        table.newest = datagram.older
    slab_give(&table.slots, number)


cdef void fragments_expire(Fragments* table, uint64_t now_ms) noexcept nogil:
    """Forgets the datagrams whose time is over."""
    while table.oldest != NONE and now_ms >= table.datagrams[table.oldest].since_ms + table.timeout_ms:
        datagram_close(table, table.oldest)


# ---- what waits ------------------------------------------------------------------------------------------------------

cdef inline Chunk* chunk_at(const Fragments* table, uint32_t number) noexcept nogil:
    return <Chunk*>(table.chunks + <size_t>number * CHUNK_BYTES)


cdef bint datagram_hold(Fragments* table, uint32_t number, const uint8_t* frame, uint32_t length) noexcept nogil:
    """Keeps a copy of the frame; False: there is no room, for this source, in this datagram, or at all."""
    cdef Datagram* datagram = &table.datagrams[number]
    cdef uint32_t need = (length + CHUNK_ROOM - 1) // CHUNK_ROOM, first = NONE, last = NONE, at, done = 0, part
    if (need > CHUNKS - table.rooms.live or table.sources[datagram.source].chunks + need > CHUNKS_EACH
            or datagram.held_count == FRAGMENTS_HELD):
        return False
    while done < length:
        at = slab_take(&table.rooms)
        if last == NONE:
            first = at
        else:
            chunk_at(table, last).next = at
        last = at
        part = length - done if length - done < CHUNK_ROOM else CHUNK_ROOM
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


cdef uint32_t datagram_held(const Fragments* table, uint32_t number) noexcept nogil:
    """Bytes of the frame that waits longest; 0: none waits."""
    cdef uint32_t first = table.datagrams[number].held
    return 0 if first == NONE else chunk_at(table, first).length


cdef void datagram_take(Fragments* table, uint32_t number, uint8_t* out) noexcept nogil:
    """Moves the frame that waits longest to out; NULL: it is given up. One must wait."""
    cdef Datagram* datagram = &table.datagrams[number]
    cdef uint32_t at = datagram.held, next, left = chunk_at(table, at).length, part
    datagram.held = chunk_at(table, at).after
    if datagram.held == NONE:
        datagram.held_last = NONE
    datagram.held_count -= 1
    while at != NONE:
        next = chunk_at(table, at).next
        part = left if left < CHUNK_ROOM else CHUNK_ROOM
        if out != NULL:
            memcpy(out, chunk_at(table, at) + 1, part)
            out += part
        left -= part
        table.sources[datagram.source].chunks -= 1
        slab_give(&table.rooms, at)
        at = next


assert sizeof(Datagram) == 64

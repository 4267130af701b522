"""Gives the rows of the stream to a standby (peer_feed.pxd says how)."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from natcore.tables.mappings cimport Mapping
from natcore.tables.ports cimport PORT_WORDS, PortMap, Ports, ones64
from natcore.tables.sessions cimport ROLE_INSIDE, ROLE_OUTSIDE, ROLE_REMOTE, SESSION_FREE, Cold, Session, Sessions
from natcore.workers.peer_rows cimport PeerHeldDown, PeerRefresh, PeerSession
from natcore.workers.worker cimport Worker
from natcore.base.compiler cimport ctz64
from natcore.base.pages cimport table_delete, table_new

cdef enum:
    WORDS = 1 << 14             # of the bitmap that one call reads at most: a million slots


cdef bint feed_new(Feed* feed, Worker* worker) noexcept nogil:
    """Begins to note a worker's changes; False: out of memory. The worker must be locked, and have no other feed."""
    memset(feed, 0, sizeof(Feed))
    feed.worker = worker
    feed.capacity = worker.sessions.slots.capacity
    feed.words = (feed.capacity + 63) // 64
    feed.changed = <uint64_t*>table_new(<uint64_t>feed.words * 8)
    feed.seen = <uint32_t*>table_new(<uint64_t>feed.capacity * 4)
    feed.sent = <uint32_t*>table_new(<uint64_t>feed.capacity * 4)
    if feed.changed == NULL or feed.seen == NULL or feed.sent == NULL:
        feed_delete(feed)
        return False
    worker.sessions.changed = feed.changed
    return True


cdef void feed_delete(Feed* feed) noexcept nogil:
    """Ends it; the worker must be locked."""
    if feed.worker == NULL:
        return
    if feed.worker.sessions.changed == feed.changed:
        feed.worker.sessions.changed = NULL
    table_delete(feed.changed, <uint64_t>feed.words * 8)
    table_delete(feed.seen, <uint64_t>feed.capacity * 4)
    table_delete(feed.sent, <uint64_t>feed.capacity * 4)
    memset(feed, 0, sizeof(Feed))


cdef void feed_mark_all(Feed* feed) noexcept nogil:
    """The standby knows nothing: notes every session as changed, and no end."""
    cdef const Sessions* table = &feed.worker.sessions
    cdef uint32_t slot
    memset(feed.changed, 0, <size_t>feed.words * 8)
    for slot in range(table.slots.fresh):
        feed.sent[slot] = 0
        if not table.hot[slot].flags & SESSION_FREE:
            feed.changed[slot >> 6] |= <uint64_t>1 << (slot & 63)
    feed.word = feed.line = 0


cdef uint32_t feed_waiting(const Feed* feed) noexcept nogil:
    """How many slots changed since they were sent; read without the lock it is about right."""
    cdef uint32_t total = 0, word
    for word in range((feed.worker.sessions.slots.fresh + 63) // 64):
        total += ones64(feed.changed[word])
    return total


cdef uint32_t feed_ends(Feed* feed, uint32_t* rows, uint32_t most) noexcept nogil:
    """Takes slots of which the session, as it was sent, has ended, from the cursor on, and returns how many. The cursor is 0
    again when the pass is over; it stands where a word more would be too much."""
    cdef const Sessions* table = &feed.worker.sessions
    cdef uint32_t count = 0, slot, last = (table.slots.fresh + 63) // 64, words = WORDS
    cdef bint is_free
    cdef uint64_t bits
    while feed.word < last and words and count + 64 <= most:
        bits = feed.changed[feed.word]
        while bits:
            slot = feed.word * 64 + ctz64(bits)
            bits &= bits - 1
            is_free = table.hot[slot].flags & SESSION_FREE != 0
            if feed.sent[slot] and (is_free or feed.sent[slot] != table.cold[slot].id_low):
                rows[count] = slot
                count += 1
                feed.sent[slot] = 0
            if is_free:
                feed.changed[feed.word] &= ~(<uint64_t>1 << (slot & 63))
        feed.word += 1
        words -= 1
    if feed.word >= last:
        feed.word = 0
    return count


cdef inline void fill(const Sessions* table, uint32_t slot, PeerSession* row) noexcept nogil:
    cdef const Session* session = &table.hot[slot]
    cdef const Cold* cold = &table.cold[slot]
    cdef const Mapping* mapping = &table.mappings.mappings[cold.mapping]
    cdef uint64_t birth_ms = cold.birth_ns // 1000000
    row.slot = slot
    row.id_low, row.id_high = cold.id_low, cold.id_high
    row.flags, row.state, row.timeout_class = session.flags, session.state, session.timeout_class
    row.protocol, row.unused = session.protocol, 0
    row.mapping_flags = mapping.flags
    row.mapping_ip, row.mapping_port, row.unused_too = mapping.remote_ip, mapping.remote_port, 0
    row.inside_ip, row.remote_ip = session.ip[ROLE_INSIDE], session.ip[ROLE_REMOTE]
    row.outside_ip = session.ip[ROLE_OUTSIDE]
    row.inside_port, row.remote_port = session.port[ROLE_INSIDE], session.port[ROLE_REMOTE]
    row.outside_port = session.port[ROLE_OUTSIDE]
    row.birth_low, row.birth_high = <uint32_t>birth_ms, <uint16_t>(birth_ms >> 32)
    row.last_seen, row.entry = session.last_seen, mapping.entry
    memcpy(row.ack, session.ack, 16)                            # and end


cdef uint32_t feed_sessions(Feed* feed, PeerSession* rows, uint32_t most) noexcept nogil:
    """Takes sessions that changed, from the cursor on, and returns how many. A slot that became free since the first pass waits
    for the next cycle. The cursor as in feed_ends."""
    cdef const Sessions* table = &feed.worker.sessions
    cdef uint32_t count = 0, slot, last = (table.slots.fresh + 63) // 64, words = WORDS
    cdef uint64_t bits
    while feed.word < last and words and count + 64 <= most:
        bits = feed.changed[feed.word]
        while bits:
            slot = feed.word * 64 + ctz64(bits)
            bits &= bits - 1
            if not table.hot[slot].flags & SESSION_FREE:
                fill(table, slot, &rows[count])
                count += 1
                feed.seen[slot] = table.hot[slot].last_seen
                feed.sent[slot] = table.cold[slot].id_low
                feed.changed[feed.word] &= ~(<uint64_t>1 << (slot & 63))
        feed.word += 1
        words -= 1
    if feed.word >= last:
        feed.word = 0
    return count


cdef uint32_t feed_refreshes(Feed* feed, PeerRefresh* rows, uint32_t lines) noexcept nogil:
    """Takes the refreshes among the next lines, as many rows at most, and returns how many. The cursor `line` is 0 again when
    all lines were passed."""
    cdef const Sessions* table = &feed.worker.sessions
    cdef const Session* session
    cdef uint32_t count = 0, slot, last = table.slots.fresh
    while feed.line < last and lines:
        slot = feed.line
        session = &table.hot[slot]
        if (not session.flags & SESSION_FREE and session.last_seen != feed.seen[slot]
                and not (feed.changed[slot >> 6] >> (slot & 63)) & 1):
            rows[count].slot, rows[count].last_seen = slot, session.last_seen
            memcpy(rows[count].ack, session.ack, 16)            # and end
            feed.seen[slot] = session.last_seen
            count += 1
        feed.line += 1
        lines -= 1
    if feed.line >= last:
        feed.line = 0
    return count


cdef uint32_t feed_held_down(Ports* ports, uint32_t address, uint32_t space, PeerHeldDown* rows, uint32_t most) noexcept nogil:
    """Copies the ports of an outside address (by index) that are held down, at most `most`, and returns how many. The caller
    has locked the ports, or all workers."""
    cdef const PortMap* map = &ports.addresses[address].maps[space]
    cdef uint32_t word, port, count = 0
    cdef uint64_t bits
    if ports.addresses[address].memory == NULL or map.held_count == 0:
        return 0
    for word in range(PORT_WORDS):
        bits = map.held[word]
        while bits and count < most:
            port = word * 64 + ctz64(bits)
            bits &= bits - 1
            rows[count].outside_ip, rows[count].owner = ports.addresses[address].ip, map.owners[port]
            rows[count].until_ms, rows[count].port = map.cells[port], <uint16_t>port
            rows[count].space, rows[count].unused = <uint8_t>space, 0
            count += 1
    return count


assert sizeof(PeerSession) == 72
assert sizeof(PeerRefresh) == 24
assert sizeof(PeerHeldDown) == 16

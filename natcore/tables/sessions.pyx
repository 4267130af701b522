"""Opens and ends sessions; windows, rows and lists: all that happens less often than once per packet."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from natcore.log.journal cimport (
    RECORD_CREATE, RECORD_END, RECORD_OPENED_OUTSIDE, RECORD_WINDOW, Record, RowTap, journal_commit, journal_note_lost,
    journal_slot, label_us,
)
from natcore.tables.mappings cimport MAPPING_STATIC, Mapping, mapping_close
from natcore.tables.offload cimport (
    OFFLOAD_UNIT_SHIFT, Offload, OffloadEntry, OffloadUse, offload_tag_of, offload_take, offload_units,
)
from natcore.tables.ports cimport space_of
from natcore.base.checksum cimport combine, delta16, delta32
from natcore.base.compiler cimport (
    bswap16, bswap32, fetch_add64, load_relaxed64, prefetch_write, store_relaxed, store_release16, unlikely,
)
from natcore.base.sentinels cimport NONE
from natcore.base.serial_numbers cimport ahead
from natcore.base.hash_table cimport (
    bucket_of, index_delete, index_find, index_insert, index_new, index_remove,
)
from natcore.base.headers cimport PROTOCOL_ICMP, PROTOCOL_TCP
from natcore.base.linked_list cimport link, unlink
from natcore.base.pages cimport table_delete, table_new
from natcore.base.freelist cimport freelist_init, freelist_give, freelist_take
from natcore.base.spinlock cimport spin_lock, spin_unlock


cdef bint sessions_new(Sessions* table, uint32_t capacity, bint filters) noexcept nogil:
    """Tables for capacity sessions; filters: and as many filter entries."""
    table.hot = <Session*>table_new(<uint64_t>capacity * sizeof(Session))
    table.cold = <Cold*>table_new(<uint64_t>capacity * sizeof(Cold))
    table.syn = <uint32_t*>table_new(<uint64_t>capacity * 8)
    table.by_mapping = <Link*>table_new(<uint64_t>capacity * sizeof(Link))
    table.by_filter = <Link*>table_new(<uint64_t>capacity * sizeof(Link)) if filters else NULL
    freelist_init(&table.slots, table.hot, sizeof(Session), capacity)      # its capacity tells what to release
    table.filters = <Filter*>table_new(<uint64_t>capacity * sizeof(Filter)) if filters else NULL
    freelist_init(&table.filter_slots, table.filters, sizeof(Filter), capacity if filters else 0)
    if table.hot == NULL or table.cold == NULL or table.syn == NULL or table.by_mapping == NULL:
        return False
    if filters and (table.by_filter == NULL or table.filters == NULL or not index_new(&table.by_remote, capacity)):
        return False
    return index_new(&table.index[OUT], capacity) and index_new(&table.index[IN], capacity)


cdef void sessions_delete(Sessions* table, bint filters) noexcept nogil:
    cdef uint64_t capacity = table.slots.capacity
    table_delete(table.hot, capacity * sizeof(Session))
    table_delete(table.cold, capacity * sizeof(Cold))
    table_delete(table.syn, capacity * 8)
    table_delete(table.by_mapping, capacity * sizeof(Link))
    if filters:
        table_delete(table.by_filter, capacity * sizeof(Link))
        table_delete(table.filters, capacity * sizeof(Filter))
        index_delete(&table.by_remote)
    index_delete(&table.index[OUT])
    index_delete(&table.index[IN])
    table.hot = NULL


cdef uint64_t session_id(const Cold* cold) noexcept nogil:
    return <uint64_t>cold.id_high << 32 | cold.id_low


cdef uint64_t deadline_of(const Sessions* table, const Session* session, uint64_t now_ns) noexcept nogil:
    """When the session expires or expired, ns."""
    cdef uint64_t now_ms = now_ns // 1000000
    cdef uint64_t seen = now_ms - <uint32_t>(<uint32_t>now_ms - session.last_seen)
    return (seen + table.timeout_ms[session.timeout_class]) * 1000000


# ---- rows of the session log -----------------------------------------------------------------------------------------

cdef int64_t micros(const Sessions* table, uint64_t ns) noexcept nogil:
    """Unix microseconds, rounded down."""
    return label_us(<int64_t>load_relaxed64(<const uint64_t*>&table.epoch_ns), ns)


cdef uint64_t window_bytes(const Session* session, const Cold* cold, uint32_t direction) noexcept nogil:
    return (<uint64_t>cold.carry_bytes[direction] << 32) + session.bytes[direction]


cdef uint64_t window_packets(const Session* session, const Cold* cold, uint32_t direction) noexcept nogil:
    return (<uint64_t>cold.carry_packets[direction] << 32) + session.packets[direction]


cdef Record* row_begin(Sessions* table, uint32_t slot, uint8_t kind, uint64_t start_ns, uint64_t end_ns) noexcept nogil:
    """Begins a row of the session; NULL: the session is not logged, or the row is lost."""
    cdef Record* row
    if table.hot[slot].flags & UNLOGGED:
        return NULL
    row = journal_slot(table.journal, kind)
    if row != NULL:
        row_fill(table, slot, kind, start_ns, end_ns, row)
    else:
        journal_note_lost(table.journal, micros(table, start_ns), micros(table, end_ns), end_ns)
    return row


cdef void row_fill(const Sessions* table, uint32_t slot, uint8_t kind, uint64_t start_ns, uint64_t end_ns,
                   Record* row) noexcept nogil:
    cdef const Session* session = &table.hot[slot]
    cdef const Cold* cold = &table.cold[slot]
    memset(row, 0, sizeof(Record))
    row.start_time = micros(table, start_ns)
    row.end_time = micros(table, end_ns)
    row.session = session_id(cold)
    row.pri_ip = bswap32(session.ip[ROLE_INSIDE])
    row.pub_ip = bswap32(session.ip[ROLE_REMOTE])
    row.nat_ip = bswap32(session.ip[ROLE_OUTSIDE])
    row.eip = table.mappings.ports.addresses[table.mappings.mappings[cold.mapping].address].eip     # a logged session has one
    row.pri_port = bswap16(session.port[ROLE_INSIDE])
    row.pub_port = bswap16(session.port[ROLE_REMOTE])
    row.nat_port = bswap16(session.port[ROLE_OUTSIDE])
    row.protocol = session.protocol
    row.kind = kind
    row.flags = RECORD_OPENED_OUTSIDE if session.flags & OPENED_OUTSIDE else 0


cdef void window_fill(const Session* session, const Cold* cold, Record* row) noexcept nogil:
    row.bytes_from_vpc = window_bytes(session, cold, OUT)
    row.pkts_from_vpc = window_packets(session, cold, OUT)
    row.bytes_from_pub = window_bytes(session, cold, IN)
    row.pkts_from_pub = window_packets(session, cold, IN)


cdef bint window_copy(const Sessions* table, uint32_t slot, uint64_t now_ns, Record* row) noexcept nogil:
    """The row that the open window would become if it ended now; False: none."""
    cdef const Session* session = &table.hot[slot]
    cdef const Cold* cold = &table.cold[slot]
    assert_held(table.lock, "sessions: window_copy")
    if unlikely(table.offload != NULL):
        session_fold(<Sessions*>table, slot)
    if session.flags & (SESSION_FREE | NO_WINDOW | UNLOGGED):
        return False
    row_fill(table, slot, RECORD_WINDOW, cold.window_start_ns, now_ns, row)
    window_fill(session, cold, row)
    return True


cdef void window_write(Sessions* table, uint32_t slot, uint64_t end_ns) noexcept nogil:
    """Closes the open window, if any: writes its row and adds its counters to the totals."""
    cdef Session* session = &table.hot[slot]
    cdef Cold* cold = &table.cold[slot]
    cdef uint64_t limit = cold.window_start_ns + table.window_ns
    cdef Record* row
    cdef uint32_t direction
    assert_held(table.lock, "sessions: window_write")
    if unlikely(table.offload != NULL):
        suspend(table, slot)
        end_ns = max(end_ns, cold.window_start_ns)  # where a late packet has just opened the window
    if session.flags & NO_WINDOW:
        return
    row = row_begin(table, slot, RECORD_WINDOW, cold.window_start_ns, end_ns if end_ns < limit else limit)
    if row != NULL:
        window_fill(session, cold, row)
        journal_commit(table.journal)
    for direction in range(2):
        cold.total_bytes[direction] += window_bytes(session, cold, direction)
        cold.total_packets[direction] += window_packets(session, cold, direction)
        session.bytes[direction] = session.packets[direction] = 0
        cold.carry_bytes[direction] = 0
        cold.carry_packets[direction] = 0
    session.flags |= NO_WINDOW


cdef inline void window_open(const Sessions* table, Session* session, Cold* cold, uint64_t now_ns) noexcept nogil:
    cold.window_start_ns = now_ns
    session.window_end = <uint16_t>((now_ns + table.window_ns) // 1000000000)


cdef void window_roll(Sessions* table, uint32_t slot, uint64_t now_ns) noexcept nogil:
    """Call before counting a packet: closes an expired window, opens one if none is open."""
    cdef Session* session = &table.hot[slot]
    cdef Cold* cold = &table.cold[slot]
    assert_held(table.lock, "sessions: window_roll")
    if not session.flags & NO_WINDOW:
        if now_ns < cold.window_start_ns + table.window_ns:
            return
        window_write(table, slot, now_ns)
    session.flags &= ~NO_WINDOW
    window_open(table, session, cold, now_ns)


# ---- offloaded sessions (offload.pxd) ----------------------------------------------------------------------------------

cdef uint32_t seen_ms(const Offload* offload, const OffloadEntry* entry) noexcept nogil:
    """When the program saw the entry's last packet, ms of the gateway's clock: at most its clock's lag and a unit later than it
    was, never later than the last batch."""
    cdef int age = <int>(offload_units(offload, offload.now_ns) - entry.last_seen - offload.lag) - 1
    return <uint32_t>((offload.now_ns - (<uint64_t>max(age, 0) << OFFLOAD_UNIT_SHIFT)) // 1000000)


cdef void fold_direction(Sessions* table, uint32_t slot, uint32_t direction, OffloadEntry* entry,
                         OffloadUse* use) noexcept nogil:
    """Adds to the session what the program has counted since the last call."""
    cdef Offload* offload = table.offload
    cdef Session* session = &table.hot[slot]
    cdef uint64_t left
    cdef uint32_t packets = offload_take(offload, entry, use, direction, &left), seen
    if packets == 0:
        return
    if session.flags & NO_WINDOW:                   # counted while the window was being closed
        window_roll(table, slot, offload.now_ns)
    while left > <uint32_t>-1:
        session_count(session, &table.cold[slot], direction, 0, <uint32_t>-1)
        left -= <uint32_t>-1
    session_count(session, &table.cold[slot], direction, packets, <uint32_t>left)
    seen = seen_ms(offload, entry)
    if <int>(seen - session.last_seen) > 0:
        session.last_seen = seen
    if session.protocol == PROTOCOL_TCP:
        session.end[direction] += ahead(entry.end, session.end[direction])
        session.ack[direction] += ahead(entry.ack, session.ack[direction])


cdef void session_fold(Sessions* table, uint32_t slot) noexcept nogil:
    """Brings an offloaded session up to date: counters, time of the last packet, TCP marks."""
    cdef Offload* offload = table.offload
    cdef uint32_t direction, number
    assert_held(table.lock, "sessions: session_fold")
    for direction in range(2):
        number = offload.of_slot[2 * <size_t>slot + direction]
        if number != NONE:
            fold_direction(table, slot, direction, &offload.entries[number], &offload.uses[number])


cdef bint is_dead_after_all(Sessions* table, uint32_t slot, uint32_t now_ms) noexcept nogil:
    """is_dead, once the session is up to date."""
    session_fold(table, slot)
    return is_dead(table, &table.hot[slot], now_ms)


cdef void sessions_fold(Sessions* table) noexcept nogil:
    """The same for all sessions."""
    cdef Offload* offload = table.offload
    cdef uint32_t slot
    if offload != NULL and offload.live:
        for slot in range(table.slots.fresh):
            session_fold(table, slot)


cdef void suspend(Sessions* table, uint32_t slot) noexcept nogil:
    """Brings the session up to date and takes its entries out of force until its next packet, which opens a window."""
    cdef Offload* offload = table.offload
    cdef uint32_t direction, number
    for direction in range(2):
        number = offload.of_slot[2 * <size_t>slot + direction]
        if number != NONE:
            store_relaxed(&offload.entries[number].generation, offload.generation[0] - 1)
    session_fold(table, slot)


cdef void session_recall(Sessions* table, uint32_t slot) noexcept nogil:
    """Takes the session back from the program: all its packets come the ordinary way."""
    cdef Offload* offload = table.offload
    cdef uint32_t direction, number
    if offload.of_slot[2 * <size_t>slot] == NONE and offload.of_slot[2 * <size_t>slot + 1] == NONE:
        return
    suspend(table, slot)
    offload.sessions -= 1
    for direction in range(2):
        number = offload.of_slot[2 * <size_t>slot + direction]
        if number != NONE:
            store_release16(offload_tag_of(offload, number), 0)
            offload.uses[number].slot = NONE
            offload.uses[number].recalled = offload.epoch
            offload.of_slot[2 * <size_t>slot + direction] = NONE
            offload.live -= 1
            offload.recalled = True


# ---- lists of sessions -----------------------------------------------------------------------------------------------

cdef uint8_t life_of(Sessions* table, Link* links, uint32_t* first, bint answered, uint32_t now_ms) noexcept nogil:
    """Searches a list for a live session (Life) and moves it to the front, so that the next search finds it at once.

    answered: ignore sessions opened from outside that the inside has not answered.
    """
    cdef uint32_t slot = first[0], left = EXAMINED_MOST
    assert_held(table.lock, "sessions: life_of")
    if slot == NONE:
        return LIFE_NONE
    while left:
        if (not is_over(table, slot, now_ms)
                and not (answered and table.hot[slot].timeout_class == TIMEOUT_UNREPLIED)):
            if slot != first[0]:
                unlink(links, first, slot)
                link(links, first, slot)
            return LIFE_SOME
        slot = links[slot].next
        if slot == first[0]:
            return LIFE_NONE
        left -= 1
    return LIFE_UNKNOWN


cdef uint8_t mapping_life(Sessions* table, uint32_t number, uint32_t now_ms) noexcept nogil:
    """Whether the mapping has a live session (Life)."""
    return life_of(table, table.by_mapping, &table.mappings.mappings[number].first, False, now_ms)


cdef bint mapping_answered(Sessions* table, uint32_t number, uint32_t now_ms) noexcept nogil:
    """Whether the mapping has a live session that the inside opened or answered, among those examined."""
    return life_of(table, table.by_mapping, &table.mappings.mappings[number].first, True, now_ms) == LIFE_SOME


# ---- filter entries (address-dependent filtering) --------------------------------------------------------------------

cdef inline bint filter_has_key(const void* table, uint32_t number, const void* wanted) noexcept nogil:
    cdef const Filter* entry = &(<const Sessions*>table).filters[number]
    cdef const Filter* key = <const Filter*>wanted
    return (entry.remote_ip == key.remote_ip and entry.outside_ip == key.outside_ip
            and entry.outside_port == key.outside_port and entry.protocol == key.protocol)


cdef uint32_t filter_find(const Sessions* table, const Filter* key) noexcept nogil:
    """The entry of a remote address and an outside endpoint, or NONE."""
    assert_held(table.lock, "sessions: filter_find")
    return index_find(&table.by_remote, filter_hash(table, key), filter_has_key, table, key)


cdef bint filter_open(Sessions* table, uint32_t remote_ip, uint32_t outside_ip, uint16_t outside_port, uint8_t protocol,
                      bint answered, uint32_t now_ms) noexcept nogil:
    """Whether a live session connects the outside endpoint and the remote address (RFC 4787 section 5). answered: only one
    that the inside opened or answered."""
    cdef Filter key
    cdef uint32_t number
    key.remote_ip = remote_ip
    key.outside_ip = outside_ip
    key.outside_port = outside_port
    key.protocol = protocol
    number = filter_find(table, &key)
    return (number != NONE
            and life_of(table, table.by_filter, &table.filters[number].first, answered, now_ms) == LIFE_SOME)


cdef void filter_key(const Session* session, Filter* key) noexcept nogil:
    """Key of the filter entry that a session keeps open."""
    key.sessions = 0
    key.remote_ip = session.ip[ROLE_REMOTE]
    key.outside_ip = session.ip[ROLE_OUTSIDE]
    key.outside_port = session.port[ROLE_OUTSIDE]
    key.protocol = session.protocol
    key.in_use = 1
    key.first = NONE


cdef bint filter_join(Sessions* table, uint32_t slot) noexcept nogil:
    """Adds the session to its filter entry; False: probe limit reached."""
    cdef Filter key
    cdef uint32_t number
    filter_key(&table.hot[slot], &key)
    number = filter_find(table, &key)
    if number == NONE:
        number = freelist_take(&table.filter_slots)                         # as many slots as sessions: one is free
        table.filters[number] = key
        if not index_insert(&table.by_remote, filter_hash(table, &key), number):
            table.filters[number].in_use = 0
            freelist_give(&table.filter_slots, number)
            return False
    table.filters[number].sessions += 1
    link(table.by_filter, &table.filters[number].first, slot)
    return True


cdef void filter_leave(Sessions* table, uint32_t slot) noexcept nogil:
    cdef Filter key
    cdef uint32_t number
    cdef Filter* entry
    filter_key(&table.hot[slot], &key)
    number = filter_find(table, &key)
    entry = &table.filters[number]
    unlink(table.by_filter, &entry.first, slot)
    entry.sessions -= 1
    if entry.sessions == 0:
        index_remove(&table.by_remote, filter_hash(table, &key), number)
        entry.in_use = 0
        freelist_give(&table.filter_slots, number)


# ---- opening and ending ----------------------------------------------------------------------------------------------

cdef bint insert_session(Sessions* table, uint32_t slot, uint64_t outbound, uint64_t inbound) noexcept nogil:
    """Inserts the session into both indexes and its filter entry, or into none: False, probe limit reached."""
    cdef const Session* session = &table.hot[slot]
    if not index_insert(&table.index[OUT], outbound, slot):
        return False
    if index_insert(&table.index[IN], inbound, slot):
        if not table.filtered[space_of(session.protocol)] or filter_join(table, slot):
            return True
        index_remove(&table.index[IN], inbound, slot)
    index_remove(&table.index[OUT], outbound, slot)
    return False


cdef inline void give_slot(Sessions* table, uint32_t slot) noexcept nogil:
    """Frees the slot. The flag tells a packet that found it in an index before (pipeline candidate)."""
    table.hot[slot].flags = SESSION_FREE
    freelist_give(&table.slots, slot)


cdef uint32_t session_open(Sessions* table, uint32_t mapping, uint32_t remote_ip, uint16_t remote_port, uint64_t outbound,
                           uint64_t inbound, uint8_t flags, uint8_t timeout_class, uint64_t now_ns) noexcept nogil:
    """Opens a session of the mapping to a remote (big-endian), with an open window; log it with create_row_write.

    outbound, inbound: hashes of its keys. NONE: probe limit reached. A slot must be free, and neither key in use.
    """
    cdef Mapping* owner = &table.mappings.mappings[mapping]
    cdef uint32_t slot = freelist_take(&table.slots)
    cdef Session* session = &table.hot[slot]
    cdef Cold* cold = &table.cold[slot]
    assert_held(table.lock, "sessions: session_open")
    prefetch_write(&table.cold[table.slots.free])           # of the next session
    prefetch_write(&table.by_mapping[table.slots.free])
    memset(session, 0, sizeof(Session))
    memset(cold, 0, sizeof(Cold))
    session.ip[ROLE_INSIDE] = owner.inside_ip
    session.ip[ROLE_REMOTE] = remote_ip
    session.ip[ROLE_OUTSIDE] = owner.outside_ip
    session.port[ROLE_INSIDE] = owner.inside_port
    session.port[ROLE_REMOTE] = remote_port
    session.port[ROLE_OUTSIDE] = owner.outside_port
    session.protocol = owner.protocol
    session.l3_delta = delta32(owner.inside_ip, owner.outside_ip)
    session.l4_delta = delta16(owner.inside_port, owner.outside_port)
    if owner.protocol != PROTOCOL_ICMP:
        session.l4_delta = combine(session.l4_delta, session.l3_delta)
    session.last_seen = <uint32_t>(now_ns // 1000000)
    session.flags = flags
    session.timeout_class = timeout_class
    if not insert_session(table, slot, outbound, inbound):
        give_slot(table, slot)
        return NONE
    cold.mapping = mapping
    assign_number(table, slot, now_ns)
    owner.sessions += 1
    count_origin(table, slot, 1)
    link(table.by_mapping, &owner.first, slot)
    window_open(table, session, cold, now_ns)
    note_change(table, slot)
    return slot


cdef void create_row_write(Sessions* table, uint32_t slot) noexcept nogil:
    """Writes the create row."""
    if row_begin(table, slot, RECORD_CREATE, table.cold[slot].birth_ns, table.cold[slot].birth_ns) != NULL:
        journal_commit(table.journal)
    if unlikely(table.journal.taps != NULL):
        show_watchers(table, slot, RECORD_CREATE, table.cold[slot].birth_ns)


cdef void assign_number(Sessions* table, uint32_t slot, uint64_t now_ns) noexcept nogil:
    """Assigns its number and time of birth."""
    cdef Cold* cold = &table.cold[slot]
    cdef uint64_t number
    table.created += 1
    table.created_of[protocol_kind(table.hot[slot].protocol)] += 1
    number = table.created if table.numbers == NULL else fetch_add64(table.numbers, 1) + 1
    cold.birth_ns = now_ns
    cold.id_low = <uint32_t>number
    cold.id_high = <uint16_t>(number >> 32)


cdef void count_origin(Sessions* table, uint32_t slot, int by) noexcept nogil:
    """Counts sessions opened from outside apart from those charged to the subscriber's quota."""
    cdef Mapping* mapping = &table.mappings.mappings[table.cold[slot].mapping]
    if table.hot[slot].flags & OPENED_OUTSIDE:
        mapping.opened_outside += by
        store_relaxed(&table.opened_outside, table.opened_outside + by)
    elif mapping.subscriber != NONE:
        table.mappings.subscribers[mapping.subscriber].sessions += by


cdef void leave_mapping(Sessions* table, uint32_t slot, uint32_t until_ms, uint64_t now_ns) noexcept nogil:
    """Leaves the mapping and closes it with its last session. The port's hold-down is the latest of all its sessions'."""
    cdef uint32_t number = table.cold[slot].mapping, now_ms = <uint32_t>(now_ns // 1000000)
    cdef Mapping* mapping = &table.mappings.mappings[number]
    unlink(table.by_mapping, &mapping.first, slot)
    count_origin(table, slot, -1)
    mapping.sessions -= 1
    # sessions may be ended in any order; a value further ahead than any hold-down is in the past
    if (1 <= mapping.held_until - now_ms <= table.mappings.ports.longest_hold_down_ms
            and <int>(until_ms - now_ms) < <int>(mapping.held_until - now_ms)):
        until_ms = mapping.held_until
    mapping.held_until = until_ms
    if mapping.sessions == 0:
        mapping_close(table.mappings, number, until_ms, now_ms)


cdef void totals_fill(const Cold* cold, Record* row) noexcept nogil:
    """Fills in the packets and bytes of a session's closed windows."""
    row.bytes_from_vpc = cold.total_bytes[OUT]
    row.pkts_from_vpc = cold.total_packets[OUT]
    row.bytes_from_pub = cold.total_bytes[IN]
    row.pkts_from_pub = cold.total_packets[IN]


cdef void show_watchers(Sessions* table, uint32_t slot, uint8_t kind, uint64_t end_ns) noexcept nogil:
    """Copies a create or end row to whoever watches, whether or not the journal had place for it."""
    cdef RowTap* tap = table.journal.taps
    cdef Record* row
    if table.hot[slot].flags & UNLOGGED:
        return
    while tap != NULL:
        spin_lock(&tap.spin)
        if tap.head - tap.tail < tap.capacity:
            row = &tap.rows[tap.head % tap.capacity]
            row_fill(table, slot, kind, table.cold[slot].birth_ns, end_ns, row)
            totals_fill(&table.cold[slot], row)
            tap.head += 1
        else:
            tap.lost += 1
        spin_unlock(&tap.spin)
        tap = tap.next


cdef void end_rows_write(Sessions* table, uint32_t slot, uint64_t end_ns) noexcept nogil:
    """Writes the last window's row and the end row, with the session's totals."""
    cdef const Cold* cold = &table.cold[slot]
    cdef Record* row
    if unlikely(table.offload != NULL):
        session_recall(table, slot)
    window_write(table, slot, end_ns)
    row = row_begin(table, slot, RECORD_END, cold.birth_ns, end_ns)
    if row != NULL:
        totals_fill(cold, row)
        journal_commit(table.journal)
    if unlikely(table.journal.taps != NULL):
        show_watchers(table, slot, RECORD_END, end_ns)
    table.ended += 1
    table.ended_of[protocol_kind(table.hot[slot].protocol)] += 1


cdef void session_prefetch_close(const Sessions* table, uint32_t slot) noexcept nogil:
    """Prefetches what ending the session will write; its own lines should be cached."""
    cdef const Session* session = &table.hot[slot]
    prefetch_write(bucket_of(&table.index[OUT], key_hash(table, session, OUT)))
    prefetch_write(bucket_of(&table.index[IN], key_hash(table, session, IN)))
    prefetch_write(&table.mappings.mappings[table.cold[slot].mapping])
    prefetch_write(&table.by_mapping[slot])


cdef void remove_session(Sessions* table, uint32_t slot, uint32_t until_ms, uint64_t now_ns) noexcept nogil:
    """Removes the session from indexes, filter and mapping. A port that becomes free is held down until until_ms."""
    cdef Session* session = &table.hot[slot]
    index_remove(&table.index[OUT], key_hash(table, session, OUT), slot)
    index_remove(&table.index[IN], key_hash(table, session, IN), slot)
    if table.filtered[space_of(session.protocol)]:
        filter_leave(table, slot)
    leave_mapping(table, slot, until_ms, now_ns)
    give_slot(table, slot)
    note_change(table, slot)


cdef void session_close(Sessions* table, uint32_t slot, uint64_t end_ns, uint64_t now_ns) noexcept nogil:
    """Ends a session at end_ns: writes its rows and frees what it used."""
    assert_held(table.lock, "sessions: session_close")
    end_rows_write(table, slot, end_ns)
    remove_session(table, slot, <uint32_t>(end_ns // 1000000) + table.mappings.ports.hold_down_ms, now_ns)


cdef void session_forget(Sessions* table, uint32_t slot, uint64_t now_ns) noexcept nogil:
    """Ends a session without rows: another gateway, which logs it, has ended it. Its port is held down from now on."""
    assert_held(table.lock, "sessions: session_forget")
    if unlikely(table.offload != NULL):
        session_recall(table, slot)
    table.ended += 1
    table.ended_of[protocol_kind(table.hot[slot].protocol)] += 1
    remove_session(table, slot, <uint32_t>(now_ns // 1000000) + table.mappings.ports.hold_down_ms, now_ns)


cdef void session_discard(Sessions* table, uint32_t slot, uint64_t now_ns) noexcept nogil:
    """Undoes session_open of the last session, before it was logged."""
    assert_held(table.lock, "sessions: session_discard")
    table.created -= 1
    table.created_of[protocol_kind(table.hot[slot].protocol)] -= 1
    if table.numbers != NULL:                       # only for hairpins, with all workers locked
        fetch_add64(table.numbers, <uint64_t>-1)
    remove_session(table, slot, table.mappings.mappings[table.cold[slot].mapping].held_until, now_ns)


cdef void session_restart(Sessions* table, uint32_t slot, bint outside, uint8_t timeout_class, uint64_t now_ns) noexcept nogil:
    """Ends the session and begins a new one with its keys and mapping (TIME-WAIT reuse). outside: opened from there."""
    cdef Session* session = &table.hot[slot]
    cdef Cold* cold = &table.cold[slot]
    cdef uint32_t mapping = cold.mapping
    assert_held(table.lock, "sessions: session_restart")
    end_rows_write(table, slot, now_ns)
    count_origin(table, slot, -1)
    session.flags = (session.flags & ~(OPENED_OUTSIDE | SYN_NOTED * 3)) | (OPENED_OUTSIDE if outside else 0)
    if session.flags & HAIRPINNED and not table.mappings.mappings[mapping].flags & MAPPING_STATIC:
        # contract R5: of a hairpin only the initiator's session is logged; DNAT sessions never
        session.flags = (session.flags & ~UNLOGGED) | (UNLOGGED if outside else 0)
    session.timeout_class = timeout_class
    session.last_seen = <uint32_t>(now_ns // 1000000)
    session.state = 0
    count_origin(table, slot, 1)
    memset(cold, 0, sizeof(Cold))
    cold.mapping = mapping
    assign_number(table, slot, now_ns)
    window_roll(table, slot, now_ns)
    note_change(table, slot)
    create_row_write(table, slot)


cdef void session_expire(Sessions* table, uint32_t slot, uint64_t now_ns) noexcept nogil:
    """Ends a dead session, as of its deadline."""
    session_close(table, slot, deadline_of(table, &table.hot[slot], now_ns), now_ns)


assert sizeof(Session) == 64
assert sizeof(Cold) == 64
assert sizeof(Filter) == 20

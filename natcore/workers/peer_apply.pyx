"""Applies the rows of the stream to a standby's tables (peer_apply.pxd says how)."""
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from natcore.tables.mappings cimport (
    MAPPING_DRAINING, MAPPING_PORTLESS, MAPPING_STATIC, Mapping, MappingKey, mapping_close, mapping_find,
    mapping_open_given, mapping_open_static, mapping_remove,
)
from natcore.tables.port_blocks cimport Block, block_assign, block_at, block_reference, block_return_unused
from natcore.tables.port_overload cimport EndpointPair, overload_find
from natcore.tables.ports cimport (
    PORT_OF_HOST, PORT_SPACES, PORTS_OVERLOAD, PortMap, Ports, address_find, has_ports, in_ranges, port_release, port_reuse,
    port_use, ports_reclaim, set_free, space_of,
)
from natcore.tables.sessions cimport (
    HAIRPINNED, IN, NO_WINDOW, OPENED_OUTSIDE, OUT, SESSION_FREE, SYN_NOTED, TIMEOUT_FRAGMENT, UNLOGGED, UNTRANSLATED_BOTH,
    Cold, Session, Sessions, inbound_hash, outbound_hash, session_find, session_forget, session_id, session_open,
)
from natcore.workers.limits cimport may_open_mapping, may_open_session, may_subscribe
from natcore.workers.peer_rows cimport PeerHeldDown, PeerRefresh, PeerSession
from natcore.workers.state_restore cimport entry_is_wrong, has_address, use_port
from natcore.workers.worker cimport Shared, Worker, worker_of_inside
from natcore.base.compiler cimport bswap16, bswap32
from natcore.base.pages cimport table_delete, table_new
from natcore.base.sentinels cimport NONE, NO_LIMIT

cdef enum:
    SESSION_FLAGS = OPENED_OUTSIDE | UNLOGGED | HAIRPINNED | UNTRANSLATED_BOTH      # that a row may set
    LONGEST_MS = 0x7FFFFFFF     # of an idle time: longer than all time-outs
    HELD_MOST_MS = 1000060000   # a hold-down is 10^6 s at most, and the row of the time may be older
    MOST_ID_HIGH = 0xFF00       # of a session's number: beyond it there would be none for later sessions
    MOST_BIRTH_HIGH = 1 << 11   # 279 years
    RECLAIM_ADDRESSES = 64      # of hold-downs that are over, for each row of the time


cdef bint standby_new(Standby* standby, Shared* shared, uint32_t workers, uint32_t capacity) noexcept nogil:
    """A standby for an active gateway with so many workers, and slots of each; False: out of memory."""
    cdef uint32_t i
    memset(standby, 0, sizeof(Standby))
    standby.shared, standby.workers, standby.capacity = shared, workers, capacity
    standby.places = <Place**>table_new(<uint64_t>workers * sizeof(Place*))
    if standby.places == NULL:
        return False
    for i in range(workers):
        standby.places[i] = <Place*>table_new(<uint64_t>capacity * sizeof(Place))
        if standby.places[i] == NULL:
            standby_delete(standby)
            return False
    return True


cdef void standby_delete(Standby* standby) noexcept nogil:
    cdef uint32_t i
    for i in range(standby.workers if standby.places != NULL else 0):
        table_delete(standby.places[i], <uint64_t>standby.capacity * sizeof(Place))
    table_delete(standby.places, <uint64_t>standby.workers * sizeof(Place*))
    memset(standby, 0, sizeof(Standby))


# ---- what makes way --------------------------------------------------------------------------------------------------

cdef void evict(Standby* standby, Worker* worker, uint32_t slot) noexcept nogil:
    session_forget(&worker.sessions, slot, standby.now_ns)
    standby.evicted += 1


cdef void evict_mapping(Standby* standby, Worker* worker, uint32_t number) noexcept nogil:
    """Ends the sessions of a mapping, and so the mapping."""
    cdef Mapping* mapping = &worker.mappings.mappings[number]
    cdef uint32_t _i
    for _i in range(mapping.sessions):
        evict(standby, worker, mapping.first)


cdef bint free_port(Standby* standby, PortMap* map, uint32_t port) noexcept nogil:
    """Frees a port, whoever has it or had it; False: an entry or the host has it."""
    cdef Ports* ports = &standby.shared.ports
    cdef uint32_t word = port >> 6
    cdef uint64_t bit = <uint64_t>1 << (port & 63)
    if map.used[word] & bit and not map.held[word] & bit:
        if map.cells[port] >= PORT_OF_HOST or ports.policy == PORTS_OVERLOAD:
            return map.cells[port] < PORT_OF_HOST
        evict_mapping(standby, standby.shared.workers[map.workers[port] if ports.workers > 1 else 0], map.cells[port])
    if map.held[word] & bit:
        port_reuse(ports, map, port)
        set_free(ports, map, port)
    return True


cdef bint free_block(Standby* standby, uint32_t address, uint32_t number) noexcept nogil:
    """Frees a block of another subscriber; False: an entry or the host has a port of it."""
    cdef Ports* ports = &standby.shared.ports
    cdef uint32_t i, space
    for i in range(ports.block_size):
        for space in range(PORT_SPACES):
            if not free_port(standby, &ports.addresses[address].maps[space], ports.allowed[number * ports.block_size + i]):
                return False
    return True


cdef bint make_place(Standby* standby, uint32_t address, uint32_t port, const Mapping* wanted) noexcept nogil:
    """Frees a port for an inside address, and the port's block, which it is assigned; False: they are not to be had."""
    cdef Ports* ports = &standby.shared.ports
    cdef PortMap* map = &ports.addresses[address].maps[space_of(wanted.protocol)]
    cdef uint32_t reference
    cdef const Block* block
    cdef EndpointPair ends
    if not in_ranges(ports, port) or not free_port(standby, map, port):
        return False
    if ports.policy == PORTS_OVERLOAD:
        ends.outside_ip, ends.outside_port = wanted.outside_ip, wanted.outside_port
        ends.remote_ip, ends.remote_port, ends.protocol = wanted.remote_ip, wanted.remote_port, wanted.protocol
        reference = overload_find(&ports.overload, &ports.key, &ends)
        if reference != NONE:
            evict_mapping(standby, standby.shared.workers[ports.overload.pairs[reference].worker],
                          ports.overload.pairs[reference].mapping)
        return True
    if ports.blocks.per_address == 0:
        return True
    reference = block_reference(address, ports.block_of[port])
    block = block_at(&ports.blocks, reference)
    if block.taken and block.owner != wanted.inside_ip and not free_block(standby, address, ports.block_of[port]):
        return False
    if not block.taken:
        block_assign(&ports.blocks, &ports.key, reference, wanted.inside_ip, standby.now_ns)
    return True


cdef void leave_place(Standby* standby, uint32_t address, uint32_t port) noexcept nogil:
    """A place that was made is not taken: the port's block is its owner's only if that has a port of it."""
    cdef Ports* ports = &standby.shared.ports
    if ports.policy != PORTS_OVERLOAD and ports.blocks.per_address:
        block_return_unused(&ports.blocks, &ports.key, block_reference(address, ports.block_of[port]))


# ---- rows ------------------------------------------------------------------------------------------------------------

cdef inline Place* place_of(Standby* standby, uint32_t worker, uint32_t slot) noexcept nogil:
    """The place of a slot, or NULL: there is no such slot."""
    return &standby.places[worker][slot] if worker < standby.workers and slot < standby.capacity else NULL


cdef inline Sessions* session_at(Standby* standby, const Place* place) noexcept nogil:
    """The table that has the session of a place; NULL: it is not there any more."""
    cdef Sessions* table
    if place.id == 0:
        return NULL
    table = &standby.shared.workers[place.worker].sessions
    if table.hot[place.slot].flags & SESSION_FREE or session_id(&table.cold[place.slot]) != place.id:
        return NULL
    return table


cdef const char* apply_end(Standby* standby, uint32_t worker, uint32_t slot) noexcept nogil:
    """The slot has no session now. NULL, or why the row is refused; likewise below."""
    cdef Place* place = place_of(standby, worker, slot)
    cdef Sessions* table
    if place == NULL:
        return "there is no such slot"
    table = session_at(standby, place)
    if table != NULL:
        session_forget(table, place.slot, standby.now_ns)
    place.id = 0
    return NULL


cdef const char* session_is_wrong(Standby* standby, const PeerSession* row, uint32_t address) noexcept nogil:
    """NULL, or why no gateway has this session; as for a restored one (workers/state_restore.pyx)."""
    cdef bint untranslated = row.flags & UNTRANSLATED_BOTH != 0, fixed = row.mapping_flags & MAPPING_STATIC != 0
    cdef bint portless = row.mapping_flags & MAPPING_PORTLESS != 0
    cdef Mapping mapping
    cdef const char* wrong
    if row.flags & ~(SESSION_FLAGS | NO_WINDOW | SYN_NOTED * 3) or row.timeout_class >= TIMEOUT_FRAGMENT:
        return "unknown flags or time-out"
    if row.mapping_flags & ~(MAPPING_STATIC | MAPPING_PORTLESS | MAPPING_DRAINING):
        return "unknown flags of its mapping"
    if row.id_low == 0 and row.id_high == 0 or row.id_high >= MOST_ID_HIGH:
        return "it has no number"
    if row.birth_high >= MOST_BIRTH_HIGH:
        return "it began at no time"
    if untranslated:
        if not (fixed and row.flags & UNLOGGED and row.outside_ip == row.inside_ip and row.outside_port == row.inside_port):
            return "its flags do not fit its mapping"
    elif address == NONE or not has_address(&standby.shared.ports, address):
        return "it has another outside address"
    mapping.flags, mapping.entry, mapping.address = row.mapping_flags, row.entry, address
    mapping.protocol, mapping.outside_port = row.protocol, row.outside_port
    wrong = entry_is_wrong(&standby.shared.ports, standby.entries, standby.entry_count, &mapping)
    if wrong != NULL:
        return wrong
    if fixed and (row.mapping_ip != row.outside_ip or row.mapping_port != row.outside_port):
        return "its mapping is none of an entry"
    if not fixed and portless == has_ports(row.protocol):
        return "its protocol does not fit"
    return NULL


cdef void key_of_row(const PeerSession* row, MappingKey* key) noexcept nogil:
    """Key of its mapping; with MAPPING_DRAINING where it drains, so that it is found."""
    key.inside_ip, key.inside_port, key.protocol = row.inside_ip, row.inside_port, row.protocol
    key.flags = row.mapping_flags & (MAPPING_STATIC | MAPPING_PORTLESS | MAPPING_DRAINING)
    key.remote_ip, key.remote_port = row.mapping_ip, row.mapping_port


cdef const char* open_mapping(Standby* standby, Worker* worker, const PeerSession* row, uint32_t address,
                              MappingKey* key, uint32_t* mapping) noexcept nogil:
    """Opens the mapping of a row with its port; NULL, or why it cannot be."""
    cdef uint32_t now_ms = <uint32_t>(standby.now_ns // 1000000)
    cdef Mapping wanted
    cdef const char* wrong
    cdef bint ported = not row.mapping_flags & (MAPPING_STATIC | MAPPING_PORTLESS)
    if not may_open_mapping(worker):
        return "there is no place for its mapping"
    if row.mapping_flags & MAPPING_STATIC:
        mapping[0] = mapping_open_static(&worker.mappings, key, row.entry, row.outside_ip, row.outside_port, address)
        if mapping[0] == NONE:
            return "the index has no place for its mapping"
        return NULL
    if not may_subscribe(worker, row.inside_ip):
        return "there is no place for its subscriber"
    wanted.inside_ip, wanted.protocol = row.inside_ip, row.protocol
    wanted.outside_ip, wanted.outside_port = row.outside_ip, row.outside_port
    wanted.remote_ip, wanted.remote_port = key.remote_ip, key.remote_port
    if ported and not make_place(standby, address, bswap16(row.outside_port), &wanted):
        return "its port is not to be had"
    mapping[0] = mapping_open_given(&worker.mappings, key, row.entry, address, row.outside_port, now_ms)
    wrong = NULL
    if mapping[0] == NONE:
        wrong = "the index has no place for its mapping"
    elif ported:
        wrong = use_port(worker, mapping[0])
        if wrong != NULL:
            mapping_remove(&worker.mappings, mapping[0], now_ms)
    if wrong != NULL and ported:
        leave_place(standby, address, bswap16(row.outside_port))
    return wrong


cdef uint32_t mapping_of_row(Standby* standby, Worker* worker, const PeerSession* row, const MappingKey* key) noexcept nogil:
    """The mapping of a row, or NONE; another one with its inside endpoint makes way."""
    cdef uint32_t number = mapping_find(&worker.mappings, key)
    cdef const Mapping* mapping
    if number == NONE:
        return NONE
    mapping = &worker.mappings.mappings[number]
    if mapping.outside_ip == row.outside_ip and mapping.outside_port == row.outside_port and mapping.entry == row.entry:
        return number
    evict_mapping(standby, worker, number)
    return NONE


cdef inline bint is_same(const Session* session, const PeerSession* row) noexcept nogil:
    return (session.ip[0] == row.inside_ip and session.ip[1] == row.remote_ip and session.ip[2] == row.outside_ip
            and session.port[0] == row.inside_port and session.port[1] == row.remote_port
            and session.port[2] == row.outside_port and session.protocol == row.protocol)


cdef void evict_keys(Standby* standby, Worker* worker, const PeerSession* row) noexcept nogil:
    """Ends sessions that have one of the row's keys."""
    cdef uint32_t i, slot = session_find(&worker.sessions, OUT, <uint64_t>row.remote_ip << 32 | row.inside_ip,
                                         <uint32_t>row.remote_port << 16 | row.inside_port, row.protocol)
    if slot != NONE:
        evict(standby, worker, slot)
    for i in range(standby.shared.count):       # a port that had another owner was another worker's
        slot = session_find(&standby.shared.workers[i].sessions, IN, <uint64_t>row.outside_ip << 32 | row.remote_ip,
                            <uint32_t>row.outside_port << 16 | row.remote_port, row.protocol)
        if slot != NONE:
            evict(standby, standby.shared.workers[i], slot)


cdef void update(Sessions* table, uint32_t slot, const PeerSession* row) noexcept nogil:
    """Sets what may change while a session lives. SYNs that wait for an answer are not streamed; its window is opened by the
    first packet."""
    cdef Session* session = &table.hot[slot]
    session.state, session.timeout_class = row.state, row.timeout_class
    session.last_seen = row.last_seen
    memcpy(session.ack, row.ack, 16)                            # and end


cdef const char* apply_session(Standby* standby, uint32_t worker, const PeerSession* row) noexcept nogil:
    """The slot has this session now."""
    cdef Place* place = place_of(standby, worker, row.slot)
    cdef Worker* own = standby.shared.workers[worker_of_inside(bswap32(row.inside_ip), standby.shared.count)]
    cdef uint64_t id = <uint64_t>row.id_high << 32 | row.id_low
    cdef uint32_t address = NONE, mapping, slot
    cdef Sessions* table
    cdef Cold* cold
    cdef const Mapping* owner
    cdef MappingKey key
    cdef const char* wrong
    if place == NULL:
        return "there is no such slot"
    if not row.flags & UNTRANSLATED_BOTH:
        address = address_find(&standby.shared.ports, row.outside_ip)
    wrong = session_is_wrong(standby, row, address)
    if wrong != NULL:
        return wrong
    table = session_at(standby, place)
    standby.created = max(standby.created, id)
    if table != NULL and place.id == id and is_same(&table.hot[place.slot], row):
        update(table, place.slot, row)
        return NULL
    if table != NULL:
        session_forget(table, place.slot, standby.now_ns)
    place.id = 0
    evict_keys(standby, own, row)
    if not may_open_session(own):
        return "there is no place for it"
    key_of_row(row, &key)
    mapping = mapping_of_row(standby, own, row, &key)
    if mapping == NONE:
        key.flags &= ~MAPPING_DRAINING
        wrong = open_mapping(standby, own, row, address, &key, &mapping)
        if wrong != NULL:
            return wrong
        own.mappings.mappings[mapping].flags |= row.mapping_flags & MAPPING_DRAINING
    owner = &own.mappings.mappings[mapping]
    slot = session_open(&own.sessions, mapping, row.remote_ip, row.remote_port,
                        outbound_hash(&own.sessions, owner, row.remote_ip, row.remote_port),
                        inbound_hash(&own.sessions, owner, row.remote_ip, row.remote_port), row.flags & SESSION_FLAGS,
                        row.timeout_class, standby.now_ns)
    if slot == NONE:
        if own.mappings.mappings[mapping].sessions == 0:
            mapping_close(&own.mappings, mapping, own.mappings.mappings[mapping].held_until,
                          <uint32_t>(standby.now_ns // 1000000))
        return "the index has no place for it"
    own.sessions.hot[slot].flags |= NO_WINDOW
    update(&own.sessions, slot, row)
    cold = &own.sessions.cold[slot]
    cold.id_low, cold.id_high = row.id_low, row.id_high
    cold.birth_ns = (<uint64_t>row.birth_high << 32 | row.birth_low) * 1000000
    place.id, place.worker, place.slot = id, own.number, slot
    return NULL


cdef const char* apply_refresh(Standby* standby, uint32_t worker, const PeerRefresh* row) noexcept nogil:
    """Packets of the slot's session passed."""
    cdef Place* place = place_of(standby, worker, row.slot)
    cdef Sessions* table
    if place == NULL:
        return "there is no such slot"
    table = session_at(standby, place)
    if table != NULL:
        table.hot[place.slot].last_seen = row.last_seen
        memcpy(table.hot[place.slot].ack, row.ack, 16)          # and end
    return NULL


cdef const char* apply_held_down(Standby* standby, const PeerHeldDown* row) noexcept nogil:
    """The port is held down; one that is in use or held down already stays as it is."""
    cdef Ports* ports = &standby.shared.ports
    cdef uint32_t address = address_find(ports, row.outside_ip), now_ms = <uint32_t>(standby.now_ns // 1000000), reference
    cdef PortMap* map
    if address == NONE or row.space >= PORT_SPACES or not in_ranges(ports, row.port):
        return "no port of an outside address"
    if <int>(row.until_ms - now_ms) > HELD_MOST_MS:
        return "it is held down for longer than any port"
    map = &ports.addresses[address].maps[row.space]
    if (map.used[row.port >> 6] >> (row.port & 63)) & 1 or <int>(row.until_ms - now_ms) <= 0:
        return NULL
    if ports.blocks.per_address:
        reference = block_reference(address, ports.block_of[row.port])
        if block_at(&ports.blocks, reference).taken:
            if block_at(&ports.blocks, reference).owner != row.owner:
                return NULL
        else:
            block_assign(&ports.blocks, &ports.key, reference, row.owner, standby.now_ns)
    port_use(ports, map, row.port)
    port_release(ports, map, row.port, row.owner, row.until_ms, now_ms)
    return NULL


cdef void apply_time(Standby* standby, uint64_t now_ns) noexcept nogil:
    """The active gateway's clock. Hold-downs that are over by then end; sessions do not, before their rows say so."""
    cdef uint32_t i
    standby.now_ns = max(standby.now_ns, now_ns)
    for i in range(standby.shared.count):
        standby.shared.workers[i].now_ns = standby.now_ns
    standby.shared.now_ns = standby.now_ns
    ports_reclaim(&standby.shared.ports, RECLAIM_ADDRESSES, NO_LIMIT, <uint32_t>(standby.now_ns // 1000000))


cdef void date_blocks(Ports* ports, uint64_t now_ns) noexcept nogil:
    """Dates the assigned port blocks from now on: the stream does not tell since when a block was its owner's without a break,
    and the log of the active gateway does."""
    cdef uint32_t address, block
    for address in range(ports.count if ports.blocks.per_address else 0):
        for block in range(ports.blocks.per_address if ports.blocks.of[address] != NULL else 0):
            if ports.blocks.of[address][block].taken:
                ports.blocks.of[address][block].born_ns = now_ns


cdef void promote(Standby* standby, uint64_t now_ns, uint64_t created, uint32_t grace_ms) noexcept nogil:
    """The standby's clock is now_ns, and it is to translate. created: sessions that the active gateway has opened, as it said
    last; rows that came since may have higher numbers, and none is given twice. grace_ms: how old a refresh may be; sessions
    count as refreshed that much later."""
    cdef uint32_t i, slot, now_ms, then_ms = <uint32_t>(standby.now_ns // 1000000)
    cdef uint64_t more
    cdef int64_t idle_ms, later_ms = standby.now_ns // 1000000
    cdef Sessions* table
    cdef Session* session
    apply_time(standby, now_ns)
    date_blocks(&standby.shared.ports, standby.now_ns)
    now_ms = <uint32_t>(standby.now_ns // 1000000)
    later_ms = <int64_t>(standby.now_ns // 1000000) - later_ms
    for i in range(standby.shared.count):
        table = &standby.shared.workers[i].sessions
        for slot in range(table.slots.fresh):
            session = &table.hot[slot]
            if session.flags & SESSION_FREE:
                continue
            idle_ms = later_ms + <int>(then_ms - session.last_seen) - grace_ms     # of one seen since that time: less
            session.last_seen = now_ms - <uint32_t>min(max(idle_ms, 0), LONGEST_MS)
            session.window_end = <uint16_t>(standby.now_ns // 1000000000)
        table.swept_ns = table.complete_ns = standby.shared.workers[i].ticked_ns = standby.now_ns
        table.sweep_at = 0
    table = &standby.shared.workers[0].sessions
    created = max(created, standby.created)
    more = created - min(created, table.created if table.numbers == NULL else standby.shared.created)
    table.created += more
    table.ended += more
    table.created_of[3] += more
    table.ended_of[3] += more
    standby.shared.created += more

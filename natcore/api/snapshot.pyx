"""Copies sessions, mappings and port usage out of the tables; the worker must be locked."""
from libc.stdint cimport int16_t, uint8_t, uint16_t, uint32_t, uint64_t

from natcore.log.journal cimport RECORD_ASSIGNED_BEFORE, RECORD_BLOCK_ALLOCATED, Record
from natcore.tables.block_rows cimport BlockPlace, block_row_fill
from natcore.tables.mappings cimport Mapping
from natcore.tables.port_blocks cimport block_reference
from natcore.tables.ports cimport PORT_SPACES, Address, PortMap, Ports, place_of_block, ports_in_use
from natcore.tables.sessions cimport (
    IN, NO_WINDOW, OPENED_OUTSIDE, OUT, ROLE_INSIDE, ROLE_OUTSIDE, ROLE_REMOTE, SESSION_FREE, UNLOGGED, Cold, Session,
    deadline_of, is_dead, micros, session_id,
)
from natcore.workers.expiry cimport is_long_ago
from natcore.tables.tcp_state cimport TCP_STATE
from natcore.nat.clock cimport clock_of_all
from natcore.base.compiler cimport bswap16, bswap32
from natcore.base.headers cimport PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP

cdef uint8_t* PROTOCOL_OF_SPACE = [PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_ICMP]   # by PortSpace


cdef void session_row(const Worker* worker, uint32_t slot, SessionRow* row) noexcept nogil:
    cdef const Session* session = &worker.sessions.hot[slot]
    cdef const Cold* cold = &worker.sessions.cold[slot]
    cdef uint64_t deadline = deadline_of(&worker.sessions, session, clock_of_all(worker))
    row.session = session_id(cold)
    row.bytes_out = bytes_of_session(session, cold, OUT)
    row.packets_out = packets_of_session(session, cold, OUT)
    row.bytes_in = bytes_of_session(session, cold, IN)
    row.packets_in = packets_of_session(session, cold, IN)
    row.birth_ns = cold.birth_ns
    row.deadline_ns = deadline
    row.last_seen_ns = last_seen_ns(&worker.sessions, session, cold, deadline)
    row.start_time = micros(&worker.sessions, cold.birth_ns)
    row.window_time = 0 if session.flags & NO_WINDOW else micros(&worker.sessions, cold.window_start_ns)
    row.inside_ip = bswap32(session.ip[ROLE_INSIDE])
    row.remote_ip = bswap32(session.ip[ROLE_REMOTE])
    row.outside_ip = bswap32(session.ip[ROLE_OUTSIDE])
    row.entry = worker.mappings.mappings[cold.mapping].entry
    row.inside_port = bswap16(session.port[ROLE_INSIDE])
    row.remote_port = bswap16(session.port[ROLE_REMOTE])
    row.outside_port = bswap16(session.port[ROLE_OUTSIDE])
    row.protocol = session.protocol
    row.state = session.state & TCP_STATE if session.protocol == PROTOCOL_TCP else 0
    row.opened_outside = 1 if session.flags & OPENED_OUTSIDE else 0


cdef uint32_t copy_sessions(const Worker* worker, SessionRow* rows, uint32_t capacity, uint32_t* slot,
                            uint32_t last) noexcept nogil:
    """Copies live sessions from slot on, before last; rows filled. slot: where to continue."""
    cdef uint32_t filled = 0, now_ms = <uint32_t>(clock_of_all(worker) // 1000000)
    while slot[0] < last and filled < capacity:
        if (not worker.sessions.hot[slot[0]].flags & SESSION_FREE
                and not is_dead(&worker.sessions, &worker.sessions.hot[slot[0]], now_ms)):
            session_row(worker, slot[0], &rows[filled])
            filled += 1
        slot[0] += 1
    return filled


cdef uint64_t oldest_window(const Worker* worker, uint32_t first, uint32_t last, uint64_t now_ns) noexcept nogil:
    """Begin of the oldest open window among slots first to last - 1 that will become a row; ns, now if there is none.

    The hot line has the second in which a window ends; the cold line is read only where that is the earliest so far.
    """
    cdef const Session* session
    cdef uint64_t oldest = now_ns
    cdef uint32_t slot
    cdef int age, eldest = -32768
    cdef uint16_t seconds = <uint16_t>(now_ns // 1000000000)
    cdef bint long_ago = is_long_ago(&worker.sessions, now_ns)
    for slot in range(first, min(last, worker.sessions.slots.fresh)):
        session = &worker.sessions.hot[slot]
        if session.flags & (SESSION_FREE | NO_WINDOW | UNLOGGED):
            continue
        age = <int16_t>(seconds - session.window_end)
        if age >= eldest or long_ago:
            eldest = age
            oldest = min(oldest, worker.sessions.cold[slot].window_start_ns)
    return oldest


cdef void mapping_row(const Mapping* mapping, MappingRow* row) noexcept nogil:
    row.inside_ip = bswap32(mapping.inside_ip)
    row.outside_ip = bswap32(mapping.outside_ip)
    row.entry = mapping.entry
    row.sessions = mapping.sessions
    row.inside_port = bswap16(mapping.inside_port)
    row.outside_port = bswap16(mapping.outside_port)
    row.protocol = mapping.protocol


cdef uint32_t copy_ports(const Worker* worker, PortRow* rows, uint32_t capacity) noexcept nogil:
    cdef uint32_t i, space, filled = 0
    cdef const Address* address
    cdef const PortMap* map
    for i in range(worker.mappings.ports.count):
        address = &worker.mappings.ports.addresses[i]
        for space in range(PORT_SPACES):
            if address.memory == NULL or filled >= capacity:
                continue
            map = &address.maps[space]
            rows[filled].outside_ip = bswap32(address.ip)
            rows[filled].eip = address.eip
            rows[filled].total = worker.mappings.ports.range_size
            rows[filled].held_down = map.held_count
            rows[filled].reserved = map.reserved
            rows[filled].free = map.free
            rows[filled].used = ports_in_use(worker.mappings.ports, map)
            rows[filled].protocol = PROTOCOL_OF_SPACE[space]
            filled += 1
    return filled


cdef uint32_t count_blocks(const Worker* worker) noexcept nogil:
    """Blocks assigned to subscribers."""
    return <uint32_t>(worker.mappings.ports.blocks.taken - worker.mappings.ports.blocks.released)


cdef uint64_t copy_block_rows(const Worker* worker, Record* rows, uint64_t capacity) noexcept nogil:
    """Rows of the session log of the blocks that are assigned now, as many as fit; how many. All workers must be locked."""
    cdef const Ports* ports = worker.mappings.ports
    cdef uint64_t now_ns = clock_of_all(worker), filled = 0
    cdef uint32_t address, block, reference
    cdef BlockPlace place
    for address in range(ports.count if ports.blocks.per_address else 0):
        for block in range(ports.blocks.per_address if ports.blocks.of[address] != NULL else 0):
            if ports.blocks.of[address][block].taken and filled < capacity:
                reference = block_reference(address, block)
                place = place_of_block(ports, reference)
                block_row_fill(&ports.blocks, reference, &place, RECORD_BLOCK_ALLOCATED, now_ns, &rows[filled])
                rows[filled].flags = RECORD_ASSIGNED_BEFORE
                filled += 1
    return filled


cdef uint32_t copy_blocks(const Worker* worker, BlockRow* rows, uint32_t capacity) noexcept nogil:
    cdef const Ports* ports = worker.mappings.ports
    cdef uint32_t i, block, first, filled = 0
    if ports.blocks.per_address == 0:
        return 0
    for i in range(ports.count):
        if ports.addresses[i].memory == NULL:
            continue
        for block in range(ports.block_count):
            if not ports.blocks.of[i][block].taken or filled >= capacity:
                continue
            first = ports.allowed[block * ports.block_size]
            rows[filled].outside_ip = bswap32(ports.addresses[i].ip)
            rows[filled].eip = ports.addresses[i].eip
            rows[filled].inside_ip = bswap32(ports.blocks.of[i][block].owner)
            rows[filled].ports = ports.blocks.of[i][block].ports
            rows[filled].first_port = <uint16_t>first
            rows[filled].last_port = <uint16_t>(first + ports.block_size - 1)
            filled += 1
    return filled


assert sizeof(SessionRow) == 112
assert sizeof(MappingRow) == 24
assert sizeof(PortRow) == 32
assert sizeof(BlockRow) == 20

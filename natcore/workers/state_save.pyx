"""Copies a gateway's tables out as the rows of a saved state. Call it with all workers locked, between two batches.

Tables are read in the order of their lines, once, and nothing is searched for: it takes as long as to read and write 250 bytes
of memory for each session (docs/guide/state.md has figures).
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from natcore.log.events cimport EVENT_SLOTS, REASON_SLOTS, Event
from natcore.log.journal cimport Journal, Overflow, Record
from natcore.tables.outbox cimport ErrorBudget, Outbox, outbox_frames
from natcore.tables.mappings cimport MAPPING_FREE, MAPPING_STATIC, Mapping, Subscriber
from natcore.tables.port_blocks cimport BLOCK_CHAINS, Block, block_at
from natcore.tables.ports cimport PORT_SPACES, PORT_WORDS, Address, PortMap, Ports, space_of
from natcore.tables.sessions cimport SESSION_FREE, SYN_NOTED, Cold, Filter, Session, Sessions, sessions_fold
from natcore.tables.syn_holdoff cimport HELD_SYNS, HeldSyn, SynHoldoff
from natcore.workers.limits cimport LIMITS
from natcore.workers.state_rows cimport (
    SECTION_ADDRESSES, SECTION_BLOCKS, SECTION_BUDGETS, SECTION_EVENTS, SECTION_FILTER_LISTS, SECTION_FILTERS,
    SECTION_FREE_FILTERS, SECTION_FREE_MAPPINGS, SECTION_FREE_SESSIONS, SECTION_FREE_SUBSCRIBERS, SECTION_GATEWAY,
    SECTION_HELD_DOWN,
    SECTION_HELD_SYNS, SECTION_HOST_PORTS, SECTION_IDENTIFICATIONS, SECTION_MAPPING_LISTS, SECTION_MAPPINGS, SECTION_SESSIONS,
    SECTION_SUBSCRIBERS, SECTION_SYNS, SECTION_WORKER, AddressState, BlockState, BudgetState, EventState,
    FilterState, GatewayState, HeldDownState, HeldSynState, HostPortsState, MappingState, Rows, SessionState, SubscriberState,
    SynState, WorkerState, next_row,
)
from natcore.workers.worker cimport IDENTIFICATIONS, Shared
from natcore.base.compiler cimport ctz64
from natcore.base.freelist cimport Freelist
from natcore.base.linked_list cimport Link
from natcore.base.sentinels cimport NONE


cdef void give_free(const Freelist* slots, Rows* section) noexcept nogil:
    """The free slots, in the order of the free list."""
    cdef uint32_t slot = slots.free
    cdef uint32_t* row
    while slot != NONE:
        row = <uint32_t*>next_row(section, 4)
        if row != NULL:
            row[0] = slot
        slot = (<const uint32_t*>(slots.base + slot * slots.stride))[0]


# ---- a worker's tables -----------------------------------------------------------------------------------------------

cdef void give_sessions(const Sessions* table, Rows* sections) noexcept nogil:
    """Live sessions, and the SYNs that some wait for an answer to."""
    cdef Rows* section = &sections[SECTION_SESSIONS]
    cdef uint32_t slot
    cdef const Session* session
    cdef const Cold* cold
    cdef SessionState* row
    cdef SynState* syn
    for slot in range(table.slots.fresh):
        session = &table.hot[slot]
        if session.flags & SESSION_FREE:
            continue
        if session.flags & SYN_NOTED * 3:
            syn = <SynState*>next_row(&sections[SECTION_SYNS], sizeof(SynState))
            if syn != NULL:
                syn.session = <uint32_t>section.count
                memcpy(syn.syn, &table.syn[2 * <size_t>slot], 8)
        row = <SessionState*>next_row(section, sizeof(SessionState))
        if row == NULL:
            continue
        cold = &table.cold[slot]
        row.window_start_ns = cold.window_start_ns
        row.birth_ns = cold.birth_ns
        memcpy(row.total_bytes, cold.total_bytes, 32)           # and total_packets
        memcpy(row.bytes, session.bytes, 8)
        memcpy(row.packets, session.packets, 8)
        memcpy(row.ack, session.ack, 16)                        # and end
        row.mapping = cold.mapping
        row.remote_ip = session.ip[1]
        row.last_seen = session.last_seen
        row.next = table.by_mapping[slot].next
        row.id_low = cold.id_low
        row.id_high = cold.id_high
        row.window_end = session.window_end
        memcpy(row.carry_bytes, cold.carry_bytes, 4)
        row.remote_port = session.port[1]
        memcpy(row.carry_packets, cold.carry_packets, 2)
        row.state = session.state
        row.flags = session.flags
        row.timeout_class = session.timeout_class
        row.unused = 0


cdef void give_filters(const Sessions* table, Rows* sections) noexcept nogil:
    """Filter entries, and the lists of their sessions."""
    cdef uint32_t slot
    cdef const Filter* filter
    cdef FilterState* row
    cdef uint32_t* next
    for slot in range(table.filter_slots.fresh):
        filter = &table.filters[slot]
        if not filter.in_use:
            continue
        row = <FilterState*>next_row(&sections[SECTION_FILTERS], sizeof(FilterState))
        if row != NULL:
            row.remote_ip = filter.remote_ip
            row.outside_ip = filter.outside_ip
            row.outside_port = filter.outside_port
            row.protocol = filter.protocol
            row.unused = 0
            row.first = filter.first
    for slot in range(table.slots.fresh):
        if not table.hot[slot].flags & SESSION_FREE:
            next = <uint32_t*>next_row(&sections[SECTION_FILTER_LISTS], 4)
            if next != NULL:
                next[0] = table.by_filter[slot].next if table.filtered[space_of(table.hot[slot].protocol)] else NONE


cdef void give_mappings(const Worker* worker, Rows* sections) noexcept nogil:
    cdef uint32_t number
    cdef const Mapping* mapping
    cdef MappingState* row
    cdef uint32_t* next
    cdef const Link* by_subscriber = worker.mappings.by_subscriber
    for number in range(worker.mappings.mapping_slots.fresh):
        mapping = &worker.mappings.mappings[number]
        if mapping.flags & MAPPING_FREE:
            continue
        if by_subscriber != NULL:
            next = <uint32_t*>next_row(&sections[SECTION_MAPPING_LISTS], 4)
            if next != NULL:
                next[0] = NONE if mapping.flags & MAPPING_STATIC else by_subscriber[number].next
        row = <MappingState*>next_row(&sections[SECTION_MAPPINGS], sizeof(MappingState))
        if row == NULL:
            continue
        row.inside_ip = mapping.inside_ip
        row.remote_ip = mapping.remote_ip
        row.outside_ip = mapping.outside_ip
        row.inside_port = mapping.inside_port
        row.remote_port = mapping.remote_port
        row.outside_port = mapping.outside_port
        row.protocol = mapping.protocol
        row.flags = mapping.flags
        row.address = mapping.address
        row.entry = mapping.entry
        row.subscriber = mapping.subscriber
        row.first = mapping.first
        row.held_until = mapping.held_until


cdef void give_subscribers(const Worker* worker, Rows* sections) noexcept nogil:
    """Subscribers with mappings, and those kept for their rate counter; a free slot has neither."""
    cdef uint32_t slot
    cdef const Subscriber* subscriber
    cdef SubscriberState* row
    for slot in range(worker.mappings.subscriber_slots.fresh):
        subscriber = &worker.mappings.subscribers[slot]
        if subscriber.mappings == 0 and subscriber.opened == 0:
            continue
        row = <SubscriberState*>next_row(&sections[SECTION_SUBSCRIBERS], sizeof(SubscriberState))
        if row == NULL:
            continue
        row.ip = subscriber.ip
        row.address = subscriber.address
        row.entry = subscriber.entry
        row.second = subscriber.second
        row.second_ms = subscriber.second_ms
        row.opened = subscriber.opened
        row.first = NONE
        row.examined = 0
        if worker.mappings.cursors != NULL and subscriber.mappings:
            row.first = worker.mappings.cursors[slot].first
            row.examined = worker.mappings.cursors[slot].examined


cdef void expect_rows(const Worker* worker, Rows* sections) noexcept nogil:
    """Sets the capacity of each of the worker's sections to the rows that it has now; SYNs are not counted."""
    cdef const Sessions* sessions = &worker.sessions
    sections[SECTION_WORKER].capacity = 1
    sections[SECTION_SESSIONS].capacity = sessions.slots.live
    sections[SECTION_FREE_SESSIONS].capacity = sessions.slots.fresh - sessions.slots.live
    sections[SECTION_MAPPINGS].capacity = worker.mappings.mapping_slots.live
    sections[SECTION_FREE_MAPPINGS].capacity = worker.mappings.mapping_slots.fresh - worker.mappings.mapping_slots.live
    sections[SECTION_SUBSCRIBERS].capacity = worker.mappings.subscriber_slots.live
    sections[SECTION_FREE_SUBSCRIBERS].capacity = (worker.mappings.subscriber_slots.fresh
                                                   - worker.mappings.subscriber_slots.live)
    if worker.mappings.by_subscriber != NULL:
        sections[SECTION_MAPPING_LISTS].capacity = worker.mappings.mapping_slots.live
    if sessions.filters != NULL:
        sections[SECTION_FILTERS].capacity = sessions.filter_slots.live
        sections[SECTION_FREE_FILTERS].capacity = sessions.filter_slots.fresh - sessions.filter_slots.live
        sections[SECTION_FILTER_LISTS].capacity = sessions.slots.live


cdef void give_worker(const Worker* worker, Rows* sections) noexcept nogil:
    """A worker's sections."""
    sessions_fold(<Sessions*>&worker.sessions)
    give_sessions(&worker.sessions, sections)
    give_free(&worker.sessions.slots, &sections[SECTION_FREE_SESSIONS])
    give_mappings(worker, sections)
    give_free(&worker.mappings.mapping_slots, &sections[SECTION_FREE_MAPPINGS])
    give_subscribers(worker, sections)
    give_free(&worker.mappings.subscriber_slots, &sections[SECTION_FREE_SUBSCRIBERS])
    if worker.sessions.filters != NULL:
        give_filters(&worker.sessions, sections)
        give_free(&worker.sessions.filter_slots, &sections[SECTION_FREE_FILTERS])
    give_counters(worker, sections)


cdef void give_counters(const Worker* worker, Rows* sections) noexcept nogil:
    """A worker's counters, clock and cursors."""
    cdef WorkerState* row = <WorkerState*>next_row(&sections[SECTION_WORKER], sizeof(WorkerState))
    cdef uint32_t i
    if row == NULL:
        return
    memset(row, 0, sizeof(WorkerState))
    row.now_ns, row.ticked_ns = worker.now_ns, worker.ticked_ns
    row.swept_ns, row.complete_ns = worker.sessions.swept_ns, worker.sessions.complete_ns
    row.created, row.ended = worker.sessions.created, worker.sessions.ended
    for i in range(4):
        row.created_of[i], row.ended_of[i] = worker.sessions.created_of[i], worker.sessions.ended_of[i]
    for i in range(256):
        row.counters[i], row.from_outside[i] = worker.counters[i], worker.from_outside[i]
    for i in range(2):
        row.bytes[i] = worker.bytes[i]
    for i in range(LIMITS):
        row.refused[i] = worker.refused[i]
    row.clock_backward, row.handed_over = worker.clock_backward, worker.handed_over
    row.undelivered_in_rows = worker.undelivered_in_rows
    for i in range(worker.undelivered_count):           # a loop is about to take them out of their sessions' rows
        row.undelivered_in_rows += worker.undelivered[i].packets
    row.sweep_at, row.reap_at = worker.sessions.sweep_at, worker.mappings.reap_at
    row.swept_for, row.lingering = worker.swept_for, worker.mappings.lingering


# ---- what workers share ----------------------------------------------------------------------------------------------

cdef void give_held_down(const Ports* ports, uint32_t address, uint32_t space, Rows* section) noexcept nogil:
    cdef const PortMap* map = &ports.addresses[address].maps[space]
    cdef uint32_t word, port
    cdef uint64_t bits
    cdef HeldDownState* row
    for word in range(PORT_WORDS if map.held_count else 0):
        bits = map.held[word]
        while bits:
            port = word * 64 + ctz64(bits)
            bits &= bits - 1
            row = <HeldDownState*>next_row(section, sizeof(HeldDownState))
            if row == NULL:
                continue
            row.address = address
            row.owner = map.owners[port]
            row.until_ms = map.cells[port]
            row.port = <unsigned short>port
            row.space = <uint8_t>space
            row.unused = 0


cdef void give_ports(const Ports* ports, Rows* sections) noexcept nogil:
    """Outside addresses, the ports of their host, and those held down; ports in use are their mappings'."""
    cdef uint32_t number, space
    cdef const Address* address
    cdef AddressState* row
    cdef HostPortsState* host
    for number in range(ports.count):
        address = &ports.addresses[number]
        if address.memory == NULL:
            continue
        if address.host != NULL:
            host = <HostPortsState*>next_row(&sections[SECTION_HOST_PORTS], sizeof(HostPortsState))
            if host != NULL:
                memcpy(host.now, address.host.now, sizeof(host.now))
                memcpy(host.wanted, address.host.wanted, sizeof(host.wanted))
                host.address = number
                host.unused = 0
        row = <AddressState*>next_row(&sections[SECTION_ADDRESSES], sizeof(AddressState))
        for space in range(PORT_SPACES):
            give_held_down(ports, number, space, &sections[SECTION_HELD_DOWN])
            if row != NULL:
                row.next_word[space] = address.maps[space].next_word
                row.words_left[space] = address.maps[space].words_left
                row.soonest[space] = address.maps[space].soonest
                row.next_release[space] = ports.next_release[space][number]
                row.warned[space] = address.maps[space].warned
        if row != NULL:
            row.number, row.ip, row.eip = number, address.ip, address.eip


cdef void give_blocks(const Ports* ports, Rows* section) noexcept nogil:
    """Assigned blocks; of a subscriber's the one assigned last comes first."""
    cdef uint32_t chain, at
    cdef const Block* block
    cdef BlockState* row
    for chain in range(BLOCK_CHAINS if ports.blocks.per_address else 0):
        at = ports.blocks.chains[chain] - 1
        while at != NONE:
            row = <BlockState*>next_row(section, sizeof(BlockState))
            if row != NULL:
                block = block_at(&ports.blocks, at)
                row.address, row.block, row.owner, row.unused = at >> 16, at & 0xFFFF, block.owner, 0
                row.number, row.born_ns = block.number, block.born_ns
            at = block_at(&ports.blocks, at).next


cdef void give_event(const Event* event, uint32_t place, Rows* section) noexcept nogil:
    cdef EventState* row
    if event.count == 0:
        return
    row = <EventState*>next_row(section, sizeof(EventState))
    if row != NULL:
        row.count, row.at_ns = event.count, event.at_ns
        row.subscriber, row.destination, row.port = event.subscriber, event.destination, event.port
        row.place = <unsigned short>place
        row.protocol, row.reason, row.limit, row.unused = event.protocol, event.verdict, event.limit, 0


cdef void give_held_syns(const SynHoldoff* queue, Rows* section) noexcept nogil:
    cdef uint32_t i, at
    cdef const HeldSyn* syn
    cdef HeldSynState* row
    for i in range(queue.head - queue.tail):
        at = (queue.tail + i) % HELD_SYNS
        syn = &queue.slots[at]
        row = <HeldSynState*>next_row(section, sizeof(HeldSynState))
        if row != NULL:
            memset(row, 0, sizeof(HeldSynState))
            row.due_ns, row.length, row.link_bytes, row.cause = syn.due_ns, syn.length, syn.link_bytes, syn.cause
            row.source = queue.sources[at]
            memcpy(row.data, syn.data, syn.length)


cdef void give_budget(const ErrorBudget* budget, Rows* section) noexcept nogil:
    cdef BudgetState* row = <BudgetState*>next_row(section, sizeof(BudgetState))
    if row != NULL:
        row.second, row.sent, row.count, row.others = budget.second, budget.sent, budget.count, budget.others
        memcpy(row.source, budget.source, sizeof(row.source))
        memcpy(row.sent_to, budget.sent_to, sizeof(row.sent_to))
        row.unused = 0


cdef void give_gateway(Worker* first, Rows* sections, bint seeded) noexcept nogil:
    """What workers share, but for datagrams in progress and the rows of the session log. seeded: with the random numbers."""
    cdef Shared* shared = first.shared
    cdef const Ports* ports = &shared.ports
    cdef const Outbox* outbox = &shared.outbox
    cdef GatewayState* row = <GatewayState*>next_row(&sections[SECTION_GATEWAY], sizeof(GatewayState))
    cdef uint32_t i
    cdef uint32_t* word
    give_ports(ports, sections)
    give_blocks(ports, &sections[SECTION_BLOCKS])
    for i in range(IDENTIFICATIONS):
        word = <uint32_t*>next_row(&sections[SECTION_IDENTIFICATIONS], 4)
        if word != NULL:
            word[0] = shared.identifications[i]
    for i in range(EVENT_SLOTS):
        give_event(&shared.events.slots[i], i, &sections[SECTION_EVENTS])
    for i in range(REASON_SLOTS):
        give_event(&shared.events.by_reason[i], EVENT_SLOTS + i, &sections[SECTION_EVENTS])
    give_held_syns(&shared.syn_holdoff, &sections[SECTION_HELD_SYNS])
    for i in range(4):
        give_budget(&outbox.budgets[i], &sections[SECTION_BUDGETS])
    if row == NULL:
        return
    memset(row, 0, sizeof(GatewayState))
    row.hash_key[0], row.hash_key[1] = first.sessions.key.low, first.sessions.key.high
    row.now_ns = first.now_ns if shared.count == 1 else shared.now_ns
    row.epoch_ns = first.sessions.epoch_ns
    row.created = first.sessions.created if shared.count == 1 else shared.created
    row.reclaimed, row.reclaim_table, row.reclaim_line = shared.reclaimed, shared.reclaim_table, shared.reclaim_line
    row.opened_second, row.opened, row.sessions_warned = shared.opened_second, shared.opened, shared.sessions_warned
    if seeded:
        memcpy(row.randoms, ports.randoms, sizeof(row.randoms))
        memcpy(row.random_state, ports.random.state, sizeof(row.random_state))
        memcpy(row.random_block, ports.random.block, sizeof(row.random_block))
        row.random_used, row.randoms_taken = ports.random.used, ports.randoms_taken
    row.reclaim_at, row.longest_hold_down_ms = ports.reclaim_at, ports.longest_hold_down_ms
    row.blocks_taken, row.blocks_released = ports.blocks.taken, ports.blocks.released
    row.journal_lost, row.journal_lifecycle_lost = shared.journal.lost, shared.journal.lifecycle_lost
    row.journal_lost_from, row.journal_lost_until = shared.journal.lost_from, shared.journal.lost_until
    row.journal_order = shared.journal.order
    row.generated, row.generated_withheld = outbox.generated, outbox.withheld
    row.generated_lost = outbox.lost + outbox_frames(outbox)        # frames that wait are not saved
    for i in range(2):
        row.evicted[i] = first.fragments[i].evicted
    row.events_lost, row.held_syns_lost = shared.events.lost, shared.syn_holdoff.lost


cdef void give_rows(Worker* first, Rows* section) noexcept nogil:
    """The rows of the session log that wait to be drained, unordered: `number` says in which order they were written. The
    journal must not be drained meanwhile."""
    cdef const Journal* journal = &first.shared.journal
    cdef const Overflow* overflow = <const Overflow*>journal.oldest
    cdef uint64_t at = journal.oldest_read, i
    for i in range(journal.tail, journal.head):
        give_row(section, &journal.ring[i % journal.capacity])
    for i in range(journal.lifecycle_tail, journal.lifecycle_head):
        give_row(section, &journal.lifecycle[i % journal.capacity])
    while overflow != NULL:
        for i in range(at, overflow.count):
            give_row(section, &overflow.rows[i])
        at = 0
        overflow = <const Overflow*>overflow.next


cdef inline void give_row(Rows* section, const Record* record) noexcept nogil:
    cdef void* row = next_row(section, sizeof(Record))
    if row != NULL:
        memcpy(row, record, sizeof(Record))

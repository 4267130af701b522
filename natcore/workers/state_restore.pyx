"""Fills the tables of a new gateway with the rows of a saved state.

The gateway has its entries and their outside addresses already, and has seen no packet. The rows may be from anywhere: each
number that is used as an index, and each list, is checked here before it is used, so that a damaged file is refused and can
corrupt no memory. What follows from other rows is computed and not believed: keys, checksum deltas, counts, indexes, bitmaps.
After a refusal the tables are unusable; the caller discards the gateway.

Order: what workers share (addresses, blocks, the host's ports), each worker's tables, ports that are held down, datagrams
(nat/fragment_state.pyx), rows of the session log.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from natcore.log.events cimport EVENT_SLOTS, REASON_SLOTS, Event, event_fd_set
from natcore.log.journal cimport RECORD_END, Journal, Record, journal_commit, journal_slot
from natcore.tables.outbox cimport BUDGET_SOURCES, ErrorBudget
from natcore.tables.mappings cimport (
    MAPPING_DRAINING, MAPPING_FREE, MAPPING_PORTLESS, MAPPING_STATIC, Mapping, MappingKey, Mappings, Subscriber, key_of,
    mapping_find, mapping_hash, subscriber_find,
)
from natcore.tables.port_blocks cimport block_at, block_assign, block_reference
from natcore.tables.port_overload cimport EndpointPair, overload_add, overload_find
from natcore.tables.ports cimport (
    HOST_SPACES, PORT_OF_HOST, PORT_RESERVED, PORT_SPACES, PORT_WORDS, PORTS_OVERLOAD, Address, PortMap, Ports,
    address_share, has_ports, in_ranges, port_mapping, port_release, port_use, ports_reserve, space_of,
)
from natcore.tables.sessions cimport (
    IN, OPENED_OUTSIDE, OUT, SESSION_FREE, SYN_NOTED, TIMEOUT_FRAGMENT, UNLOGGED, UNTRANSLATED_BOTH, Cold, Filter, Session,
    Sessions, filter_find, filter_hash, filter_key, session_addresses, session_find, session_ports,
)
from natcore.tables.syn_holdoff cimport HELD_SYN_BYTES, HELD_SYNS, HeldSyn
from natcore.workers.expiry cimport LONG_STEP_S
from natcore.workers.limits cimport LIMITS
from natcore.workers.state_rows cimport (
    ENTRY_DNAT, ENTRY_NO_NAT, ENTRY_SNAT,
    SECTION_ADDRESSES, SECTION_BLOCKS, SECTION_BUDGETS, SECTION_EVENTS, SECTION_FILTER_LISTS, SECTION_FILTERS,
    SECTION_FREE_FILTERS, SECTION_FREE_MAPPINGS, SECTION_FREE_SESSIONS, SECTION_FREE_SUBSCRIBERS, SECTION_GATEWAY,
    SECTION_HELD_DOWN,
    SECTION_HELD_SYNS, SECTION_HOST_PORTS, SECTION_IDENTIFICATIONS, SECTION_MAPPING_LISTS, SECTION_MAPPINGS, SECTION_ROWS,
    SECTION_SESSIONS, SECTION_SUBSCRIBERS, SECTION_SYNS, SECTION_WORKER, AddressState, BlockState, BudgetState,
    EventState, FilterState, GatewayState, HeldDownState, HeldSynState, HostPortsState, MappingState, SessionState,
    SubscriberState, SynState, WorkerState, refuse,
)
from natcore.workers.worker cimport IDENTIFICATIONS, Shared, worker_of_inside
from natcore.base.checksum cimport combine, delta16, delta32
from natcore.base.compiler cimport bswap16, bswap32, prefetch_write
from natcore.base.flow_hash cimport flow_hash
from natcore.base.freelist cimport Freelist
from natcore.base.hash_table cimport bucket_of, index_insert
from natcore.base.headers cimport PROTOCOL_ICMP, PROTOCOL_TCP, Ipv4Header
from natcore.base.linked_list cimport Link
from natcore.base.sentinels cimport NONE

cdef enum:
    AHEAD = 16                  # sessions that are prefetched ahead
    LINK_BYTES = 22             # Ethernet header with two tags

cdef uint64_t STEP_NS = (LONG_STEP_S + 1) * <uint64_t>1000000000     # after a longer one all windows are looked at


cdef void key_set(Worker* first, uint64_t low, uint64_t high) noexcept nogil:
    """Sets the key of all hashes, on which targets of DNAT entries and identifications depend; all tables must be empty."""
    cdef Shared* shared = first.shared
    cdef uint32_t i
    for i in range(shared.count):
        shared.workers[i].sessions.key.low, shared.workers[i].sessions.key.high = low, high
        shared.workers[i].mappings.key = first.sessions.key
    shared.ports.key = first.sessions.key
    for i in range(2):
        first.fragments[i].key = first.sessions.key


# ---- slots and lists -------------------------------------------------------------------------------------------------

cdef uint8_t* take_free(Freelist* slots, const Rows* sections, uint32_t section, uint64_t live, uint32_t free_section,
                        Damage* damage) noexcept nogil:
    """Fills a table's free list; returns a byte for each slot, 1: it is free. The caller frees it; NULL: refused."""
    cdef const uint32_t* rows = <const uint32_t*>sections[free_section].rows
    cdef uint64_t fresh = live + sections[free_section].count, i
    cdef uint8_t* is_free
    if fresh > slots.capacity:
        refuse(damage, section, live, "the table has no place for it")
        return NULL
    is_free = <uint8_t*>calloc(fresh + 1, 1)
    if is_free == NULL:
        refuse(damage, section, 0, "out of memory")
        return NULL
    slots.fresh = <uint32_t>fresh
    slots.live = <uint32_t>live
    slots.free = NONE
    for i in range(sections[free_section].count):
        if rows[i] >= fresh or is_free[rows[i]]:
            refuse(damage, free_section, i, "no free slot of the table, or twice")
            free(is_free)
            return NULL
        is_free[rows[i]] = 1
        (<uint32_t*>(slots.base + rows[i] * slots.stride))[0] = (
            rows[i + 1] if i + 1 < sections[free_section].count else <uint32_t>NONE)
    slots.free = rows[0] if sections[free_section].count else <uint32_t>NONE
    return is_free


cdef bint take_ring(Link* links, uint32_t first, uint32_t count, uint32_t fresh, const uint8_t* owners, size_t stride,
                    uint32_t owner) noexcept nogil:
    """Whether `next` of the links makes a ring of count elements, all of this owner; completes it with `previous`.

    owners: of each element, 4 bytes every `stride`. The first return to `first` comes with the last element, so that none is
    met twice.
    """
    cdef uint32_t at = first, next, i
    for i in range(count):
        if at >= fresh or (<const uint32_t*>(owners + at * stride))[0] != owner:
            return False
        next = links[at].next
        if next >= fresh or (next == first) != (i + 1 == count):
            return False
        links[next].previous = at
        at = next
    return True


# ---- what workers share ----------------------------------------------------------------------------------------------

cdef bint has_address(const Ports* ports, uint32_t address) noexcept nogil:
    return address < ports.count and ports.addresses[address].memory != NULL


cdef bint take_host_ports(Ports* ports, const HostPortsState* row) noexcept nogil:
    """Gives a host the ports that it had; False: an entry has one of them, or there is no memory."""
    cdef uint32_t space, word, port
    cdef uint64_t nothing[2 * 1024]
    cdef Address* address
    if not has_address(ports, row.address):
        return False
    address = &ports.addresses[row.address]
    memset(nothing, 0, sizeof(nothing))
    if address.host != NULL or not address_share(ports, row.address, nothing):
        return False
    for space in range(HOST_SPACES):
        for word in range(PORT_WORDS):
            if address.maps[space].used[word] & row.now[space][word]:
                return False
            for port in range(word * 64, word * 64 + 64 if row.now[space][word] else 0):
                if (row.now[space][word] >> (port & 63)) & 1:
                    ports_reserve(ports, &address.maps[space], port, port)
                    address.maps[space].cells[port] = PORT_OF_HOST
    memcpy(address.host.now, row.now, sizeof(row.now))
    memcpy(address.host.wanted, row.wanted, sizeof(row.wanted))
    return True


cdef bint take_blocks(Ports* ports, const Rows* section, Damage* damage) noexcept nogil:
    """Assigns blocks, the last row first, which is the order in which a subscriber got them."""
    cdef uint64_t i
    cdef const BlockState* row
    for i in range(section.count):
        row = &(<const BlockState*>section.rows)[section.count - 1 - i]
        if (row.block >= ports.blocks.per_address or not has_address(ports, row.address)
                or block_at(&ports.blocks, block_reference(row.address, row.block)).taken):
            return refuse(damage, SECTION_BLOCKS, section.count - 1 - i, "no block of an outside address, or assigned twice")
        block_assign(&ports.blocks, &ports.key, block_reference(row.address, row.block), row.owner, row.born_ns)
        block_at(&ports.blocks, block_reference(row.address, row.block)).number = row.number
    return True


cdef bint take_addresses(Ports* ports, const Rows* sections, Damage* damage) noexcept nogil:
    """What an outside address has besides its entries. The addresses themselves are there."""
    cdef const AddressState* row = <const AddressState*>sections[SECTION_ADDRESSES].rows
    cdef uint64_t i
    cdef uint32_t space
    for i in range(sections[SECTION_ADDRESSES].count):
        if not has_address(ports, row[i].number) or ports.addresses[row[i].number].references == 0:
            return refuse(damage, SECTION_ADDRESSES, i, "no entry has the outside address")
        ports.addresses[row[i].number].eip = row[i].eip
        for space in range(PORT_SPACES):
            if row[i].next_word[space] >= PORT_WORDS or row[i].words_left[space] > PORT_WORDS:
                return refuse(damage, SECTION_ADDRESSES, i, "a cursor is beyond its table")
            ports.addresses[row[i].number].maps[space].warned = row[i].warned[space] != 0
    for i in range(sections[SECTION_HOST_PORTS].count):
        if not take_host_ports(ports, &(<const HostPortsState*>sections[SECTION_HOST_PORTS].rows)[i]):
            return refuse(damage, SECTION_HOST_PORTS, i, "the host cannot have these ports")
    return True


cdef bint take_events(Worker* first, const Rows* section, Damage* damage) noexcept nogil:
    cdef uint64_t i
    cdef const EventState* row
    cdef Event* event
    for i in range(section.count):
        row = &(<const EventState*>section.rows)[i]
        if row.place >= EVENT_SLOTS + REASON_SLOTS or row.count == 0 or row.limit >= LIMITS:
            return refuse(damage, SECTION_EVENTS, i, "no event")
        event = &first.events.slots[row.place] if row.place < EVENT_SLOTS else NULL
        if event == NULL:
            event = &first.events.by_reason[row.place - EVENT_SLOTS]
        if event.count:
            return refuse(damage, SECTION_EVENTS, i, "a place has two events")
        event.count, event.at_ns = row.count, row.at_ns
        event.subscriber, event.destination, event.port = row.subscriber, row.destination, row.port
        event.protocol, event.verdict, event.limit = row.protocol, row.reason, row.limit
        first.events.waiting += 1
    if section.count:
        event_fd_set(first.events.fd)
    return True


cdef bint is_held_syn(const HeldSynState* row) noexcept nogil:
    """Whether the frame is what the hold-off keeps: a TCP segment, as much of it as an error quotes."""
    cdef const Ipv4Header* ip = <const Ipv4Header*>(row.data + row.link_bytes)
    cdef uint32_t header, total
    if row.length > HELD_SYN_BYTES or row.link_bytes > LINK_BYTES or row.link_bytes + 40 > row.length:
        return False
    header = (ip.version_ihl & 15) * 4
    total = bswap16(ip.total_length)
    return (ip.version_ihl >> 4 == 4 and header >= 20 and row.link_bytes + header + 20 <= row.length and total >= header + 20
            and (row.link_bytes + total <= row.length or row.length == HELD_SYN_BYTES)
            and ip.protocol == PROTOCOL_TCP and ip.source == row.source)


cdef bint take_held_syns(Worker* first, const Rows* section, uint64_t later_ns, Damage* damage) noexcept nogil:
    cdef uint64_t i
    cdef const HeldSynState* row
    cdef HeldSyn* syn
    if section.count > HELD_SYNS:
        return refuse(damage, SECTION_HELD_SYNS, section.count, "more SYNs than a gateway holds")
    for i in range(section.count):
        row = &(<const HeldSynState*>section.rows)[i]
        if not is_held_syn(row):
            return refuse(damage, SECTION_HELD_SYNS, i, "no SYN")
        syn = &first.syn_holdoff.slots[i]
        syn.due_ns, syn.length, syn.link_bytes, syn.cause = row.due_ns + later_ns, row.length, row.link_bytes, row.cause
        memcpy(syn.data, row.data, row.length)
        first.syn_holdoff.sources[i] = row.source
    first.syn_holdoff.tail = 0
    first.syn_holdoff.head = <uint32_t>section.count
    return True


cdef bint take_budgets(Worker* first, const Rows* section, Damage* damage) noexcept nogil:
    cdef const BudgetState* row = <const BudgetState*>section.rows
    cdef ErrorBudget* budget
    cdef uint64_t i
    if section.count != 4:
        return refuse(damage, SECTION_BUDGETS, section.count, "there must be 4")
    for i in range(4):
        if row[i].count > BUDGET_SOURCES:
            return refuse(damage, SECTION_BUDGETS, i, "more sources than have a share")
        budget = &first.outbox.budgets[i]
        budget.second, budget.sent, budget.count, budget.others = row[i].second, row[i].sent, row[i].count, row[i].others
        memcpy(budget.source, row[i].source, sizeof(budget.source))
        memcpy(budget.sent_to, row[i].sent_to, sizeof(budget.sent_to))
    return True


cdef bint take_gateway(Worker* first, const Rows* sections, const Later* later, bint seeded, Damage* damage) noexcept nogil:
    """What workers share, but for ports in use and held down. seeded: the random numbers go on where they were."""
    cdef Shared* shared = first.shared
    cdef Ports* ports = &shared.ports
    cdef const GatewayState* row = <const GatewayState*>sections[SECTION_GATEWAY].rows
    cdef uint32_t i
    if sections[SECTION_GATEWAY].count != 1:
        return refuse(damage, SECTION_GATEWAY, 0, "there must be one row")
    if row.reclaim_table >= shared.count or row.random_used > 16 or sections[SECTION_IDENTIFICATIONS].count != IDENTIFICATIONS:
        return refuse(damage, SECTION_GATEWAY, 0, "a cursor is beyond its table")
    if not (take_addresses(ports, sections, damage) and take_blocks(ports, &sections[SECTION_BLOCKS], damage)
            and take_events(first, &sections[SECTION_EVENTS], damage)
            and take_held_syns(first, &sections[SECTION_HELD_SYNS], later.gap_ns if later.frozen else 0, damage)
            and take_budgets(first, &sections[SECTION_BUDGETS], damage)):
        return False
    memcpy(shared.identifications, sections[SECTION_IDENTIFICATIONS].rows, IDENTIFICATIONS * sizeof(uint32_t))
    shared.created, shared.reclaimed = row.created, row.reclaimed
    shared.reclaim_table, shared.reclaim_line = row.reclaim_table, row.reclaim_line
    shared.opened_second, shared.opened = row.opened_second, row.opened
    shared.sessions_warned = row.sessions_warned != 0
    if seeded:
        memcpy(ports.randoms, row.randoms, sizeof(row.randoms))
        memcpy(ports.random.state, row.random_state, sizeof(row.random_state))
        memcpy(ports.random.block, row.random_block, sizeof(row.random_block))
        ports.random.used, ports.randoms_taken = row.random_used, row.randoms_taken
    ports.reclaim_at = row.reclaim_at
    ports.longest_hold_down_ms = max(ports.longest_hold_down_ms, row.longest_hold_down_ms)
    if ports.blocks.per_address:
        ports.blocks.taken, ports.blocks.released = row.blocks_taken, row.blocks_released
    shared.journal.lost, shared.journal.lifecycle_lost = row.journal_lost, row.journal_lifecycle_lost
    shared.journal.lost_from, shared.journal.lost_until = row.journal_lost_from, row.journal_lost_until
    shared.journal.order = row.journal_order
    shared.outbox.generated, shared.outbox.lost = row.generated, row.generated_lost
    shared.outbox.withheld = row.generated_withheld
    shared.events.lost, shared.syn_holdoff.lost = row.events_lost, row.held_syns_lost
    if shared.count > 1:
        shared.now_ns = row.now_ns
    for i in range(shared.count):
        shared.workers[i].sessions.epoch_ns = row.epoch_ns
    return True


# ---- a worker's tables -----------------------------------------------------------------------------------------------

cdef bint take_subscribers(Worker* worker, const Rows* sections, Damage* damage) noexcept nogil:
    cdef Mappings* table = &worker.mappings
    cdef const Rows* section = &sections[SECTION_SUBSCRIBERS]
    cdef const SubscriberState* row = <const SubscriberState*>section.rows
    cdef uint32_t slot = 0
    cdef uint64_t i
    cdef Subscriber* subscriber
    cdef uint8_t* is_free = take_free(&table.subscriber_slots, sections, SECTION_SUBSCRIBERS, section.count,
                                      SECTION_FREE_SUBSCRIBERS, damage)
    if is_free == NULL:
        return False
    for i in range(section.count):
        while is_free[slot]:
            slot += 1
        subscriber = &table.subscribers[slot]
        subscriber.ip, subscriber.address, subscriber.entry = row[i].ip, row[i].address, row[i].entry
        subscriber.second, subscriber.second_ms, subscriber.opened = row[i].second, row[i].second_ms, row[i].opened
        if table.cursors != NULL:
            table.cursors[slot].first, table.cursors[slot].examined = row[i].first, row[i].examined
        if (worker_of_inside(bswap32(row[i].ip), worker.shared.count) != worker.number
                or subscriber_find(table, row[i].ip) != NONE):
            refuse(damage, SECTION_SUBSCRIBERS, i, "the address is of another worker, or comes twice")
            break
        if row[i].entry and not has_address(table.ports, row[i].address):
            refuse(damage, SECTION_SUBSCRIBERS, i, "paired with no outside address")
            break
        if not index_insert(&table.by_ip, flow_hash(&table.key, row[i].ip, 0, 0), slot):
            refuse(damage, SECTION_SUBSCRIBERS, i, "the index has no place for it")
            break
        slot += 1
    free(is_free)
    return damage.text == NULL


cdef const char* use_port(Worker* worker, uint32_t number) noexcept nogil:
    """Gives a mapping its port; NULL, or why it cannot have it."""
    cdef Ports* ports = worker.mappings.ports
    cdef const Mapping* mapping = &worker.mappings.mappings[number]
    cdef uint32_t port = bswap16(mapping.outside_port)
    cdef PortMap* map = &ports.addresses[mapping.address].maps[space_of(mapping.protocol)]
    cdef bint used = (map.used[port >> 6] >> (port & 63)) & 1
    cdef EndpointPair ends
    if not in_ranges(ports, port):
        return "its port is none that is allocated"
    if ports.blocks.per_address and not is_block_of(ports, mapping.address, port, mapping.inside_ip):
        return "its port is in no block of its subscriber"
    if ports.policy != PORTS_OVERLOAD:
        if used:
            return "its port is in use"
        port_use(ports, map, port)
        map.cells[port] = number
        if ports.workers > 1:
            map.workers[port] = <uint8_t>worker.number
        return NULL
    if used and map.cells[port] >= PORT_OF_HOST:
        return "its port is in use"
    ends.outside_ip, ends.outside_port = mapping.outside_ip, mapping.outside_port
    ends.remote_ip, ends.remote_port = mapping.remote_ip, mapping.remote_port
    ends.protocol, ends.mapping, ends.worker = mapping.protocol, number, <uint8_t>worker.number
    if overload_find(&ports.overload, &ports.key, &ends) != NONE:
        return "its pair of endpoints is in use"
    if not used:
        port_use(ports, map, port)
        map.cells[port] = 0
    map.cells[port] += 1
    if not overload_add(&ports.overload, &ports.key, &ends):
        return "the index has no place for it"
    return NULL


cdef inline bint is_block_of(const Ports* ports, uint32_t address, uint32_t port, uint32_t owner) noexcept nogil:
    return (block_at(&ports.blocks, block_reference(address, ports.block_of[port])).taken
            and block_at(&ports.blocks, block_reference(address, ports.block_of[port])).owner == owner)


cdef const char* entry_is_wrong(const Ports* ports, const uint8_t* entries, uint32_t entry_count,
                                const Mapping* mapping) noexcept nogil:
    """NULL, or why the mapping's entry has none like it: a fixed one would have a port that another host may be given."""
    cdef uint32_t port = bswap16(mapping.outside_port), wanted = ENTRY_SNAT
    if mapping.flags & MAPPING_STATIC:
        wanted = ENTRY_NO_NAT if mapping.address == NONE else ENTRY_DNAT
    if mapping.entry >= entry_count or not entries[mapping.entry]:
        return "it has no entry"
    if entries[mapping.entry] != wanted:
        return "its entry is of another kind"
    if (wanted == ENTRY_DNAT and has_ports(mapping.protocol) and in_ranges(ports, port) and port_mapping(
            &ports.addresses[mapping.address].maps[space_of(mapping.protocol)], <uint16_t>port) != PORT_RESERVED):
        return "its port is none of an entry"
    return NULL


cdef const char* mapping_is_wrong(const Worker* worker, const Mapping* mapping, const uint8_t* entries, uint32_t entry_count,
                                  const uint8_t* no_subscriber) noexcept nogil:
    """NULL, or why no gateway has this mapping."""
    cdef const Mappings* table = &worker.mappings
    cdef bint fixed = mapping.flags & MAPPING_STATIC != 0
    cdef const char* wrong
    if mapping.flags & ~(MAPPING_STATIC | MAPPING_PORTLESS | MAPPING_DRAINING):
        return "unknown flags"
    if worker_of_inside(bswap32(mapping.inside_ip), worker.shared.count) != worker.number:
        return "its address is of another worker"
    if mapping.address == NONE:
        if not fixed or mapping.outside_ip != mapping.inside_ip or mapping.outside_port != mapping.inside_port:
            return "it has no outside address"
    elif not has_address(table.ports, mapping.address) or table.ports.addresses[mapping.address].ip != mapping.outside_ip:
        return "it has another outside address"
    wrong = entry_is_wrong(table.ports, entries, entry_count, mapping)
    if wrong != NULL:
        return wrong
    if fixed and mapping.subscriber != NONE:
        return "it has a subscriber"
    if fixed:
        return NULL
    if (mapping.flags & MAPPING_PORTLESS != 0) == has_ports(mapping.protocol):
        return "its protocol does not fit"
    if mapping.subscriber >= table.subscriber_slots.fresh or no_subscriber[mapping.subscriber]:
        return "it has no subscriber"
    if table.subscribers[mapping.subscriber].ip != mapping.inside_ip:
        return "it has another subscriber"
    return NULL


cdef bint take_mappings(Worker* worker, const Rows* sections, const uint8_t* entries, uint32_t entry_count, uint32_t later_ms,
                        Damage* damage) noexcept nogil:
    cdef Mappings* table = &worker.mappings
    cdef const Rows* section = &sections[SECTION_MAPPINGS]
    cdef const MappingState* row = <const MappingState*>section.rows
    cdef uint32_t slot = 0, i
    cdef uint64_t at
    cdef Mapping* mapping
    cdef MappingKey key
    cdef const char* wrong
    cdef uint8_t* no_subscriber
    cdef uint8_t* is_free = take_free(&table.mapping_slots, sections, SECTION_MAPPINGS, section.count, SECTION_FREE_MAPPINGS,
                                      damage)
    if is_free == NULL:
        return False
    no_subscriber = <uint8_t*>calloc(<size_t>table.subscriber_slots.fresh + 1, 1)
    if no_subscriber == NULL:
        free(is_free)
        return refuse(damage, SECTION_MAPPINGS, 0, "out of memory")
    for at in range(sections[SECTION_FREE_SUBSCRIBERS].count):
        no_subscriber[(<const uint32_t*>sections[SECTION_FREE_SUBSCRIBERS].rows)[at]] = 1
    for i in range(table.mapping_slots.fresh):
        if is_free[i]:
            table.mappings[i].flags = MAPPING_FREE
            table.mappings[i].subscriber = NONE
    for at in range(section.count):
        while is_free[slot]:
            slot += 1
        mapping = &table.mappings[slot]
        mapping.inside_ip, mapping.remote_ip, mapping.outside_ip = row[at].inside_ip, row[at].remote_ip, row[at].outside_ip
        mapping.inside_port, mapping.remote_port = row[at].inside_port, row[at].remote_port
        mapping.outside_port, mapping.protocol, mapping.flags = row[at].outside_port, row[at].protocol, row[at].flags
        mapping.address, mapping.entry, mapping.subscriber = row[at].address, row[at].entry, row[at].subscriber
        mapping.sessions = mapping.opened_outside = 0
        mapping.first, mapping.held_until = row[at].first, row[at].held_until + later_ms
        wrong = mapping_is_wrong(worker, mapping, entries, entry_count, no_subscriber)
        key_of(mapping, &key)
        if wrong == NULL and not mapping.flags & MAPPING_DRAINING and mapping_find(table, &key) != NONE:
            wrong = "another one has its key"
        if wrong == NULL and not index_insert(&table.by_inside, mapping_hash(table, &key), slot):
            wrong = "the index has no place for it"
        if wrong == NULL and not mapping.flags & (MAPPING_STATIC | MAPPING_PORTLESS):
            wrong = use_port(worker, slot)
        if wrong != NULL:
            refuse(damage, SECTION_MAPPINGS, at, wrong)
            break
        if not mapping.flags & MAPPING_STATIC:
            table.subscribers[mapping.subscriber].mappings += 1
        if table.by_subscriber != NULL and sections[SECTION_MAPPING_LISTS].count == section.count:
            table.by_subscriber[slot].next = (<const uint32_t*>sections[SECTION_MAPPING_LISTS].rows)[at]
        slot += 1
    free(is_free)
    free(no_subscriber)
    return damage.text == NULL


cdef bint take_mapping_lists(Mappings* table, const Rows* sections, Damage* damage) noexcept nogil:
    """Completes the list of each subscriber's mappings."""
    cdef uint32_t slot
    cdef bint found = True
    if sections[SECTION_MAPPING_LISTS].count != sections[SECTION_MAPPINGS].count:
        return refuse(damage, SECTION_MAPPING_LISTS, sections[SECTION_MAPPING_LISTS].count, "as many as mappings are needed")
    for slot in range(table.subscriber_slots.fresh):
        if table.subscribers[slot].mappings == 0:
            table.cursors[slot].first = NONE
        else:
            found = take_ring(table.by_subscriber, table.cursors[slot].first, table.subscribers[slot].mappings,
                              table.mapping_slots.fresh, <const uint8_t*>&table.mappings[0].subscriber, sizeof(Mapping), slot)
        if not found:
            return refuse(damage, SECTION_MAPPING_LISTS, slot, "the list of a subscriber is broken")
    return True


cdef inline void fill_session(Session* session, Cold* cold, const SessionState* row, const Mapping* mapping,
                              uint32_t later_ms) noexcept nogil:
    session.ip[0], session.ip[1], session.ip[2] = mapping.inside_ip, row.remote_ip, mapping.outside_ip
    session.port[0], session.port[1], session.port[2] = mapping.inside_port, row.remote_port, mapping.outside_port
    session.protocol, session.state = mapping.protocol, row.state
    session.l3_delta = delta32(mapping.inside_ip, mapping.outside_ip)
    session.l4_delta = delta16(mapping.inside_port, mapping.outside_port)
    if mapping.protocol != PROTOCOL_ICMP:
        session.l4_delta = combine(session.l4_delta, session.l3_delta)
    session.last_seen = row.last_seen + later_ms
    memcpy(session.ack, row.ack, 16)                            # and end
    memcpy(session.packets, row.packets, 8)
    memcpy(session.bytes, row.bytes, 8)
    session.window_end, session.flags, session.timeout_class = row.window_end, row.flags, row.timeout_class
    cold.window_start_ns, cold.birth_ns = row.window_start_ns, row.birth_ns
    memcpy(cold.total_bytes, row.total_bytes, 32)               # and total_packets
    cold.mapping, cold.id_low, cold.id_high = row.mapping, row.id_low, row.id_high
    memcpy(cold.carry_bytes, row.carry_bytes, 4)
    memcpy(cold.carry_packets, row.carry_packets, 2)


cdef const char* session_is_wrong(const Session* session, const Mapping* mapping) noexcept nogil:
    """NULL, or why no gateway has this session."""
    if session.flags & SESSION_FREE or session.timeout_class >= TIMEOUT_FRAGMENT:
        return "unknown flags or time-out"
    if (mapping.address == NONE) != (session.flags & UNTRANSLATED_BOTH != 0):
        return "its flags do not fit its mapping"
    if mapping.address == NONE and not session.flags & UNLOGGED:    # a row needs the address's EIP
        return "its flags do not fit its mapping"
    return NULL


cdef const char* take_session(Sessions* table, uint32_t slot, const SessionState* row, uint64_t outbound, uint64_t inbound,
                              uint32_t later_ms) noexcept nogil:
    """Fills a session's lines and enters it into the indexes; NULL, or why not. Its mapping is there."""
    cdef Session* session = &table.hot[slot]
    cdef Mapping* mapping = &table.mappings.mappings[row.mapping]
    cdef const char* wrong
    fill_session(session, &table.cold[slot], row, mapping, later_ms)
    table.by_mapping[slot].next = row.next
    wrong = session_is_wrong(session, mapping)
    if wrong != NULL:
        return wrong
    if (session_find(table, OUT, session_addresses(session, OUT), session_ports(session, OUT), session.protocol) != NONE
            or session_find(table, IN, session_addresses(session, IN), session_ports(session, IN), session.protocol) != NONE):
        return "another one has its key"
    if not (index_insert(&table.index[OUT], outbound, slot) and index_insert(&table.index[IN], inbound, slot)):
        return "the index has no place for it"
    mapping.sessions += 1
    if session.flags & OPENED_OUTSIDE:
        mapping.opened_outside += 1
        table.opened_outside += 1
    elif mapping.subscriber != NONE:
        table.mappings.subscribers[mapping.subscriber].sessions += 1
    return NULL


cdef struct Coming:             # a session with its buckets being prefetched
    uint32_t slot
    uint64_t outbound           # hashes
    uint64_t inbound


cdef const char* foresee(const Sessions* table, const SessionState* row, Coming* coming) noexcept nogil:
    """Computes a session's hashes and prefetches their buckets; NULL, or why it cannot be."""
    cdef const Mapping* mapping
    if row.mapping >= table.mappings.mapping_slots.fresh:
        return "it has no mapping"
    mapping = &table.mappings.mappings[row.mapping]
    if mapping.flags & MAPPING_FREE:
        return "it has no mapping"
    coming.outbound = flow_hash(&table.key, <uint64_t>row.remote_ip << 32 | mapping.inside_ip,
                                <uint32_t>row.remote_port << 16 | mapping.inside_port, mapping.protocol)
    coming.inbound = flow_hash(&table.key, <uint64_t>mapping.outside_ip << 32 | row.remote_ip,
                               <uint32_t>mapping.outside_port << 16 | row.remote_port, mapping.protocol)
    prefetch_write(bucket_of(&table.index[OUT], coming.outbound))
    prefetch_write(bucket_of(&table.index[IN], coming.inbound))
    return NULL


cdef bint take_sessions(Sessions* table, const Rows* sections, uint32_t later_ms, Damage* damage) noexcept nogil:
    cdef const Rows* section = &sections[SECTION_SESSIONS]
    cdef const SessionState* rows = <const SessionState*>section.rows
    cdef uint32_t slot = 0, i
    cdef uint64_t at
    cdef Coming coming[AHEAD]
    cdef Coming* one
    cdef const char* wrong = NULL
    cdef uint8_t* is_free = take_free(&table.slots, sections, SECTION_SESSIONS, section.count, SECTION_FREE_SESSIONS, damage)
    if is_free == NULL:
        return False
    for i in range(table.slots.fresh):
        if is_free[i]:
            table.hot[i].flags = SESSION_FREE
            table.cold[i].mapping = NONE
    for at in range(section.count + AHEAD):
        one = &coming[at % AHEAD]
        if at >= AHEAD:
            wrong = take_session(table, one.slot, &rows[at - AHEAD], one.outbound, one.inbound, later_ms)
            if wrong != NULL:
                refuse(damage, SECTION_SESSIONS, at - AHEAD, wrong)
                break
        if at < section.count:
            while is_free[slot]:
                slot += 1
            one.slot = slot
            slot += 1
            wrong = foresee(table, &rows[at], one)
            if wrong != NULL:
                refuse(damage, SECTION_SESSIONS, at, wrong)
                break
    free(is_free)
    return damage.text == NULL


cdef bint take_syns(Sessions* table, const Rows* sections, Damage* damage) noexcept nogil:
    """SYNs, in the order of their sessions, each of which has one."""
    cdef const SynState* row = <const SynState*>sections[SECTION_SYNS].rows
    cdef uint64_t at = 0, count = 0
    cdef uint32_t slot
    for slot in range(table.slots.fresh):
        if table.hot[slot].flags & SESSION_FREE:
            continue
        if table.hot[slot].flags & SYN_NOTED * 3:
            if at == sections[SECTION_SYNS].count or row[at].session != count:
                return refuse(damage, SECTION_SYNS, at, "no SYN of the next session that has one")
            memcpy(&table.syn[2 * <size_t>slot], row[at].syn, 8)
            at += 1
        count += 1
    return at == sections[SECTION_SYNS].count or refuse(damage, SECTION_SYNS, at, "a SYN of no session")


cdef bint take_session_lists(Sessions* table, Damage* damage) noexcept nogil:
    """Completes the list of each mapping's sessions; no mapping is without."""
    cdef uint32_t number
    cdef Mapping* mapping
    for number in range(table.mappings.mapping_slots.fresh):
        mapping = &table.mappings.mappings[number]
        if mapping.flags & MAPPING_FREE:
            continue
        if mapping.sessions == 0 or not take_ring(table.by_mapping, mapping.first, mapping.sessions, table.slots.fresh,
                                                  <const uint8_t*>&table.cold[0].mapping, sizeof(Cold), number):
            return refuse(damage, SECTION_MAPPINGS, number, "the list of its sessions is broken")
    return True


cdef bint take_filters(Sessions* table, const Rows* sections, Damage* damage) noexcept nogil:
    """Filter entries, with the lists of their sessions."""
    cdef const Rows* section = &sections[SECTION_FILTERS]
    cdef const FilterState* row = <const FilterState*>section.rows
    cdef uint32_t slot = 0
    cdef uint64_t i
    cdef Filter* filter
    cdef uint8_t* is_free = take_free(&table.filter_slots, sections, SECTION_FILTERS, section.count, SECTION_FREE_FILTERS,
                                      damage)
    if is_free == NULL:
        return False
    for i in range(section.count):
        while is_free[slot]:
            slot += 1
        filter = &table.filters[slot]
        filter.sessions = 0
        filter.remote_ip, filter.outside_ip, filter.outside_port = row[i].remote_ip, row[i].outside_ip, row[i].outside_port
        filter.protocol, filter.first = row[i].protocol, row[i].first
        if filter_find(table, filter) != NONE:
            refuse(damage, SECTION_FILTERS, i, "another one has its key")
            break
        filter.in_use = 1
        if not index_insert(&table.by_remote, filter_hash(table, filter), slot):
            refuse(damage, SECTION_FILTERS, i, "the index has no place for it")
            break
        slot += 1
    free(is_free)
    return damage.text == NULL and take_filter_lists(table, sections, damage)


cdef bint take_filter_lists(Sessions* table, const Rows* sections, Damage* damage) noexcept nogil:
    cdef const uint32_t* next = <const uint32_t*>sections[SECTION_FILTER_LISTS].rows
    cdef uint32_t* filters
    cdef uint32_t slot, at = 0
    cdef Filter key
    cdef bint found = True
    if sections[SECTION_FILTER_LISTS].count != sections[SECTION_SESSIONS].count:
        return refuse(damage, SECTION_FILTER_LISTS, sections[SECTION_FILTER_LISTS].count, "as many as sessions are needed")
    filters = <uint32_t*>calloc(<size_t>table.slots.fresh + 1, sizeof(uint32_t))
    if filters == NULL:
        return refuse(damage, SECTION_FILTER_LISTS, 0, "out of memory")
    for slot in range(table.slots.fresh):
        filters[slot] = NONE
        if table.hot[slot].flags & SESSION_FREE:
            continue
        if table.filtered[space_of(table.hot[slot].protocol)]:
            filter_key(&table.hot[slot], &key)
            filters[slot] = filter_find(table, &key)
            if filters[slot] == NONE:
                found = refuse(damage, SECTION_FILTER_LISTS, at, "its filter entry is missing")
                break
            table.filters[filters[slot]].sessions += 1
            table.by_filter[slot].next = next[at]
        at += 1
    for slot in range(table.filter_slots.fresh if found else 0):
        if not table.filters[slot].in_use:
            continue
        if table.filters[slot].sessions == 0 or not take_ring(
                table.by_filter, table.filters[slot].first, table.filters[slot].sessions, table.slots.fresh,
                <const uint8_t*>filters, sizeof(uint32_t), slot):
            found = refuse(damage, SECTION_FILTERS, slot, "the list of its sessions is broken")
            break
    free(filters)
    return found


cdef bint take_own(Worker* worker, const WorkerState* row, const Later* later, Damage* damage) noexcept nogil:
    """A worker's counters, clock and cursors."""
    cdef uint32_t i
    cdef Sessions* table = &worker.sessions
    cdef uint64_t now_ns = max(row.now_ns, worker.shared.now_ns)    # another worker may have swept for this one, later
    if row.swept_for >= worker.shared.count or row.swept_ns > now_ns or row.complete_ns > now_ns:
        return refuse(damage, SECTION_WORKER, 0, "a cursor is beyond its table, or ahead of the clock")
    worker.now_ns, worker.ticked_ns, worker.swept_for = row.now_ns, row.ticked_ns, row.swept_for
    table.swept_ns, table.complete_ns, table.sweep_at = row.swept_ns, row.complete_ns, row.sweep_at
    if later.frozen and later.gap_ns > STEP_NS:                 # deadlines move too: nothing was due meanwhile but windows
        table.swept_ns += later.gap_ns - STEP_NS
    table.created, table.ended = row.created, row.ended
    for i in range(4):
        table.created_of[i], table.ended_of[i] = row.created_of[i], row.ended_of[i]
    for i in range(256):
        worker.counters[i], worker.from_outside[i] = row.counters[i], row.from_outside[i]
    for i in range(2):
        worker.bytes[i] = row.bytes[i]
    for i in range(LIMITS):
        worker.refused[i] = row.refused[i]
    worker.clock_backward, worker.handed_over = row.clock_backward, row.handed_over
    worker.undelivered_in_rows = row.undelivered_in_rows
    worker.mappings.reap_at, worker.mappings.lingering = row.reap_at, row.lingering != 0
    return True


cdef bint take_worker(Worker* worker, const Rows* sections, const uint8_t* entries, uint32_t entry_count, const Later* later,
                      Damage* damage) noexcept nogil:
    """A worker's tables. entries: EntryKind by the number of an entry."""
    cdef uint32_t later_ms = <uint32_t>(later.gap_ns // 1000000) if later.frozen else 0, slot
    cdef const Subscriber* subscriber
    if sections[SECTION_WORKER].count != 1:
        return refuse(damage, SECTION_WORKER, 0, "there must be one row")
    if not (take_subscribers(worker, sections, damage)
            and take_mappings(worker, sections, entries, entry_count, later_ms, damage)
            and take_sessions(&worker.sessions, sections, later_ms, damage)
            and take_syns(&worker.sessions, sections, damage)
            and take_session_lists(&worker.sessions, damage)):
        return False
    if worker.mappings.by_subscriber != NULL and not take_mapping_lists(&worker.mappings, sections, damage):
        return False
    if worker.sessions.filters != NULL and not take_filters(&worker.sessions, sections, damage):
        return False
    for slot in range(worker.mappings.subscriber_slots.fresh):
        subscriber = &worker.mappings.subscribers[slot]
        if subscriber.mappings == 0 and subscriber.opened == 0 and subscriber_find(
                &worker.mappings, subscriber.ip) == slot:
            return refuse(damage, SECTION_SUBSCRIBERS, slot, "a subscriber without mappings")
    return take_own(worker, <const WorkerState*>sections[SECTION_WORKER].rows, later, damage)


# ---- ports at rest, rows of the log ----------------------------------------------------------------------------------

cdef bint take_held_down(Worker* first, const Rows* sections, const Later* later, Damage* damage) noexcept nogil:
    """Ports that are held down, and the cursors of the search for those that are over."""
    cdef Ports* ports = &first.shared.ports
    cdef uint32_t later_ms = <uint32_t>(later.gap_ns // 1000000) if later.frozen else 0, space, until_ms, at, block
    cdef const HeldDownState* row = <const HeldDownState*>sections[SECTION_HELD_DOWN].rows
    cdef const AddressState* address = <const AddressState*>sections[SECTION_ADDRESSES].rows
    cdef PortMap* map
    cdef uint64_t i
    for i in range(sections[SECTION_HELD_DOWN].count):
        if not has_address(ports, row[i].address) or row[i].space >= PORT_SPACES or not in_ranges(ports, row[i].port):
            return refuse(damage, SECTION_HELD_DOWN, i, "no port of an outside address")
        map = &ports.addresses[row[i].address].maps[row[i].space]
        if (map.used[row[i].port >> 6] >> (row[i].port & 63)) & 1:
            return refuse(damage, SECTION_HELD_DOWN, i, "the port is in use")
        if ports.blocks.per_address and not is_block_of(ports, row[i].address, row[i].port, row[i].owner):
            return refuse(damage, SECTION_HELD_DOWN, i, "the port is in no block of its owner")
        until_ms = row[i].until_ms + later_ms
        port_use(ports, map, row[i].port)
        port_release(ports, map, row[i].port, row[i].owner, until_ms, until_ms - 1)
    for i in range(sections[SECTION_ADDRESSES].count):
        for space in range(PORT_SPACES):
            map = &ports.addresses[address[i].number].maps[space]
            map.next_word, map.words_left = address[i].next_word[space], address[i].words_left[space]
            map.soonest = address[i].soonest[space] + later_ms
            ports.next_release[space][address[i].number] = address[i].next_release[space] + later_ms
    for at in range(ports.count if ports.blocks.per_address else 0):
        for block in range(ports.blocks.per_address if has_address(ports, at) else 0):
            if ports.blocks.of[at][block].taken and ports.blocks.of[at][block].ports == 0:
                return refuse(damage, SECTION_BLOCKS, block, "a block without ports")
    return True


cdef bint take_rows(Worker* first, const Rows* section, Damage* damage) noexcept nogil:
    """Rows of the session log, in the order in which they were written; what finds no place is lost and counted."""
    cdef Journal* journal = &first.shared.journal
    cdef uint64_t i
    cdef const Record* record
    cdef Record* row
    if section.count > journal.order:
        return refuse(damage, SECTION_ROWS, section.count, "more rows than were ever written")
    journal.order -= section.count
    for i in range(section.count):
        record = &(<const Record*>section.rows)[i]
        if record.kind > RECORD_END:
            return refuse(damage, SECTION_ROWS, i, "no row of the journal")
        row = journal_slot(journal, record.kind)
        if row != NULL:
            memcpy(row, record, sizeof(Record))
            journal_commit(journal)
        else:
            journal.order += 1
    return True

"""Effects of changed entries on live sessions: counting and ending them.

Walks of whole tables, on the control path, one for all entries; the caller holds all workers.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free

from natcore.log.journal cimport journal_space_for_bulk
from natcore.tables.criteria cimport Criteria, meets
from natcore.tables.entries cimport (
    AddressRange, DnatRange, DnatRule, NoNatRule, RuleSet, Rules, array, dnat_key, in_ranges, no_nat_rule, next_of_inside,
    one_to_one_rule, range_of_inside,
)
from natcore.tables.mappings cimport (
    MAPPING_DRAINING, MAPPING_FREE, MAPPING_STATIC, Mapping, Subscriber, mapping_at,
)
from natcore.tables.ports cimport PORTS_OVERLOAD, has_ports, space_of
from natcore.tables.sessions cimport (
    HAIRPINNED, OPENED_OUTSIDE, ROLE_INSIDE, ROLE_REMOTE, SESSION_FREE, Session, session_close, session_id,
)
from natcore.workers.expiry cimport sweep_all
from natcore.base.compiler cimport bswap16, bswap32, fetch_add
from natcore.base.sentinels cimport NONE
from natcore.workers.worker cimport Worker, tables_of_all


cdef enum:
    LAST_ROWS = 2               # rows of a session that ends: window and end
    COMES = 1                   # marks of entries in Change.marks
    DRAINS = 2


cdef void end_dead(Worker* worker, uint64_t now_ns) noexcept nogil:
    """Ends dead sessions at their deadlines; rows that find the ring full go to overflow memory if a session log runs."""
    sweep_all(tables_of_all(worker), now_ns, <uint64_t>-1)


cdef bint has_address(const Staying* staying, uint32_t address) noexcept nogil:
    cdef uint32_t low = 0, high = staying.count, middle
    while low < high:
        middle = (low + high) // 2
        if staying.addresses[middle] < address:
            low = middle + 1
        else:
            high = middle
    return low < staying.count and staying.addresses[low] == address


cdef class Transition:
    """A change from the entries in force to new ones, and its effect on live sessions.

    A session ends with its entry, unless that is replaced by one under which it may stay; and where a DNAT, 1:1 or no-NAT
    entry comes that has its inside endpoint: outside there is one endpoint for an inside one, and the entry says which.
    """

    def __cinit__(self, RuleSet rules not None, uint32_t entries, list leaving not None, list draining not None,
                  list coming not None, list concerned not None):
        """rules: the new entries. entries: all numbers are below it. leaving: [(entry, first inside address that may
        stay, last, set of numbers of outside addresses that may)]. draining: entries with sessions that end on their own.
        coming: DNAT, 1:1 and no-NAT entries that come into force; concerned: [(first, last)] inside addresses of theirs,
        host order, ascending and disjoint."""
        self.rules = rules
        self.entries = entries
        self.count = <uint32_t>len(leaving)
        self.range_count = <uint32_t>len(concerned)
        self.leaving = <Staying*>array(len(leaving), sizeof(Staying))
        self.by_entry = <Staying**>array(entries, sizeof(Staying*))
        self.marks = <uint8_t*>array(entries, 1)
        self.ranges = <AddressRange*>array(len(concerned), sizeof(AddressRange))
        for i, (entry, first, last, addresses) in enumerate(leaving):
            staying_of(&self.leaving[<uint32_t>i], first, last, addresses)
            self.by_entry[<uint32_t>entry] = &self.leaving[<uint32_t>i]
        for entry in draining:
            self.marks[<uint32_t>entry] |= DRAINS
            self.drains = True
        for entry in coming:
            self.marks[<uint32_t>entry] |= COMES
        for i, (first, last) in enumerate(concerned):
            self.ranges[<uint32_t>i] = AddressRange(first, last)

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.count if self.leaving != NULL else 0):
            free(self.leaving[i].addresses)
        free(self.leaving)
        free(self.by_entry)
        free(self.marks)
        free(self.ranges)


cdef int staying_of(Staying* staying, uint64_t first, uint64_t last, set addresses) except -1:
    cdef uint32_t i
    staying.first, staying.last, staying.count = first, last, <uint32_t>len(addresses)
    staying.addresses = <uint32_t*>array(staying.count, sizeof(uint32_t))
    for i, address in enumerate(sorted(addresses)):
        staying.addresses[i] = address
    return 0


cdef uint32_t new_entry_of(Transition after, const Session* session, uint32_t own) noexcept nogil:
    """The number of the new entry that has the session's inside end; 0: none, or an entry in force takes precedence. own:
    the session's.

    A new entry of several targets has the endpoint of each, whichever it would choose for the session's remote. One in force
    that did not open the session chose another.
    """
    cdef const DnatRange* at = NULL
    cdef uint32_t inside = bswap32(session.ip[ROLE_INSIDE])
    cdef const Rules* rules = &after.rules.compiled
    cdef const NoNatRule* plain = NULL
    cdef const DnatRule* rule = NULL
    if not in_ranges(after.ranges, after.range_count, inside):
        return 0
    if not session.flags & HAIRPINNED:
        plain = no_nat_rule(rules, inside, bswap32(session.ip[ROLE_REMOTE]))
    if plain != NULL:
        return plain.entry if after.marks[plain.entry] & COMES else 0
    if has_ports(session.protocol):
        at = range_of_inside(rules, dnat_key(inside, space_of(session.protocol), bswap16(session.port[ROLE_INSIDE])))
    while at != NULL:
        if after.marks[at.rule.entry] & COMES:
            return at.rule.entry
        if at.rule.target_count == 1 or at.rule.entry == own:
            return 0
        at = next_of_inside(rules, at)
    rule = one_to_one_rule(rules, inside)
    return rule.entry if rule != NULL and after.marks[rule.entry] & COMES else 0


cdef inline bint must_end(const Worker* worker, Transition after, uint32_t slot,
                          const Mapping* mapping) noexcept nogil:
    """Whether a session may not stay. Sessions of an entry that stays are kept, whatever their inside end may now open."""
    cdef const Session* session = &worker.sessions.hot[slot]
    cdef const Staying* staying = after.by_entry[mapping.entry]
    cdef uint32_t comes
    if staying != NULL and not (staying.first <= bswap32(session.ip[ROLE_INSIDE]) <= staying.last
                                and has_address(staying, mapping.address)):
        return True
    if mapping.flags & MAPPING_DRAINING or after.marks[mapping.entry] & DRAINS:
        return False
    if mapping.flags & MAPPING_STATIC and session.flags & OPENED_OUTSIDE:
        return False
    comes = new_entry_of(after, session, mapping.entry)
    return comes and comes != mapping.entry


cdef void count_sessions(Worker* worker, Transition after, uint64_t* kept, uint64_t* drained, uint64_t* ended) noexcept nogil:
    """Counts sessions of the entries in force, except of draining ones."""
    cdef uint32_t slot, w
    cdef const Worker* one
    cdef const Mapping* mapping
    for w in range(worker.shared.count):
        one = worker.shared.workers[w]
        for slot in range(one.sessions.slots.fresh):
            if one.sessions.hot[slot].flags & SESSION_FREE:
                continue
            mapping = &one.mappings.mappings[one.sessions.cold[slot].mapping]
            if mapping.flags & MAPPING_DRAINING or mapping.entry >= after.entries:
                continue
            if must_end(one, after, slot, mapping):
                ended[0] += 1
            elif after.marks[mapping.entry] & DRAINS:
                drained[0] += 1
            else:
                kept[0] += 1


cdef uint64_t end_sessions(Worker* worker, Transition after, uint64_t now_ns) noexcept nogil:
    """Ends sessions that may not stay, at one moment; rows that find the ring full go to overflow memory."""
    cdef uint64_t ended = 0
    cdef uint32_t w
    fetch_add(&worker.journal.overflowing, 1)
    for w in range(worker.shared.count):
        ended += end_own(worker.shared.workers[w], after, now_ns)
    fetch_add(&worker.journal.overflowing, <uint32_t>-1)
    return ended


cdef uint64_t end_own(Worker* worker, Transition after, uint64_t now_ns) noexcept nogil:
    """Ends those of one worker."""
    cdef uint64_t ended = 0
    cdef uint32_t slot
    cdef const Mapping* mapping
    cdef Subscriber* subscriber
    for slot in range(worker.sessions.slots.fresh):
        if worker.sessions.hot[slot].flags & SESSION_FREE:
            continue
        mapping = &worker.mappings.mappings[worker.sessions.cold[slot].mapping]
        if mapping.entry < after.entries and must_end(worker, after, slot, mapping):
            session_close(&worker.sessions, slot, now_ns, now_ns)
            ended += 1
    for slot in range(worker.mappings.subscriber_slots.fresh if after.count else 0):
        subscriber = &worker.mappings.subscribers[slot]
        if (subscriber.entry < after.entries and after.by_entry[subscriber.entry] != NULL
                and not has_address(after.by_entry[subscriber.entry], subscriber.address)):
            subscriber.entry = 0                    # entries count from 1: paired with none
    return ended


cdef void drain_mappings(Worker* worker, Transition after) noexcept nogil:
    """Makes mappings of draining entries refuse new sessions from either side; sessions end on their own."""
    cdef uint32_t number, w
    cdef Mapping* mapping
    for w in range(worker.shared.count):
        for number in range(worker.shared.workers[w].mappings.mapping_slots.fresh):
            mapping = &worker.shared.workers[w].mappings.mappings[number]
            if not mapping.flags & MAPPING_FREE and mapping.entry < after.entries and after.marks[mapping.entry] & DRAINS:
                mapping.flags |= MAPPING_DRAINING


cdef void count_entries(Worker* worker, uint64_t* counts, uint64_t entries) noexcept nogil:
    """Adds each entry's sessions to counts[entry]; entries: length of counts."""
    cdef uint32_t number, w
    cdef const Worker* one
    cdef const Mapping* mapping
    for w in range(worker.shared.count):
        one = worker.shared.workers[w]
        for number in range(one.mappings.mapping_slots.fresh):
            mapping = &one.mappings.mappings[number]
            if not mapping.flags & MAPPING_FREE and mapping.entry < entries:
                counts[mapping.entry] += mapping.sessions


cdef const Mapping* holder_of(const Worker* worker, uint32_t address, uint32_t space, uint32_t port) noexcept nogil:
    """A mapping that uses a port of an outside address; the port must be in use."""
    cdef uint32_t number = NONE, w = worker.mappings.ports.addresses[address].maps[space].workers[port]
    if worker.mappings.ports.policy != PORTS_OVERLOAD:
        return &worker.shared.workers[w].mappings.mappings[mapping_at(&worker.shared.workers[w].mappings, address, space, port)]
    for w in range(worker.shared.count):
        number = mapping_at(&worker.shared.workers[w].mappings, address, space, port)
        if number != NONE:
            break
    return &worker.shared.workers[w].mappings.mappings[number]


cdef bint session_meets(const Worker* worker, uint32_t slot, const Criteria* criteria) noexcept nogil:
    cdef const Session* session = &worker.sessions.hot[slot]
    if session.flags & SESSION_FREE or not meets(criteria, session.ip, session.port, session.protocol):
        return False
    return (criteria.entry == 0
            or worker.mappings.mappings[worker.sessions.cold[slot].mapping].entry == criteria.entry)


cdef uint64_t end_matching(Worker* worker, const Criteria* criteria, uint64_t newest, uint64_t now_ns, uint32_t* slot,
                           uint32_t last, bint losing) noexcept nogil:
    """Ends a worker's sessions that meet the criteria from slot to last - 1, up to session number newest, while there is space
    for their rows (losing: regardless); how many. slot: where to continue."""
    cdef uint64_t ended = 0
    while slot[0] < min(last, worker.sessions.slots.fresh):
        if (session_meets(worker, slot[0], criteria)
                and session_id(&worker.sessions.cold[slot[0]]) <= newest):
            if not losing and journal_space_for_bulk(worker.journal) < LAST_ROWS:
                break
            session_close(&worker.sessions, slot[0], now_ns, now_ns)
            ended += 1
        slot[0] += 1
    return ended

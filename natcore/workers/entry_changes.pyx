"""What changes of entries do to live sessions: counting whom they concern, and ending them.

Walks of whole tables, on the control path; the caller holds all workers.
"""
from libc.stdint cimport uint32_t, uint64_t

from natcore.log.journal cimport journal_room_for_many
from natcore.tables.mappings cimport MAPPING_DRAINING, MAPPING_FREE, Mapping, Subscriber, mapping_at
from natcore.tables.ports cimport PORTS_OVERLOAD
from natcore.tables.sessions cimport (
    ROLE_INSIDE, ROLE_OUTSIDE, ROLE_REMOTE, SESSION_FREE, Session, session_close, session_id,
)
from natcore.workers.expiry cimport sweep_all
from natcore.base.compiler cimport bswap32, fetch_add
from natcore.base.hash_table cimport NONE
from natcore.workers.worker cimport Worker, tables_of_all


cdef enum:
    LAST_ROWS = 2               # of a session that ends: its window's and its end's


cdef void end_dead(Worker* worker, uint64_t now_ns) noexcept nogil:
    """Ends what is dead, each at its own deadline; rows that find the ring full wait beside it, if somebody reads."""
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


cdef uint64_t end_entry(Worker* worker, const Staying* staying, uint64_t now_ns) noexcept nogil:
    """Ends an entry's sessions, but for those that may stay: at one moment, so rows that find the ring full wait beside it."""
    cdef uint64_t ended = 0
    cdef uint32_t w
    fetch_add(&worker.journal.widened, 1)
    for w in range(worker.shared.count):
        ended += end_own(worker.shared.workers[w], staying, now_ns)
    fetch_add(&worker.journal.widened, <uint32_t>-1)
    return ended


cdef uint64_t end_own(Worker* worker, const Staying* staying, uint64_t now_ns) noexcept nogil:
    """Those of one worker."""
    cdef uint64_t ended = 0
    cdef uint32_t slot
    cdef const Session* session
    cdef const Mapping* mapping
    cdef Subscriber* subscriber
    for slot in range(worker.sessions.slots.fresh):
        session = &worker.sessions.hot[slot]
        if session.flags & SESSION_FREE:
            continue
        mapping = &worker.mappings.mappings[worker.sessions.cold[slot].mapping]
        if mapping.entry == staying.entry and not (staying.first <= bswap32(session.ip[ROLE_INSIDE]) <= staying.last
                                                   and has_address(staying, mapping.address)):
            session_close(&worker.sessions, slot, now_ns, now_ns)
            ended += 1
    for slot in range(worker.mappings.subscriber_slots.fresh):
        subscriber = &worker.mappings.subscribers[slot]
        if subscriber.entry == staying.entry and not has_address(staying, subscriber.address):
            subscriber.entry = 0                    # entries count from 1: it is paired with nothing of this one
    return ended


cdef void count_entry(Worker* worker, const Staying* staying, uint64_t* count, uint64_t* inside) noexcept nogil:
    """Adds an entry's sessions to count, those that end_entry would leave to inside."""
    cdef uint32_t number, w
    cdef const Worker* one
    cdef const Mapping* mapping
    for w in range(worker.shared.count):
        one = worker.shared.workers[w]
        for number in range(one.mappings.mapping_slots.fresh):
            mapping = &one.mappings.mappings[number]
            if not mapping.flags & MAPPING_FREE and mapping.entry == staying.entry:
                count[0] += mapping.sessions
                if (staying.first <= bswap32(mapping.inside_ip) <= staying.last
                        and has_address(staying, mapping.address)):
                    inside[0] += mapping.sessions


cdef void count_entries(Worker* worker, uint64_t* counts, uint64_t entries) noexcept nogil:
    """Adds to counts the sessions of each entry, by its number, which is below entries."""
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
    """The mapping, or one of those, that has a port of an outside address, which somebody has."""
    cdef uint32_t number = NONE, w = worker.mappings.ports.addresses[address].maps[space].workers[port]
    if worker.mappings.ports.policy != PORTS_OVERLOAD:
        return &worker.shared.workers[w].mappings.mappings[mapping_at(&worker.shared.workers[w].mappings, address, space, port)]
    for w in range(worker.shared.count):
        number = mapping_at(&worker.shared.workers[w].mappings, address, space, port)
        if number != NONE:
            break
    return &worker.shared.workers[w].mappings.mappings[number]


cdef bint matches(const Session* session, const Matching* matching) noexcept nogil:
    return ((matching.protocol < 0 or session.protocol == matching.protocol)
            and (matching.subscriber < 0 or bswap32(session.ip[ROLE_INSIDE]) == matching.subscriber)
            and (matching.remote < 0 or bswap32(session.ip[ROLE_REMOTE]) == matching.remote)
            and (matching.outside < 0 or bswap32(session.ip[ROLE_OUTSIDE]) == matching.outside))


cdef uint64_t end_matching(Worker* worker, const Matching* matching, uint64_t now_ns, uint32_t* slot, uint32_t last,
                           bint losing) noexcept nogil:
    """Ends a worker's sessions that match, from slot on, before last, while there is room for their rows (losing: whether or
    not); how many. slot: where to go on."""
    cdef uint64_t ended = 0
    cdef const Session* session
    while slot[0] < min(last, worker.sessions.slots.fresh):
        session = &worker.sessions.hot[slot[0]]
        if (not session.flags & SESSION_FREE and matches(session, matching)
                and session_id(&worker.sessions.cold[slot[0]]) <= matching.newest):
            if not losing and journal_room_for_many(worker.journal) < LAST_ROWS:
                break
            session_close(&worker.sessions, slot[0], now_ns, now_ns)
            ended += 1
        slot[0] += 1
    return ended


cdef void drain_entry(Worker* worker, uint32_t entry) noexcept nogil:
    """An entry's mappings take no new sessions, from either side; their sessions end by themselves."""
    cdef uint32_t number, w
    cdef Mapping* mapping
    for w in range(worker.shared.count):
        for number in range(worker.shared.workers[w].mappings.mapping_slots.fresh):
            mapping = &worker.shared.workers[w].mappings.mappings[number]
            if mapping.entry == entry and not mapping.flags & MAPPING_FREE:
                mapping.flags |= MAPPING_DRAINING

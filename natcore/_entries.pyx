"""What changes of entries do to live sessions: counting whom they concern, and ending them.

Walks of whole tables, on the control path; the caller holds all workers.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from natcore._journal cimport journal_room
from natcore._mappings cimport MAPPING_FREE, Mapping, Subscriber, mapping_at
from natcore._ports cimport PORTS_OVERLOAD
from natcore._sessions cimport ROLE_INSIDE, ROLE_OUTSIDE, ROLE_REMOTE, SESSION_FREE, Session, session_close
from natcore._sweep cimport sweep_all
from natcore.hints cimport bswap32
from natcore.index cimport NONE
from natcore.state cimport Worker, tables_of_all


cdef enum:
    LAST_ROWS = 2               # of a session that ends: its window's and its end's


cdef void relieve(Worker* worker, relief) noexcept:
    """Has rows taken out of the journal where it is short of room and somebody takes them. relief: a callable, or None."""
    if relief is not None and journal_room(worker.journal) < LAST_ROWS:
        relief()


cdef void end_dead(Worker* worker, uint64_t now_ns, relief) noexcept:
    """Ends what is dead, each at its own deadline; rows without room are lost where nobody takes them."""
    cdef uint64_t done = 0, before
    cdef uint32_t w
    worker.shared.completed = now_ns // 1000000000 + 1
    if relief is not None:
        while not sweep_all(tables_of_all(worker), now_ns, journal_room(worker.journal)):
            before = done
            done = worker.journal.head
            for w in range(worker.shared.count):
                done += worker.shared.workers[w].sessions.ended
            if done == before:
                break                                           # nobody takes them after all
            relieve(worker, relief)
        else:
            return
    sweep_all(tables_of_all(worker), now_ns, <uint64_t>-1)


cdef uint64_t end_entry(Worker* worker, uint32_t entry, uint64_t first, uint64_t last, set addresses,
                        uint64_t now_ns, relief) except? 0:
    """Ends an entry's sessions, but for inside addresses first to last (host order) over outside addresses (numbers)."""
    cdef uint64_t ended = 0
    cdef uint32_t w
    for w in range(worker.shared.count):
        ended += end_own(worker.shared.workers[w], entry, first, last, addresses, now_ns, relief)
    return ended


cdef uint64_t end_own(Worker* worker, uint32_t entry, uint64_t first, uint64_t last, set addresses, uint64_t now_ns,
                      relief) except? 0:
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
        if mapping.entry == entry and not (first <= bswap32(session.ip[ROLE_INSIDE]) <= last
                                           and mapping.address in addresses):
            relieve(worker, relief)
            session_close(&worker.sessions, slot, now_ns, now_ns)
            ended += 1
    for slot in range(worker.mappings.subscriber_slots.fresh):
        subscriber = &worker.mappings.subscribers[slot]
        if subscriber.entry == entry and subscriber.address not in addresses:
            subscriber.entry = 0                    # entries count from 1: it is paired with nothing of this one
    return ended


cdef int count_entry(Worker* worker, uint32_t entry, uint64_t first, uint64_t last, set addresses, uint64_t* count,
                     uint64_t* inside) except -1:
    """Adds an entry's sessions to count, those that end_entry would leave to inside."""
    cdef uint32_t number, w
    cdef const Worker* one
    cdef const Mapping* mapping
    for w in range(worker.shared.count):
        one = worker.shared.workers[w]
        for number in range(one.mappings.mapping_slots.fresh):
            mapping = &one.mappings.mappings[number]
            if not mapping.flags & MAPPING_FREE and mapping.entry == entry:
                count[0] += mapping.sessions
                if first <= bswap32(mapping.inside_ip) <= last and mapping.address in addresses:
                    inside[0] += mapping.sessions
    return 0


cdef const Mapping* holder_of(const Worker* worker, uint32_t address, uint32_t space, uint32_t port) noexcept:
    """The mapping, or one of those, that has a port of an outside address, which somebody has."""
    cdef uint32_t number = NONE, w = worker.mappings.ports.addresses[address].maps[space].workers[port]
    if worker.mappings.ports.policy != PORTS_OVERLOAD:
        return &worker.shared.workers[w].mappings.mappings[mapping_at(&worker.shared.workers[w].mappings, address, space, port)]
    for w in range(worker.shared.count):
        number = mapping_at(&worker.shared.workers[w].mappings, address, space, port)
        if number != NONE:
            break
    return &worker.shared.workers[w].mappings.mappings[number]


cdef uint64_t end_matching(Worker* worker, int64_t subscriber, int64_t remote, int64_t outside, int64_t protocol,
                           uint64_t now_ns, relief) noexcept:
    """Ends the sessions that match everything that is not negative (addresses in host order); how many."""
    cdef uint64_t ended = 0
    cdef uint32_t w
    end_dead(worker, now_ns, relief)
    for w in range(worker.shared.count):
        ended += end_own_matching(worker.shared.workers[w], subscriber, remote, outside, protocol, now_ns, relief)
    return ended


cdef uint64_t end_own_matching(Worker* worker, int64_t subscriber, int64_t remote, int64_t outside, int64_t protocol,
                               uint64_t now_ns, relief) noexcept:
    """Those of one worker."""
    cdef uint32_t slot
    cdef uint64_t ended = 0
    cdef const Session* session
    for slot in range(worker.sessions.slots.fresh):
        session = &worker.sessions.hot[slot]
        if (not session.flags & SESSION_FREE and (protocol < 0 or session.protocol == protocol)
                and (subscriber < 0 or bswap32(session.ip[ROLE_INSIDE]) == subscriber)
                and (remote < 0 or bswap32(session.ip[ROLE_REMOTE]) == remote)
                and (outside < 0 or bswap32(session.ip[ROLE_OUTSIDE]) == outside)):
            relieve(worker, relief)
            session_close(&worker.sessions, slot, now_ns, now_ns)
            ended += 1
    return ended

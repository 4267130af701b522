"""Access to a gateway's workers for tests: decisions it made, and faults planted on purpose (tests/runs/mutants.py)."""
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from natcore.workers.invariants cimport Fault, pause_asserts, tables_hold
from natcore.tables.fragments cimport datagram_find
from natcore.workers.locks cimport lock, try_lock, lock_all, unlock, unlock_all
from natcore.base.lock_checker cimport lock_note, lock_wait
from natcore.tables.mappings cimport Mappings, subscriber_find
from natcore.tables.ports cimport RECENT_KEPT, RecentAllocation, PortMap, Ports, random_take
from natcore.tables.entries cimport DnatRule, RuleSet, dnat_target
from natcore.tables.sessions cimport (
    IN, OUT, ROLE_INSIDE, ROLE_OUTSIDE, SESSION_FREE, Sessions, session_close, session_find,
)
from natcore.tables.syn_holdoff cimport syn_holdoff_due
from natcore.nat.pipeline cimport revoke, translate
from natcore.nat.undelivered cimport subtract_from_others
from natcore.base.flow_hash cimport flow_hash
from natcore.frame cimport Frame
from natcore.base.compiler cimport DEBUG, bswap16, bswap32, load_acquire
from natcore.base.hash_table cimport BUCKET_ENTRIES, Index
from natcore.base.spinlock cimport spin_lock, spin_lock_inner, spin_unlock
from natcore.workers.worker cimport Shared, Worker


cdef Worker* worker_of(capsule) except NULL:
    return <Worker*>PyCapsule_GetPointer(capsule, "natcore.Worker")


def broken(capsule):
    """The first broken invariant of all workers' tables, or None. No other thread may use the gateway."""
    cdef Worker* worker = worker_of(capsule)
    cdef Fault fault
    cdef bint holds
    with nogil:
        lock_all(worker)
        holds = tables_hold(worker, True, &fault)
        unlock_all(worker)
    if holds:
        return None
    return f"{fault.text.decode()}: worker {fault.worker}, number {fault.number}: {fault.seen}, expected {fault.expected}"


def target_of(capsule, uint32_t entry, uint32_t remote):
    """The inside address (host order) that a DNAT entry of several targets selects for a remote address."""
    cdef Worker* worker = worker_of(capsule)
    cdef const DnatRule* rule
    cdef uint32_t i
    for i in range(worker.rules.range_count if worker.rules != NULL else 0):
        rule = worker.rules.ranges[i].rule
        if rule.entry == entry:
            return bswap32(dnat_target(rule, flow_hash(&worker.sessions.key, bswap32(remote), entry, 0)))
    raise LookupError(f"no DNAT entry {entry}")


def allocations_since(capsule, uint64_t since):
    """Outside endpoints (address, port; host order) allocated after the first `since` allocations, including undone ones."""
    cdef Worker* worker = worker_of(capsule)
    cdef uint64_t count = worker.mappings.ports.allocations, i
    cdef const RecentAllocation* recent
    if count - since > RECENT_KEPT:
        raise LookupError(f"{count - since} draws: the last {RECENT_KEPT} are known")
    allocated = []
    for i in range(since, count):
        recent = &worker.mappings.ports.recent[i % RECENT_KEPT]
        allocated.append((bswap32(recent.outside_ip), bswap16(recent.outside_port)))
    return allocated


def crowd(capsule):
    """Fills the index of sessions from inside, so that inserts fail; returns the places for thin()."""
    cdef Shared* shared = worker_of(capsule).shared
    cdef Index* index
    cdef uint32_t w, bucket, at
    places = []
    pause_asserts(True)
    for w in range(shared.count):
        index = &shared.workers[w].sessions.index[OUT]
        for bucket in range(index.count):
            for at in range(BUCKET_ENTRIES):
                if index.buckets[bucket].tags[at] == 0:
                    index.buckets[bucket].tags[at] = 0xFFFF
                    index.buckets[bucket].numbers[at] = 0   # any session: lookups compare the key
                    places.append((w, bucket, at))
    return places


def thin(capsule, places):
    """Empties the places that crowd() filled."""
    cdef Shared* shared = worker_of(capsule).shared
    for w, bucket, at in places:
        shared.workers[<uint32_t>w].sessions.index[OUT].buckets[<uint32_t>bucket].tags[<uint32_t>at] = 0
    pause_asserts(False)


def undeliver(capsule, const uint8_t[::1] sent not None, uint8_t side, uint8_t forwarded, uint8_t dropped):
    """Revokes a forwarded frame, as a plane does that cannot deliver it: counts it as dropped."""
    cdef Worker* worker = worker_of(capsule)
    cdef Frame frame
    memset(&frame, 0, sizeof(Frame))
    frame.data = <uint8_t*>&sent[0]
    frame.length = <uint32_t>sent.shape[0]
    frame.side = side
    frame.verdict = forwarded
    lock(worker)
    revoke(worker, &frame, dropped)
    unlock(worker)
    subtract_from_others(worker)


def lock_rows(capsule, bint taken):
    """Takes or releases the locks of flow log and journal, as a thread that takes rows does briefly."""
    cdef Worker* worker = worker_of(capsule)
    worker.flows.spin.taken = taken
    worker.journal.spin.taken = taken


def lock_shared(capsule, bint taken):
    """Takes or releases every spinlock that the workers share, as other threads do briefly."""
    cdef Shared* shared = worker_of(capsule).shared
    shared.ports.spin.taken = shared.journal.spin.taken = shared.outbox.spin.taken = taken
    shared.events.spin.taken = shared.syn_holdoff.spin.taken = shared.spin.taken = taken


def touch_sessions(capsule):
    """Refreshes every session, which no packet may do (RFC 7857 section 7)."""
    cdef Worker* first = worker_of(capsule)
    cdef Worker* worker
    cdef uint32_t slot, i
    for i in range(first.shared.count):
        worker = first.shared.workers[i]
        for slot in range(worker.sessions.slots.fresh):
            worker.sessions.hot[slot].last_seen = <uint32_t>(worker.now_ns // 1000000)


# ---- a worker locked by the test, so that a handoff has to wait ---------------------------------------------------------

def lock_worker(capsule):
    """Locks the worker, which must be unlocked, until unlock_worker."""
    if not try_lock(worker_of(capsule)):
        raise RuntimeError("the worker is locked already")


def unlock_worker(capsule):
    unlock(worker_of(capsule))


def waiting_for(capsule):
    """Number of callers that wait for the lock."""
    return load_acquire(&worker_of(capsule).waiters)


def end_sessions_of(capsule, uint32_t inside):
    """Ends the sessions of an inside address (host order) in a worker's tables; the test has locked the worker."""
    cdef Worker* worker = worker_of(capsule)
    cdef uint32_t slot
    for slot in range(worker.sessions.slots.fresh):
        if not worker.sessions.hot[slot].flags & SESSION_FREE and worker.sessions.hot[slot].ip[ROLE_INSIDE] == bswap32(inside):
            session_close(&worker.sessions, slot, worker.now_ns, worker.now_ns)


def swap_rules(capsule, RuleSet rules not None):
    """Puts rules into force, which the test keeps alive and with all workers locked."""
    cdef Shared* shared = worker_of(capsule).shared
    cdef uint32_t w
    for w in range(shared.count):
        shared.workers[w].rules = &rules.compiled


# ---- what the lock checker of debug builds is there for: a test's process does it, and ends by it ------------------------

def checks_locks():
    """Whether this is a debug build."""
    return bool(DEBUG)


def rank_broken():
    """Waits for a lock that ranks below one the thread holds, according to the checker; aborts in any build."""
    cdef uint32_t one = 0, other = 0
    lock_note(&one, 3)
    lock_wait(&other, 4)
    lock_wait(&other, 3)


cdef void use_unlocked(Shared* shared, str what) except *:
    """Looks into a table of the second worker's, or of all, of which the caller holds none."""
    if what == "sessions":
        session_find(&shared.workers[1].sessions, OUT, 0, 0, 6)
    elif what == "mappings":
        subscriber_find(&shared.workers[1].mappings, 0)
    elif what == "ports":
        random_take(&shared.ports)
    elif what == "fragments":
        datagram_find(shared.workers[0].fragments, 0, 0, 17, 0)
    elif what == "SYN hold-off":
        syn_holdoff_due(&shared.syn_holdoff, 0)
    elif what == "worker":
        translate(shared.workers[1], NULL, 0, 0)
    else:
        raise ValueError(f"what must be a case of test_locks.py, got {what!r}")


def misuse(capsule, str what not None):
    """Breaks a rule of the locks, of a gateway that no other thread uses: a debug build aborts, others go on."""
    cdef Shared* shared = worker_of(capsule).shared
    cdef Worker* first = shared.workers[0]
    cdef Worker* second = shared.workers[1]
    if what == "waits for a lower worker":
        lock(second)
        lock(first)
        unlock(first)
        unlock(second)
    elif what == "waits for a worker under a spinlock":
        spin_lock(&shared.ports.spin)
        lock(first)
        unlock(first)
        spin_unlock(&shared.ports.spin)
    elif what == "waits for a spinlock under another":
        spin_lock(&shared.syn_holdoff.spin)
        spin_lock(&shared.ports.spin)
        spin_unlock(&shared.ports.spin)
        spin_unlock(&shared.syn_holdoff.spin)
    elif what == "waits for a spinlock under an inner one":
        spin_lock_inner(&shared.events.spin)
        spin_lock(&shared.ports.spin)
        spin_unlock(&shared.ports.spin)
        spin_unlock(&shared.events.spin)
    elif what == "releases what it does not hold":
        unlock(first)
    else:
        lock(first)
        use_unlocked(shared, what)
        unlock(first)


def use_locked(capsule):
    """The same accesses with all workers locked; then with the lock that each needs."""
    cdef Worker* worker = worker_of(capsule)
    lock_all(worker)
    for what in ("sessions", "mappings", "ports", "fragments", "SYN hold-off", "worker"):
        use_unlocked(worker.shared, what)
    unlock_all(worker)
    lock(worker.shared.workers[1])
    spin_lock(&worker.shared.ports.spin)
    for what in ("sessions", "mappings", "ports"):
        use_unlocked(worker.shared, what)
    spin_unlock(&worker.shared.ports.spin)
    use_unlocked(worker.shared, "worker")
    unlock(worker.shared.workers[1])


# ---- what the invariants are there for: a field of a table is changed as no code changes it -----------------------------

cdef int poke_session(Sessions* table, str field, uint32_t number, uint64_t value) except -1:
    if field == "session.flags":
        table.hot[number].flags = <uint8_t>value
    elif field == "session.timeout_class":
        table.hot[number].timeout_class = <uint8_t>value
    elif field == "session.inside_port":
        table.hot[number].port[ROLE_INSIDE] = <uint16_t>value
    elif field == "session.outside_port":
        table.hot[number].port[ROLE_OUTSIDE] = <uint16_t>value
    elif field == "session.mapping":
        table.cold[number].mapping = <uint32_t>value
    elif field == "sessions.fresh":
        table.slots.fresh = <uint32_t>value
    elif field == "sessions.free":
        table.slots.free = <uint32_t>value
    elif field == "sessions.live":
        table.slots.live = <uint32_t>value
    elif field == "sessions.opened_outside":
        table.opened_outside = <uint32_t>value
    elif field == "filter.in_use":
        table.filters[number].in_use = <uint8_t>value
    elif field == "filter.sessions":
        table.filters[number].sessions = <uint32_t>value
    elif field == "filter.first":
        table.filters[number].first = <uint32_t>value
    elif field == "filter.remote_ip":
        table.filters[number].remote_ip = <uint32_t>value
    elif field == "filters.free":
        table.filter_slots.free = <uint32_t>value
    elif field == "filters.live":
        table.filter_slots.live = <uint32_t>value
    else:
        return 0
    return 1


cdef int poke_mapping(Mappings* table, str field, uint32_t number, uint64_t value) except -1:
    if field == "mapping.flags":
        table.mappings[number].flags = <uint8_t>value
    elif field == "mapping.inside_port":
        table.mappings[number].inside_port = <uint16_t>value
    elif field == "mapping.outside_ip":
        table.mappings[number].outside_ip = <uint32_t>value
    elif field == "mapping.outside_port":
        table.mappings[number].outside_port = <uint16_t>value
    elif field == "mapping.address":
        table.mappings[number].address = <uint32_t>value
    elif field == "mapping.subscriber":
        table.mappings[number].subscriber = <uint32_t>value
    elif field == "mapping.sessions":
        table.mappings[number].sessions = <uint32_t>value
    elif field == "mapping.first":
        table.mappings[number].first = <uint32_t>value
    elif field == "mapping.opened_outside":
        table.mappings[number].opened_outside = <uint32_t>value
    elif field == "mappings.free":
        table.mapping_slots.free = <uint32_t>value
    elif field == "mappings.live":
        table.mapping_slots.live = <uint32_t>value
    elif field == "subscriber.mappings":
        table.subscribers[number].mappings = <uint32_t>value
    elif field == "subscriber.sessions":
        table.subscribers[number].sessions = <uint32_t>value
    elif field == "subscribers.free":
        table.subscriber_slots.free = <uint32_t>value
    else:
        return 0
    return 1


cdef int poke_port(Ports* ports, PortMap* map, str field, uint32_t number, uint64_t value) except -1:
    """number: the port."""
    cdef uint64_t bit = <uint64_t>1 << (number & 63)
    if field == "port.used":
        map.used[number >> 6] = map.used[number >> 6] | bit if value else map.used[number >> 6] & ~bit
    elif field == "port.held":
        map.held[number >> 6] = map.held[number >> 6] | bit if value else map.held[number >> 6] & ~bit
    elif field == "port.cell":
        map.cells[number] = <uint32_t>value
    elif field == "port.worker":
        map.workers[number] = <uint8_t>value
    elif field == "ports.free":
        map.free = <uint32_t>value
    elif field == "ports.held":
        map.held_count = <uint32_t>value
    elif field == "ports.taken_in":
        map.taken_in[number] = <uint32_t>value
    elif field == "ports.addresses_free":
        ports.addresses_free[<uint32_t>(map - ports.addresses[0].maps)][0] = value
    elif field == "ports.addresses_held":
        ports.addresses_held[<uint32_t>(map - ports.addresses[0].maps)][0] = value
    elif field == "ports.reserved":
        map.reserved = <uint32_t>value
    elif field == "pair.mapping":
        ports.overload.pairs[number].mapping = <uint32_t>value
    elif field == "pair.worker":
        ports.overload.pairs[number].worker = <uint8_t>value
    elif field == "block.ports":
        ports.blocks.of[map.address][number].ports = <uint32_t>value
    elif field == "blocks.free":
        ports.blocks.free[map.address] = <uint32_t>value
    else:
        return 0
    return 1


def poke(capsule, str field not None, uint32_t number, uint64_t value, uint32_t space=1):
    """Sets a field of the worker's tables, or of a port of the first outside address. number: its slot, or the port."""
    cdef Worker* worker = worker_of(capsule)
    cdef Ports* ports = worker.mappings.ports
    if not (poke_session(&worker.sessions, field, number, value) or poke_mapping(&worker.mappings, field, number, value)
            or poke_port(ports, &ports.addresses[0].maps[space], field, number, value)):
        raise ValueError(f"field={field!r}: no table has it")


def poke_index(capsule, str name not None, uint32_t number):
    """One entry more in an index: number, with a tag that is no session's."""
    cdef Worker* worker = worker_of(capsule)
    cdef Index* index
    if name == "outbound index":
        index = &worker.sessions.index[OUT]
    elif name == "inbound index":
        index = &worker.sessions.index[IN]
    elif name == "index of filters":
        index = &worker.sessions.by_remote
    elif name == "index of mappings":
        index = &worker.mappings.by_inside
    else:
        index = &worker.mappings.by_ip
    index.buckets[0].tags[BUCKET_ENTRIES - 1] = 0x5555
    index.buckets[0].numbers[BUCKET_ENTRIES - 1] = number

"""Creates workers, each with tables of its own, and puts one configuration into force for all.

Each worker's tables have the size of the gateway's limits, since one inside host may use them all; untouched memory is free.
"""
from libc.stdint cimport uint32_t

from natcore.tables.fragments cimport Fragments, fragments_delete
from natcore.tables.outbox cimport outbox_delete
from natcore.log.journal cimport journal_delete
from natcore.tables.mappings cimport mappings_delete, mappings_new
from natcore.tables.ports cimport PORT_SPACES, SPACE_ICMP, Ports, ports_delete
from natcore.tables.offload cimport offload_outdate
from natcore.tables.sessions cimport TIMEOUT_FRAGMENT, TIMEOUTS, sessions_delete, sessions_new
from natcore.tables.syn_holdoff cimport syn_holdoff_delete
from natcore.base.pages cimport table_delete, table_new
from natcore.workers.configuration cimport FILTER_ADDRESS
from natcore.workers.worker cimport IDENTIFICATIONS


cdef void append_worker(Shared* shared, Worker* worker) noexcept nogil:
    """Appends the worker to the gateway's."""
    worker.shared = shared
    worker.number = worker.mappings.worker = shared.count
    worker.mappings.ports = &shared.ports
    worker.sessions.lock = worker.mappings.lock = &worker.locked
    worker.sessions.mappings = &worker.mappings
    worker.sessions.journal = worker.journal = &shared.journal
    worker.outbox = &shared.outbox
    worker.events = shared.journal.events = &shared.events
    shared.ports.blocks.journal = &shared.journal
    shared.ports.blocks.epoch_ns = &shared.workers[0].sessions.epoch_ns if shared.count else &worker.sessions.epoch_ns
    shared.ports.blocks.clock_ns = &shared.now_ns if shared.count else &worker.now_ns
    worker.syn_holdoff = &shared.syn_holdoff
    if shared.count:
        worker.fragments = shared.workers[0].fragments
        worker.identifications = shared.identifications
        shared.workers[shared.count - 1].sessions.next = &worker.sessions
    shared.workers[shared.count] = worker
    shared.count += 1


cdef Shared* workers_new(Worker* first) noexcept nogil:
    """Creates the shared state with the first worker; NULL: out of memory."""
    cdef Shared* shared = <Shared*>table_new(sizeof(Shared))
    if shared != NULL:
        append_worker(shared, first)
    return shared


cdef Worker* worker_new_like(const Worker* first, bint filters) noexcept nogil:
    """Creates a worker with empty tables of the first one's sizes, the same keys and links; NULL: out of memory."""
    cdef Worker* worker = <Worker*>table_new(sizeof(Worker))
    cdef bint made
    if worker == NULL:
        return NULL
    worker.links = first.links
    worker.sessions.key = first.sessions.key
    worker.sessions.epoch_ns = first.sessions.epoch_ns
    worker.mappings.key = first.mappings.key
    made = mappings_new(&worker.mappings, first.mappings.mapping_slots.capacity, first.mappings.subscriber_slots.capacity,
                        first.mappings.by_subscriber != NULL)
    made = made and sessions_new(&worker.sessions, first.sessions.slots.capacity, filters)
    if not made:
        worker_delete(worker, filters)
        return NULL
    return worker


cdef bint workers_grow(Shared* shared, uint32_t count, bint filters) noexcept nogil:
    """Adds workers up to count, like the first, which must not have seen a packet; False: out of memory."""
    cdef Worker* worker
    cdef uint32_t i
    while shared.count < count:
        worker = worker_new_like(shared.workers[0], filters)
        if worker == NULL:
            return False
        append_worker(shared, worker)
    shared.ports.lock = shared.syn_holdoff.lock = shared.outbox.lock = &shared.all_locked
    shared.workers[0].fragments[0].lock = shared.workers[0].fragments[1].lock = &shared.all_locked
    if count > 1:
        shared.ports.workers = count
        shared.ports.spin.needed = shared.journal.spin.needed = shared.outbox.spin.needed = True
        shared.events.spin.needed = shared.syn_holdoff.spin.needed = shared.spin.needed = True
        for i in range(count):
            shared.workers[i].sessions.numbers = &shared.created
    return True


cdef void configure(Shared* shared, const Configuration* new) noexcept nogil:
    """Puts a configuration into force: in the workers, and in the tables as far as it is theirs. Call it with all workers
    locked; sessions that there are keep their deadlines if `retime` comes before."""
    cdef Ports* ports = &shared.ports
    cdef Fragments* fragments = shared.workers[0].fragments
    cdef Worker* worker
    cdef uint32_t i, w
    for w in range(shared.count):
        worker = shared.workers[w]
        worker.configuration = new[0]
        offload_outdate(worker.sessions.offload)
        worker.mappings.pooling = new.pooling
        worker.sessions.window_ns = new.window_ns
        for i in range(TIMEOUTS):
            worker.sessions.timeout_ms[i] = new.timeout_ms[i]
        for i in range(PORT_SPACES):
            worker.sessions.filtered[i] = i != SPACE_ICMP and new.filtering[i] == FILTER_ADDRESS
    for i in range(2):
        fragments[i].timeout_ms = new.timeout_ms[TIMEOUT_FRAGMENT]
    ports.policy = new.port_policy
    ports.parity = new.parity
    ports.blocks.per_owner = new.blocks
    ports.hold_down_ms = new.hold_down_ms
    ports.longest_hold_down_ms = max(ports.longest_hold_down_ms, new.hold_down_ms)
    shared.outbox.rate = new.icmp_rate


cdef void worker_delete(Worker* worker, bint filters) noexcept nogil:
    sessions_delete(&worker.sessions, filters)
    mappings_delete(&worker.mappings)
    table_delete(worker, sizeof(Worker))


cdef void workers_delete(Shared* shared, bint filters) noexcept nogil:
    """Deletes all workers and the shared state, as far as created."""
    cdef uint32_t i
    ports_delete(&shared.ports)
    journal_delete(&shared.journal)
    outbox_delete(&shared.outbox)
    fragments_delete(shared.workers[0].fragments)
    syn_holdoff_delete(&shared.syn_holdoff)
    table_delete(shared.identifications, IDENTIFICATIONS * sizeof(uint32_t))
    for i in range(shared.count):
        worker_delete(shared.workers[i], filters)
    table_delete(shared, sizeof(Shared))

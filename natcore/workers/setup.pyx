"""Creates workers: the gateway configures the first, the others are copies of its configuration with tables of their own.

Each worker's tables have the size of the gateway's limits, since one inside host may use them all; untouched memory is free.
"""
from libc.stdint cimport uint32_t

from natcore.tables.fragments cimport fragments_delete
from natcore.tables.icmp_output cimport outbox_delete
from natcore.log.journal cimport journal_delete
from natcore.tables.mappings cimport mappings_delete, mappings_new
from natcore.tables.ports cimport ports_delete
from natcore.tables.sessions cimport IN, OUT, sessions_delete, sessions_new
from natcore.tables.syn_holdoff cimport syn_holdoff_delete
from natcore.base.pages cimport table_delete, table_new
from natcore.workers.worker cimport IDENTIFICATIONS, Shared, Worker


cdef void join(Shared* shared, Worker* worker) noexcept nogil:
    """Appends the worker to the gateway's."""
    worker.shared = shared
    worker.number = worker.mappings.worker = shared.count
    worker.mappings.ports = &shared.ports
    worker.sessions.lock = worker.mappings.lock = &worker.locked
    worker.sessions.mappings = &worker.mappings
    worker.sessions.journal = worker.journal = &shared.journal
    worker.outbox = &shared.outbox
    worker.events = shared.journal.events = &shared.events
    worker.syn_holdoff = &shared.syn_holdoff
    if shared.count:
        shared.workers[shared.count - 1].sessions.next = &worker.sessions
    shared.workers[shared.count] = worker
    shared.count += 1


cdef Shared* workers_new(Worker* first) noexcept nogil:
    """Creates the shared state with the first worker; NULL: out of memory."""
    cdef Shared* shared = <Shared*>table_new(sizeof(Shared))
    if shared != NULL:
        join(shared, first)
    return shared


cdef Worker* like(const Worker* first, bint filters) noexcept nogil:
    """Creates a worker with the first one's configuration and empty tables; NULL: out of memory."""
    cdef Worker* worker = <Worker*>table_new(sizeof(Worker))
    cdef bint made
    if worker == NULL:
        return NULL
    worker[0] = first[0]
    worker.sessions.hot = NULL              # these are the first one's
    worker.sessions.cold = NULL
    worker.sessions.syn = NULL
    worker.sessions.by_mapping = worker.sessions.by_filter = NULL
    worker.sessions.filters = NULL
    worker.sessions.index[OUT].buckets = worker.sessions.index[IN].buckets = worker.sessions.by_remote.buckets = NULL
    worker.sessions.next = NULL
    worker.mappings.by_inside.buckets = worker.mappings.by_ip.buckets = NULL
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
        worker = like(shared.workers[0], filters)
        if worker == NULL:
            return False
        join(shared, worker)
    shared.ports.lock = shared.syn_holdoff.lock = shared.outbox.lock = &shared.all_locked
    shared.workers[0].fragments[0].lock = shared.workers[0].fragments[1].lock = &shared.all_locked
    if count > 1:
        shared.ports.workers = count
        shared.ports.spin.needed = shared.journal.spin.needed = shared.outbox.spin.needed = True
        shared.events.spin.needed = shared.syn_holdoff.spin.needed = shared.spin.needed = True
        for i in range(count):
            shared.workers[i].sessions.numbers = &shared.created
    return True


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

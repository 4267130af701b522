"""Moving the clock forward: a worker's is never behind what it has seen, and never ahead of the gateway's."""
from libc.stdint cimport uint32_t, uint64_t

from natcore.workers.locks cimport disperse, gather
from natcore.nat.fragment_path cimport pieces_expire
from natcore.tables.sessions cimport SWEEP_NS
from natcore.workers.expiry cimport is_long_ago, sweep_all, sweep_slice
from natcore.nat.unsolicited_syn cimport answer_unsolicited
from natcore.base.compiler cimport load_acquire64, raise64, unlikely
from natcore.base.linked_list cimport NO_LINK
from natcore.workers.worker cimport Clock, Shared, Worker, clock_read, has_all, tables_of_all

cdef enum:
    SWEEP_AT_LEAST = 64         # lines of a slice

cdef uint64_t ROW_LATE_NS = 60 * <uint64_t>1000000000


cdef uint64_t clock_of_all(const Worker* worker) noexcept nogil:
    """The gateway's clock."""
    return worker.now_ns if worker.shared.count == 1 else load_acquire64(&worker.shared.now_ns)


cdef inline uint64_t clock_set(Worker* worker, uint64_t now_ns) noexcept nogil:
    """The gateway's clock moves to now_ns, never back."""
    cdef uint64_t then_ns = worker.now_ns
    if worker.shared.count > 1:
        then_ns = raise64(&worker.shared.now_ns, now_ns)
    if now_ns < then_ns:
        if not worker.steady:
            worker.clock_backward += 1
        now_ns = then_ns
    worker.now_ns = now_ns
    return now_ns


cdef void clock_follow(Worker* worker, Clock* now) noexcept nogil:
    """What is done in the worker's tables is done at a moment that is not before the last that they have seen."""
    clock_read(now, raise64(&worker.shared.now_ns, now.ns))
    worker.now_ns = now.ns


cdef void finish_expiry(Worker* worker, uint64_t now_ns) noexcept nogil:
    """Ends everything that is due by now_ns, in the tables of all workers; the caller holds this one."""
    cdef bint alone = has_all(worker)
    if not alone:
        gather(worker)
    sweep_all(tables_of_all(worker), now_ns, <uint64_t>-1)
    if not alone:
        disperse(worker)


cdef inline bint rows_are_late(const Worker* worker, uint64_t now_ns) noexcept nogil:
    """Whether neither a sweep nor a loop that sweeps between its batches has been here for so long."""
    return now_ns - worker.sessions.swept_ns > ROW_LATE_NS and now_ns - worker.ticked_ns > ROW_LATE_NS


cdef uint64_t clock_forward(Worker* worker, uint64_t now_ns) noexcept nogil:
    """The gateway's clock moves to now_ns, never back; a long step first ends what it outlived, and so does a minute
    where frames in memory have no loop that sweeps: a row is in the journal within that time (contract R2)."""
    now_ns = clock_set(worker, now_ns)
    if unlikely(rows_are_late(worker, now_ns) or is_long_ago(&worker.sessions, now_ns)):
        finish_expiry(worker, now_ns)
    return now_ns


cdef bint has_waiting(const Worker* worker) noexcept nogil:
    """Whether something waits that only who holds all workers may look at; what comes just now is seen by the next tick."""
    return (worker.fragments[0].newest != NO_LINK or worker.fragments[1].newest != NO_LINK
            or worker.unsolicited.head != worker.unsolicited.tail)


cdef void tick(Worker* worker, uint64_t now_ns) noexcept nogil:
    """Between batches: the slice of the sweep that is due, so that every session is looked at within 8 s."""
    cdef uint64_t elapsed, due
    cdef bint alone = has_all(worker)
    elapsed = clock_forward(worker, now_ns) - worker.ticked_ns
    elapsed = elapsed if elapsed < SWEEP_NS else SWEEP_NS
    due = worker.sessions.slots.fresh * (elapsed * 2 // 1000) // (SWEEP_NS // 1000)     # twice as fast as it must be
    if due < SWEEP_AT_LEAST and elapsed < SWEEP_NS // 64:
        return
    worker.ticked_ns = worker.now_ns
    if alone or has_waiting(worker):
        if not alone:
            gather(worker)
        answer_unsolicited(worker, worker.now_ns)
        pieces_expire(worker, worker.now_ns)
        if not alone:
            disperse(worker)
    sweep_slice(&worker.sessions, <uint32_t>(due if due > SWEEP_AT_LEAST else SWEEP_AT_LEAST), worker.now_ns)


cdef bint advance(Worker* worker, uint64_t now_ns, uint64_t room) noexcept nogil:
    """Ends everything that is due by now_ns, in (time, slot) order, with at most room rows; whether that was all.

    The caller holds all workers.
    """
    cdef Shared* shared = worker.shared
    cdef uint32_t i
    now_ns = clock_set(worker, now_ns)
    for i in range(shared.count):
        shared.workers[i].now_ns = now_ns
    answer_unsolicited(worker, now_ns)
    pieces_expire(worker, now_ns)
    return sweep_all(tables_of_all(worker), now_ns, room)

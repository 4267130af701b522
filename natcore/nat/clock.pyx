"""Moves the clock forward. A worker's clock never goes back, and is never ahead of the gateway's.

A plane's loop sweeps between its batches. Without a loop, translated packets carry the sweep, each a few lines of it.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t


from natcore.workers.locks cimport unlock_others, lock_others, try_lock, unlock
from natcore.nat.fragment_path cimport expire_datagrams
from natcore.tables.sessions cimport SWEEP_NS
from natcore.workers.expiry cimport is_long_ago, sweep_all, sweep_slice
from natcore.nat.unsolicited_syn cimport answer_unsolicited
from natcore.base.compiler cimport load_acquire64, load_relaxed, load_relaxed64, raise64, store_relaxed64, unlikely
from natcore.base.lock_checker cimport assert_held
from natcore.base.sentinels cimport NONE
from natcore.workers.worker cimport Clock, Shared, Worker, clock_read, holds_all_locks, tables_of_all

cdef enum:
    SWEEP_AT_LEAST = 64         # lines of a slice at least
    SLICE_ENDS = 1024           # sessions ended by one slice at most
    LINES_A_PACKET = 16         # lines and ends per packet, when packets carry the sweep

cdef uint64_t ROUND_NS = 30 * <uint64_t>1000000000  # from the end of a round until packets begin the next one


cdef uint64_t clock_of_all(const Worker* worker) noexcept nogil:
    """The gateway's clock, ns."""
    return load_relaxed64(&worker.now_ns) if worker.shared.count == 1 else load_acquire64(&worker.shared.now_ns)


cdef inline uint64_t clock_set(Worker* worker, uint64_t now_ns) noexcept nogil:
    """Moves the gateway's clock to now_ns, never back; returns it."""
    cdef uint64_t then_ns = worker.now_ns
    assert_held(&worker.locked, "worker: clock_set")    # whatever uses the worker's fields sets its clock first
    if worker.shared.count > 1:
        then_ns = raise64(&worker.shared.now_ns, now_ns)
    if now_ns < then_ns:
        if not worker.monotonic_clock:
            worker.clock_backward += 1
        now_ns = then_ns
    store_relaxed64(&worker.now_ns, now_ns)
    return now_ns


cdef void clock_follow(Worker* worker, Clock* now) noexcept nogil:
    """Makes `now` no earlier than the last moment the worker's tables have seen, and sets the worker's clock to it."""
    clock_read(now, raise64(&worker.shared.now_ns, now.ns))
    worker.now_ns = now.ns


cdef void finish_expiry(Worker* worker, uint64_t now_ns) noexcept nogil:
    """Ends everything due by now_ns in the tables of all workers; the caller has locked this one."""
    cdef bint alone = holds_all_locks(worker)
    if not alone:
        lock_others(worker)
    sweep_all(tables_of_all(worker), now_ns, <uint64_t>-1)
    if not alone:
        unlock_others(worker)


cdef uint64_t clock_forward(Worker* worker, uint64_t now_ns) noexcept nogil:
    """Moves the gateway's clock to now_ns, never back; after a long step, first ends what expired meanwhile."""
    now_ns = clock_set(worker, now_ns)
    if unlikely(is_long_ago(&worker.sessions, now_ns)):
        finish_expiry(worker, now_ns)
    return now_ns


cdef inline bint is_unswept(Worker* worker, uint64_t now_ns) noexcept nogil:
    """Whether neither a round of the sweep nor a loop's slice was recent. Without the worker's lock this is a guess."""
    return (<int64_t>(now_ns - load_relaxed64(&worker.sessions.swept_ns)) > <int64_t>ROUND_NS
            and <int64_t>(now_ns - load_relaxed64(&worker.ticked_ns)) > <int64_t>ROUND_NS)


cdef void sweep_with(Worker* worker, uint32_t packets, uint64_t now_ns) noexcept nogil:
    """Sweeps the slice that the packets carry: enough packets bring rows into the journal within a minute (contract R2)."""
    cdef uint32_t lines = min(packets, <uint32_t>1 << 20) * LINES_A_PACKET
    if is_unswept(worker, now_ns):
        sweep_slice(&worker.sessions, lines, lines, now_ns)


cdef void sweep_for_another(Worker* worker, uint32_t packets, Clock* now) noexcept nogil:
    """Sweeps a slice for the next worker in turn, which may get no packets, unless it is locked."""
    cdef Shared* shared = worker.shared
    cdef Worker* other
    cdef bint alone = holds_all_locks(worker)
    worker.swept_for = worker.swept_for + 1 if worker.swept_for + 1 < shared.count else 0
    other = shared.workers[worker.swept_for]
    if other == worker or not is_unswept(other, now.ns) or not (alone or try_lock(other)):
        return
    clock_follow(other, now)
    sweep_with(other, packets, now.ns)
    if not alone:
        unlock(other)


cdef uint64_t clock_forward_with(Worker* worker, uint32_t packets, uint64_t now_ns) noexcept nogil:
    """As clock_forward, for a batch of packets, which carry the sweep if no loop does."""
    cdef Clock now
    now_ns = clock_forward(worker, now_ns)
    if unlikely(is_unswept(worker, now_ns)):
        sweep_with(worker, packets, now_ns)
    if unlikely(worker.shared.count > 1):
        clock_read(&now, now_ns)
        sweep_for_another(worker, packets, &now)
        now_ns = max(now_ns, now.ns)
        worker.now_ns = now_ns
    return now_ns


cdef bint has_held_packets(const Worker* worker) noexcept nogil:
    """Whether there is work that needs all workers locked; what arrives just now is seen by the next tick."""
    return (worker.fragments[0].newest != NONE or worker.fragments[1].newest != NONE
            or load_relaxed(&worker.syn_holdoff.head) != worker.syn_holdoff.tail)


cdef void finish_held(Worker* worker, uint64_t now_ns) noexcept nogil:
    """Answers held SYNs and drops datagrams that timed out. Call it with all workers locked."""
    answer_unsolicited(worker, now_ns)
    expire_datagrams(worker, now_ns)


cdef void tick(Worker* worker, uint64_t now_ns) noexcept nogil:
    """Between batches: sweeps the slice that is due, so that every session is examined within 8 s."""
    cdef uint64_t elapsed, due
    cdef bint alone = holds_all_locks(worker)
    elapsed = clock_forward(worker, now_ns) - worker.ticked_ns
    elapsed = elapsed if elapsed < SWEEP_NS else SWEEP_NS
    due = worker.sessions.slots.fresh * (elapsed * 2 // 1000) // (SWEEP_NS // 1000)     # twice as fast as required
    if due < SWEEP_AT_LEAST and elapsed < SWEEP_NS // 64:
        return
    store_relaxed64(&worker.ticked_ns, worker.now_ns)
    if alone or has_held_packets(worker):
        if not alone:
            lock_others(worker)
        finish_held(worker, worker.now_ns)
        if not alone:
            unlock_others(worker)
    sweep_slice(&worker.sessions, <uint32_t>(due if due > SWEEP_AT_LEAST else SWEEP_AT_LEAST), SLICE_ENDS, worker.now_ns)


cdef bint advance(Worker* worker, uint64_t now_ns, uint64_t rows) noexcept nogil:
    """Ends everything due by now_ns, in (time, slot) order, with at most `rows` rows; whether that was all.

    Call it with all workers locked.
    """
    cdef Shared* shared = worker.shared
    cdef uint32_t i
    now_ns = clock_set(worker, now_ns)
    for i in range(shared.count):
        store_relaxed64(&shared.workers[i].now_ns, now_ns)
    finish_held(worker, now_ns)
    return sweep_all(tables_of_all(worker), now_ns, rows)

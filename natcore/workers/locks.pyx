"""Worker locks. The lock order is stated in locks.pxd; debug builds check it (base/lock_checker.pxd)."""
from libc.stdint cimport uint32_t

from natcore.base.compiler cimport DEBUG, exchange, fetch_add, load_acquire, store_release
from natcore.base.lock_checker cimport RANK_ALL, lock_forget, lock_note, lock_wait
from natcore.base.spinlock cimport wait_turn
from natcore.log.journal cimport RowTap
from natcore.workers.worker cimport Shared, Worker

cdef enum:
    TURNS_GIVEN = 1000          # polls until a waiting caller has locked the worker


cdef bint try_lock(Worker* worker) noexcept nogil:
    """Locks the worker if it is unlocked; whether it did."""
    if exchange(&worker.locked, 1):
        return False
    if DEBUG:
        lock_note(&worker.locked, worker.number)
        if worker.shared.count == 1:
            lock_note(&worker.shared.all_locked, RANK_ALL)
    return True


cdef void unlock(Worker* worker) noexcept nogil:
    if DEBUG:
        lock_forget(&worker.locked)
        if worker.shared.count == 1:
            lock_forget(&worker.shared.all_locked)
    store_release(&worker.locked, 0)


cdef void lock(Worker* worker) noexcept nogil:
    """Locks the worker, waiting as long as necessary. The caller must not hold a lock with the same or a higher number."""
    cdef uint32_t turn = 0
    if DEBUG:
        lock_wait(&worker.locked, worker.number)
    if try_lock(worker):
        return
    fetch_add(&worker.waiters, 1)
    while not try_lock(worker):
        wait_turn(turn)
        turn += 1
    fetch_add(&worker.waiters, <uint32_t>-1)


cdef void yield_lock(Worker* worker) noexcept nogil:
    """Lets waiting callers lock the worker, then locks it again."""
    cdef uint32_t turn = 0
    if load_acquire(&worker.waiters) == 0:
        return
    unlock(worker)
    while load_acquire(&worker.waiters) and turn < TURNS_GIVEN:
        wait_turn(turn)
        turn += 1
    lock(worker)


cdef inline void note_all_locked(Shared* shared) noexcept nogil:
    shared.all_locked = True
    if DEBUG and shared.count > 1:
        lock_note(&shared.all_locked, RANK_ALL)


cdef inline void note_not_all_locked(Shared* shared) noexcept nogil:
    if DEBUG and shared.count > 1:
        lock_forget(&shared.all_locked)
    shared.all_locked = False


cdef void lock_all(Worker* worker) noexcept nogil:
    """Locks all workers of the gateway; the caller holds no worker lock."""
    cdef Shared* shared = worker.shared
    cdef uint32_t i
    for i in range(shared.count):
        lock(shared.workers[i])
    note_all_locked(shared)


cdef void unlock_all(Worker* worker) noexcept nogil:
    cdef Shared* shared = worker.shared
    cdef uint32_t i
    note_not_all_locked(shared)
    for i in range(shared.count):
        unlock(shared.workers[i])


cdef void lock_others(Worker* worker) noexcept nogil:
    """Locks the other workers too; the worker itself is unlocked for a moment, and other callers may change its tables."""
    unlock(worker)
    lock_all(worker)


cdef void unlock_others(Worker* worker) noexcept nogil:
    """Unlocks the other workers."""
    cdef Shared* shared = worker.shared
    cdef uint32_t i
    note_not_all_locked(shared)
    for i in range(shared.count):
        if shared.workers[i] != worker:
            unlock(shared.workers[i])


cdef void free_spinlocks(Shared* shared) noexcept nogil:
    """In a forked child: frees the spinlocks that other threads of the parent held, which do not exist here.

    If no worker was locked at the fork, what they protect is whole: threads without a worker's lock take only the journal's, to
    read one number, and those of its taps, which count a row as taken at last.
    """
    cdef RowTap* tap = shared.journal.taps
    while tap != NULL:
        tap.spin.taken = 0
        tap = tap.next
    shared.ports.spin.taken = shared.journal.spin.taken = shared.outbox.spin.taken = 0
    shared.events.spin.taken = shared.syn_holdoff.spin.taken = shared.spin.taken = 0

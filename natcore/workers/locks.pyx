"""Taking a worker takes it from nobody: a loop lets go between two batches, and whoever waits for another holds none meanwhile.

Lock order: all are taken in the order of their numbers, so that two who want them all do not wait for each other; debug
builds check it (lock_checker.pxd).
"""
from libc.stdint cimport uint32_t

from natcore.base.compiler cimport DEBUG, exchange, fetch_add, load_acquire, store_release
from natcore.base.lock_checker cimport RANK_ALL, lock_forget, lock_note, lock_wait
from natcore.base.spinlock cimport wait_turn
from natcore.workers.worker cimport Shared, Worker

cdef enum:
    TURNS_GIVEN = 1000          # looks, until somebody who asked has taken the worker


cdef bint hold(Worker* worker) noexcept nogil:
    """Takes the worker if nobody holds it; whether it did."""
    if exchange(&worker.held, 1):
        return False
    if DEBUG:
        lock_note(&worker.held, worker.number)
        if worker.shared.count == 1:
            lock_note(&worker.shared.alone, RANK_ALL)
    return True


cdef void release(Worker* worker) noexcept nogil:
    if DEBUG:
        lock_forget(&worker.held)
        if worker.shared.count == 1:
            lock_forget(&worker.shared.alone)
    store_release(&worker.held, 0)


cdef void await_hold(Worker* worker) noexcept nogil:
    """Takes the worker as soon as whoever holds it lets go. The caller holds none with a higher number."""
    cdef uint32_t turn = 0
    if DEBUG:
        lock_wait(&worker.held, worker.number)
    if hold(worker):
        return
    fetch_add(&worker.attention, 1)
    while not hold(worker):
        wait_turn(turn)
        turn += 1
    fetch_add(&worker.attention, <uint32_t>-1)


cdef void give_way(Worker* worker) noexcept nogil:
    """Lets those have the worker, which the caller holds, who wait for it; it is the caller's again afterwards."""
    cdef uint32_t turn = 0
    if load_acquire(&worker.attention) == 0:
        return
    release(worker)
    while load_acquire(&worker.attention) and turn < TURNS_GIVEN:
        wait_turn(turn)
        turn += 1
    await_hold(worker)


cdef inline void become_alone(Shared* shared) noexcept nogil:
    shared.alone = True
    if DEBUG and shared.count > 1:
        lock_note(&shared.alone, RANK_ALL)


cdef inline void be_alone_no_more(Shared* shared) noexcept nogil:
    if DEBUG and shared.count > 1:
        lock_forget(&shared.alone)
    shared.alone = False


cdef void hold_all(Worker* worker) noexcept nogil:
    """Takes all workers of the gateway; the caller holds none."""
    cdef Shared* shared = worker.shared
    cdef uint32_t i
    for i in range(shared.count):
        await_hold(shared.workers[i])
    become_alone(shared)


cdef void release_all(Worker* worker) noexcept nogil:
    cdef Shared* shared = worker.shared
    cdef uint32_t i
    be_alone_no_more(shared)
    for i in range(shared.count):
        release(shared.workers[i])


cdef void gather(Worker* worker) noexcept nogil:
    """Takes the others too; the worker, which the caller holds, may be another's for a moment meanwhile."""
    release(worker)
    hold_all(worker)


cdef void disperse(Worker* worker) noexcept nogil:
    """Lets the others go."""
    cdef Shared* shared = worker.shared
    cdef uint32_t i
    be_alone_no_more(shared)
    for i in range(shared.count):
        if shared.workers[i] != worker:
            release(shared.workers[i])

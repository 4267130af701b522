"""Worker locks: locking a worker gives exclusive use of its tables.

Theory of operation. Each worker has one lock, a word that is exchanged atomically. A loop or a call locks its worker for a
batch of packets and unlocks it in between, so that no caller waits longer than a batch takes: `waiters` counts waiting callers,
and a loop lets them go first (yield_lock). Nearly all packets need only their worker's tables.

Some packets need tables of other workers: those handed off to their owner, hairpins, ICMP errors, fragments; calls that read or
change everything need all tables. The lock order excludes deadlock:

- Wait only for a lock with a higher number than all that are held. A handoff unlocks its own worker first (slow_path_by_owner),
  and must expect changes in its own tables when it locks it again. try_lock is fine at any time, since it does not block.
- Lock all workers in ascending order of their numbers, starting with none locked (lock_all); lock_others therefore unlocks its
  own worker for a moment too. With all locked, `Shared.all_locked` is set, and every table may be used.
- Spinlocks (ports, journal, outbox, events, SYN hold-off, shared counters) are held for a few instructions, usually with a
  worker locked; no worker lock is taken while one is held.

Debug builds check the order (base/lock_checker.pxd). Python code never runs while a worker is locked, since it could want a
lock itself (tests/workers/test_races.py).
"""
from natcore.workers.worker cimport Shared, Worker

cdef bint try_lock(Worker* worker) noexcept nogil
cdef void unlock(Worker* worker) noexcept nogil
cdef void lock(Worker* worker) noexcept nogil
cdef void yield_lock(Worker* worker) noexcept nogil
cdef void lock_others(Worker* worker) noexcept nogil
cdef void unlock_others(Worker* worker) noexcept nogil
cdef void lock_all(Worker* worker) noexcept nogil
cdef void unlock_all(Worker* worker) noexcept nogil
cdef void free_spinlocks(Shared* shared) noexcept nogil

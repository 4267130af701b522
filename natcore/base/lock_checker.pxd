"""The lock checker of debug builds (NATCORE_DEBUG): which locks each thread holds. Other builds have none of it.

Lock order: a thread waits for a lock only if all locks it holds have a lower rank. A worker's rank is its number: several are
locked in ascending order. A spinlock ranks above all workers: a thread that holds one waits for nothing, but for the inner
spinlocks (the journal's, the events'), which are held for a few instructions.
What a lock protects names it (`lock`), and its accessors assert that the caller holds it. A worker's own fields have no
accessors: the functions through which packets, time and revoked frames come to a worker assert for all of them.
"""
from libc.stdint cimport uint32_t

from natcore.base.compiler cimport DEBUG

cdef enum:
    RANK_ALL = 0x100            # all workers of a gateway, locked one by one: noted, never waited for
    RANK_SPIN = 0x200
    RANK_INNER = 0x300          # a spinlock that may be taken while another one is held

cdef void lock_wait(const void* lock, uint32_t rank) noexcept nogil
cdef void lock_note(const void* lock, uint32_t rank) noexcept nogil
cdef void lock_forget(const void* lock) noexcept nogil
cdef bint lock_is_held(const void* lock) noexcept nogil
cdef void lock_fault(const char* text, const char* what, uint32_t rank, uint32_t held) noexcept nogil

cdef inline void assert_held(const void* lock, const char* what) noexcept nogil:
    """Aborts unless the lock is held. lock: NULL for a test's table, which has none. what: the function that needs it."""
    if DEBUG and lock != NULL and not lock_is_held(lock):
        lock_fault("a lock is not held", what, 0, 0)

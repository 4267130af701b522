"""Spinlocks, held for a few instructions while shared state of several workers is changed.

Lock order: no other lock is waited for while one is held, but for an inner one (spin_lock_inner; lock_checker.pxd).
"""
from libc.stdint cimport uint32_t, uint64_t

from natcore.base.compiler cimport DEBUG, exchange, likely, store_release
from natcore.base.lock_checker cimport RANK_INNER, RANK_SPIN, lock_fault, lock_forget, lock_is_held, lock_note, lock_wait

cdef extern from * nogil:
    """
    #include <sched.h>
    #include <time.h>
    #if defined(__x86_64__)
    #define natcore_relax() __builtin_ia32_pause()
    #else
    #define natcore_relax() ((void)0)
    #endif
    /* The turn-th look at what another thread has: first at once, then the processor is given away, then 20 us at a time. */
    static inline void natcore_wait_turn(uint32_t turn) {
        if (turn < 200) natcore_relax();
        else if (turn < 400) sched_yield();
        else { struct timespec t = {0, 20000}; nanosleep(&t, NULL); }
    }
    """
    void wait_turn "natcore_wait_turn" (uint32_t turn) noexcept

cdef struct Spinlock:
    uint32_t taken
    uint32_t needed             # 0: a single worker, no locking

cdef inline void spin_lock_ranked(Spinlock* spin, uint32_t rank) noexcept nogil:
    cdef uint32_t turn = 0
    if likely(not spin.needed):
        return
    if DEBUG:
        lock_wait(spin, rank)
    while exchange(&spin.taken, 1):
        wait_turn(turn)
        turn += 1
    if DEBUG:
        lock_note(spin, rank)

cdef inline void spin_lock(Spinlock* spin) noexcept nogil:
    spin_lock_ranked(spin, RANK_SPIN)

cdef inline void spin_lock_inner(Spinlock* spin) noexcept nogil:
    """Locks the journal's or the events' spinlock, which may be taken while another spinlock is held."""
    spin_lock_ranked(spin, RANK_INNER)

cdef inline void spin_unlock(Spinlock* spin) noexcept nogil:
    if not likely(not spin.needed):
        if DEBUG:
            lock_forget(spin)
        store_release(&spin.taken, 0)

cdef inline uint64_t spin_read(Spinlock* spin, const uint64_t* value) noexcept nogil:
    """What the lock guards, read with it held."""
    cdef uint64_t seen
    spin_lock(spin)
    seen = value[0]
    spin_unlock(spin)
    return seen

cdef inline void assert_spin(const Spinlock* spin, const void* lock, const char* what) noexcept nogil:
    """Debug builds abort unless the caller holds the spinlock, or `lock`, which serves as well (NULL: none does)."""
    if DEBUG and (spin.needed or lock != NULL) and not (lock_is_held(spin) or lock_is_held(lock)):
        lock_fault("a lock is not held", what, RANK_SPIN, 0)

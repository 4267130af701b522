"""What each thread holds: called in debug builds alone, but for the test of it (lock_checker.pxd says what it checks)."""
from libc.stdint cimport uint32_t

cdef extern from * nogil:
    """
    #include <stdio.h>
    #include <stdlib.h>
    enum { NATCORE_LOCKS_HELD = 96 };           /* all workers, and what is taken beside them */
    typedef struct { const void* lock; uint32_t rank; } natcore_held_lock;
    static _Thread_local natcore_held_lock natcore_held[NATCORE_LOCKS_HELD];
    static _Thread_local uint32_t natcore_held_count;
    static natcore_held_lock* natcore_held_locks(void) { return natcore_held; }
    static uint32_t* natcore_held_number(void) { return &natcore_held_count; }
    static void natcore_lock_abort(const char* text, const char* what, unsigned rank, unsigned held) {
        fprintf(stderr, "natcore: %s: %s (rank %u, held %u)\\n", text, what, rank, held);
        abort();
    }
    """
    cdef struct HeldLock "natcore_held_lock":
        const void* lock
        uint32_t rank
    enum:
        LOCKS_HELD "NATCORE_LOCKS_HELD"
    HeldLock* held_locks "natcore_held_locks" () noexcept
    uint32_t* held_number "natcore_held_number" () noexcept
    void abort_with "natcore_lock_abort" (const char* text, const char* what, unsigned rank, unsigned held) noexcept


cdef void lock_fault(const char* text, const char* what, uint32_t rank, uint32_t held) noexcept nogil:
    """Aborts with a message."""
    abort_with(text, what, rank, held)


cdef void lock_wait(const void* lock, uint32_t rank) noexcept nogil:
    """Before the thread waits for a lock: everything that it holds ranks lower."""
    cdef uint32_t i
    for i in range(held_number()[0]):
        if held_locks()[i].rank >= rank:
            lock_fault("lock order broken", "waits for a lock below one that it holds", rank, held_locks()[i].rank)


cdef void lock_note(const void* lock, uint32_t rank) noexcept nogil:
    """The thread has it now."""
    cdef uint32_t count = held_number()[0]
    if count == LOCKS_HELD:
        lock_fault("too many locks", "taken and never released", rank, count)
    held_locks()[count].lock = lock
    held_locks()[count].rank = rank
    held_number()[0] = count + 1


cdef void lock_forget(const void* lock) noexcept nogil:
    """Before the thread lets it go."""
    cdef uint32_t count = held_number()[0], i
    for i in range(count):
        if held_locks()[i].lock == lock:
            held_locks()[i] = held_locks()[count - 1]
            held_number()[0] = count - 1
            return
    lock_fault("a lock is not held", "released", 0, count)


cdef bint lock_is_held(const void* lock) noexcept nogil:
    """Whether this thread has it."""
    cdef uint32_t i
    for i in range(held_number()[0]):
        if held_locks()[i].lock == lock:
            return True
    return False

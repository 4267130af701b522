"""Peeks: words that others write with a lock held, looked at without it. Each is whole, and may be of another moment.

Who peeks takes nothing for certain: what a peek found is looked at again with the lock, or may be a little old. The thread
sanitizer would report each, since the writes are plain; it is told not to look here.
"""
from libc.stdint cimport uint32_t, uint64_t

cdef extern from * nogil:
    """
    #ifdef __SANITIZE_THREAD__
    #define NATCORE_PEEK static __attribute__((no_sanitize("thread"), noinline, unused))
    #else
    #define NATCORE_PEEK static inline __attribute__((unused))
    #endif
    NATCORE_PEEK uint32_t natcore_peek32(const uint32_t* word) { return __atomic_load_n(word, __ATOMIC_RELAXED); }
    NATCORE_PEEK uint64_t natcore_peek64(const uint64_t* word) { return __atomic_load_n(word, __ATOMIC_RELAXED); }
    """
    uint32_t peek32 "natcore_peek32" (const uint32_t* word) noexcept
    uint64_t peek64 "natcore_peek64" (const uint64_t* word) noexcept

"""Compiler builtins: prefetch, branch hints, atomics, byte swaps. Portable builds define NATCORE_PORTABLE."""
from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef extern from * nogil:
    """
    #include <stdint.h>
    /* GCC removes calls of an inline function that only prefetches: return the address and prefetch in the caller. */
    #define natcore_prefetch(address) __builtin_prefetch((address), 0, 3)
    #define natcore_prefetch_write(address) __builtin_prefetch((address), 1, 3)
    #define natcore_likely(condition) __builtin_expect(!!(condition), 1)
    #define natcore_unlikely(condition) __builtin_expect(!!(condition), 0)
    #define natcore_load_acquire(address) __atomic_load_n((address), __ATOMIC_ACQUIRE)
    #define natcore_store_release(address, value) __atomic_store_n((address), (value), __ATOMIC_RELEASE)
    /* Of what one thread writes and others only look at, without a lock: whole, though perhaps not the newest. */
    #define natcore_load_relaxed(address) __atomic_load_n((address), __ATOMIC_RELAXED)
    #define natcore_store_relaxed(address, value) __atomic_store_n((address), (value), __ATOMIC_RELAXED)
    #define natcore_count_up(address, more) natcore_store_relaxed((address), natcore_load_relaxed(address) + (more))
    #define natcore_exchange(address, value) __atomic_exchange_n((address), (value), __ATOMIC_ACQ_REL)
    #define natcore_fetch_add(address, value) __atomic_fetch_add((address), (value), __ATOMIC_ACQ_REL)
    static inline const void* natcore_either(int condition, const void* one, const void* other) {
        return (const void*)((uintptr_t)other ^ (((uintptr_t)one ^ (uintptr_t)other) & -(uintptr_t)(condition != 0)));
    }
    /* The word becomes value unless it is more already; what it is then. */
    static inline uint64_t natcore_raise64(uint64_t* address, uint64_t value) {
        uint64_t seen = __atomic_load_n(address, __ATOMIC_ACQUIRE);
        while (seen < value)
            if (__atomic_compare_exchange_n(address, &seen, value, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) return value;
        return seen;
    }
    #ifdef NATCORE_DEBUG                /* invariants are checked after every batch */
    #define natcore_debug 1
    #else
    #define natcore_debug 0
    #endif
    #define natcore_bswap16(x) __builtin_bswap16(x)
    #define natcore_bswap32(x) __builtin_bswap32(x)
    #define natcore_bswap64(x) __builtin_bswap64(x)
    #define natcore_ctz64(x) ((uint32_t)__builtin_ctzll(x))
    """
    bint DEBUG "natcore_debug"
    void prefetch "natcore_prefetch" (const void* address) noexcept
    void prefetch_write "natcore_prefetch_write" (const void* address) noexcept
    bint likely "natcore_likely" (bint condition) noexcept
    bint unlikely "natcore_unlikely" (bint condition) noexcept
    uint32_t load_acquire "natcore_load_acquire" (uint32_t* address) noexcept
    void store_release "natcore_store_release" (uint32_t* address, uint32_t value) noexcept
    uint64_t load_acquire64 "natcore_load_acquire" (uint64_t* address) noexcept
    void store_release16 "natcore_store_release" (uint16_t* address, uint16_t value) noexcept
    void store_release64 "natcore_store_release" (uint64_t* address, uint64_t value) noexcept
    uint32_t load_relaxed "natcore_load_relaxed" (const uint32_t* address) noexcept
    void store_relaxed "natcore_store_relaxed" (uint32_t* address, uint32_t value) noexcept
    uint64_t load_relaxed64 "natcore_load_relaxed" (const uint64_t* address) noexcept
    void store_relaxed64 "natcore_store_relaxed" (uint64_t* address, uint64_t value) noexcept
    void count_up "natcore_count_up" (uint64_t* counter, uint64_t more) noexcept      # others look at it meanwhile
    uint32_t exchange "natcore_exchange" (uint32_t* address, uint32_t value) noexcept
    uint32_t fetch_add "natcore_fetch_add" (uint32_t* address, uint32_t value) noexcept
    uint64_t fetch_add64 "natcore_fetch_add" (uint64_t* address, uint64_t value) noexcept
    uint64_t raise64 "natcore_raise64" (uint64_t* address, uint64_t value) noexcept
    const void* either "natcore_either" (bint condition, const void* one, const void* other) noexcept   # without a branch
    unsigned short bswap16 "natcore_bswap16" (unsigned short x) noexcept
    uint32_t bswap32 "natcore_bswap32" (uint32_t x) noexcept
    uint64_t bswap64 "natcore_bswap64" (uint64_t x) noexcept
    uint32_t ctz64 "natcore_ctz64" (uint64_t x) noexcept

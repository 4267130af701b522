"""Flow keys and their hash, keyed with 128 random bits: three AES rounds, or SipHash-1-3 without AES instructions.

Nothing that can be observed depends on the hash or on which of the two is used.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef struct HashKey:
    uint64_t low
    uint64_t high
    uint32_t aes                # 1: use the AES instructions

cdef extern from * nogil:
    """
    #include <stdint.h>
    #define NATCORE_ROTL(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
    #define NATCORE_SIPROUND do { \\
        v0 += v1; v1 = NATCORE_ROTL(v1, 13); v1 ^= v0; v0 = NATCORE_ROTL(v0, 32); \\
        v2 += v3; v3 = NATCORE_ROTL(v3, 16); v3 ^= v2; \\
        v0 += v3; v3 = NATCORE_ROTL(v3, 21); v3 ^= v0; \\
        v2 += v1; v1 = NATCORE_ROTL(v1, 17); v1 ^= v2; v2 = NATCORE_ROTL(v2, 32); } while (0)

    static inline uint64_t natcore_siphash13(uint64_t k0, uint64_t k1, uint64_t a, uint64_t b) {
        uint64_t v0 = 0x736f6d6570736575ULL ^ k0, v1 = 0x646f72616e646f6dULL ^ k1;
        uint64_t v2 = 0x6c7967656e657261ULL ^ k0, v3 = 0x7465646279746573ULL ^ k1;
        const uint64_t words[3] = {a, b, (uint64_t)16 << 56};
        for (int i = 0; i < 3; i++) { v3 ^= words[i]; NATCORE_SIPROUND; v0 ^= words[i]; }
        v2 ^= 0xff;
        NATCORE_SIPROUND; NATCORE_SIPROUND; NATCORE_SIPROUND;
        return v0 ^ v1 ^ v2 ^ v3;
    }

    #if defined(__x86_64__) && !defined(NATCORE_PORTABLE)
    #include <immintrin.h>
    /* Inlined into code that is built for every x86-64: the intrinsic would ask for a build, or a call, of its own. */
    #define NATCORE_AESENC(x, key) __asm__("aesenc %1, %0" : "+x"(x) : "x"(key))
    static inline uint64_t natcore_hash_aes(uint64_t k0, uint64_t k1, uint64_t a, uint64_t b) {
        const __m128i key = _mm_set_epi64x((long long)k1, (long long)k0);
        const __m128i odd = _mm_xor_si128(key, _mm_set1_epi64x((long long)0x9e3779b97f4a7c15ULL));
        __m128i x = _mm_xor_si128(_mm_set_epi64x((long long)b, (long long)a), key);
        NATCORE_AESENC(x, odd);
        NATCORE_AESENC(x, key);
        NATCORE_AESENC(x, odd);
        return (uint64_t)_mm_cvtsi128_si64(x);
    }
    static inline int natcore_has_aes(void) { return __builtin_cpu_supports("aes") != 0; }
    #else
    static uint64_t natcore_hash_aes(uint64_t k0, uint64_t k1, uint64_t a, uint64_t b) {
        return natcore_siphash13(k0, k1, a, b);
    }
    static inline int natcore_has_aes(void) { return 0; }
    #endif
    """
    uint64_t siphash13 "natcore_siphash13" (uint64_t k0, uint64_t k1, uint64_t a, uint64_t b) noexcept
    uint64_t hash_aes "natcore_hash_aes" (uint64_t k0, uint64_t k1, uint64_t a, uint64_t b) noexcept
    bint has_aes "natcore_has_aes" () noexcept

cdef inline uint64_t flow_hash(const HashKey* key, uint64_t addresses, uint32_t ports, uint8_t protocol) noexcept nogil:
    """Hashes a flow key. addresses, ports: source and destination as in the packet, source first."""
    cdef uint64_t rest = <uint64_t>protocol << 32 | ports
    if key.aes:
        return hash_aes(key.low, key.high, addresses, rest)
    return siphash13(key.low, key.high, addresses, rest)

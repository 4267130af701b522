"""Random numbers that an attacker cannot predict: the ChaCha20 key stream (RFC 8439), 64 bytes at a time."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef struct Random:
    uint32_t state[16]          # RFC 8439 section 2.3: constants, key, block counter, nonce
    uint32_t block[16]
    uint32_t used               # words of block already consumed

cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <string.h>
    #define NATCORE_ROUND_COUNT 10              /* double rounds, RFC 8439 section 2.3.1 */
    #if defined(__SSE2__) && !defined(NATCORE_PORTABLE)
    #include <emmintrin.h>
    #define NATCORE_ROTATE(x, n) _mm_or_si128(_mm_slli_epi32(x, n), _mm_srli_epi32(x, 32 - (n)))
    #define NATCORE_QUARTER_ROUNDS(a, b, c, d) do { /* four at once: a row of the state is a register */ \\
        a = _mm_add_epi32(a, b); d = _mm_xor_si128(d, a); d = NATCORE_ROTATE(d, 16); \\
        c = _mm_add_epi32(c, d); b = _mm_xor_si128(b, c); b = NATCORE_ROTATE(b, 12); \\
        a = _mm_add_epi32(a, b); d = _mm_xor_si128(d, a); d = NATCORE_ROTATE(d, 8); \\
        c = _mm_add_epi32(c, d); b = _mm_xor_si128(b, c); b = NATCORE_ROTATE(b, 7); } while (0)
    static inline void natcore_chacha(const uint32_t* state, uint32_t* block) {
        const __m128i* rows = (const __m128i*)state;
        const __m128i a0 = _mm_loadu_si128(rows), b0 = _mm_loadu_si128(rows + 1);
        const __m128i c0 = _mm_loadu_si128(rows + 2), d0 = _mm_loadu_si128(rows + 3);
        __m128i a = a0, b = b0, c = c0, d = d0;
        for (int i = 0; i < NATCORE_ROUND_COUNT; i++) {
            NATCORE_QUARTER_ROUNDS(a, b, c, d);
            b = _mm_shuffle_epi32(b, 0x39); c = _mm_shuffle_epi32(c, 0x4E); d = _mm_shuffle_epi32(d, 0x93);
            NATCORE_QUARTER_ROUNDS(a, b, c, d);     /* of the diagonals */
            b = _mm_shuffle_epi32(b, 0x93); c = _mm_shuffle_epi32(c, 0x4E); d = _mm_shuffle_epi32(d, 0x39);
        }
        __m128i* out = (__m128i*)block;
        _mm_storeu_si128(out, _mm_add_epi32(a, a0));
        _mm_storeu_si128(out + 1, _mm_add_epi32(b, b0));
        _mm_storeu_si128(out + 2, _mm_add_epi32(c, c0));
        _mm_storeu_si128(out + 3, _mm_add_epi32(d, d0));
    }
    #else
    #define NATCORE_ROTATE(x, n) ((x) << (n) | (x) >> (32 - (n)))
    #define NATCORE_QUARTER_ROUND(a, b, c, d) do { \\
        a += b; d ^= a; d = NATCORE_ROTATE(d, 16); c += d; b ^= c; b = NATCORE_ROTATE(b, 12); \\
        a += b; d ^= a; d = NATCORE_ROTATE(d, 8); c += d; b ^= c; b = NATCORE_ROTATE(b, 7); } while (0)
    static inline void natcore_chacha(const uint32_t* state, uint32_t* block) {
        uint32_t x[16];
        memcpy(x, state, 64);
        for (int i = 0; i < NATCORE_ROUND_COUNT; i++) {
            for (int column = 0; column < 4; column++)
                NATCORE_QUARTER_ROUND(x[column], x[column + 4], x[column + 8], x[column + 12]);
            for (int first = 0; first < 4; first++)
                NATCORE_QUARTER_ROUND(x[first], x[4 + (first + 1) % 4], x[8 + (first + 2) % 4], x[12 + (first + 3) % 4]);
        }
        for (int i = 0; i < 16; i++) block[i] = x[i] + state[i];
    }
    #endif
    """
    void chacha "natcore_chacha" (const uint32_t* state, uint32_t* block) noexcept

cdef inline void random_refill(Random* random) noexcept nogil:
    chacha(random.state, random.block)
    random.state[12] += 1
    if random.state[12] == 0:
        random.state[13] += 1
    random.used = 0

cdef inline void random_seed(Random* random, const uint8_t* key) noexcept nogil:
    """Starts the key stream from a key of 32 bytes."""
    random.state[0] = 0x61707865
    random.state[1] = 0x3320646e
    random.state[2] = 0x79622d32
    random.state[3] = 0x6b206574
    memcpy(&random.state[4], key, 32)
    random.state[12] = random.state[13] = random.state[14] = random.state[15] = 0
    random.used = 16

cdef inline uint32_t random32(Random* random) noexcept nogil:
    if random.used == 16:
        random_refill(random)
    random.used += 1
    return random.block[random.used - 1]

cdef inline uint32_t random_below(Random* random, uint32_t bound) noexcept nogil:
    """A number below bound, which is 1 or more (the bias of 2^-32 x bound is negligible for ports)."""
    return <uint32_t>(<uint64_t>random32(random) * bound >> 32)

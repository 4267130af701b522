"""Random words that an attacker cannot predict: the ChaCha20 key stream (RFC 8439), 64 bytes at a time."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef struct Random:
    uint32_t state[16]          # RFC 8439 section 2.3: constants, key, block counter, nonce
    uint32_t block[16]
    uint32_t used               # words of block already given out

cdef inline uint32_t rotate(uint32_t x, uint32_t n) noexcept nogil:
    return x << n | x >> (32 - n)

cdef inline void quarter_round(uint32_t* x, int a, int b, int c, int d) noexcept nogil:
    x[a] += x[b]
    x[d] = rotate(x[d] ^ x[a], 16)
    x[c] += x[d]
    x[b] = rotate(x[b] ^ x[c], 12)
    x[a] += x[b]
    x[d] = rotate(x[d] ^ x[a], 8)
    x[c] += x[d]
    x[b] = rotate(x[b] ^ x[c], 7)

cdef inline void random_refill(Random* random) noexcept nogil:
    cdef uint32_t x[16]
    cdef int i, _turn
    memcpy(x, random.state, 64)
    for _turn in range(10):
        quarter_round(x, 0, 4, 8, 12)
        quarter_round(x, 1, 5, 9, 13)
        quarter_round(x, 2, 6, 10, 14)
        quarter_round(x, 3, 7, 11, 15)
        quarter_round(x, 0, 5, 10, 15)
        quarter_round(x, 1, 6, 11, 12)
        quarter_round(x, 2, 7, 8, 13)
        quarter_round(x, 3, 4, 9, 14)
    for i in range(16):
        random.block[i] = x[i] + random.state[i]
    random.state[12] += 1
    if random.state[12] == 0:
        random.state[13] += 1
    random.used = 0

cdef inline void random_seed(Random* random, const uint8_t* key) noexcept nogil:
    """key: 32 bytes."""
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
    """A number below bound, 1 or more (the bias of 2^-32 x bound does not matter for ports)."""
    return <uint32_t>(<uint64_t>random32(random) * bound >> 32)

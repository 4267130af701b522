"""Internet checksum arithmetic (RFC 1071, RFC 1624): sums of 16-bit words, in either byte order."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef inline uint16_t fold(uint64_t total) noexcept nogil:
    """Folds a sum of words of 16 bits or more to 16 bits."""
    return fold32(<uint32_t>((total + (total << 32 | total >> 32)) >> 32))     # sum of both halves plus carry

cdef inline uint16_t fold32(uint32_t total) noexcept nogil:
    return <uint16_t>((total + (total << 16 | total >> 16)) >> 16)

cdef inline uint16_t add16(uint16_t one, uint16_t other) noexcept nogil:
    """Ones' complement addition of 16-bit words."""
    cdef uint32_t total = <uint32_t>one + other
    return <uint16_t>(total + (total >> 16))

cdef inline uint64_t add(const uint8_t* data, uint32_t length, uint64_t total) noexcept nogil:
    """Adds the words of data to total; an odd last byte is padded with zero. length: bytes, below 2^31."""
    cdef uint32_t word = 0
    while length >= 4:
        memcpy(&word, data, 4)
        total += word
        data += 4
        length -= 4
    if length:
        word = 0
        memcpy(&word, data, length)
        total += word
    return total

cdef inline uint16_t delta32(uint32_t old, uint32_t new) noexcept nogil:
    """Checksum delta of a changed address: ~old + new in ones' complement, never zero."""
    cdef uint16_t delta = fold(<uint64_t><uint32_t>~old + new)
    return delta if delta else 0xFFFF

cdef inline uint16_t delta16(uint16_t old, uint16_t new) noexcept nogil:
    cdef uint16_t delta = add16(<uint16_t>~old, new)
    return delta if delta else 0xFFFF

cdef inline uint16_t combine(uint16_t one, uint16_t other) noexcept nogil:
    """Adds two deltas; never zero unless both are."""
    return add16(one, other)

cdef inline uint16_t update(uint16_t checksum, uint32_t delta) noexcept nogil:
    """Updates a checksum by delta, a ones' complement sum of a few words (RFC 1624, eq. 3); never 0xFFFF."""
    return <uint16_t>~fold32(<uint32_t><uint16_t>~checksum + delta + 0xFFFF)

cdef inline uint16_t update_partial(uint16_t total, uint16_t delta) noexcept nogil:
    """Updates a partial checksum: the sum over the pseudo-header, not complemented."""
    return add16(total, delta)

cdef inline uint16_t checksum(const uint8_t* data, uint32_t length, uint64_t total) noexcept nogil:
    """The checksum (RFC 1071) of data, continuing from total."""
    return <uint16_t>~fold(add(data, length, total))

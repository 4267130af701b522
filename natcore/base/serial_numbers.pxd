"""Serial number arithmetic: TCP sequence numbers, modulo 2^32 (RFC 9293 section 3.4)."""
from libc.stdint cimport uint32_t

cdef inline bint is_later(uint32_t one, uint32_t other) noexcept nogil:
    """Whether one comes after other."""
    return <int>(one - other) > 0

cdef inline uint32_t ahead(uint32_t one, uint32_t other) noexcept nogil:
    """How far one is ahead of other; 0 if it is not."""
    cdef int distance = <int>(one - other)
    return <uint32_t>(distance if distance > 0 else 0)

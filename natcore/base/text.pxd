"""Decimals and dotted quads as text, written without the GIL."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef inline uint8_t* put_decimal(uint8_t* at, uint64_t value) noexcept nogil:
    """Writes 1 to 20 digits; returns the end."""
    cdef uint8_t digits[20]
    cdef uint32_t count = 0, i
    while True:
        digits[count] = <uint8_t>(48 + value % 10)
        value //= 10
        count += 1
        if value == 0:
            break
    for i in range(count):
        at[i] = digits[count - 1 - i]
    return at + count


cdef inline uint8_t* put_digits(uint8_t* at, uint64_t value, uint32_t count) noexcept nogil:
    """Writes the last `count` digits with leading zeros; returns the end."""
    cdef uint32_t i
    for i in range(count):
        at[count - 1 - i] = <uint8_t>(48 + value % 10)
        value //= 10
    return at + count


cdef inline uint8_t* put_dotted(uint8_t* at, uint32_t address) noexcept nogil:
    """Writes an address in host order, 7 to 15 characters; returns the end."""
    at = put_decimal(at, address >> 24)
    at[0] = 46
    at = put_decimal(at + 1, address >> 16 & 255)
    at[0] = 46
    at = put_decimal(at + 1, address >> 8 & 255)
    at[0] = 46
    return put_decimal(at + 1, address & 255)

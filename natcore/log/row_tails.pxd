"""Texts behind the fields of encoded rows, such as labels: a few different ones, each row has the number of its own."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef struct RowTails:
    const uint8_t* text         # all of them, one behind the other
    const uint32_t* offsets     # of their beginnings, and of the end of the last
    const uint32_t* numbers     # by row; NULL: rows have none
    uint64_t bytes              # of all rows
    uint32_t longest            # bytes


cdef inline int row_tails_set(RowTails* tails, const uint8_t[::1] text, const uint32_t[::1] offsets,
                              const uint32_t[::1] numbers, uint64_t rows) except -1:
    """Raises ValueError unless there is a number for each row, and a text for each number."""
    cdef uint64_t row, last
    cdef uint32_t number
    tails.text = tails.offsets = tails.numbers = NULL
    tails.bytes = tails.longest = 0
    if numbers is None or not rows:
        return 0
    if <uint64_t>numbers.shape[0] != rows or offsets is None or text is None or offsets.shape[0] < 2:
        raise ValueError(f"tails must have a number for each of {rows} rows")
    last = offsets.shape[0] - 1
    for row in range(last):
        if offsets[row] > offsets[row + 1]:
            raise ValueError("the offsets of tails must ascend")
    if offsets[last] > <uint64_t>text.shape[0]:
        raise ValueError(f"the offsets of tails must end with {text.shape[0]}, got {offsets[last]}")
    for row in range(rows):
        number = numbers[row]
        if number >= last:
            raise ValueError(f"the numbers of tails must be less than {last}, got {number}")
        tails.bytes += offsets[number + 1] - offsets[number]
        tails.longest = max(tails.longest, offsets[number + 1] - offsets[number])
    tails.text, tails.offsets, tails.numbers = (&text[0] if text.shape[0] else NULL), &offsets[0], &numbers[0]
    return 0


cdef inline uint64_t row_tail_bytes(const RowTails* tails, uint64_t row) noexcept nogil:
    if tails.numbers == NULL:
        return 0
    return tails.offsets[tails.numbers[row] + 1] - tails.offsets[tails.numbers[row]]


cdef inline uint8_t* put_row_tail(uint8_t* at, const RowTails* tails, uint64_t row) noexcept nogil:
    cdef uint64_t size = row_tail_bytes(tails, row)
    if size:
        memcpy(at, tails.text + tails.offsets[tails.numbers[row]], size)
    return at + size

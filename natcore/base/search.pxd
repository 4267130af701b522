"""Binary search in sorted arrays: how many elements are less than or equal to a key (the upper bound)."""
from libc.stddef cimport size_t
from libc.stdint cimport uint32_t, uint64_t

cdef inline uint32_t upper_bound32(const void* first, size_t stride, uint32_t count, uint32_t key) noexcept nogil:
    """Elements with a value of at most key, of an ascending array. first: the value of the first element, a uint32_t; stride:
    bytes from one element to the next, a constant."""
    cdef uint32_t low = 0, high = count, middle
    while low < high:
        middle = (low + high) >> 1
        if (<const uint32_t*>(<const char*>first + middle * stride))[0] <= key:
            low = middle + 1
        else:
            high = middle
    return low

cdef inline uint32_t upper_bound64(const void* first, size_t stride, uint32_t count, uint64_t key) noexcept nogil:
    """Likewise for values of uint64_t."""
    cdef uint32_t low = 0, high = count, middle
    while low < high:
        middle = (low + high) >> 1
        if (<const uint64_t*>(<const char*>first + middle * stride))[0] <= key:
            low = middle + 1
        else:
            high = middle
    return low

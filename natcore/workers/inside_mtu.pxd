"""How long a packet may be that goes to an inside host, where the inside links differ in that."""
from libc.stdint cimport uint8_t, uint32_t

cdef struct Paths:
    const uint32_t* starts      # [ranges] ascending, host order; range i ends before starts[i + 1]
    const uint8_t* ports        # [ranges] that lead there
    uint32_t ranges
    const uint32_t* mtus        # by port, bytes of an IPv4 packet

cdef inline uint32_t mtu_towards(const Paths* paths, uint32_t destination) noexcept nogil:
    """Of the port that leads to the destination (host order); 0: none does."""
    cdef uint32_t low = 0, high = paths.ranges, middle
    while low < high:
        middle = (low + high) >> 1
        if paths.starts[middle] <= destination:
            low = middle + 1
        else:
            high = middle
    return paths.mtus[paths.ports[low - 1]] if low else 0

"""MTU of the path to an inside host, where inside links differ."""
from libc.stdint cimport uint8_t, uint32_t

from natcore.base.search cimport upper_bound32

cdef struct Paths:
    const uint32_t* starts      # [ranges] ascending, host order; range i ends before starts[i + 1]
    const uint8_t* ports        # [ranges] port of the route
    uint32_t ranges
    const uint32_t* mtus        # by port: MTU in bytes of an IPv4 packet

cdef inline uint32_t mtu_towards(const Paths* paths, uint32_t destination) noexcept nogil:
    """MTU of the port that leads to the destination (host order); 0: no route."""
    cdef uint32_t low = upper_bound32(paths.starts, sizeof(uint32_t), paths.ranges, destination)
    return paths.mtus[paths.ports[low - 1]] if low else 0

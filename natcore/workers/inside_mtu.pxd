"""MTU of the path to an inside host, where inside links differ."""
from libc.stdint cimport uint8_t, uint32_t

from natcore.base.search cimport upper_bound32

cdef struct PathMtus:
    const uint32_t* starts      # [ranges] ascending, host order; range i ends before starts[i + 1]
    const uint8_t* interfaces   # [ranges] number of the egress interface
    uint32_t ranges
    const uint32_t* mtus        # by interface: MTU in bytes of an IPv4 packet

cdef inline uint32_t mtu_towards(const PathMtus* path_mtus, uint32_t destination) noexcept nogil:
    """MTU of the interface that leads to the destination (host order); 0: no route."""
    cdef uint32_t low = upper_bound32(path_mtus.starts, sizeof(uint32_t), path_mtus.ranges, destination)
    return path_mtus.mtus[path_mtus.interfaces[low - 1]] if low else 0

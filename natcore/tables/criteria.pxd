"""Criteria for sessions, mappings and packets: addresses with masks, ports, a protocol, an entry."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t

from natcore.base.compiler cimport bswap16, bswap32

cdef enum:
    ANY_PROTOCOL = 256

cdef struct Criteria:           # addresses and ports big-endian, by Role
    uint32_t ip[3]
    uint32_t mask[3]            # 0: any
    uint16_t port[3]
    uint16_t port_mask[3]       # 0: any, or 0xFFFF
    uint32_t protocol           # or ANY_PROTOCOL
    uint32_t entry              # 0: any

cdef inline bint meets(const Criteria* criteria, const uint32_t* ip, const uint16_t* port, uint8_t protocol) noexcept nogil:
    """Whether addresses, ports and protocol meet the criteria; the entry is the caller's to compare."""
    cdef uint32_t role
    for role in range(3):
        if ((ip[role] ^ criteria.ip[role]) & criteria.mask[role]
                or (port[role] ^ criteria.port[role]) & criteria.port_mask[role]):
            return False
    return criteria.protocol == ANY_PROTOCOL or criteria.protocol == protocol

cdef inline Criteria criteria_of(addresses, masks, ports, int protocol, uint32_t entry) except *:
    """By role (inside, remote, outside) in host order; a port or protocol of -1: any; entry 0: any."""
    cdef Criteria made
    cdef uint32_t role
    for role in range(3):
        made.ip[role] = bswap32(addresses[role])
        made.mask[role] = bswap32(masks[role])
        made.port[role] = bswap16(max(0, ports[role]))
        made.port_mask[role] = 0 if ports[role] < 0 else 0xFFFF
    made.protocol = ANY_PROTOCOL if protocol < 0 else protocol
    made.entry = entry
    return made

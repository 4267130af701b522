"""Overloaded ports (ports="overload"): which outside endpoint is taken towards which remote endpoint (RFC 7857 section 3)."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore.base.flow_hash cimport HashKey
from natcore.base.hash_table cimport Index
from natcore.base.freelist cimport Slab

cdef enum:
    PART_PORTS = 256            # ports in a row that are counted together
    ALL_PARTS = 256             # in place of a part: all ports

cdef struct Taken:              # addresses and ports big-endian
    uint32_t outside_ip         # first, since a free slot's first word is the slab's
    uint32_t remote_ip
    uint16_t outside_port
    uint16_t remote_port
    uint32_t mapping            # its number
    uint8_t worker              # whose it is
    uint8_t protocol

cdef struct Crowd:              # how many ports of an outside address are taken towards a remote endpoint
    uint32_t outside_ip         # big-endian, as the next two; first, since a free slot's first word is the slab's
    uint32_t remote_ip
    uint16_t remote_port
    uint16_t part               # of the ports, or ALL_PARTS
    uint32_t taken              # 0: the slot is free
    uint8_t protocol

cdef struct Overload:
    Taken* taken
    Crowd* crowds               # twice as many
    Slab slots
    Slab crowd_slots
    Index index                 # (remote, outside) -> taken
    Index by_part               # (remote, outside address, part) -> crowds

cdef bint overload_new(Overload* table, uint32_t capacity) noexcept nogil
cdef void overload_delete(Overload* table) noexcept nogil
cdef uint32_t overload_find(const Overload* table, const HashKey* key, const Taken* ends) noexcept nogil
cdef bint overload_enter(Overload* table, const HashKey* key, const Taken* ends) noexcept nogil
cdef void overload_leave(Overload* table, const HashKey* key, const Taken* ends) noexcept nogil
cdef uint32_t overload_taken(const Overload* table, const HashKey* key, const Taken* ends, uint32_t part) noexcept nogil

"""Overloaded ports (ports="overload"): which outside endpoint is in use towards which remote endpoint (RFC 7857 section 3)."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore.base.flow_hash cimport HashKey
from natcore.base.hash_table cimport Index
from natcore.base.freelist cimport Freelist

cdef enum:
    PART_PORTS = 256            # consecutive ports counted together
    ALL_PARTS = 256             # instead of a part: all ports

cdef struct EndpointPair:              # addresses and ports big-endian
    uint32_t outside_ip         # first, since a free slot's first word is the free list's link
    uint32_t remote_ip
    uint16_t outside_port
    uint16_t remote_port
    uint32_t mapping            # number of the mapping
    uint8_t worker              # worker of the mapping
    uint8_t protocol

cdef struct RemoteCount:              # number of ports of an outside address in use towards a remote endpoint
    uint32_t outside_ip         # big-endian, as the next two; first, since a free slot's first word is the free list's link
    uint32_t remote_ip
    uint16_t remote_port
    uint16_t part               # of the ports, or ALL_PARTS
    uint32_t taken              # 0: the slot is free
    uint8_t protocol

cdef struct Overload:
    EndpointPair* pairs
    RemoteCount* remote_counts  # [2 * capacity]
    Freelist slots
    Freelist count_slots
    Index index                 # (remote, outside) -> pair
    Index by_part               # (remote, outside address, part) -> remote count

cdef bint overload_new(Overload* table, uint32_t capacity) noexcept nogil
cdef void overload_delete(Overload* table) noexcept nogil
cdef uint32_t overload_find(const Overload* table, const HashKey* key, const EndpointPair* ends) noexcept nogil
cdef bint overload_add(Overload* table, const HashKey* key, const EndpointPair* ends) noexcept nogil
cdef void overload_remove(Overload* table, const HashKey* key, const EndpointPair* ends) noexcept nogil
cdef uint32_t overload_taken(const Overload* table, const HashKey* key, const EndpointPair* ends, uint32_t part) noexcept nogil

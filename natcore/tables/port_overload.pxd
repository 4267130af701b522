"""Overloaded ports (ports="overload"): which outside endpoint is taken towards which remote endpoint (RFC 7857 section 3)."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore.base.flow_hash cimport HashKey
from natcore.base.hash_table cimport Index
from natcore.base.freelist cimport Slab

cdef enum:
    FULL_SLOTS = 4096

cdef struct Taken:              # addresses and ports big-endian
    uint32_t outside_ip         # first, since a free slot's first word is the slab's
    uint32_t remote_ip
    uint16_t outside_port
    uint16_t remote_port
    uint32_t mapping            # its number
    uint8_t worker              # whose it is
    uint8_t protocol

cdef struct Full:               # a remote endpoint towards which an outside address has nothing left
    uint32_t outside_ip
    uint32_t remote_ip
    uint16_t remote_port
    uint8_t protocol
    uint8_t in_use              # 0: the slot is free

cdef struct Overload:
    Taken* taken
    Slab slots
    Index index                 # (remote, outside) -> taken
    Full* full                  # [FULL_SLOTS] so that a refusal is not a search each time

cdef bint overload_new(Overload* table, uint32_t capacity) noexcept nogil
cdef void overload_delete(Overload* table) noexcept nogil
cdef uint32_t overload_find(const Overload* table, const HashKey* key, const Taken* ends) noexcept nogil
cdef bint overload_enter(Overload* table, const HashKey* key, const Taken* ends) noexcept nogil
cdef void overload_leave(Overload* table, const HashKey* key, const Taken* ends) noexcept nogil
cdef bint overload_is_full(const Overload* table, const HashKey* key, const Taken* ends) noexcept nogil
cdef void overload_note_full(Overload* table, const HashKey* key, const Taken* ends) noexcept nogil
cdef void overload_forget_full(Overload* table) noexcept nogil

"""Mappings (inside endpoint -> outside endpoint) and the subscribers (inside addresses) that own them."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore.tables.ports cimport Pool, Ports
from natcore.base.flow_hash cimport HashKey
from natcore.base.hash_table cimport Index
from natcore.base.linked_list cimport Link
from natcore.base.freelist cimport Slab

cdef enum:                      # MappingFlag
    MAPPING_STATIC = 1          # a DNAT or no-NAT entry's: its outside endpoint is not drawn, nobody's quota pays for it
    MAPPING_PORTLESS = 2        # of a protocol without ports
    MAPPING_DRAINING = 4        # its entry was removed, its sessions end by themselves: it takes no new one
    MAPPING_FREE = 128          # the slot was given back; no value of a packet's says so

cdef struct Mapping:            # addresses and ports big-endian
    uint32_t inside_ip
    uint32_t remote_ip          # 0 where the mapping is endpoint-independent; static: the outside endpoint again
    uint16_t inside_port
    uint16_t remote_port
    uint32_t outside_ip
    uint16_t outside_port
    uint8_t protocol
    uint8_t flags               # MappingFlag
    uint32_t address            # number of the outside address; NONE: no-NAT
    uint32_t entry              # number of the entry
    uint32_t subscriber         # slot; NONE where it is static
    uint32_t sessions
    uint32_t first              # a session of it; the others are linked to it
    uint32_t opened_outside     # sessions of it that were opened from outside
    uint32_t held_until         # ms: until when its port was held down before (the past: it was free), or has to be after it

cdef struct Subscriber:
    uint32_t ip                 # inside address, big-endian
    uint32_t mappings           # 0: the slot is free, or its second is not over (opened)
    uint32_t sessions           # opened from inside
    uint32_t address            # paired pooling: the outside address of all its mappings
    uint32_t entry              # that the address was drawn for
    uint32_t second             # of the gateway's clock, modulo 2^32; where there is a limit a second
    uint32_t second_ms          # when it began, ms
    uint32_t opened             # sessions opened in it

cdef struct Own:                # a subscriber's mappings
    uint32_t first              # the one that a quota looks at next
    uint32_t looked_at          # sessions of it that were

cdef enum:                      # Pooling (RFC 4787 REQ-2)
    POOLING_PAIRED = 0          # one outside address for all of a subscriber's mappings
    POOLING_PAIRED_SOFT = 1     # another one where that is full
    POOLING_ARBITRARY = 2

cdef struct MappingKey:         # what a mapping is found by
    uint32_t inside_ip
    uint32_t remote_ip          # 0: endpoint-independent
    uint16_t inside_port
    uint16_t remote_port
    uint8_t protocol
    uint8_t flags               # MAPPING_STATIC, MAPPING_PORTLESS

cdef struct Mappings:
    Mapping* mappings
    Subscriber* subscribers
    Slab mapping_slots
    Slab subscriber_slots
    Index by_inside             # inside endpoint (and remote) -> mapping
    Index by_ip                 # inside address -> subscriber
    Ports* ports                # of all the gateway's workers
    HashKey key
    Link* by_subscriber         # [max_mappings] the mappings of a subscriber; NULL: nothing asks for them
    Own* of_subscriber          # [max_subscribers] likewise
    uint32_t worker             # whose table it is
    uint8_t pooling             # Pooling
    bint lingering              # there may be subscribers without mappings whose second is not over
    uint32_t reap_at            # the next slot that is looked at for them

cdef inline void dynamic_key(MappingKey* key, uint64_t addresses, uint32_t ports, uint8_t protocol,
                             bint dependent) noexcept nogil:
    """Of the mapping that a packet from inside needs. addresses, ports: source and destination as they lie in it.

    dependent: on the remote endpoint too.
    """
    key.inside_ip = <uint32_t>addresses
    key.inside_port = <uint16_t>ports
    key.remote_ip = <uint32_t>(addresses >> 32) if dependent else 0
    key.remote_port = <uint16_t>(ports >> 16) if dependent else 0
    key.protocol = protocol
    key.flags = 0

cdef bint mappings_new(Mappings* table, uint32_t max_mappings, uint32_t max_subscribers, bint listed) noexcept nogil
cdef void mappings_delete(Mappings* table) noexcept nogil
cdef void mapping_approach(const Mappings* table, uint32_t inside_ip, uint16_t inside_port, uint8_t protocol) noexcept nogil
cdef void mapping_approach_end(const Mappings* table, uint32_t number) noexcept nogil
cdef void key_of(const Mapping* mapping, MappingKey* key) noexcept nogil
cdef uint32_t mapping_find(const Mappings* table, const MappingKey* key) noexcept nogil
cdef uint32_t subscriber_find(const Mappings* table, uint32_t ip) noexcept nogil
cdef uint32_t mapping_open(Mappings* table, const MappingKey* key, const Pool* pool, uint32_t now_ms) noexcept nogil
cdef uint32_t mapping_open_static(Mappings* table, const MappingKey* key, uint32_t entry, uint32_t outside_ip,
                                  uint16_t outside_port, uint32_t address) noexcept nogil
cdef void mapping_close(Mappings* table, uint32_t number, uint32_t until_ms, uint32_t now_ms) noexcept nogil
cdef uint32_t mapping_at(const Mappings* table, uint32_t address, uint32_t space, uint32_t port) noexcept nogil
cdef void subscribers_reap(Mappings* table, uint32_t lines, uint32_t now_ms) noexcept nogil
cdef void mappings_unpair(Mappings* table, uint32_t address) noexcept nogil

"""Mappings (inside endpoint -> outside endpoint) and the subscribers (inside addresses) that own them."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore.tables.ports cimport Pool, Ports
from natcore.base.flow_hash cimport HashKey, flow_hash
from natcore.base.hash_table cimport Index, index_may_have
from natcore.base.linked_list cimport Link
from natcore.base.lock_checker cimport assert_held
from natcore.base.sentinels cimport NONE
from natcore.base.freelist cimport Freelist

cdef enum:                      # MappingFlag
    MAPPING_STATIC = 1          # of a DNAT or no-NAT entry: no port is allocated and no subscriber quota is charged
    MAPPING_PORTLESS = 2        # protocol without ports
    MAPPING_DRAINING = 4        # its entry was removed: sessions end on their own, new ones are refused
    MAPPING_FREE = 128          # the slot is free; never set in a key

cdef struct Mapping:            # addresses and ports big-endian
    uint32_t inside_ip
    uint32_t remote_ip          # 0: endpoint-independent; static: outside_ip again
    uint16_t inside_port
    uint16_t remote_port
    uint32_t outside_ip
    uint16_t outside_port
    uint8_t protocol
    uint8_t flags               # MappingFlag
    uint32_t address            # index of the outside address; NONE: no-NAT
    uint32_t entry              # number of the entry
    uint32_t subscriber         # slot; NONE: static
    uint32_t sessions
    uint32_t first              # first of its sessions (linked by by_mapping)
    uint32_t opened_outside     # sessions opened from outside
    uint32_t held_until         # ms: end of the port's hold-down, the last one (past: it was free) or the next

cdef struct Subscriber:
    uint32_t ip                 # inside address, big-endian
    uint32_t mappings           # 0: the slot is free, or kept for its rate counter (opened)
    uint32_t sessions           # opened from inside
    uint32_t address            # paired pooling: outside address of all its mappings
    uint32_t entry              # entry that the paired address belongs to
    uint32_t second             # second of the gateway's clock that `opened` counts in, modulo 2^32; used with a rate limit
    uint32_t second_ms          # begin of that second, ms
    uint32_t opened             # sessions opened in that second

cdef struct MappingCursor:                # cursor over a subscriber's mappings
    uint32_t first              # mapping to examine next
    uint32_t examined           # sessions of it already examined

cdef enum:                      # Pooling (RFC 4787 REQ-2)
    POOLING_PAIRED = 0          # one outside address for all mappings of a subscriber
    POOLING_PAIRED_SOFT = 1     # another address where the paired one is full
    POOLING_ARBITRARY = 2

cdef struct MappingKey:         # lookup key
    uint32_t inside_ip
    uint32_t remote_ip          # 0: endpoint-independent
    uint16_t inside_port
    uint16_t remote_port
    uint8_t protocol
    uint8_t flags               # MAPPING_STATIC, MAPPING_PORTLESS

cdef struct Mappings:
    Mapping* mappings
    Subscriber* subscribers
    Freelist mapping_slots
    Freelist subscriber_slots
    Index by_inside             # inside endpoint (and remote) -> mapping
    Index by_ip                 # inside address -> subscriber
    Ports* ports                # shared by the gateway's workers
    HashKey key
    Link* by_subscriber         # [max_mappings] mappings of each subscriber; NULL: not needed
    MappingCursor* cursors      # [max_subscribers] or NULL
    uint32_t worker             # number of the worker that owns the table
    uint8_t pooling             # Pooling
    bint lingering              # subscribers without mappings may still be kept for their rate counter
    uint32_t reap_at            # next slot to examine for those
    const void* lock            # lock that the caller holds: the worker's; NULL: a test's table

cdef inline void dynamic_key(MappingKey* key, uint64_t addresses, uint32_t ports, uint8_t protocol,
                             bint dependent) noexcept nogil:
    """Key for a packet from inside. addresses, ports: source and destination as in the packet.

    dependent: the mapping depends on the remote endpoint too.
    """
    key.inside_ip = <uint32_t>addresses
    key.inside_port = <uint16_t>ports
    key.remote_ip = <uint32_t>(addresses >> 32) if dependent else 0
    key.remote_port = <uint16_t>(ports >> 16) if dependent else 0
    key.protocol = protocol
    key.flags = 0

cdef inline uint64_t mapping_hash(const Mappings* table, const MappingKey* key) noexcept nogil:
    return flow_hash(&table.key, <uint64_t>key.remote_ip << 32 | key.inside_ip,
                     <uint32_t>key.remote_port << 16 | key.inside_port,
                     key.protocol ^ (0x80 if key.flags & MAPPING_STATIC else 0))

cdef bint mappings_new(Mappings* table, uint32_t max_mappings, uint32_t max_subscribers, bint listed) noexcept nogil
cdef void mappings_delete(Mappings* table) noexcept nogil
cdef bint lists_new(const Mappings* table, Link** by_subscriber, MappingCursor** cursors) noexcept nogil
cdef void lists_delete(const Mappings* table, Link* by_subscriber, MappingCursor* cursors) noexcept nogil
cdef void lists_begin(Mappings* table, Link* by_subscriber, MappingCursor* cursors) noexcept nogil
cdef void mapping_prefetch_open(const Mappings* table, uint32_t inside_ip, uint16_t inside_port,
                                uint8_t protocol) noexcept nogil
cdef void mapping_prefetch_close(const Mappings* table, uint32_t number) noexcept nogil
cdef void key_of(const Mapping* mapping, MappingKey* key) noexcept nogil
cdef uint32_t mapping_search(const Mappings* table, const MappingKey* key) noexcept nogil

cdef inline uint32_t mapping_find(const Mappings* table, const MappingKey* key) noexcept nogil:
    """The mapping with this key (RFC 4787 REQ-1) that accepts new sessions, or NONE; draining mappings are skipped."""
    assert_held(table.lock, "mappings: mapping_find")
    return mapping_search(table, key) if index_may_have(&table.by_inside, mapping_hash(table, key)) else NONE

cdef uint32_t subscriber_find(const Mappings* table, uint32_t ip) noexcept nogil
cdef uint32_t mapping_open(Mappings* table, const MappingKey* key, const Pool* pool, uint32_t now_ms) noexcept nogil
cdef uint32_t mapping_open_static(Mappings* table, const MappingKey* key, uint32_t entry, uint32_t outside_ip,
                                  uint16_t outside_port, uint32_t address) noexcept nogil
cdef uint32_t mapping_open_given(Mappings* table, const MappingKey* key, uint32_t entry, uint32_t address,
                                 uint16_t outside_port, uint32_t now_ms) noexcept nogil
cdef void mapping_remove(Mappings* table, uint32_t number, uint32_t now_ms) noexcept nogil
cdef void mapping_close(Mappings* table, uint32_t number, uint32_t until_ms, uint32_t now_ms) noexcept nogil
cdef uint32_t mapping_at(const Mappings* table, uint32_t address, uint32_t space, uint32_t port) noexcept nogil
cdef void subscribers_reap(Mappings* table, uint32_t lines, uint32_t now_ms) noexcept nogil
cdef void mappings_unpair(Mappings* table, uint32_t address) noexcept nogil

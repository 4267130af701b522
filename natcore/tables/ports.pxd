"""Outside addresses and their ports: per address and protocol what is free, in use, reserved and held down.

Theory of operation. An outside address has three port maps: TCP, UDP, and identifiers of ICMP queries. A port of a map is
free; in use by a mapping; reserved by a DNAT entry; the host's, where it shares the address; or held down: its mapping ended,
and until the hold-down is over only the inside address that had it gets it again (RFC 6888 REQ-8). The bitmap `used` has the
ports that are not free, `held` those that are held down. A port's cell says the rest: the mapping (overload: the number of
uses), PORT_RESERVED, PORT_OF_HOST, or the hold-down's end.

Invariants (workers/invariants.pyx checks those that packets rely on):
- `held` is a part of `used`. Of the ranges, free + held down + reserved or the host's + in use are all ports (ports_in_use).
- `taken_in` counts the ports of the ranges that `used` has, by groups and supers, even and odd ones apart.
- `addresses_free` has an address as long as it has a free port, `addresses_held` as long as one of its ports is held down.
- No hold-down of a map ends before `next_release` says. A round of reclaim that passed the whole map makes it exact.
- `held_by` counts held-down ports by a hash of their owner: 0 tells without a search that an owner has none.

Lock. One spin lock (`spin`) protects maps, random numbers, blocks and overload of all addresses; whoever has all workers locked
needs no other. Addresses come and go, and entries reserve ports, with all workers locked. The bits and counts that are loaded
relaxed are read without the lock too: to predict, for prefetching. What is done with them is decided anew under the lock.

Cost. A free port is found by a few random probes, each equally likely (RFC 6056); where these fail, by counting: 8 supers, 8
groups, 16 words. With several workers each first searches the words that it prefers, so that steering by port finds it: 1,024
words divided by the workers. To release a port is a few stores. An expired hold-down is noticed late: by the sweep, and by
an allocation that finds nothing free (preserve, parity: by each); a packet examines LOOKS held-down ports at most, and the next
one continues. An allocation fails only if the address has no port for this owner, or that bound was met.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore.tables.block_rows cimport BlockPlace
from natcore.tables.port_blocks cimport Blocks
from natcore.tables.port_overload cimport Overload
from natcore.base.flow_hash cimport HashKey
from natcore.base.compiler cimport bswap32, load_relaxed, load_relaxed64, store_relaxed, store_relaxed64
from natcore.base.sentinels cimport NONE
from natcore.base.hash_table cimport Index
from natcore.base.headers cimport PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP
from natcore.base.chacha20 cimport Random, random32
from natcore.base.spinlock cimport Spinlock, assert_spin, spin_lock, spin_unlock

cdef enum:                      # PortSpace
    SPACE_TCP = 0
    SPACE_UDP = 1
    SPACE_ICMP = 2              # identifiers of ICMP queries

cdef enum:
    PORT_SPACES = 3
    PORTS = 65536
    PORT_WORDS = 1024           # 64-bit words of a bitmap
    OWNER_SLOTS = 4096
    PORT_UNIT = 64              # consecutive ports that one worker prefers
    LANES = 128                 # what is divided among workers: of units of ports, and of inside addresses
    BITMAP_BYTES = PORT_WORDS * 8
    GROUPS = 64                 # of 16 words: 1,024 ports
    SUPERS = 8                  # of 8 groups
    COUNT_BYTES = (GROUPS + SUPERS) * 4
    HOST_SPACES = 2             # port spaces in which a shared address has ports of the host: TCP and UDP
    MAP_BYTES = PORTS * 9 + BITMAP_BYTES * 2 + OWNER_SLOTS * 2 + COUNT_BYTES    # of one PortMap's arrays
    LOOKS = 8192                # held-down ports that one packet examines at most
    LOOKS_FREEING = 4           # counted for freeing one
    PROBES = 4                  # random ports tried before the free ones are counted
    DUE_SEARCH_MOST = 8192      # addresses of a pool searched by one packet for an expired hold-down
    POOL_SEARCH_MOST = 64       # addresses of a pool that one packet looks at: overload, and ports held down for their owner

cdef enum:
    PORT_RESERVED = 0xFFFFFFFE  # in a cell: reserved by a DNAT entry, never allocated
    PORT_OF_OTHER_WORKER = 0xFFFFFFFD    # port_holder: in use by a mapping of another worker
    PORT_OF_HOST = 0xFFFFFFFC   # in a cell: the host has it (HostPorts), never allocated

cdef enum:                      # PortPolicy
    PORTS_RANDOM = 0            # any free port (RFC 6056)
    PORTS_PRESERVE = 1          # the inside port where it is free (RFC 4787 section 4.2.1)
    PORTS_BLOCK = 2             # from the subscriber's own blocks
    PORTS_DETERMINISTIC = 3     # from the block computed for its address (RFC 7422)
    PORTS_OVERLOAD = 4          # shared by mappings with different remotes (RFC 7857 section 3)

cdef struct PortMap:            # ports of one outside address and protocol
    uint32_t* cells             # [PORTS] in use: mapping (overload: use count) or PORT_RESERVED, …; held down: until, ms
    uint32_t* owners            # [PORTS] held down: inside address that used it last, big-endian
    uint8_t* workers            # [PORTS] in use by a mapping: number of its worker
    uint64_t* used              # [PORT_WORDS] one bit per port: in use or held down
    uint64_t* held              # [PORT_WORDS] one bit per port: held down
    uint16_t* held_by           # [OWNER_SLOTS] number of ports held down, by a hash of their owner
    uint32_t* taken_in          # [GROUPS + SUPERS] ports of the ranges in use: even ones in the low half, odd in the high
    uint32_t free               # ports of the ranges that are free
    uint32_t reserved           # ports of the ranges that DNAT entries or the host have
    uint32_t held_count
    uint32_t next_word          # word of `held` that reclaim examines next
    uint32_t words_left         # words left of the reclaim round; 0: none is in progress
    uint32_t soonest            # ms: earliest end of a hold-down seen in this round
    uint32_t address            # index of the outside address
    uint8_t warned              # threshold event sent and not rearmed

cdef struct HostPorts:          # of a shared address: one that the gateway's host has too
    uint64_t now[2][1024]       # [HOST_SPACES][PORT_WORDS] one bit per port: the host has it
    uint64_t wanted[2][1024]    # likewise: the host gets it as soon as no mapping and no DNAT entry has it

cdef struct Address:            # an outside address, in one or several pools
    uint32_t ip                 # in the packet, big-endian
    uint32_t eip                # public address (EIP), host order; 0: none
    uint32_t references         # entries that use it
    uint8_t* memory             # memory of the three maps
    HostPorts* host             # NULL: the address is the gateway's alone
    PortMap maps[3]

cdef struct Pool:               # outside addresses of an SNAT entry
    uint32_t entry              # number of the entry
    uint32_t first              # first inside address of its prefix, host order
    uint32_t size
    const uint32_t* addresses   # [size] indices of outside addresses
    const uint64_t* members     # [words] the same as a bitmap, from index 64 * first_word on
    uint32_t first_word
    uint32_t words
    bint alone                  # use only these, even where the subscriber is paired with another

cdef struct RecentAllocation:               # an allocated outside endpoint
    uint32_t outside_ip         # big-endian, as the port
    uint16_t outside_port

cdef enum:
    RECENT_KEPT = 64
    RANDOMS = 32                   # allocations known in advance; a power of two

cdef struct Ports:
    Address* addresses
    uint32_t* next_release[3]   # [PORT_SPACES][capacity] ms: earliest end of a hold-down; valid while ports are held down
    uint64_t addresses_free[3][1024]  # [PORT_SPACES] one bit per address: has a free port
    uint64_t addresses_held[3][1024]  # [PORT_SPACES] one bit per address: has ports held down
    uint32_t addresses_free_count[3]  # addresses with a free port
    uint32_t reclaim_at         # next address that the sweep reclaims
    uint32_t capacity
    uint32_t count              # indices ever used: [0, count)
    uint32_t live
    Index index                 # ip -> address
    uint32_t lowest             # range of all addresses ever added, host order: others need no lookup
    uint32_t highest
    HashKey key
    Random random
    uint64_t randoms[32]           # [RANDOMS] for the next allocations: choose address (in_pool) and port (in_ports)
    uint32_t randoms_taken
    uint64_t ranges[1024]       # one bit per port that may be allocated
    uint16_t allowed[65536]     # [range_size] the same ports in ascending order
    uint32_t range_size         # ports
    uint32_t ports_in[72]       # [GROUPS + SUPERS] ports of the ranges, laid out as taken_in
    bint contiguous             # the ranges are contiguous
    uint32_t hold_down_ms
    uint32_t longest_hold_down_ms   # that was ever in force
    uint8_t policy              # PortPolicy
    bint parity                 # even ports for even, odd for odd, where one is free (RFC 4787 REQ-4)
    uint32_t block_size         # ports of a block, ranges are cut to whole blocks; 0: no blocks
    uint32_t block_count        # blocks of an outside address; block b begins at allowed[b * block_size]
    Blocks blocks               # assignment of blocks
    Overload overload           # assignment of overloaded ports
    uint16_t block_of[65536]    # [PORTS] block of a port of the ranges
    Spinlock spin                   # protects allocation and release, for all addresses and protocols
    uint32_t workers            # number of workers, 1 or more
    uint32_t allocating         # worker that holds the lock to allocate
    uint32_t unit               # consecutive ports that one worker prefers: PORT_UNIT or block_size
    uint32_t looks              # LOOKS left to the current packet
    RecentAllocation recent[64]             # [RECENT_KEPT] NATCORE_TESTING: the last allocations, including undone ones
    uint64_t allocations        # NATCORE_TESTING: number of allocations ever
    const void* lock            # lock of all workers, which serves in place of spin; NULL: a test's table

cdef inline uint32_t space_of(uint8_t protocol) noexcept nogil:
    return SPACE_TCP if protocol == PROTOCOL_TCP else SPACE_UDP if protocol == PROTOCOL_UDP else SPACE_ICMP

cdef inline bint has_ports(uint8_t protocol) noexcept nogil:
    """Whether the protocol has ports, or an identifier (ICMP)."""
    return protocol == PROTOCOL_TCP or protocol == PROTOCOL_UDP or protocol == PROTOCOL_ICMP

cdef inline uint32_t worker_preferring(const Ports* ports, uint32_t port) noexcept nogil:
    """The worker that prefers this port. Socket filters and a device's RSS compute the same."""
    return port // ports.unit % LANES % ports.workers

cdef inline uint64_t random64(Ports* ports) noexcept nogil:
    cdef uint64_t random = random32(&ports.random)
    return random << 32 | random32(&ports.random)

cdef inline void randoms_fill(Ports* ports) noexcept nogil:
    """Fills the random numbers; call it once `random` is seeded."""
    cdef uint32_t i
    for i in range(RANDOMS):
        ports.randoms[i] = random64(ports)

cdef inline uint64_t random_after(const Ports* ports, uint32_t allocations) noexcept nogil:
    """The random number of a later allocation, `allocations` ahead; without the lock (prefetch) only a prediction."""
    return load_relaxed64(&ports.randoms[(load_relaxed(&ports.randoms_taken) + allocations) % RANDOMS])

cdef inline uint64_t random_take(Ports* ports) noexcept nogil:
    """Consumes the random number of this allocation."""
    cdef uint64_t random = random_after(ports, 0)
    assert_spin(&ports.spin, ports.lock, "ports: random_take")
    store_relaxed64(&ports.randoms[ports.randoms_taken % RANDOMS], random64(ports))
    store_relaxed(&ports.randoms_taken, ports.randoms_taken + 1)
    return random

cdef inline uint32_t in_pool(uint64_t random, uint32_t size) noexcept nogil:
    """Index into a pool where an allocation begins (the bias of 2^-32 x size is negligible, here and below)."""
    return <uint32_t>(<uint64_t><uint32_t>random * size >> 32)

cdef inline uint64_t random_next(uint64_t random) noexcept nogil:
    """Derives another random number from this one (the finalizer of splitmix64)."""
    random += 0x9E3779B97F4A7C15ULL
    random = (random ^ random >> 30) * 0xBF58476D1CE4E5B9ULL
    random = (random ^ random >> 27) * 0x94D049BB133111EBULL
    return random ^ random >> 31

cdef inline uint32_t ones64(uint64_t bits) noexcept nogil:
    """Number of set bits; portable, since POPCNT is not in the x86-64 baseline."""
    bits -= bits >> 1 & 0x5555555555555555ULL
    bits = (bits & 0x3333333333333333ULL) + (bits >> 2 & 0x3333333333333333ULL)
    return <uint32_t>((bits + (bits >> 4) & 0x0F0F0F0F0F0F0F0FULL) * 0x0101010101010101ULL >> 56)

cdef inline bint has_free_port(const Ports* ports, uint32_t space, uint32_t address) noexcept nogil:
    """Whether an address has a free port."""
    return (load_relaxed64(&ports.addresses_free[space][address >> 6]) >> (address & 63)) & 1

cdef inline uint32_t in_ports(uint64_t random, uint32_t count) noexcept nogil:
    """Index of a port among count ports."""
    return <uint32_t>((random >> 32) * count >> 32)

cdef inline BlockPlace place_of_block(const Ports* ports, uint32_t reference) noexcept nogil:
    """The address and the ports of a block."""
    cdef BlockPlace place
    place.ip = ports.addresses[reference >> 16].ip
    place.eip = ports.addresses[reference >> 16].eip
    place.first_port = ports.allowed[(reference & 0xFFFF) * ports.block_size]
    place.last_port = place.first_port + ports.block_size - 1
    return place

cdef inline uint32_t ports_in_use(const Ports* ports, const PortMap* map) noexcept nogil:
    """Ports used by mappings."""
    return ports.range_size - map.free - map.held_count - map.reserved

cdef inline bint in_ranges(const Ports* ports, uint32_t port) noexcept nogil:
    return (ports.ranges[port >> 6] >> (port & 63)) & 1

cdef inline bint is_shared(const Ports* ports, uint32_t address) noexcept nogil:
    """Whether the gateway's host has the outside address (by index, or NONE) too."""
    return address != NONE and ports.addresses[address].host != NULL

cdef inline bint host_has(const Address* address, uint32_t space, uint32_t port) noexcept nogil:
    """Whether a TCP or UDP port (host order) of a shared address is the host's."""
    return (address.host.now[space][port >> 6] >> (port & 63)) & 1

cdef inline uint32_t port_mapping(const PortMap* ports, uint16_t port) noexcept nogil:
    """The mapping that uses the port (host order), PORT_RESERVED, PORT_OF_HOST, or NONE. Under the ports' lock."""
    cdef uint64_t bit = <uint64_t>1 << (port & 63)
    if ports.used[port >> 6] & bit and not ports.held[port >> 6] & bit:
        return ports.cells[port]
    return NONE

cdef inline uint32_t port_holder(Ports* ports, uint32_t address, uint32_t space, uint16_t port,
                                 uint32_t* worker) noexcept nogil:
    """As port_mapping; writes the mapping's worker. The answer may be outdated at once, unless the mapping belongs to the
    calling worker."""
    cdef const PortMap* map = &ports.addresses[address].maps[space]
    cdef uint32_t number
    spin_lock(&ports.spin)
    number = port_mapping(map, port)
    if number < PORT_OF_HOST and ports.workers > 1:
        worker[0] = map.workers[port]
    spin_unlock(&ports.spin)
    return number

cdef inline uint32_t address_find(const Ports* ports, uint32_t ip) noexcept nogil:
    """Index of the outside address ip (big-endian), or NONE."""
    cdef uint32_t host = bswap32(ip)
    if host < ports.lowest or host > ports.highest:
        return NONE
    return address_search(ports, ip)

cdef bint ports_new(Ports* ports, uint32_t capacity) noexcept nogil
cdef void ports_delete(Ports* ports) noexcept nogil
cdef void ports_allow(Ports* ports, uint32_t first, uint32_t last) noexcept nogil
cdef bint ports_divide(Ports* ports, uint32_t block_size, bint assigned) noexcept nogil
cdef uint32_t address_add(Ports* ports, uint32_t ip, uint32_t eip) noexcept nogil
cdef bint address_open(Ports* ports, uint32_t number, uint32_t ip, uint32_t eip) noexcept nogil
cdef bint address_drop(Ports* ports, uint32_t address) noexcept nogil
cdef uint32_t address_search(const Ports* ports, uint32_t ip) noexcept nogil
cdef bint address_share(Ports* ports, uint32_t address, const uint64_t* wanted) noexcept nogil
cdef void address_unshare(Ports* ports, uint32_t address) noexcept nogil
cdef uint32_t port_predict(const Ports* ports, const PortMap* map, uint32_t preferred, uint64_t random,
                           uint32_t worker) noexcept nogil
cdef uint32_t pick_by_policy(const Ports* ports, const PortMap* map, uint32_t preferred, uint64_t random,
                             uint32_t worker) noexcept nogil
cdef void set_free(Ports* ports, PortMap* map, uint32_t port) noexcept nogil
cdef void port_use(Ports* ports, PortMap* map, uint32_t port) noexcept nogil
cdef uint32_t port_reuse(Ports* ports, PortMap* map, uint32_t port) noexcept nogil
cdef void reclaim(Ports* ports, PortMap* map, uint32_t* looks, uint32_t now_ms) noexcept nogil
cdef bint is_due(const Ports* ports, const PortMap* map, uint32_t now_ms) noexcept nogil
cdef uint32_t address_try(const Ports* ports, uint32_t space, const Pool* pool, uint64_t* random) noexcept nogil
cdef uint32_t address_pick(const Ports* ports, uint32_t space, const Pool* pool, uint64_t random) noexcept nogil
cdef uint32_t address_due(const Ports* ports, uint32_t space, const Pool* pool, uint32_t start, uint32_t now_ms) noexcept nogil
cdef uint32_t held_for_owner(PortMap* map, uint32_t owner, uint64_t random) noexcept nogil
cdef uint32_t nth_set(uint64_t bits, uint32_t n) noexcept nogil
cdef uint32_t allocate_random(Ports* ports, PortMap* map, uint64_t random) noexcept nogil
cdef uint32_t allocate_from_map(Ports* ports, PortMap* map, uint32_t owner, uint32_t preferred, uint64_t random,
                                uint32_t now_ms,
                                uint32_t* until_ms) noexcept nogil
cdef uint32_t ports_taken(const PortMap* map, uint32_t first, uint32_t last) noexcept nogil
cdef void ports_reserve(Ports* ports, PortMap* map, uint32_t first, uint32_t last) noexcept nogil
cdef void ports_unreserve(Ports* ports, PortMap* map, uint32_t first, uint32_t last) noexcept nogil
cdef void port_release(Ports* ports, PortMap* map, uint32_t port, uint32_t owner, uint32_t until_ms,
                       uint32_t now_ms) noexcept nogil
cdef void ports_reclaim(Ports* ports, uint32_t addresses, uint32_t looks, uint32_t now_ms) noexcept nogil
cdef uint32_t owner_slot(uint32_t owner) noexcept nogil

"""Offloaded sessions: what the XDP program needs to translate their packets by itself, in memory that it shares.

A session has up to two entries, one for each direction, found by the packet's endpoints and the interface that it comes by. The
program (python/natcore/plane/xdp_fast_path.py) reads an entry and counts in it; everything else is done here and by the
session table (sessions.pyx), which folds what the program has counted into the session before anyone needs it, and recalls a
session before anything about it changes.

The four tags of a bucket are eight bytes of an array of their own, small enough for a processor's second-level cache: a packet
without an entry looks at them and at nothing else. An entry is published by its tag, which is stored when the entry is
complete; the program looks at an entry after it has seen the tag, and compares all of it. An entry that is recalled goes out of
force first, then its tag is cleared: no packet that comes later finds it.

The program's clock is the kernel's coarse one, which goes on with each tick: entries are written so that it is never too late
for a window's end, and a session was seen when it may have been seen at the latest.

An entry is in force while its generation is the table's, its window is open, and its direction was not idle for a time-out; a
packet of another one goes the ordinary way, where its entry is renewed. So one store takes all entries out of force. A program
that found an entry just before it was recalled may still use it for a moment: an entry is used again only after two barriers
(`epoch`), each of which waits until no program is under way, and what was counted late is told (`late`).
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from natcore.base.compiler cimport load_relaxed, load_relaxed64

cdef enum:
    OFFLOAD_WAYS = 4            # entries of a bucket
    OFFLOAD_UNIT_SHIFT = 20     # times in entries are CLOCK_MONOTONIC_COARSE in units of 2^20 ns, modulo 2^32
    OFFLOAD_HOPS = 1 << 16      # next hops, of all interfaces
    OFFLOAD_INTERFACES = 16     # of a plane

cdef struct OffloadEntry:       # one cache line; the program writes the last five fields
    uint32_t source             # addresses and ports as in the packet that comes, big-endian
    uint32_t destination
    uint32_t ports
    uint8_t protocol
    uint8_t interface           # that the packet comes by
    uint16_t hop                # index in hops
    uint32_t address            # new source (from inside) or destination (from outside), big-endian
    uint16_t port
    uint16_t network_delta      # checksum deltas of this direction (rewrite.pxd)
    uint16_t transport_delta
    uint16_t unused
    uint32_t until              # the window's end
    uint32_t idle               # time-out
    uint32_t generation
    uint64_t bytes              # IPv4 total lengths
    uint32_t packets            # modulo 2^32
    uint32_t last_seen
    uint32_t end                # TCP: end of the highest segment, highest acknowledgement
    uint32_t ack

cdef struct OffloadHop:         # next hop
    uint8_t destination[6]      # link addresses
    uint8_t source[6]
    uint16_t mtu                # of the link, bytes of an IPv4 packet
    uint16_t interface          # egress

cdef struct OffloadUse:         # the table's own knowledge of an entry
    uint64_t bytes              # folded so far
    uint32_t packets
    uint32_t slot               # of the session, or NONE
    uint64_t recalled           # epoch in which it was recalled; 0: never used

cdef struct OffloadTotals:      # of an interface, cumulative
    uint64_t received           # packets that came by it and were translated
    uint64_t sent               # packets that left by it

cdef struct Offload:
    uint16_t* tags              # [1 << bits][ways] shared with the program; 0: the entry is free
    OffloadEntry* entries       # [ways][1 << bits] shared
    OffloadHop* hops            # [OFFLOAD_HOPS] shared
    uint32_t* generation        # shared
    OffloadUse* uses            # [ways][1 << bits]
    uint32_t* hop_addresses     # [OFFLOAD_HOPS] host order; 0: unused
    uint32_t* of_slot           # [capacity][2] by session and Direction: its entry, or NONE
    uint64_t keys[2]            # of the hash
    uint32_t bits
    uint32_t outside            # number of the outside interface
    uint32_t lag                # the program's clock is at most so many units behind
    int64_t offset_ns           # gateway's clock - CLOCK_MONOTONIC
    uint64_t now_ns             # gateway's clock at the last batch: no packet was later for the tables
    uint64_t epoch              # barriers so far, from 2
    uint32_t live               # entries in use
    uint32_t sessions           # of them, each with one entry or two
    uint32_t fold_at            # cursor of fold_some (io/fast_path.pyx)
    bint recalled               # since the last barrier
    uint64_t packets[2]         # by Direction, not yet in the worker's counters
    uint64_t bytes[2]
    uint64_t total              # packets ever
    uint64_t late               # packets counted after their session was recalled: forwarded, in no row
    OffloadTotals interfaces[16]    # [OFFLOAD_INTERFACES]

cdef inline uint64_t offload_hash(const Offload* offload, uint64_t addresses, uint32_t ports, uint8_t protocol) noexcept nogil:
    """The hash of a flow, as the program computes it: `bits` bits for the bucket, then 16 for the tag."""
    cdef uint64_t hash = (addresses ^ offload.keys[0]) * <uint64_t>0x9E3779B97F4A7C15
    hash += (ports + (<uint64_t>protocol << 32)) ^ offload.keys[1]
    return (hash ^ hash >> 32) * <uint64_t>0xD6E8FEB86659FD93

cdef inline uint32_t offload_bucket(const Offload* offload, uint64_t hash) noexcept nogil:
    return <uint32_t>(hash >> (64 - offload.bits))

cdef inline uint16_t offload_tag(const Offload* offload, uint64_t hash) noexcept nogil:
    return <uint16_t>(hash << offload.bits >> 48 | 1)       # not 0, which is a free entry's

cdef inline uint16_t* offload_tag_of(const Offload* offload, uint32_t number) noexcept nogil:
    """An entry's place among the tags."""
    return &offload.tags[(number & ((<uint32_t>1 << offload.bits) - 1)) * OFFLOAD_WAYS + (number >> offload.bits)]

cdef inline uint32_t offload_units(const Offload* offload, uint64_t now_ns) noexcept nogil:
    """A moment of the gateway's clock in units of an entry's times, rounded down."""
    return <uint32_t>(<uint64_t>(<int64_t>now_ns - offload.offset_ns) >> OFFLOAD_UNIT_SHIFT)

cdef inline uint32_t offload_take(Offload* offload, const OffloadEntry* entry, OffloadUse* use, uint32_t direction,
                                  uint64_t* bytes_) noexcept nogil:
    """Takes what the program has counted in an entry since the last call into the totals: its packets, and their bytes."""
    cdef uint32_t packets = load_relaxed(&entry.packets) - use.packets
    bytes_[0] = 0
    if packets == 0:
        return 0
    bytes_[0] = load_relaxed64(&entry.bytes) - use.bytes
    use.packets += packets
    use.bytes += bytes_[0]
    offload.packets[direction] += packets
    offload.bytes[direction] += bytes_[0]
    offload.total += packets
    offload.interfaces[entry.interface].received += packets
    offload.interfaces[offload.hops[entry.hop].interface].sent += packets
    return packets

cdef inline void offload_outdate(Offload* offload) noexcept nogil:
    """Takes every entry out of force; packets renew them."""
    if offload != NULL:
        offload.generation[0] += 1
        offload.recalled = True

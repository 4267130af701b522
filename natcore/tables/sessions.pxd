"""The session table: two cache lines per session, two indexes, lists by mapping and by filter entry.

A packet of an established session touches only the hot line and one bucket of an index.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from natcore.log.journal cimport Journal, Record
from natcore.tables.mappings cimport Mapping, Mappings
from natcore.tables.offload cimport Offload
from natcore.base.compiler cimport likely
from natcore.base.flow_hash cimport HashKey, flow_hash
from natcore.base.sentinels cimport NONE
from natcore.base.hash_table cimport Index, index_find
from natcore.base.linked_list cimport Link
from natcore.base.lock_checker cimport assert_held
from natcore.base.freelist cimport Freelist
from natcore.base.headers cimport PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, load32, load64

cdef enum:                      # Role: index into ip and port of a session
    ROLE_INSIDE = 0
    ROLE_REMOTE = 1
    ROLE_OUTSIDE = 2

cdef enum:                      # Direction: the Side where the packet came from
    OUT = 0                     # from inside
    IN = 1                      # from outside

cdef enum:                      # SessionFlag
    OPENED_OUTSIDE = 1
    UNLOGGED = 2                # the responder's side of a hairpin: not in the session log (contract R5)
    NO_WINDOW = 4               # no packet since the last window closed
    HAIRPINNED = 8              # the remote is an outside endpoint of this gateway
    UNTRANSLATED_BOTH = 16      # of a no-NAT entry: outside and inside are the same
    SYN_NOTED = 32              # << Direction: syn[] holds the SYN of a new connection that is not answered yet
    SESSION_FREE = 128          # the slot is free; no packet matches it

cdef enum:                      # TimeoutClass
    TIMEOUT_UDP = 0
    TIMEOUT_TCP_TRANSITORY = 1
    TIMEOUT_TCP_ESTABLISHED = 2
    TIMEOUT_ICMP = 3
    TIMEOUT_UNREPLIED = 4
    TIMEOUT_OTHER = 5
    TIMEOUT_FRAGMENT = 6        # of a datagram in progress, not of a session
    TIMEOUTS = 8

cdef inline uint8_t class_of(uint8_t protocol) noexcept nogil:
    """The time-out class of a new session opened from inside."""
    if protocol == PROTOCOL_TCP:
        return TIMEOUT_TCP_TRANSITORY
    return TIMEOUT_UDP if protocol == PROTOCOL_UDP else TIMEOUT_ICMP if protocol == PROTOCOL_ICMP else TIMEOUT_OTHER

cdef enum:                      # ProtocolKind, of counters
    KINDS = 4                   # TCP, UDP, ICMP, others

cdef inline uint32_t protocol_kind(uint8_t protocol) noexcept nogil:
    return 0 if protocol == PROTOCOL_TCP else 1 if protocol == PROTOCOL_UDP else 2 if protocol == PROTOCOL_ICMP else 3

cdef enum:
    SWEEP_NS = 8000000000       # every session is swept at least this often

cdef struct Session:            # the hot line
    uint32_t ip[3]              # by Role, big-endian; (inside, remote) and (remote, outside) are 8-byte keys in place
    uint16_t port[3]            # by Role, big-endian; ICMP: the identifier, remote 0
    uint8_t protocol
    uint8_t state               # TcpState (tcp_state.pxd)
    uint16_t l3_delta           # checksum delta of the addresses, outbound (checksum.pxd)
    uint16_t l4_delta           # checksum delta of addresses and ports; ICMP: of the identifier alone
    uint32_t last_seen          # ms of the gateway's clock, modulo 2^32
    uint32_t ack[2]             # by Direction: highest acknowledgement sent
    uint32_t end[2]             # by Direction: end of the highest segment sent
    uint32_t packets[2]         # by Direction, in the open window, modulo 2^32
    uint32_t bytes[2]           # IPv4 total lengths, by Direction, in the open window, modulo 2^32
    uint16_t window_end         # seconds of the gateway's clock, modulo 2^16, rounded down: the window does not end before
    uint8_t flags               # SessionFlag
    uint8_t timeout_class       # TimeoutClass

cdef struct Cold:               # the cold line, for admission, window roll-over and listing
    uint64_t window_start_ns
    uint64_t birth_ns
    uint64_t total_bytes[2]     # by Direction, of closed windows
    uint64_t total_packets[2]
    uint32_t mapping            # number of its mapping
    uint32_t id_low             # low part of the 48-bit session number, in order of creation, from 1
    uint16_t id_high
    uint16_t carry_bytes[2]     # by Direction: overflows of bytes[] in the open window
    uint8_t carry_packets[2]    # by Direction: overflows of packets[]

cdef enum:
    EXAMINED_MOST = 128         # sessions of a list that one packet examines or ends at most

cdef enum:                      # Life: result of searching a list for a live session
    LIFE_NONE = 0               # none is alive
    LIFE_SOME = 1
    LIFE_UNKNOWN = 2            # the first EXAMINED_MOST are dead, more follow

cdef struct Filter:             # address-dependent filtering: opens an outside endpoint for a remote address
    uint32_t sessions           # sessions that keep it open; first, since a free slot's first word is the free list's link
    uint32_t remote_ip          # big-endian, as the next two
    uint32_t outside_ip
    uint16_t outside_port
    uint8_t protocol
    uint8_t in_use              # 0: the slot is free
    uint32_t first              # first of its sessions (linked by by_filter)

cdef struct Sessions

cdef struct Sessions:
    Session* hot                # [capacity]
    Cold* cold                  # [capacity]
    uint32_t* syn               # [capacity][2] by Direction, valid with SYN_NOTED: the SYN's sequence number plus one
    Link* by_mapping            # [capacity] sessions of a mapping: the last one found alive first, otherwise the newest
    Link* by_filter             # [capacity] sessions of a filter entry; NULL: no address-dependent filtering
    Filter* filters             # [capacity] or NULL
    Freelist slots
    Freelist filter_slots
    Index index[2]              # by Direction, key -> slot: (inside, remote) of outbound packets, (remote, outside) of inbound
    Index by_remote             # (remote address, outside) -> filter
    HashKey key
    Mappings* mappings
    Journal* journal
    Sessions* next              # table of the next worker, or NULL
    uint64_t* numbers           # several workers: shared counter of session numbers; NULL: `created` is used
    uint32_t timeout_ms[8]      # by TimeoutClass
    uint64_t window_ns
    int64_t epoch_ns            # Unix time at now = 0; atomic, as complete_ns: read without the worker's lock
    uint64_t created
    uint64_t ended              # sessions ended
    uint64_t created_of[4]      # the same by ProtocolKind
    uint64_t ended_of[4]
    uint32_t opened_outside     # live sessions opened from outside
    uint8_t filtered[3]         # by port space: address-dependent filtering is on
    uint64_t swept_ns           # begin of the sweep's current round
    uint64_t complete_ns        # everything due by then has ended, its rows are in the journal
    uint32_t sweep_at           # next slot of the sweep
    Offload* offload            # sessions that an XDP program translates packets of, or NULL
    const void* lock            # lock that the caller holds: the worker's; NULL: a test's table
    uint64_t* changed           # [capacity / 64] one bit per slot: a standby does not know it as it is; NULL: there is no feed

cdef inline void note_change(Sessions* table, uint32_t slot) noexcept nogil:
    """Notes that the slot's session began, ended or is in another state, for a standby (workers/peer_feed.pyx)."""
    if table.changed != NULL:
        table.changed[slot >> 6] |= <uint64_t>1 << (slot & 63)

cdef inline uint64_t session_addresses(const Session* session, uint32_t direction) noexcept nogil:
    """Source and destination of its packets in a direction, in one load."""
    return load64(&session.ip[direction])

cdef inline uint32_t session_ports(const Session* session, uint32_t direction) noexcept nogil:
    return load32(&session.port[direction])

cdef inline uint64_t key_hash(const Sessions* table, const Session* session, uint32_t direction) noexcept nogil:
    return flow_hash(&table.key, session_addresses(session, direction), session_ports(session, direction), session.protocol)

cdef inline uint64_t hairpin_addresses(const Session* session) noexcept nogil:
    """Hairpinned session: source and destination of its outbound packets when they come back in."""
    return <uint64_t>session.ip[ROLE_REMOTE] << 32 | session.ip[ROLE_OUTSIDE]

cdef inline uint32_t hairpin_ports(const Session* session) noexcept nogil:
    """Hairpinned session: ports likewise. An ICMP identifier stays the sender's outside one."""
    if session.protocol == PROTOCOL_ICMP:
        return <uint32_t>session.port[ROLE_OUTSIDE] << 16
    return <uint32_t>session.port[ROLE_REMOTE] << 16 | session.port[ROLE_OUTSIDE]

cdef inline bint is_dead(const Sessions* table, const Session* session, uint32_t now_ms) noexcept nogil:
    return now_ms - session.last_seen >= table.timeout_ms[session.timeout_class]

cdef struct SessionKey:         # of the index of a direction
    uint64_t addresses          # session_addresses
    uint32_t ports              # session_ports
    uint32_t direction
    uint8_t protocol

cdef inline bint session_has_key(const void* table, uint32_t slot, const void* wanted) noexcept nogil:
    cdef const Session* session = &(<const Sessions*>table).hot[slot]
    cdef const SessionKey* key = <const SessionKey*>wanted
    return (session_addresses(session, key.direction) == key.addresses
            and session_ports(session, key.direction) == key.ports and session.protocol == key.protocol)

cdef inline uint32_t session_find(const Sessions* table, uint32_t direction, uint64_t addresses, uint32_t ports,
                                  uint8_t protocol) noexcept nogil:
    """The session with this key, dead or alive, or NONE."""
    cdef SessionKey key = SessionKey(addresses, ports, direction, protocol)
    assert_held(table.lock, "sessions: session_find")
    return index_find(&table.index[direction], flow_hash(&table.key, addresses, ports, protocol), session_has_key, table, &key)

cdef inline void session_count(Session* session, Cold* cold, uint32_t direction, uint32_t packets,
                               uint32_t bytes) noexcept nogil:
    """Adds to the window's counters; overflows carry into the cold line."""
    session.bytes[direction] += bytes
    if session.bytes[direction] < bytes:
        cold.carry_bytes[direction] += 1
    session.packets[direction] += packets
    if session.packets[direction] < packets:
        cold.carry_packets[direction] += 1

cdef inline uint64_t filter_hash(const Sessions* table, const Filter* key) noexcept nogil:
    return flow_hash(&table.key, <uint64_t>key.outside_ip << 32 | key.remote_ip, <uint32_t>key.outside_port << 16,
                     key.protocol)

cdef bint sessions_new(Sessions* table, uint32_t capacity, bint filters) noexcept nogil
cdef void sessions_delete(Sessions* table, bint filters) noexcept nogil
cdef inline uint64_t outbound_hash(const Sessions* table, const Mapping* owner, uint32_t remote_ip,
                                   uint16_t remote_port) noexcept nogil:
    """Hash of the outbound key that a session of the mapping to a remote has (big-endian), as key_hash."""
    return flow_hash(&table.key, <uint64_t>remote_ip << 32 | owner.inside_ip, <uint32_t>remote_port << 16 | owner.inside_port,
                     owner.protocol)

cdef inline uint64_t inbound_hash(const Sessions* table, const Mapping* owner, uint32_t remote_ip,
                                  uint16_t remote_port) noexcept nogil:
    """Likewise of the inbound key."""
    return flow_hash(&table.key, <uint64_t>owner.outside_ip << 32 | remote_ip,
                     <uint32_t>owner.outside_port << 16 | remote_port, owner.protocol)

cdef uint32_t session_open(Sessions* table, uint32_t mapping, uint32_t remote_ip, uint16_t remote_port, uint64_t outbound,
                           uint64_t inbound, uint8_t flags, uint8_t timeout_class, uint64_t now_ns) noexcept nogil
cdef void create_row_write(Sessions* table, uint32_t slot) noexcept nogil
cdef void session_forget(Sessions* table, uint32_t slot, uint64_t now_ns) noexcept nogil
cdef void session_discard(Sessions* table, uint32_t slot, uint64_t now_ns) noexcept nogil
cdef void session_restart(Sessions* table, uint32_t slot, bint outside, uint8_t timeout_class, uint64_t now_ns) noexcept nogil
cdef void session_close(Sessions* table, uint32_t slot, uint64_t end_ns, uint64_t now_ns) noexcept nogil
cdef void session_prefetch_close(const Sessions* table, uint32_t slot) noexcept nogil
cdef void session_expire(Sessions* table, uint32_t slot, uint64_t now_ns) noexcept nogil
cdef void window_roll(Sessions* table, uint32_t slot, uint64_t now_ns) noexcept nogil
cdef bint is_dead_after_all(Sessions* table, uint32_t slot, uint32_t now_ms) noexcept nogil

cdef inline bint is_over(Sessions* table, uint32_t slot, uint32_t now_ms) noexcept nogil:
    """is_dead, also of a session that only the XDP program has seen lately."""
    return (is_dead(table, &table.hot[slot], now_ms)
            and (likely(table.offload == NULL) or is_dead_after_all(table, slot, now_ms)))

cdef void session_fold(Sessions* table, uint32_t slot) noexcept nogil
cdef void session_recall(Sessions* table, uint32_t slot) noexcept nogil
cdef void sessions_fold(Sessions* table) noexcept nogil
cdef uint8_t mapping_life(Sessions* table, uint32_t number, uint32_t now_ms) noexcept nogil
cdef bint mapping_answered(Sessions* table, uint32_t number, uint32_t now_ms) noexcept nogil
cdef bint filter_open(Sessions* table, uint32_t remote_ip, uint32_t outside_ip, uint16_t outside_port, uint8_t protocol,
                      bint answered, uint32_t now_ms) noexcept nogil
cdef void filter_key(const Session* session, Filter* key) noexcept nogil
cdef uint32_t filter_find(const Sessions* table, const Filter* key) noexcept nogil
cdef uint64_t session_id(const Cold* cold) noexcept nogil
cdef bint window_copy(const Sessions* table, uint32_t slot, uint64_t now_ns, Record* row) noexcept nogil
cdef int64_t micros(const Sessions* table, uint64_t ns) noexcept nogil
cdef uint64_t deadline_of(const Sessions* table, const Session* session, uint64_t now_ns) noexcept nogil
cdef void window_write(Sessions* table, uint32_t slot, uint64_t end_ns) noexcept nogil

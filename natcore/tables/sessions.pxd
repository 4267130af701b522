"""The session table: a hot and a cold line each, two indexes, lists by mapping, the sweep that ends what is idle.

The hot line is all that a packet of an established session touches, besides one bucket of an index.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from natcore.log.journal cimport Journal, Record
from natcore.tables.mappings cimport Mappings
from natcore.base.flow_hash cimport HashKey, flow_hash
from natcore.base.hash_table cimport NONE, Cursor, Index, index_begin, index_next
from natcore.base.linked_list cimport Link
from natcore.base.freelist cimport Slab
from natcore.base.headers cimport PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, load32, load64

cdef enum:                      # Role: of ip and port in a session
    ROLE_INSIDE = 0
    ROLE_REMOTE = 1
    ROLE_OUTSIDE = 2

cdef enum:                      # Direction: the Side that a packet came from
    OUT = 0                     # from inside
    IN = 1                      # from outside

cdef enum:                      # SessionFlag
    OPENED_OUTSIDE = 1
    UNLOGGED = 2                # the responder's side of a hairpin: not in the session log (contract R5)
    NO_WINDOW = 4               # nothing was counted since the last window closed
    HAIRPINNED = 8              # its remote is an outside endpoint of ours
    UNTRANSLATED_BOTH = 16      # a no-NAT entry's: outside and inside are the same
    SYN_NOTED = 32              # << Direction: syn[] holds that of a new connection, which nobody has answered
    SESSION_FREE = 128          # the slot was given back; no value of a packet's says so

cdef enum:                      # TimeoutClass
    TIMEOUT_UDP = 0
    TIMEOUT_TCP_TRANSITORY = 1
    TIMEOUT_TCP_ESTABLISHED = 2
    TIMEOUT_ICMP = 3
    TIMEOUT_UNREPLIED = 4
    TIMEOUT_OTHER = 5
    TIMEOUT_FRAGMENT = 6        # of a datagram under way, not of a session
    TIMEOUTS = 8

cdef inline uint8_t class_of(uint8_t protocol) noexcept nogil:
    """The time-out class of a new session opened from inside."""
    if protocol == PROTOCOL_TCP:
        return TIMEOUT_TCP_TRANSITORY
    return TIMEOUT_UDP if protocol == PROTOCOL_UDP else TIMEOUT_ICMP if protocol == PROTOCOL_ICMP else TIMEOUT_OTHER

cdef enum:
    SWEEP_NS = 8000000000       # every session is looked at this often, at least

cdef struct Session:            # the hot line
    uint32_t ip[3]              # by Role, big-endian; (inside, remote) and (remote, outside) are keys as they lie
    uint16_t port[3]            # by Role, big-endian; ICMP: the id, and 0 for the remote
    uint8_t protocol
    uint8_t state               # _tcp.pxd
    uint16_t l3_delta           # of the addresses, outbound (checksum.pxd)
    uint16_t l4_delta           # of the addresses and ports; ICMP: of the id alone
    uint32_t last_seen          # ms of the gateway's clock, modulo 2^32
    uint32_t ack[2]             # by Direction: the highest acknowledgement sent
    uint32_t end[2]             # by Direction: the highest sequence number sent, and one
    uint32_t packets[2]         # by Direction, in this window, modulo 2^32
    uint32_t bytes[2]           # IPv4 total lengths, likewise
    uint16_t window_end         # whole seconds of the gateway's clock, modulo 2^16: not before it does the window end
    uint8_t flags               # SessionFlag
    uint8_t timeout_class       # TimeoutClass

cdef struct Cold:               # the cold line: for admission, roll-over and listing
    uint64_t window_start_ns
    uint64_t birth_ns
    uint64_t total_bytes[2]     # by Direction, of the windows that closed
    uint64_t total_packets[2]
    uint32_t mapping            # its number
    uint32_t id_low             # 48 bits: the sessions in order of creation, from 1
    uint16_t id_high
    uint16_t carry_bytes[2]     # how often bytes[] passed 2^32 in this window
    uint8_t carry_packets[2]

cdef enum:
    LOOKED_AT = 128             # sessions of a list, at most, that one packet looks at or ends

cdef enum:                      # Life, of a list of sessions
    LIFE_NONE = 0               # none of them is alive
    LIFE_SOME = 1
    LIFE_UNKNOWN = 2            # the first LOOKED_AT are dead, and there are more

cdef struct Filter:             # an outside endpoint is open for a remote address (address-dependent filtering)
    uint32_t sessions           # that keep it open; first, since it is the slab's word in a free slot
    uint32_t remote_ip          # big-endian, as the next two
    uint32_t outside_ip
    uint16_t outside_port
    uint8_t protocol
    uint8_t in_use              # 0: the slot is free
    uint32_t first              # a session of it; the others are linked to it

cdef struct Sessions

cdef struct Sessions:
    Session* hot                # [capacity]
    Cold* cold                  # [capacity]
    uint32_t* syn               # [capacity][2] by Direction, SYN_NOTED: the sequence number that follows the SYN
    Link* by_mapping            # [capacity] the sessions of a mapping: the one that was last found alive first, else the newest
    Link* by_filter             # [capacity] the sessions of a filter entry, or NULL: no filtering is address-dependent
    Filter* filters             # [capacity] likewise
    Slab slots
    Slab filter_slots
    Index outbound              # (inside, remote) -> slot
    Index inbound               # (remote, outside) -> slot
    Index by_remote             # (remote address, outside) -> filter
    HashKey key
    Mappings* mappings
    Journal* journal
    Sessions* next              # the table of the gateway's next worker, or NULL
    uint64_t* numbers           # of several workers: how many sessions they have had; NULL: created says it
    uint32_t timeout_ms[8]      # by TimeoutClass
    uint64_t window_ns
    int64_t epoch_ns            # Unix time at now = 0; atomic, as complete_ns: who holds no worker looks at it
    uint64_t created
    uint64_t ended
    uint32_t opened_outside     # alive
    uint8_t filtered[3]         # by port space: address-dependent filtering keeps entries
    uint64_t swept_ns           # when the sweep last came round
    uint64_t complete_ns        # what was due by then has ended, and its rows are written
    uint32_t sweep_at           # the next slot that it looks at

cdef inline uint64_t session_addresses(const Session* session, uint32_t direction) noexcept nogil:
    """Source and destination of its packets in a direction, as one load."""
    return load64(&session.ip[direction])

cdef inline uint32_t session_ports(const Session* session, uint32_t direction) noexcept nogil:
    return load32(&session.port[direction])

cdef inline uint64_t key_hash(const Sessions* table, const Session* session, uint32_t direction) noexcept nogil:
    return flow_hash(&table.key, session_addresses(session, direction), session_ports(session, direction), session.protocol)

cdef inline uint64_t turned_addresses(const Session* session) noexcept nogil:
    """Of a hairpinned session: source and destination of its outbound packets as they come back in."""
    return <uint64_t>session.ip[ROLE_REMOTE] << 32 | session.ip[ROLE_OUTSIDE]

cdef inline uint32_t turned_ports(const Session* session) noexcept nogil:
    """The same for ports. An echo's id stays what its sender's outside endpoint has, and is the responder's then."""
    if session.protocol == PROTOCOL_ICMP:
        return <uint32_t>session.port[ROLE_OUTSIDE] << 16
    return <uint32_t>session.port[ROLE_REMOTE] << 16 | session.port[ROLE_OUTSIDE]

cdef inline bint is_dead(const Sessions* table, const Session* session, uint32_t now_ms) noexcept nogil:
    return now_ms - session.last_seen >= table.timeout_ms[session.timeout_class]

cdef inline uint32_t session_find(const Sessions* table, uint32_t direction, uint64_t addresses, uint32_t ports,
                                  uint8_t protocol) noexcept nogil:
    """The session of a packet, dead or alive, or NONE."""
    cdef const Index* index = &table.outbound if direction == OUT else &table.inbound
    cdef Cursor cursor
    cdef uint32_t slot
    cdef const Session* session
    index_begin(index, flow_hash(&table.key, addresses, ports, protocol), &cursor)
    while True:
        slot = index_next(index, &cursor)
        if slot == NONE:
            return NONE
        session = &table.hot[slot]
        if (session_addresses(session, direction) == addresses and session_ports(session, direction) == ports
                and session.protocol == protocol):
            return slot

cdef inline void session_count(Session* session, Cold* cold, uint32_t direction, uint32_t packets,
                               uint32_t bytes) noexcept nogil:
    """Counts packets of together so many bytes; a counter that passes 2^32 is carried into the cold line."""
    session.bytes[direction] += bytes
    if session.bytes[direction] < bytes:
        cold.carry_bytes[direction] += 1
    session.packets[direction] += packets
    if session.packets[direction] < packets:
        cold.carry_packets[direction] += 1

cdef bint sessions_new(Sessions* table, uint32_t capacity, bint filters) noexcept nogil
cdef void sessions_delete(Sessions* table, bint filters) noexcept nogil
cdef uint32_t session_open(Sessions* table, uint32_t mapping, uint32_t remote_ip, uint16_t remote_port,
                           uint8_t flags, uint8_t timeout_class, uint64_t now_ns) noexcept nogil
cdef void session_announce(Sessions* table, uint32_t slot) noexcept nogil
cdef void session_discard(Sessions* table, uint32_t slot, uint64_t now_ns) noexcept nogil
cdef void session_restart(Sessions* table, uint32_t slot, bint outside, uint8_t timeout_class, uint64_t now_ns) noexcept nogil
cdef void session_close(Sessions* table, uint32_t slot, uint64_t end_ns, uint64_t now_ns) noexcept nogil
cdef void session_approach(const Sessions* table, uint32_t slot) noexcept nogil
cdef void session_expire(Sessions* table, uint32_t slot, uint64_t now_ns) noexcept nogil
cdef void window_roll(Sessions* table, uint32_t slot, uint64_t now_ns) noexcept nogil
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
cdef int64_t micros(const Sessions* table, uint64_t ns) noexcept nogil
cdef void window_write(Sessions* table, uint32_t slot, uint64_t end_ns) noexcept nogil

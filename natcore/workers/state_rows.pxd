"""Rows of a saved state, as each table gives and takes them: packed, as in the file (docs/state-format.md).

Slots are not stored: rows of a table come in ascending order of their slots, and the slots on its free list, in its order, are
a section of their own. What follows from other rows (keys, checksum deltas, counts, indexes) is not stored either. Addresses
and ports are big-endian, everything else little-endian; times are those of the gateway's clock.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from natcore.log.journal cimport Record

cdef enum:                      # EntryKind: what the number of an entry is
    ENTRY_NONE = 0
    ENTRY_SNAT = 1
    ENTRY_DNAT = 2              # 1:1 entries too
    ENTRY_NO_NAT = 3

cdef enum:                      # Section: first those of each worker, then those of the gateway
    SECTION_WORKER = 0
    SECTION_SESSIONS = 1
    SECTION_FREE_SESSIONS = 2   # slots, the one reused first at first; likewise below
    SECTION_SYNS = 3
    SECTION_MAPPINGS = 4
    SECTION_FREE_MAPPINGS = 5
    SECTION_SUBSCRIBERS = 6
    SECTION_FREE_SUBSCRIBERS = 7
    SECTION_MAPPING_LISTS = 8   # of each mapping: the next one of its subscriber, or NONE; empty: no lists
    SECTION_FILTERS = 9
    SECTION_FREE_FILTERS = 10
    SECTION_FILTER_LISTS = 11   # of each session: the next one of its filter entry, or NONE; empty: no filter entries
    WORKER_SECTIONS = 12
    SECTION_GATEWAY = 12
    SECTION_ADDRESSES = 13
    SECTION_HOST_PORTS = 14
    SECTION_HELD_DOWN = 15
    SECTION_BLOCKS = 16
    SECTION_IDENTIFICATIONS = 17
    SECTION_EVENTS = 18
    SECTION_HELD_SYNS = 19
    SECTION_BUDGETS = 20
    SECTION_DATAGRAMS = 21
    SECTION_DATAGRAM_UNITS = 22     # words of their bitmaps
    SECTION_FRAGMENTS = 23      # those that are remembered, of each datagram in turn
    SECTION_FRAME_LENGTHS = 24  # of held frames, of each datagram in turn
    SECTION_FRAME_BYTES = 25
    SECTION_ROWS = 26           # of the session log, not drained yet
    SECTIONS = 27

cdef packed struct SessionState:
    uint64_t window_start_ns
    uint64_t birth_ns
    uint64_t total_bytes[2]     # by Direction, as below
    uint64_t total_packets[2]
    uint32_t bytes[2]
    uint32_t packets[2]
    uint32_t ack[2]
    uint32_t end[2]
    uint32_t mapping            # number of its mapping
    uint32_t remote_ip
    uint32_t last_seen          # ms, modulo 2^32
    uint32_t next               # next session of its mapping
    uint32_t id_low
    uint16_t id_high
    uint16_t window_end
    uint16_t carry_bytes[2]
    uint16_t remote_port
    uint8_t carry_packets[2]
    uint8_t state
    uint8_t flags               # SessionFlag
    uint8_t timeout_class
    uint8_t unused

cdef packed struct SynState:    # of a session with SYN_NOTED
    uint32_t session            # index of its row
    uint32_t syn[2]             # by Direction

cdef packed struct MappingState:
    uint32_t inside_ip
    uint32_t remote_ip
    uint32_t outside_ip
    uint16_t inside_port
    uint16_t remote_port
    uint16_t outside_port
    uint8_t protocol
    uint8_t flags               # MappingFlag
    uint32_t address
    uint32_t entry
    uint32_t subscriber
    uint32_t first              # first of its sessions
    uint32_t held_until         # ms, modulo 2^32

cdef packed struct SubscriberState:
    uint32_t ip
    uint32_t address
    uint32_t entry
    uint32_t second
    uint32_t second_ms
    uint32_t opened
    uint32_t first              # mapping to examine next, or NONE
    uint32_t examined

cdef packed struct FilterState:
    uint32_t remote_ip
    uint32_t outside_ip
    uint16_t outside_port
    uint8_t protocol
    uint8_t unused
    uint32_t first              # first of its sessions

cdef packed struct WorkerState:
    uint64_t now_ns
    uint64_t ticked_ns
    uint64_t swept_ns
    uint64_t complete_ns
    uint64_t created
    uint64_t ended
    uint64_t created_of[4]      # by ProtocolKind
    uint64_t ended_of[4]
    uint64_t counters[256]      # by Verdict
    uint64_t from_outside[256]
    uint64_t bytes[2]           # by Side
    uint64_t refused[11]        # by Limit
    uint64_t clock_backward
    uint64_t handed_over
    uint64_t undelivered_in_rows
    uint32_t sweep_at
    uint32_t reap_at
    uint32_t swept_for
    uint32_t lingering

cdef packed struct GatewayState:
    uint64_t hash_key[2]
    uint64_t now_ns
    int64_t epoch_ns
    uint64_t created            # sessions ever created
    uint64_t reclaimed
    uint64_t randoms[32]
    uint64_t blocks_taken
    uint64_t blocks_released
    uint64_t journal_lost
    uint64_t journal_lifecycle_lost
    int64_t journal_lost_from
    int64_t journal_lost_until
    uint64_t journal_order
    uint64_t drained            # rows numbered
    uint64_t lost_reported
    uint64_t lifecycle_lost_reported
    uint64_t generated
    uint64_t generated_lost
    uint64_t generated_withheld
    uint64_t evicted[2]         # by Side
    uint64_t events_lost
    uint64_t held_syns_lost
    uint32_t random_state[16]
    uint32_t random_block[16]
    uint32_t random_used
    uint32_t randoms_taken
    uint32_t reclaim_table
    uint32_t reclaim_line
    uint32_t opened_second
    uint32_t opened
    uint32_t sessions_warned
    uint32_t reclaim_at
    uint32_t longest_hold_down_ms
    uint32_t unused[2]

cdef packed struct AddressState:    # [3]: by PortSpace
    uint32_t number
    uint32_t ip
    uint32_t eip                # host order
    uint32_t next_word[3]
    uint32_t words_left[3]
    uint32_t soonest[3]         # ms, as the next
    uint32_t next_release[3]
    uint32_t warned[3]

cdef packed struct HostPortsState:
    uint64_t now[2][1024]
    uint64_t wanted[2][1024]
    uint32_t address            # number of the outside address
    uint32_t unused

cdef packed struct HeldDownState:
    uint32_t address
    uint32_t owner
    uint32_t until_ms
    uint16_t port               # host order
    uint8_t space
    uint8_t unused

cdef packed struct BlockState:
    uint32_t address
    uint32_t block
    uint32_t owner
    uint32_t unused
    uint64_t number             # of its assignment
    uint64_t born_ns

cdef packed struct EventState:
    uint64_t count
    uint64_t at_ns
    uint32_t subscriber
    uint32_t destination
    uint16_t port
    uint16_t place              # in the tables of events
    uint8_t protocol
    uint8_t reason
    uint8_t limit
    uint8_t unused

cdef packed struct HeldSynState:
    uint64_t due_ns
    uint32_t length
    uint32_t link_bytes
    uint32_t source
    uint8_t cause
    uint8_t unused[3]
    uint8_t data[576]

cdef packed struct BudgetState:
    uint64_t second
    uint32_t sent
    uint32_t count
    uint32_t others
    uint32_t source[64]
    uint32_t sent_to[64]
    uint32_t unused

cdef packed struct DatagramState:
    uint64_t addresses
    uint64_t since_ms
    uint64_t session
    uint32_t ports
    uint32_t sequence
    uint16_t identification
    uint16_t units
    uint16_t high
    uint16_t end
    uint16_t sent_as
    uint16_t ranges
    uint8_t held
    uint8_t protocol
    uint8_t side
    uint8_t state
    uint8_t verdict
    uint8_t unused[7]

cdef struct Rows:               # rows of a section, in memory of the caller's
    uint8_t* rows
    uint64_t capacity           # rows that fit
    uint64_t count              # rows that there are; more than fit: the rest was not written

cdef struct Damage:             # a row that no gateway gives
    const char* text            # NULL: none
    uint32_t section
    uint64_t row

cdef struct Later:              # how much later a state is restored than it was saved
    uint64_t gap_ns
    bint frozen                 # deadlines move by the gap

cdef inline void* next_row(Rows* section, size_t bytes) noexcept nogil:
    """Where the section's next row goes; NULL: it has no place, and is only counted."""
    cdef void* at = section.rows + section.count * bytes if section.count < section.capacity else NULL
    section.count += 1
    return at

cdef inline bint refuse(Damage* damage, uint32_t section, uint64_t row, const char* text) noexcept nogil:
    """Notes why a row is refused; False."""
    damage.text = text
    damage.section = section
    damage.row = row
    return False

cdef inline size_t row_bytes(uint32_t section) noexcept nogil:
    """Bytes of a section's row."""
    if section == SECTION_WORKER:
        return sizeof(WorkerState)
    if section == SECTION_SESSIONS:
        return sizeof(SessionState)
    if section == SECTION_SYNS:
        return sizeof(SynState)
    if section == SECTION_MAPPINGS:
        return sizeof(MappingState)
    if section == SECTION_SUBSCRIBERS:
        return sizeof(SubscriberState)
    if section == SECTION_FILTERS:
        return sizeof(FilterState)
    if section == SECTION_GATEWAY:
        return sizeof(GatewayState)
    if section == SECTION_ADDRESSES:
        return sizeof(AddressState)
    if section == SECTION_HOST_PORTS:
        return sizeof(HostPortsState)
    if section == SECTION_HELD_DOWN:
        return sizeof(HeldDownState)
    if section == SECTION_BLOCKS:
        return sizeof(BlockState)
    if section == SECTION_EVENTS:
        return sizeof(EventState)
    if section == SECTION_HELD_SYNS:
        return sizeof(HeldSynState)
    if section == SECTION_BUDGETS:
        return sizeof(BudgetState)
    if section == SECTION_DATAGRAMS:
        return sizeof(DatagramState)
    if section == SECTION_DATAGRAM_UNITS or section == SECTION_FRAGMENTS:
        return 8
    if section == SECTION_FRAME_BYTES:
        return 1
    if section == SECTION_ROWS:
        return sizeof(Record)
    return 4

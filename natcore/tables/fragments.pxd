"""Tables of datagrams that arrive in fragments: the verdict of the first fragment, and bounded storage for early ones."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore.base.flow_hash cimport HashKey
from natcore.base.hash_table cimport Index
from natcore.base.linked_list cimport Link
from natcore.base.freelist cimport Freelist

cdef enum:
    DATAGRAMS = 2000            # of a side in progress at once; one more evicts the oldest
    DATAGRAMS_EACH = 250        # of one source: an eighth; one more evicts that source's oldest
    DATAGRAMS_WAITING = 1000    # of a side without their first fragment; one more is refused
    DATAGRAMS_WAITING_EACH = 62         # of one source: a sixteenth
    CHUNK_BYTES = 784           # two hold a frame of 1,514 bytes
    CHUNKS = 2500               # 2 MB of held frames for a side
    CHUNKS_EACH = 156           # of one source: a sixteenth
    FRAGMENTS_HELD = 128        # held frames of one datagram
    RANGES_KEPT = 64            # fragments of a datagram that are remembered to detect exact duplicates
    EXPIRED_AT_ONCE = 32        # datagrams that one packet removes at most because they timed out
    DATAGRAM_UNITS = 8192       # of 8 bytes: the longest there is (RFC 791)
    SOURCES = 1024              # counters of held data, by a keyed hash of the source

cdef enum:                      # DatagramState
    DATAGRAM_WAITING = 0        # its first fragment has not come
    DATAGRAM_KNOWN = 1          # its first fragment was forwarded; later ones follow its session
    DATAGRAM_REFUSED = 2        # later fragments get the verdict of the first one
    DATAGRAM_BROKEN = 3         # fragments overlapped or were malformed: all further ones are dropped

cdef struct Datagram:           # identified by side, addresses, protocol and identification (RFC 791)
    uint64_t addresses          # source and destination as they lie in the packet
    uint64_t since_ms           # arrival of its first fragment to come, ms
    uint64_t session            # DATAGRAM_KNOWN: session id
    uint32_t ports              # DATAGRAM_KNOWN: source and destination port, as in the packet context
    uint32_t sequence           # TCP: sequence number at the first byte of the TCP header, SYN and FIN counted
    uint32_t held               # first chunk of the frame held longest, or NONE
    uint32_t held_last          # first chunk of the frame held last, or NONE
    uint16_t identification     # as it lies in the packet
    uint16_t units              # units of 8 bytes received; the last one counts whole
    uint16_t high               # end of the furthest fragment received, in units
    uint16_t end                # length of the datagram in units; 0: the last fragment has not come
    uint16_t source             # index into sources
    uint16_t sent_identification  # identification that its fragments leave with, big-endian
    uint16_t ranges             # entries in use in `ranges`
    uint8_t held_count          # frames held
    uint8_t protocol
    uint8_t side
    uint8_t state               # DatagramState
    uint8_t verdict             # DATAGRAM_REFUSED: verdict of all its fragments

cdef struct SourceCount:        # counters of one source (hash)
    uint32_t chunks             # chunks that hold its frames
    uint32_t waiting            # datagrams without their first fragment
    uint32_t datagrams          # datagrams in progress
    uint32_t newest             # its newest datagram; undefined while it has none

cdef struct FragmentRange:              # a fragment that was received
    uint16_t first              # offset, in units of 8 bytes
    uint16_t units              # length in units; RANGE_LAST set on the last fragment
    uint32_t sum                # keyed digest of its bytes

cdef enum:
    RANGE_LAST = 0x8000         # more-fragments is not set

cdef struct Fragments:          # tables of one side
    Datagram* datagrams         # [DATAGRAMS]
    uint64_t* seen              # [DATAGRAMS][DATAGRAM_UNITS / 64] one bit per unit received, below `high` rounded up to a word
    FragmentRange* ranges               # [DATAGRAMS][RANGES_KEPT]
    uint8_t* chunks             # [CHUNKS][CHUNK_BYTES]
    SourceCount* sources        # [SOURCES]
    Link* by_age                # [DATAGRAMS] all datagrams, from the newest to the oldest
    Link* of_source             # [DATAGRAMS] datagrams of one source, from the newest to the oldest
    Freelist slots                  # free slots of datagrams
    Freelist chunk_slots                  # free chunks
    Index index                 # key -> datagram
    HashKey key
    uint64_t timeout_ms
    uint32_t newest             # newest datagram, or NONE
    uint32_t waiting            # datagrams without their first fragment
    uint32_t held_dropped       # held fragments dropped since the counter was last read
    uint64_t evicted            # datagrams in progress that were evicted by newer ones
    const void* lock            # lock that the caller holds: all workers'; NULL: a test's table

cdef Fragments* fragments_new() noexcept nogil
cdef void fragments_delete(Fragments* tables) noexcept nogil
cdef bint datagram_is_over(const Fragments* table, uint32_t number, uint64_t now_ms) noexcept nogil
cdef void fragments_expire(Fragments* table, uint64_t now_ms, uint32_t most) noexcept nogil
cdef uint32_t datagram_find(const Fragments* table, uint8_t side, uint64_t addresses, uint8_t protocol,
                            uint16_t identification) noexcept nogil
cdef uint32_t datagram_open(Fragments* table, uint8_t side, uint64_t addresses, uint8_t protocol, uint16_t identification,
                            bint first, uint64_t now_ms) noexcept nogil
cdef uint32_t fragment_digest(const Fragments* table, const uint8_t* data, uint32_t length) noexcept nogil
cdef bint datagram_has_fragment(const Fragments* table, uint32_t number, const FragmentRange* range_) noexcept nogil
cdef bint datagram_mark_received(Fragments* table, uint32_t number, const FragmentRange* range_) noexcept nogil
cdef bint datagram_hold(Fragments* table, uint32_t number, const uint8_t* frame, uint32_t length) noexcept nogil
cdef uint32_t datagram_next_held(const Fragments* table, uint32_t number) noexcept nogil
cdef uint32_t datagram_next_length(const Fragments* table, uint32_t held) noexcept nogil
cdef uint32_t datagram_copy_held(const Fragments* table, uint32_t held, uint8_t* out) noexcept nogil
cdef void datagram_pop_held(Fragments* table, uint32_t number, uint8_t* out) noexcept nogil
cdef void datagram_set_state(Fragments* table, uint32_t number, uint8_t state, uint8_t verdict) noexcept nogil
cdef void datagram_break(Fragments* table, uint32_t number, uint8_t verdict) noexcept nogil
cdef void datagram_close(Fragments* table, uint32_t number) noexcept nogil

cdef inline bint datagram_is_complete(const Fragments* table, uint32_t number) noexcept nogil:
    """Whether all of its fragments have been received."""
    return table.datagrams[number].end != 0 and table.datagrams[number].units == table.datagrams[number].end

"""Datagrams in fragments: what came of each, what its first fragment was told, and, bounded, what waits for that one."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore.base.flow_hash cimport HashKey
from natcore.base.hash_table cimport Index
from natcore.base.linked_list cimport Link
from natcore.base.freelist cimport Slab

cdef enum:
    DATAGRAMS = 2000            # of a side under way at once; its oldest makes room for one more
    DATAGRAMS_EACH = 250        # of one source: an eighth; its own oldest makes room for one more
    DATAGRAMS_WAITING = 1000    # of a side without their first fragment; one more is refused
    DATAGRAMS_WAITING_EACH = 62         # of one source: a sixteenth
    CHUNK_BYTES = 784           # two hold a frame of 1,514 bytes
    CHUNKS = 2500               # 2 MB of what waits, of a side
    CHUNKS_EACH = 156           # of one source: a sixteenth
    FRAGMENTS_HELD = 128        # of one datagram
    PIECES_KEPT = 64            # fragments of a datagram whose exact duplicates are known
    DATAGRAM_UNITS = 8192       # of 8 bytes: the longest there is (RFC 791)
    SOURCES = 1024              # counts of what waits, by a keyed hash of the source

cdef enum:                      # DatagramState
    DATAGRAM_WAITING = 0        # for its first fragment
    DATAGRAM_KNOWN = 1          # the session is known that its first fragment is of
    DATAGRAM_REFUSED = 2        # every fragment has its first one's verdict
    DATAGRAM_BROKEN = 3         # fragments overlapped, or were made to deceive: none passes any more

cdef struct Datagram:           # known by its side, addresses, protocol and identification (RFC 791)
    uint64_t addresses          # source and destination as they lie in the packet
    uint64_t since_ms           # when its first to arrive came
    uint64_t session            # DATAGRAM_KNOWN: its id
    uint32_t ports              # and the rest of its key, as of Flight
    uint32_t sequence           # TCP: of the byte where the header begins, SYN and FIN counted
    uint32_t held               # first chunk of the fragment that waits longest, or NONE
    uint32_t held_last          # and of the one that came last
    uint16_t identification     # as it lies in the packet
    uint16_t units              # seen, of 8 bytes; the last one counts whole
    uint16_t high               # units up to the end of the furthest fragment seen
    uint16_t end                # units in all; 0: its last fragment has not come
    uint16_t source             # index into sources
    uint16_t sent_as            # the identification that its fragments leave with
    uint16_t pieces             # of those that came, as far as they are kept
    uint8_t held_count
    uint8_t protocol
    uint8_t side
    uint8_t state               # DatagramState
    uint8_t verdict             # DATAGRAM_REFUSED: of all its fragments

cdef struct SourceCount:        # of a source's datagrams
    uint32_t chunks             # of what waits
    uint32_t waiting            # datagrams without their first fragment
    uint32_t datagrams          # under way
    uint32_t newest             # of them; of none: undefined

cdef struct Piece:              # a fragment that came
    uint16_t first              # of its units of 8 bytes
    uint16_t units              # and PIECE_LAST
    uint32_t sum                # of its bytes, keyed

cdef enum:
    PIECE_LAST = 0x8000         # no more fragments follow it

cdef struct Fragments:          # of one side
    Datagram* datagrams         # [DATAGRAMS]
    uint64_t* seen              # [DATAGRAMS][DATAGRAM_UNITS / 64] a bit for each unit below high, rounded up to a word
    Piece* pieces               # [DATAGRAMS][PIECES_KEPT]
    uint8_t* chunks             # [CHUNKS][CHUNK_BYTES]
    SourceCount* sources        # [SOURCES]
    Link* by_age                # [DATAGRAMS] all datagrams, from the newest to the oldest
    Link* of_source             # [DATAGRAMS] likewise those of one source
    Slab slots                  # of datagrams
    Slab rooms                  # of chunks
    Index index                 # key -> datagram
    HashKey key
    uint64_t timeout_ms
    uint32_t newest             # datagram, or NO_LINK
    uint32_t waiting            # datagrams without their first fragment
    uint32_t given_up           # fragments that waited and were dropped since fragments_settle
    uint64_t evicted            # datagrams under way that made room for others

cdef Fragments* fragments_new(uint64_t timeout_ms) noexcept nogil
cdef void fragments_delete(Fragments* tables) noexcept nogil
cdef void fragments_expire(Fragments* table, uint64_t now_ms) noexcept nogil
cdef uint32_t datagram_find(const Fragments* table, uint8_t side, uint64_t addresses, uint8_t protocol,
                            uint16_t identification) noexcept nogil
cdef uint32_t datagram_open(Fragments* table, uint8_t side, uint64_t addresses, uint8_t protocol, uint16_t identification,
                            bint first, uint64_t now_ms) noexcept nogil
cdef uint32_t piece_sum(const Fragments* table, const uint8_t* data, uint32_t length) noexcept nogil
cdef bint datagram_has(const Fragments* table, uint32_t number, const Piece* piece) noexcept nogil
cdef bint datagram_mark(Fragments* table, uint32_t number, const Piece* piece) noexcept nogil
cdef bint datagram_hold(Fragments* table, uint32_t number, const uint8_t* frame, uint32_t length) noexcept nogil
cdef uint32_t datagram_held(const Fragments* table, uint32_t number) noexcept nogil
cdef void datagram_take(Fragments* table, uint32_t number, uint8_t* out) noexcept nogil
cdef void datagram_settle(Fragments* table, uint32_t number, uint8_t state, uint8_t verdict) noexcept nogil
cdef void datagram_break(Fragments* table, uint32_t number, uint8_t verdict) noexcept nogil
cdef void datagram_close(Fragments* table, uint32_t number) noexcept nogil

cdef inline bint datagram_whole(const Fragments* table, uint32_t number) noexcept nogil:
    """Whether all of it has come."""
    return table.datagrams[number].end != 0 and table.datagrams[number].units == table.datagrams[number].end

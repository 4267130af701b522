"""Hash index: hash -> slot numbers, in buckets of one cache line with 16-bit tags; overflow is counted and so reversible."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore.base.sentinels cimport NONE
from natcore.base.pages cimport table_delete, table_new

cdef enum:
    BUCKET_ENTRIES = 10
    BUCKET_LOAD = 5             # entries of a bucket in use when a table is full: 1 bucket in 73 overflows
    PROBE_LIMIT = 16            # buckets that an entry may be away from its home bucket

cdef extern from * nogil:
    """
    #include <stdint.h>
    #if defined(__SSE2__) && !defined(NATCORE_PORTABLE)
    #include <emmintrin.h>
    static inline uint32_t natcore_match_eight(const uint16_t* tags, uint16_t tag) {
        __m128i equal = _mm_cmpeq_epi16(_mm_load_si128((const __m128i*)tags), _mm_set1_epi16((short)tag));
        return (uint32_t)_mm_movemask_epi8(_mm_packs_epi16(equal, _mm_setzero_si128()));
    }
    #else
    static inline uint32_t natcore_match_eight(const uint16_t* tags, uint16_t tag) {
        uint32_t mask = 0;
        for (int i = 0; i < 8; i++) mask |= (uint32_t)(tags[i] == tag) << i;
        return mask;
    }
    #endif
    static inline uint32_t natcore_match_last(const uint16_t* tags, uint16_t tag) {
        return (uint32_t)(tags[8] == tag) << 8 | (uint32_t)(tags[9] == tag) << 9;
    }
    static inline uint32_t natcore_match_tags(const uint16_t* tags, uint16_t tag) {
        return natcore_match_eight(tags, tag) | natcore_match_last(tags, tag);
    }
    static inline uint32_t natcore_match_some(const uint16_t* tags, uint16_t tag) {
        uint32_t mask = natcore_match_eight(tags, tag);     /* filled from the first on: 1 entry in 50 lies in the last two */
        return __builtin_expect(mask != 0, 1) ? mask : natcore_match_last(tags, tag);
    }
    #define natcore_ctz32(x) ((uint32_t)__builtin_ctz(x))
    """
    uint32_t match_tags "natcore_match_tags" (const uint16_t* tags, uint16_t tag) noexcept      # one bit per matching tag
    uint32_t match_some "natcore_match_some" (const uint16_t* tags, uint16_t tag) noexcept      # 0 only if none matches
    uint32_t ctz32 "natcore_ctz32" (uint32_t x) noexcept

cdef struct Bucket:
    uint16_t tags[10]           # 0: empty
    uint32_t numbers[10]
    uint32_t overflow           # entries stored further on because this bucket was full

cdef struct Index:
    Bucket* buckets
    uint32_t count

cdef struct Cursor:             # iterator over the candidates of one hash
    uint32_t bucket
    uint32_t mask               # matching tags of the bucket that were not returned yet
    uint32_t left               # buckets left to read
    uint16_t tag

cdef inline bint index_new(Index* index, uint64_t entries) noexcept nogil:
    """Allocates an index for so many entries."""
    cdef uint64_t count = (entries + BUCKET_LOAD - 1) // BUCKET_LOAD
    index.count = <uint32_t>(count if count > PROBE_LIMIT else PROBE_LIMIT)
    index.buckets = <Bucket*>table_new(<size_t>index.count * sizeof(Bucket))
    return index.buckets != NULL

cdef inline void index_delete(Index* index) noexcept nogil:
    table_delete(index.buckets, <size_t>index.count * sizeof(Bucket))
    index.buckets = NULL

cdef inline uint32_t home_of(const Index* index, uint64_t hash) noexcept nogil:
    return <uint32_t>((hash >> 32) * index.count >> 32)

cdef inline const Bucket* bucket_of(const Index* index, uint64_t hash) noexcept nogil:
    """The home bucket of a hash, where a lookup begins."""
    return &index.buckets[home_of(index, hash)]

cdef inline uint16_t tag_of(uint64_t hash) noexcept nogil:
    cdef uint16_t tag = <uint16_t>hash
    return tag if tag else 1

cdef inline void index_begin(const Index* index, uint64_t hash, Cursor* cursor) noexcept nogil:
    cursor.bucket = home_of(index, hash)
    cursor.tag = tag_of(hash)
    cursor.left = PROBE_LIMIT
    cursor.mask = match_tags(index.buckets[cursor.bucket].tags, cursor.tag)

cdef inline uint32_t index_next(const Index* index, Cursor* cursor) noexcept nogil:
    """The next candidate, or NONE; the caller compares the key."""
    cdef uint32_t at
    while cursor.mask == 0:
        cursor.left -= 1
        if cursor.left == 0 or index.buckets[cursor.bucket].overflow == 0:
            return NONE
        cursor.bucket = cursor.bucket + 1 if cursor.bucket + 1 < index.count else 0
        cursor.mask = match_tags(index.buckets[cursor.bucket].tags, cursor.tag)
    at = ctz32(cursor.mask)
    cursor.mask &= cursor.mask - 1
    return index.buckets[cursor.bucket].numbers[at]

ctypedef bint (*HasKey)(const void* table, uint32_t number, const void* key) noexcept nogil

cdef inline uint32_t index_find(const Index* index, uint64_t hash, HasKey has_key, const void* table,
                                const void* key) noexcept nogil:
    """The number inserted with this hash of which has_key(table, number, key) is true, or NONE.

    The compiler puts an inline has_key in place of the call.
    """
    cdef Cursor cursor
    cdef uint32_t number
    index_begin(index, hash, &cursor)
    while True:
        number = index_next(index, &cursor)
        if number == NONE or has_key(table, number, key):
            return number

cdef inline bint index_may_have(const Index* index, uint64_t hash) noexcept nogil:
    """False: nothing was inserted with this hash. It reads the home bucket alone, which answers for nearly all such keys."""
    cdef const Bucket* home = bucket_of(index, hash)
    return home.overflow != 0 or match_some(home.tags, tag_of(hash)) != 0

cdef inline bint index_insert(Index* index, uint64_t hash, uint32_t number) noexcept nogil:
    """Inserts (hash, number); False: every bucket within the probe limit is full."""
    cdef uint32_t home = home_of(index, hash), bucket = home, _step, back, mask, at
    for _step in range(PROBE_LIMIT):
        mask = match_some(index.buckets[bucket].tags, 0)
        if mask:
            at = ctz32(mask)
            index.buckets[bucket].tags[at] = tag_of(hash)
            index.buckets[bucket].numbers[at] = number
            back = home
            while back != bucket:
                index.buckets[back].overflow += 1
                back = back + 1 if back + 1 < index.count else 0
            return True
        bucket = bucket + 1 if bucket + 1 < index.count else 0
    return False

cdef inline void index_remove(Index* index, uint64_t hash, uint32_t number) noexcept nogil:
    """Removes (hash, number), which must be present."""
    cdef uint32_t home = home_of(index, hash), bucket = home, _step, back, mask, at
    cdef uint16_t tag = tag_of(hash)
    for _step in range(PROBE_LIMIT):
        mask = match_tags(index.buckets[bucket].tags, tag)
        while mask:
            at = ctz32(mask)
            mask &= mask - 1
            if index.buckets[bucket].numbers[at] == number:
                index.buckets[bucket].tags[at] = 0
                back = home
                while back != bucket:
                    index.buckets[back].overflow -= 1
                    back = back + 1 if back + 1 < index.count else 0
                return
        bucket = bucket + 1 if bucket + 1 < index.count else 0

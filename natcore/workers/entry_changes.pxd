"""Effects of changed entries on live sessions: counting and ending them. Call with all workers locked."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from natcore.tables.criteria cimport Criteria
from natcore.tables.mappings cimport Mapping
from natcore.tables.entries cimport AddressRange, RuleSet
from natcore.workers.worker cimport Worker

cdef struct Staying:            # sessions of an entry that may stay
    uint32_t count              # of addresses
    uint64_t first              # range of inside addresses, host order
    uint64_t last
    uint32_t* addresses         # [count] indices of outside addresses, ascending

cdef class Transition:
    cdef RuleSet rules
    cdef uint32_t entries       # numbers are below it
    cdef uint32_t count         # of entries that leave, or change
    cdef Staying* leaving       # [count]
    cdef Staying** by_entry     # [entries] NULL: the entry stays as it is
    cdef uint8_t* marks         # [entries]
    cdef bint drains            # some entry does
    cdef uint32_t range_count
    cdef AddressRange* ranges   # [range_count] ascending, disjoint: inside addresses of the entries that come

cdef void count_sessions(Worker* worker, Transition after, uint64_t* kept, uint64_t* drained, uint64_t* ended) noexcept nogil
cdef uint64_t end_sessions(Worker* worker, Transition after, uint64_t now_ns) noexcept nogil
cdef void drain_mappings(Worker* worker, Transition after) noexcept nogil
cdef void count_entries(Worker* worker, uint64_t* counts, uint64_t entries) noexcept nogil
cdef uint64_t end_matching(Worker* worker, const Criteria* criteria, uint64_t newest, uint64_t now_ns, uint32_t* slot,
                           uint32_t last, bint losing) noexcept nogil
cdef const Mapping* holder_of(const Worker* worker, uint32_t address, uint32_t space, uint32_t port) noexcept nogil
cdef void end_dead(Worker* worker, uint64_t now_ns) noexcept nogil

"""SNAT entries compiled for look-up: disjoint ranges of inside addresses, each with the entry of its longest prefix."""
from libc.stdint cimport uint32_t

cdef struct SnatRule:
    uint32_t entry              # its number
    uint32_t pool_size
    const uint32_t* pool        # numbers of outside addresses

cdef struct Rules:
    uint32_t count
    uint32_t* starts            # [count] ascending, host order; range i ends before starts[i + 1]
    SnatRule** rules            # [count] NULL: no entry covers the range

cdef class RuleSet:
    """An immutable set of entries: made whole, swapped whole."""
    cdef Rules compiled
    cdef SnatRule* table
    cdef uint32_t* pools

cdef inline const SnatRule* snat_rule(const Rules* rules, uint32_t source) noexcept nogil:
    """The entry that covers an inside source (host order), or NULL."""
    cdef uint32_t low = 0, high = rules.count, middle
    while low < high:
        middle = (low + high) >> 1
        if rules.starts[middle] <= source:
            low = middle + 1
        else:
            high = middle
    return rules.rules[low - 1] if low else NULL

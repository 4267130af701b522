"""Circular doubly linked lists over an array of links: insert, remove and rotate in O(1). An empty list's first is NONE."""
from libc.stdint cimport uint32_t

from natcore.base.sentinels cimport NONE

cdef struct Link:
    uint32_t next               # of the last: the first
    uint32_t previous           # of the first: the last

cdef inline void link(Link* links, uint32_t* first, uint32_t slot) noexcept nogil:
    """Inserts slot at the front of the list."""
    cdef uint32_t after = first[0], last
    if after == NONE:
        links[slot].next = links[slot].previous = slot
    else:
        last = links[after].previous
        links[slot].next = after
        links[slot].previous = last
        links[after].previous = slot
        links[last].next = slot
    first[0] = slot

cdef inline void unlink(Link* links, uint32_t* first, uint32_t slot) noexcept nogil:
    cdef uint32_t after = links[slot].next
    if after == slot:
        first[0] = NONE
        return
    links[after].previous = links[slot].previous
    links[links[slot].previous].next = after
    if first[0] == slot:
        first[0] = after

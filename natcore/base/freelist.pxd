"""Free list of a table's slots: the last one freed is reused first; a free slot's first word links to the next."""
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t

from natcore.base.compiler cimport prefetch_write, store_relaxed
from natcore.base.sentinels cimport NONE

cdef struct Freelist:
    uint8_t* base
    size_t stride               # bytes of a slot
    uint32_t capacity
    uint32_t fresh              # slots ever used: [0, fresh)
    uint32_t free               # last one freed, or NONE
    uint32_t live               # slots in use; atomic: read by other workers

cdef inline void freelist_init(Freelist* freelist, void* base, size_t stride, uint32_t capacity) noexcept nogil:
    freelist.base = <uint8_t*>base
    freelist.stride = stride
    freelist.capacity = capacity
    freelist.fresh = freelist.live = 0
    freelist.free = NONE

cdef inline uint32_t freelist_take(Freelist* freelist) noexcept nogil:
    """Takes a slot, not cleared, or NONE."""
    cdef uint32_t slot = freelist.free
    if slot != NONE:
        freelist.free = (<uint32_t*>(freelist.base + slot * freelist.stride))[0]
        prefetch_write(freelist.base + freelist.free * freelist.stride)     # for the next call; harmless for NONE
    elif freelist.fresh < freelist.capacity:
        slot = freelist.fresh
        freelist.fresh += 1
    else:
        return NONE
    store_relaxed(&freelist.live, freelist.live + 1)
    return slot

cdef inline void freelist_give(Freelist* freelist, uint32_t slot) noexcept nogil:
    (<uint32_t*>(freelist.base + slot * freelist.stride))[0] = freelist.free
    freelist.free = slot
    store_relaxed(&freelist.live, freelist.live - 1)

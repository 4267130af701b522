"""Free list of a table's slots: the last one freed is reused first; a free slot's first word links to the next."""
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t

from natcore.base.compiler cimport prefetch_write, store_relaxed

cdef enum:
    NO_SLOT = 0xFFFFFFFF

cdef struct Slab:
    uint8_t* base
    size_t stride               # bytes of a slot
    uint32_t capacity
    uint32_t fresh              # slots ever used: [0, fresh)
    uint32_t free               # last one freed, or NO_SLOT
    uint32_t live               # slots in use; atomic: read by other workers

cdef inline void slab_begin(Slab* slab, void* base, size_t stride, uint32_t capacity) noexcept nogil:
    slab.base = <uint8_t*>base
    slab.stride = stride
    slab.capacity = capacity
    slab.fresh = slab.live = 0
    slab.free = NO_SLOT

cdef inline uint32_t slab_take(Slab* slab) noexcept nogil:
    """Takes a slot, not cleared, or NO_SLOT."""
    cdef uint32_t slot = slab.free
    if slot != NO_SLOT:
        slab.free = (<uint32_t*>(slab.base + slot * slab.stride))[0]
        prefetch_write(slab.base + slab.free * slab.stride)     # for the next call; harmless for NO_SLOT
    elif slab.fresh < slab.capacity:
        slot = slab.fresh
        slab.fresh += 1
    else:
        return NO_SLOT
    store_relaxed(&slab.live, slab.live + 1)
    return slot

cdef inline void slab_give(Slab* slab, uint32_t slot) noexcept nogil:
    (<uint32_t*>(slab.base + slot * slab.stride))[0] = slab.free
    slab.free = slot
    store_relaxed(&slab.live, slab.live - 1)

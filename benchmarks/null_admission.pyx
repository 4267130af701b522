"""The least that a new session costs, the yardstick of admission: a slot is claimed, its two lines and its two bucket
entries are written; and given back. Nothing is looked up, allocated or counted."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from natcore.base.hash_table cimport Index, index_delete, index_insert, index_new, index_remove
from natcore.base.pages cimport table_delete, table_new
from natcore.base.freelist cimport Freelist, freelist_init, freelist_give, freelist_take


cdef class NullTable:
    """Lines for `capacity` sessions and two indexes of them, at the load that the gateway's have."""
    cdef uint8_t* hot
    cdef uint8_t* cold
    cdef Index outbound
    cdef Index inbound
    cdef Freelist slots
    cdef uint32_t capacity

    def __cinit__(self, uint32_t capacity):
        self.capacity = capacity
        self.hot = <uint8_t*>table_new(<uint64_t>capacity * 64)
        self.cold = <uint8_t*>table_new(<uint64_t>capacity * 64)
        if (self.hot == NULL or self.cold == NULL or not index_new(&self.outbound, capacity)
                or not index_new(&self.inbound, capacity)):
            raise MemoryError(f"{capacity} sessions")
        freelist_init(&self.slots, self.hot, 64, capacity)

    def __dealloc__(self):
        table_delete(self.hot, <uint64_t>self.capacity * 64)
        table_delete(self.cold, <uint64_t>self.capacity * 64)
        index_delete(&self.outbound)
        index_delete(&self.inbound)

    def admit(self, const uint64_t[::1] outbound not None, const uint64_t[::1] inbound not None,
              uint32_t[::1] slots not None):
        """A session for each pair of hashes; slots is written. How many fit."""
        cdef Py_ssize_t i, admitted = 0
        cdef uint32_t slot
        with nogil:
            for i in range(outbound.shape[0]):
                slot = freelist_take(&self.slots)
                slots[i] = slot
                memset(self.hot + <uint64_t>slot * 64, 1, 64)
                memset(self.cold + <uint64_t>slot * 64, 1, 64)
                admitted += (index_insert(&self.outbound, outbound[i], slot)
                             and index_insert(&self.inbound, inbound[i], slot))
        return admitted

    def give_back(self, const uint64_t[::1] outbound not None, const uint64_t[::1] inbound not None,
                  const uint32_t[::1] slots not None):
        """The same sessions end."""
        cdef Py_ssize_t i
        with nogil:
            for i in range(outbound.shape[0]):
                index_remove(&self.outbound, outbound[i], slots[i])
                index_remove(&self.inbound, inbound[i], slots[i])
                freelist_give(&self.slots, slots[i])

"""Holding compiled entries: what python/natcore/entries.py flattened, as arrays that the packet's side can bisect."""
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free


cdef class RuleSet:
    def __cinit__(self, list entries not None, list ranges not None):
        """entries: [(number, [outside address numbers])]. ranges: [(first inside address, index of an entry or None)]."""
        cdef uint32_t i, at = 0
        self.table = <SnatRule*>calloc(len(entries) + 1, sizeof(SnatRule))
        self.pools = <uint32_t*>calloc(sum([len(pool) for _, pool in entries]) + 1, sizeof(uint32_t))
        self.compiled.starts = <uint32_t*>calloc(len(ranges) + 1, sizeof(uint32_t))
        self.compiled.rules = <SnatRule**>calloc(len(ranges) + 1, sizeof(SnatRule*))
        if not (self.table and self.pools and self.compiled.starts and self.compiled.rules):
            raise MemoryError(f"{len(entries)} entries")
        for i, (number, pool) in enumerate(entries):
            self.table[i].entry = number
            self.table[i].pool_size = len(pool)
            self.table[i].pool = &self.pools[at]
            for address in pool:
                self.pools[at] = address
                at += 1
        self.compiled.count = len(ranges)
        for i, (start, index) in enumerate(ranges):
            self.compiled.starts[i] = start
            self.compiled.rules[i] = NULL if index is None else &self.table[<uint32_t>index]

    def __dealloc__(self):
        free(self.table)
        free(self.pools)
        free(self.compiled.starts)
        free(self.compiled.rules)

"""Builds the compiled entries: the ranges that python/natcore/entries/table.py sorted, as arrays for binary search."""
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from natcore.base.compiler cimport bswap32


cdef void* array(size_t count, size_t size) except NULL:
    cdef void* memory = calloc(count + 1, size)
    if memory == NULL:
        raise MemoryError(f"{count} entries")
    return memory


cdef tuple words_of(list pool):
    """(the first, how many) words of 64 numbers of outside addresses that a pool's lie in."""
    return (min(pool) >> 6, (max(pool) >> 6) - (min(pool) >> 6) + 1) if pool else (0, 0)


cdef class RuleSet:
    def __cinit__(self, list snat not None, list ranges not None, list dnat not None, list dnat_ranges not None,
                  list one_to_one not None, list no_nat not None, list inside not None,
                  list inside_endpoints not None, list no_nat_starts not None, list no_nat_sources not None):
        """Addresses and ports in host order; entries and outside addresses by their numbers in the core.

        snat: [(entry, first inside address, [outside address])]. ranges: [(first inside address, index into snat or None)],
        ascending.
        dnat: [(entry, outside address, ip, outside port, inside port, [(inside address, weight)])].
        dnat_ranges: [(first key, last key, index into dnat)], ascending. one_to_one: [(inside address, index into dnat)],
        ascending. no_nat: [(entry, source, source mask, destination, destination mask)]. inside: [(first, last)] addresses,
        ascending, disjoint. inside_endpoints: as dnat_ranges, of inside endpoints; of several with the same range the first
        added last. no_nat_starts: [(first source, index into no_nat_sources or None)], ascending. no_nat_sources: [(index of
        the prefix around it or None, [(first destination, last, index into no_nat)])], destinations ascending, disjoint.
        """
        self.snat = <SnatRule*>array(len(snat), sizeof(SnatRule))
        self.dnat = <DnatRule*>array(len(dnat), sizeof(DnatRule))
        self.pools = <uint32_t*>array(sum([len(pool) for _, _, pool in snat]), sizeof(uint32_t))
        self.targets = <DnatTarget*>array(sum([len(row[5]) for row in dnat]), sizeof(DnatTarget))
        self.compiled.starts = <uint32_t*>array(len(ranges), sizeof(uint32_t))
        self.compiled.rules = <SnatRule**>array(len(ranges), sizeof(SnatRule*))
        self.compiled.ranges = <DnatRange*>array(len(dnat_ranges), sizeof(DnatRange))
        self.compiled.one_to_one = <OneToOneRule*>array(len(one_to_one), sizeof(OneToOneRule))
        self.compiled.no_nat = <NoNatRule*>array(len(no_nat), sizeof(NoNatRule))
        self.compiled.no_nat_starts = <uint32_t*>array(len(no_nat_starts), sizeof(uint32_t))
        self.compiled.no_nat_sources = <NoNatSource**>array(len(no_nat_starts), sizeof(NoNatSource*))
        self.sources = <NoNatSource*>array(len(no_nat_sources), sizeof(NoNatSource))
        self.destinations = <NoNatRange*>array(sum([len(row[1]) for row in no_nat_sources]), sizeof(NoNatRange))
        self.compiled.inside_endpoints = <DnatRange*>array(len(inside_endpoints), sizeof(DnatRange))
        self.compiled.inside = <AddressRange*>array(len(inside), sizeof(AddressRange))
        self.members = <uint64_t*>array(sum([words_of(pool)[1] for _, _, pool in snat]), sizeof(uint64_t))
        self.fill_snat(snat, ranges)
        self.fill_dnat(dnat, dnat_ranges, one_to_one)
        self.fill_no_nat(no_nat, no_nat_starts, no_nat_sources)
        for first, last, index in inside_endpoints:
            self.compiled.inside_endpoints[self.compiled.inside_endpoint_count] = DnatRange(first, last,
                                                                                            &self.dnat[<uint32_t>index])
            self.compiled.inside_endpoint_count += 1
        for first, last in inside:
            self.compiled.inside[self.compiled.inside_count] = AddressRange(first, last)
            self.compiled.inside_count += 1

    cdef fill_snat(self, list snat, list ranges):
        cdef uint32_t i, at = 0, word = 0, address
        for i, (entry, first, pool) in enumerate(snat):
            first_word, words = words_of(pool)
            self.snat[i].pool = Pool(entry, first, len(pool), &self.pools[at], &self.members[word], first_word, words, False)
            for address in pool:
                self.pools[at] = address
                self.members[word + (address >> 6) - <uint32_t>first_word] |= <uint64_t>1 << (address & 63)
                at += 1
            word += words
        self.compiled.count = len(ranges)
        for i, (start, index) in enumerate(ranges):
            self.compiled.starts[i] = start
            self.compiled.rules[i] = NULL if index is None else &self.snat[<uint32_t>index]

    cdef fill_dnat(self, list dnat, list ranges, list one_to_one):
        cdef uint32_t i, at = 0
        cdef DnatRule* rule
        for i, (entry, address, ip, outside_port, inside_port, targets) in enumerate(dnat):
            rule = &self.dnat[i]
            rule.entry = entry
            rule.address = address
            rule.outside_ip = bswap32(ip)
            rule.outside_port = outside_port
            rule.inside_port = inside_port
            rule.target_count = len(targets)
            rule.targets = &self.targets[at]
            for inside_ip, weight in targets:
                self.targets[at] = DnatTarget(bswap32(inside_ip), rule.total_weight)
                rule.total_weight += weight
                at += 1
        self.compiled.range_count = len(ranges)
        for i, (first, last, index) in enumerate(ranges):
            self.compiled.ranges[i] = DnatRange(first, last, &self.dnat[<uint32_t>index])
        self.compiled.one_to_one_count = len(one_to_one)
        for i, (inside_ip, index) in enumerate(one_to_one):
            self.compiled.one_to_one[i] = OneToOneRule(inside_ip, &self.dnat[<uint32_t>index])

    cdef fill_no_nat(self, list no_nat, list starts, list sources):
        cdef uint32_t i, at = 0
        cdef NoNatSource* one
        for entry, source, source_mask, destination, destination_mask in no_nat:
            self.compiled.no_nat[self.compiled.no_nat_count] = NoNatRule(entry, source, source_mask, destination,
                                                                         destination_mask)
            self.compiled.no_nat_count += 1
        for i, (around, ranges) in enumerate(sources):
            one = &self.sources[i]
            one.around = NULL if around is None else &self.sources[<uint32_t>around]
            one.count = len(ranges)
            one.ranges = &self.destinations[at]
            for first, last, index in ranges:
                self.destinations[at] = NoNatRange(first, last, &self.compiled.no_nat[<uint32_t>index])
                at += 1
        self.compiled.no_nat_start_count = len(starts)
        for i, (start, index) in enumerate(starts):
            self.compiled.no_nat_starts[i] = start
            self.compiled.no_nat_sources[i] = NULL if index is None else &self.sources[<uint32_t>index]

    def __dealloc__(self):
        free(self.sources)
        free(self.destinations)
        free(self.compiled.no_nat_starts)
        free(self.compiled.no_nat_sources)
        free(self.snat)
        free(self.dnat)
        free(self.pools)
        free(self.members)
        free(self.targets)
        free(self.compiled.starts)
        free(self.compiled.rules)
        free(self.compiled.ranges)
        free(self.compiled.one_to_one)
        free(self.compiled.no_nat)
        free(self.compiled.inside_endpoints)
        free(self.compiled.inside)

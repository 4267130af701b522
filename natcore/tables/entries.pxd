"""Entries compiled for lookup: SNAT by longest prefix, DNAT by outside endpoint, 1:1 by inside address, no-NAT by both ends."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore.base.search cimport upper_bound32, upper_bound64
from natcore.tables.ports cimport Pool

cdef enum:
    ANY_SPACE = 3                # protocols without ports: a fourth port space, beside those of ports.pxd

cdef struct SnatRule:
    Pool pool

cdef struct DnatTarget:
    uint32_t ip                  # inside address, big-endian
    uint32_t before              # sum of the weights of the targets before it

cdef struct DnatRule:
    uint32_t entry               # number of the entry
    uint32_t address             # index of the outside address
    uint32_t outside_ip          # big-endian
    uint16_t outside_port        # first port of the range, host order
    uint16_t inside_port         # inside port that outside_port maps to
    uint32_t total_weight
    uint32_t target_count
    const DnatTarget* targets

cdef struct DnatRange:           # range of outside or inside endpoints, as keys (dnat_key)
    uint64_t first
    uint64_t last
    const DnatRule* rule

cdef struct OneToOneRule:          # 1:1 entry, looked up by its inside address
    uint32_t inside_ip           # host order
    const DnatRule* rule

cdef struct NoNatSource

cdef struct NoNatRule:           # a no-NAT entry
    uint32_t entry
    uint32_t source              # host order
    uint32_t source_mask
    uint32_t destination
    uint32_t destination_mask

cdef struct NoNatRange:          # range of destinations, host order
    uint32_t first
    uint32_t last
    const NoNatRule* rule

cdef struct NoNatSource:         # a source prefix of no-NAT entries
    const NoNatSource* around    # the next longer prefix that contains it, or NULL: 32 at most
    uint32_t count
    NoNatRange* ranges           # [count] ascending, disjoint; on overlap the entry added first

cdef struct AddressRange:        # host order, both ends included
    uint32_t first
    uint32_t last

cdef struct Rules:
    uint32_t count
    uint32_t* starts             # [count] ascending, host order; range i ends before starts[i + 1]
    SnatRule** rules             # [count] NULL: no entry covers the range
    uint32_t range_count
    DnatRange* ranges            # [range_count] ascending, disjoint
    uint32_t one_to_one_count
    OneToOneRule* one_to_one     # [one_to_one_count] ascending
    uint32_t no_nat_count
    NoNatRule* no_nat            # [no_nat_count] in the order in which the entries were added; the first match wins
    uint32_t no_nat_start_count
    uint32_t* no_nat_starts      # [no_nat_start_count] ascending sources, host order; range i ends before starts[i + 1]
    NoNatSource** no_nat_sources    # [no_nat_start_count] the longest prefix of the range, or NULL
    uint32_t inside_endpoint_count
    # [inside_endpoint_count] ascending; two are disjoint, or the same range of two entries: then the one added first is last
    DnatRange* inside_endpoints
    uint32_t inside_count
    AddressRange* inside         # [inside_count] ascending, disjoint: addresses that entries declare to be inside

cdef void* array(size_t count, size_t size) except NULL       # zero; for `free`

cdef class RuleSet:
    """An immutable set of entries; updates replace the whole set."""
    cdef Rules compiled
    cdef SnatRule* snat
    cdef DnatRule* dnat
    cdef uint32_t* pools
    cdef uint64_t* members
    cdef DnatTarget* targets
    cdef NoNatSource* sources
    cdef NoNatRange* destinations
    cdef fill_snat(self, list snat, list ranges)
    cdef fill_dnat(self, list dnat, list ranges, list one_to_one)
    cdef fill_no_nat(self, list no_nat, list starts, list sources)

cdef inline const SnatRule* snat_rule(const Rules* rules, uint32_t source) noexcept nogil:
    """The entry that covers an inside source (host order), or NULL."""
    cdef uint32_t low = upper_bound32(rules.starts, sizeof(uint32_t), rules.count, source)
    return rules.rules[low - 1] if low else NULL

cdef inline uint64_t dnat_key(uint32_t ip, uint32_t space, uint32_t port) noexcept nogil:
    """Key of an endpoint, ordered by address, then port space, then port. ip, port: host order."""
    return <uint64_t>ip << 18 | space << 16 | port

cdef inline const DnatRange* range_with(const DnatRange* ranges, uint32_t count, uint64_t key) noexcept nogil:
    """The last range that contains the key, or NULL."""
    cdef uint32_t low = upper_bound64(&ranges[0].first, sizeof(DnatRange), count, key)
    return &ranges[low - 1] if low and key <= ranges[low - 1].last else NULL

cdef inline const DnatRule* dnat_rule(const Rules* rules, uint64_t key) noexcept nogil:
    """The entry that has this outside endpoint, or NULL."""
    cdef const DnatRange* found = range_with(rules.ranges, rules.range_count, key)
    return found.rule if found != NULL else NULL

cdef inline const DnatRange* range_of_inside(const Rules* rules, uint64_t key) noexcept nogil:
    """The first added DNAT or 1:1 entry that forwards to an inside endpoint, or NULL; next_of_inside continues."""
    return range_with(rules.inside_endpoints, rules.inside_endpoint_count, key)

cdef inline const DnatRange* next_of_inside(const Rules* rules, const DnatRange* at) noexcept nogil:
    """The entry added next that forwards to the same inside endpoints, or NULL: none, or `at` has no other target."""
    return at - 1 if at > rules.inside_endpoints and (at - 1).first == at.first else NULL

cdef inline const DnatRule* one_to_one_rule(const Rules* rules, uint32_t source) noexcept nogil:
    """The 1:1 entry of an inside address (host order), or NULL."""
    cdef uint32_t low = upper_bound32(&rules.one_to_one[0].inside_ip, sizeof(OneToOneRule), rules.one_to_one_count, source)
    return rules.one_to_one[low - 1].rule if low and rules.one_to_one[low - 1].inside_ip == source else NULL

cdef inline const NoNatRule* no_nat_rule(const Rules* rules, uint32_t source, uint32_t destination) noexcept nogil:
    """The first no-NAT entry of the two ends (host order), or NULL. Prefixes nest: of 33 that contain the source, one search
    each."""
    cdef uint32_t low = upper_bound32(rules.no_nat_starts, sizeof(uint32_t), rules.no_nat_start_count, source)
    cdef const NoNatSource* at = rules.no_nat_sources[low - 1] if low else NULL
    cdef const NoNatRule* first = NULL
    while at != NULL:
        low = upper_bound32(&at.ranges[0].first, sizeof(NoNatRange), at.count, destination)
        if low and destination <= at.ranges[low - 1].last and (first == NULL or at.ranges[low - 1].rule < first):
            first = at.ranges[low - 1].rule
        at = at.around
    return first

cdef inline bint in_ranges(const AddressRange* ranges, uint32_t count, uint32_t ip) noexcept nogil:
    """Whether one of the ranges contains the address (host order)."""
    cdef uint32_t low = upper_bound32(&ranges[0].first, sizeof(AddressRange), count, ip)
    return low and ip <= ranges[low - 1].last

cdef inline bint is_inside(const Rules* rules, uint32_t ip) noexcept nogil:
    """Whether an entry declares the address (host order) to be inside."""
    return in_ranges(rules.inside, rules.inside_count, ip)

cdef inline uint32_t dnat_target(const DnatRule* rule, uint64_t hash) noexcept nogil:
    """The target for a remote with this address hash: the same remote always gets the same target, in proportion to weights."""
    cdef uint64_t at = (hash >> 32) * rule.total_weight >> 32
    return rule.targets[upper_bound32(&rule.targets[0].before, sizeof(DnatTarget), rule.target_count, <uint32_t>at) - 1].ip

"""natcore/tables/entries and entries.flatten: the longest prefix that covers an inside source decides."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from natcore import NoNatEntry
from natcore.entries.table import Entry, Rulebook, by_source, flatten
from natcore.tables.entries import RuleSet
from natcore.testhooks.wrappers import no_nat_entry_of, rule_of, target_of

TOP = (1 << 32) - 1
NO_WIRES = Rulebook("internet", "NAT").wires(())


@st.composite
def prefixes(draw: st.DrawFn) -> list[IPv4Network]:
    """Prefixes that nest often: few distinct high bits; both ends of the address space among them."""
    made = set()
    for _ in range(draw(st.integers(0, 12))):
        length = draw(st.one_of(st.integers(0, 32), st.integers(0, 4), st.integers(29, 32)))
        address = draw(st.one_of(st.sampled_from([0, TOP, 0x0A000000, 0x0A0000FF]), st.integers(0, TOP)))
        made.add(IPv4Network((address >> (32 - length) << (32 - length), length)))
    return list(made)


def longest(networks: list[IPv4Network], source: int) -> int | None:
    """By looking at all of them."""
    covering = [(net.prefixlen, at) for at, net in enumerate(networks) if IPv4Address(source) in net]
    return max(covering)[1] if covering else None


def edges(networks: list[IPv4Network]) -> list[int]:
    """Where the answer may change."""
    near = {0, TOP}
    for net in networks:
        near |= {int(net.network_address), int(net.broadcast_address)}
        near |= {max(0, int(net.network_address) - 1), min(TOP, int(net.broadcast_address) + 1)}
    return sorted(near)


def ranges_of(networks: list[IPv4Network]) -> list[tuple[int, int | None]]:
    return flatten([(int(net[0]), int(net[-1]), at) for at, net in enumerate(networks)])


@given(prefixes(), st.lists(st.integers(0, TOP), max_size=20))
def test_compiled_rules_are_the_longest_prefix(networks: list[IPv4Network], sources: list[int]) -> None:
    entries = [(at + 1, int(network[0]), [at, at + 100]) for at, network in enumerate(networks)]
    rules = RuleSet(entries, ranges_of(networks), [], [], [], [], [], [], [], [])
    for source in (*edges(networks), *sources):
        at = longest(networks, source)
        assert rule_of(rules, source) == (None if at is None else (at + 1, [at, at + 100]))


@given(prefixes())
def test_flattened_ranges_ascend_and_begin_within_the_address_space(networks: list[IPv4Network]) -> None:
    starts = [start for start, _ in ranges_of(networks)]
    assert starts == sorted(set(starts))
    assert all(0 <= start <= TOP for start in starts)
    assert len(starts) <= 2 * len(networks) + 1


@given(st.lists(st.tuples(prefixes(), prefixes()), max_size=6), st.lists(st.integers(0, TOP), max_size=6))
def test_the_no_nat_entry_added_first_counts(
    drawn: list[tuple[list[IPv4Network], list[IPv4Network]]], more: list[int]
) -> None:
    pairs = [(source, to) for sources, destinations in drawn for source in sources[:4] for to in destinations[:4]]
    pairs = list(dict.fromkeys(pairs))
    entries = [NoNatEntry(str(source), str(to)) for source, to in pairs]
    rules = Rulebook("internet", "NAT").compile([Entry(at, entry) for at, entry in enumerate(entries, 1)], NO_WIRES)
    for source in (*edges([pair[0] for pair in pairs])[:20], *more):
        for to in (*edges([pair[1] for pair in pairs])[:20], *more):
            found = (
                at for at, pair in enumerate(pairs, 1) if IPv4Address(source) in pair[0] and IPv4Address(to) in pair[1]
            )
            assert no_nat_entry_of(rules, source, to) == next(found, None)


def test_sources_that_nest_33_deep_and_10_000_destinations_are_few_steps() -> None:
    """What a search does is in the structure: a chain of 33 prefixes at most, each with sorted ranges."""
    networks = [IPv4Network((0x0A000005 >> 32 - length << 32 - length, length)) for length in range(33)]
    nested = [NoNatEntry(network, "10.9.0.0/16") for network in networks]
    starts, sources = by_source(
        [*nested, *(NoNatEntry("10.0.0.0/8", f"172.{n >> 8}.{n & 255}.0/24") for n in range(10_000))]
    )
    depth, at = 0, next(index for start, index in reversed(starts) if start <= 0x0A000005)
    while at is not None:
        depth, at = depth + 1, sources[at][0]
    assert depth == 33 and max(len(ranges) for _, ranges in sources) == 10_001


def picked(targets: list[tuple[int, int]], hashed: int) -> int:
    """The target in proportion of the hash's upper half, by taking one weight after the other away."""
    at = (hashed >> 32) * sum(weight for _, weight in targets) >> 32
    for address, weight in targets:
        if at < weight:
            return address
        at -= weight
    raise AssertionError("beyond the weights")


@given(st.lists(st.integers(1, 65535), min_size=1, max_size=20), st.lists(st.integers(0, (1 << 64) - 1), max_size=10))
def test_a_target_is_found_among_the_weights_as_one_after_the_other_would(
    weights: list[int], hashes: list[int]
) -> None:
    targets = list(enumerate(weights, 0x0A000000))
    rules = RuleSet([], [], [(9, 0, 1, 1, 1, [(5, 7)]), (1, 0, 1, 80, 80, targets)], [], [], [], [], [], [], [])
    total, before = sum(weights), 0
    for _, weight in targets:  # the last hash of the targets before, and the first of this one's
        hashes += [(-(-(before << 32) // total) << 32) - (before > 0), -(-(before << 32) // total) << 32]
        before += weight
    for hashed in (*hashes, 0, (1 << 64) - 1):
        assert target_of(rules, 1, hashed) == picked(targets, hashed)


def test_no_entry_covers_nothing() -> None:
    assert rule_of(RuleSet([], [], [], [], [], [], [], [], [], []), 0x0A000001) is None


def test_the_whole_address_space_is_one_range() -> None:
    assert flatten([(0, TOP, "all")]) == [(0, "all")]


def test_a_prefix_at_the_end_of_the_address_space_opens_no_range_behind_it() -> None:
    assert flatten([(TOP, TOP, "last")]) == [(TOP, "last")]


def test_a_narrow_prefix_that_begins_with_the_wide_one_comes_first() -> None:
    assert flatten([(0, 255, "wide"), (0, 15, "narrow")]) == [(0, "narrow"), (16, "wide"), (256, None)]

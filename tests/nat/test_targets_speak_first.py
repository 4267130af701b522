"""Targets of DNAT and 1:1 entries that speak first: one outside endpoint for an inside one (RFC 4787 REQ-1)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from natcore import Add, DnatEntry, Gateway, NoNatEntry, Policy, Remove, Side, Verdict
from natcore.entries.table import in_turn
from support.frames import EIP, HOST, IP, REMOTE, TCP, UDP, Ether, gateway, parsed, tcp, udp, verdict_of
from support.multi_worker import WORKERS

INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE
SECOND, WHOLE = "203.0.113.9", "203.0.113.10"
OTHER = "10.0.0.6"


def forwarding(*entries: Any, **settings: Any) -> Gateway:
    over = gateway(**settings)
    for entry in entries or (DnatEntry(EIP, 51820, HOST, 51820, protocol="udp"),):
        over.add(entry)
    return over


def source_of(over: Gateway, frame: bytes) -> tuple[str, int]:
    verdict, sent = over.translate_one(frame, INSIDE, 0.0)
    assert verdict is Verdict.OUTBOUND
    packet = parsed(sent)
    return packet.src, packet.sport


@pytest.mark.parametrize("workers", [1, 3])
def test_a_forwarded_endpoint_that_speaks_first_has_its_entry_s_endpoint(workers: int) -> None:
    """WireGuard speaks first from its listening port: a second endpoint would make the forwarded flow a conflict for good."""
    over = forwarding(workers=workers if WORKERS == 1 else WORKERS)
    assert source_of(over, udp(sport=51820, dport=51820)) == (EIP, 51820)
    for remote in (REMOTE, "198.51.100.8"):
        verdict, sent = over.translate_one(udp(remote, 51820, EIP, 51820), OUTSIDE, 0.0)
        assert verdict is Verdict.INBOUND and (parsed(sent).dst, parsed(sent).dport) == (HOST, 51820)
    assert source_of(over, udp(sport=51820, destination="198.51.100.8", dport=51820)) == (EIP, 51820)
    assert source_of(over, udp(sport=51821, dport=51820))[1] != 51820  # another endpoint
    assert source_of(over, tcp("S", sport=51820))[1] != 51820  # another protocol
    assert len(over.take_records(events=True)) == 2  # DNAT is not logged (contract R5)


def test_ranges_and_any_keep_the_distance() -> None:
    over = forwarding(
        DnatEntry(EIP, (1020, 1030), HOST, (20, 30), protocol="tcp"), DnatEntry(SECOND, "any", OTHER, "any")
    )
    assert [source_of(over, tcp("S", sport=port)) for port in (20, 25, 30)] == [(EIP, 1020), (EIP, 1025), (EIP, 1030)]
    assert source_of(over, tcp("S", sport=31))[1] >= 1024
    assert source_of(over, tcp("S", OTHER, 7)) == (SECOND, 7)


def test_of_several_entries_the_first_added_and_one_to_one_among_them() -> None:
    one, other = DnatEntry(EIP, 80, HOST, 80), DnatEntry(SECOND, 8080, HOST, 80)
    whole = DnatEntry(WHOLE, "any", HOST, "any", protocol="any")
    assert source_of(forwarding(one, other, whole), tcp("S", sport=80)) == (EIP, 80)
    assert source_of(forwarding(other, one, whole), tcp("S", sport=80)) == (SECOND, 8080)
    assert source_of(forwarding(whole, one), tcp("S", sport=80)) == (WHOLE, 80)
    assert source_of(forwarding(one, whole), tcp("S", sport=81)) == (WHOLE, 81)
    over = forwarding(one, other)
    over.remove(over.entries()[1])
    assert source_of(over, tcp("S", sport=80)) == (SECOND, 8080)


def test_of_several_targets_the_one_that_the_remote_would_reach() -> None:
    """So a remote's packets to the entry's endpoint are for one host, whoever speaks first."""
    over = forwarding(DnatEntry(EIP, 80, [(HOST, 1), (OTHER, 1)], 80))
    chosen = set()
    for number in range(1, 60):
        remote = f"198.51.100.{number}"
        sources = [source_of(over, tcp("S", host, 80, remote)) for host in (HOST, OTHER)]
        own = [host for host, source in zip((HOST, OTHER), sources, strict=True) if source == (EIP, 80)]
        assert len(own) == 1
        verdict, sent = over.translate_one(tcp("S", remote, 7, EIP, 80), OUTSIDE, 0.0)
        assert verdict is Verdict.INBOUND and parsed(sent).dst == own[0]
        chosen.add(own[0])
    assert chosen == {HOST, OTHER}


def test_behind_an_entry_with_another_target_for_the_remote_the_next_one_counts() -> None:
    """Otherwise the host would have a second outside endpoint by SNAT, though an entry gives it one (RFC 4787 REQ-1)."""
    spread, own = DnatEntry(EIP, 80, [(HOST, 1), (OTHER, 1)], 80), DnatEntry(SECOND, 8080, HOST, 80)
    over = forwarding(spread, own)
    sources = {f"198.51.100.{n}": source_of(over, tcp("S", HOST, 80, f"198.51.100.{n}")) for n in range(1, 60)}
    assert set(sources.values()) == {(EIP, 80), (SECOND, 8080)}
    for remote, source in sources.items():
        verdict, sent = over.translate_one(tcp("S", remote, 7, EIP, 80), OUTSIDE, 0.0)
        assert verdict is Verdict.INBOUND and parsed(sent).dst == (HOST if source == (EIP, 80) else OTHER)
    whole = DnatEntry(WHOLE, "any", HOST, "any", protocol="any")
    for entries, outside in (((spread, own, whole), (SECOND, 8080)), ((spread, whole, own), (WHOLE, 80))):
        over = forwarding(*entries)
        assert {source_of(over, tcp("S", HOST, 80, remote)) for remote in sources} == {(EIP, 80), outside}


def test_no_nat_comes_first_and_needs_no_snat_entry() -> None:
    over = Gateway(max_sessions=10)
    over.add(DnatEntry(EIP, 80, HOST, 80))
    assert source_of(over, tcp("S", sport=80)) == (EIP, 80)
    assert verdict_of(over, tcp("S", sport=81)) is Verdict.DROP_NO_SNAT_ENTRY
    over.add(NoNatEntry("10.0.0.0/8", "198.51.100.0/24"))
    assert verdict_of(over, tcp("S", sport=80, destination="198.51.100.99")) is Verdict.UNTRANSLATED


def test_a_forwarded_endpoint_hairpins_by_its_entry_s_endpoint() -> None:
    over = forwarding(DnatEntry(EIP, 80, HOST, 80), DnatEntry(SECOND, 81, OTHER, 81))
    verdict, sent = over.translate_one(tcp("S", HOST, 80, SECOND, 81), INSIDE, 0.0)
    assert verdict is Verdict.HAIRPIN and (parsed(sent).src, parsed(sent).sport) == (EIP, 80)
    verdict, sent = over.translate_one(tcp("SA", OTHER, 81, EIP, 80), INSIDE, 0.0)
    assert verdict is Verdict.HAIRPIN and (parsed(sent).src, parsed(sent).sport) == (SECOND, 81)


def test_it_is_explained() -> None:
    over = forwarding()
    told = over.explain(udp(sport=51820), INSIDE)
    assert told.verdict is Verdict.OUTBOUND and told.entry is not None and "DNAT, by source" in str(told)
    assert parsed(told.frame).sport == 51820


# ---- after a restart


@pytest.mark.parametrize("flags", ["A", "PA", "FA"])
def test_a_server_s_data_finds_its_entry_s_port_after_a_restart(flags: str) -> None:
    over = forwarding(DnatEntry(EIP, 443, HOST, 8443))
    assert source_of(over, tcp(flags, HOST, 8443, REMOTE, 50_000)) == (EIP, 443)
    assert verdict_of(over, tcp("A", REMOTE, 50_000, EIP, 443), OUTSIDE) is Verdict.INBOUND
    assert len(over.sessions()) == 1


@pytest.mark.parametrize("entry", [
    DnatEntry(EIP, 443, HOST, 443), DnatEntry(WHOLE, "any", HOST, "any", protocol="any")
], ids=["dnat", "1:1"])  # fmt: skip
def test_a_connection_to_an_entry_is_picked_up_after_a_restart(entry: DnatEntry) -> None:
    over, to = forwarding(entry), str(entry.external_ip)
    assert verdict_of(over, tcp("R", REMOTE, 50_000, to, 443), OUTSIDE) is Verdict.DROP_FILTERED
    assert verdict_of(over, tcp("PA", REMOTE, 50_000, to, 443, seq=7, ack=9), OUTSIDE) is Verdict.INBOUND
    (row,) = over.sessions()
    assert (row["state"], row["deadline_ns"]) == (8, 30_000_000_000)  # a stranger's, until the inside answers
    assert source_of(over, tcp("A", HOST, 443, REMOTE, 50_000, seq=9, ack=7)) == (to, 443)
    (row,) = over.sessions()
    assert (row["state"], row["deadline_ns"]) == (3, 7_440_000_000_000)


def test_a_reset_leaves_a_stranger_s_session_unreplied() -> None:
    over = forwarding(DnatEntry(EIP, 443, HOST, 443))
    over.translate_one(tcp("A", REMOTE, 50_000, EIP, 443, seq=7, ack=9), OUTSIDE, 0.0)
    assert verdict_of(over, tcp("R", HOST, 443, REMOTE, 50_000, seq=9)) is Verdict.OUTBOUND
    assert over.sessions()[0]["deadline_ns"] == 30_000_000_000


def test_nothing_is_picked_up_where_the_policy_says_so_nor_over_an_open_mapping() -> None:
    over = forwarding(DnatEntry(EIP, 443, HOST, 443), policy=Policy(tcp_pickup=False))
    assert verdict_of(over, tcp("A", REMOTE, 50_000, EIP, 443), OUTSIDE) is Verdict.DROP_FILTERED
    over = gateway()
    verdict, sent = over.translate_one(tcp("S"), INSIDE, 0.0)
    assert verdict is Verdict.OUTBOUND
    port = Ether(sent)[TCP].sport
    assert verdict_of(over, tcp("A", "198.51.100.8", 443, EIP, port), OUTSIDE) is Verdict.DROP_FILTERED


# ---- how entries are compiled


RANGES = [(0, 9, 1), (5, 6, 0), (8, 20, 2), (30, 30, 5), (30, 30, 4), (31, 40, 4), (31, 35, 4)]


@pytest.mark.parametrize("final", [set(range(6)), {0, 2}, set()])
def test_ranges_are_cut_and_of_the_same_range_the_first_added_is_last(final: set[int]) -> None:
    cut = in_turn(RANGES, final)
    assert all(one[:2] == other[:2] or one[1] < other[0] for one, other in pairwise(cut))
    for at in range(45):
        ranks = sorted({rank for first, last, rank in RANGES if first <= at <= last})
        until = next((i + 1 for i, rank in enumerate(ranks) if rank in final), len(ranks))
        assert [rank for first, last, rank in cut if first <= at <= last] == ranks[:until][::-1]


__all__ = ["IP", "UDP"]


# ---- an entry that comes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    "entry",
    [
        DnatEntry(EIP, 51820, HOST, 51820, protocol="udp"),
        DnatEntry(SECOND, (1, 100), HOST, (51800, 51899), protocol="udp"),
        DnatEntry(EIP, 51820, [(HOST, 1), (OTHER, 9)], 51820, protocol="udp"),
        DnatEntry(WHOLE, "any", HOST, "any", protocol="any"),
        NoNatEntry("10.0.0.0/16", "198.51.100.0/24"),
        NoNatEntry("0.0.0.0/0", f"{REMOTE}/32"),
    ],
    ids=str,
)
def test_the_sessions_of_an_endpoint_that_an_entry_comes_for_end(entry: Any, workers: int) -> None:
    """They would keep a second outside endpoint, and the forwarded flow from the same remote a conflict, for hours."""
    over = gateway(workers=workers if WORKERS == 1 else WORKERS)
    source_of(over, udp(sport=51820, dport=51820))
    source_of(over, udp(OTHER, 7, "192.0.2.1"))
    over.take_records()
    assert (over.plan([Add(entry)]).ended, over.plan([Add(entry)]).kept) == (1, 1)
    over.add(entry)
    [row] = over.sessions()
    assert row["inside_port"] == 7 and len(over.mappings()) == 1
    [window, end] = over.take_records(events=True)[-2:]
    assert window["pri_port"] == end["pri_port"] == 51820 and window["pkts_from_vpc"] == 1
    if isinstance(entry, DnatEntry) and len(entry.internal_ip) == 1:
        first, _, inside_first = entry.ports
        outside = (str(entry.external_ip), 51820 - inside_first + first)
        verdict, sent = over.translate_one(udp(REMOTE, 51820, *outside), OUTSIDE, 0.0)
        assert verdict is Verdict.INBOUND and (parsed(sent).dst, parsed(sent).dport) == (HOST, 51820)
        assert source_of(over, udp(sport=51820, dport=51820)) == outside


def test_an_entry_behind_one_of_several_targets_comes_for_the_remotes_of_the_others() -> None:
    spread, own = DnatEntry(EIP, 80, [(HOST, 1), (OTHER, 1)], 80), DnatEntry(SECOND, 8080, HOST, 80)
    over = forwarding(spread)
    before = {f"198.51.100.{n}": source_of(over, tcp("S", HOST, 80, f"198.51.100.{n}")) for n in range(1, 60)}
    stay = [remote for remote, source in before.items() if source == (EIP, 80)]
    assert 0 < len(stay) < len(before)
    plan = over.plan([Add(own)])
    assert (plan.kept, plan.ended) == (len(stay), len(before) - len(stay))
    over.add(own)
    assert len(over.sessions()) == len(stay)
    after = {remote: source_of(over, tcp("S", HOST, 80, remote)) for remote in before}
    assert after == {remote: (EIP, 80) if remote in stay else (SECOND, 8080) for remote in before}


def test_only_what_an_entry_comes_for_ends() -> None:
    over = forwarding(DnatEntry(EIP, 80, HOST, 80), DnatEntry(SECOND, 443, HOST, 443))
    source_of(over, tcp("S", sport=81))
    source_of(over, udp(sport=80))
    source_of(over, tcp("S", sport=80))  # by the first entry
    verdict, _ = over.translate_one(tcp("S", REMOTE, 9, SECOND, 443), OUTSIDE, 0.0)
    assert verdict is Verdict.INBOUND
    for entry in (
        DnatEntry("203.0.113.11", 8080, HOST, 80),  # who was there first goes first
        DnatEntry("203.0.113.11", 443, HOST, 443),  # who came by an entry of its own stays
        DnatEntry("203.0.113.11", 81, HOST, 81, protocol="udp"),
        NoNatEntry("10.0.0.0/16", "192.0.2.0/24"),
    ):
        assert over.plan([Add(entry)]).ended == 0
        over.add(entry)
    assert len(over.sessions()) == 4


def test_what_drains_ends_by_itself_whatever_comes() -> None:
    over = forwarding(DnatEntry(EIP, 80, HOST, 80))
    source_of(over, tcp("S", sport=80))
    [_, entry] = over.entries()
    plan = over.plan([Remove(entry, drain=True), Add(DnatEntry(SECOND, 80, HOST, 80))])
    assert (plan.kept, plan.drained, plan.ended) == (0, 1, 0)
    assert over.apply(plan).ended == 0
    assert over.plan([Add(NoNatEntry("10.0.0.0/16", f"{REMOTE}/32"))]).ended == 0
    assert len(over.sessions()) == 1


def test_an_entry_that_is_replaced_comes_for_its_new_target() -> None:
    over = forwarding(DnatEntry(EIP, 80, OTHER, 80))
    source_of(over, tcp("S", sport=80))
    assert over.replace(over.entries()[1], DnatEntry(EIP, 80, HOST, 80)) == 1
    assert source_of(over, tcp("S", sport=80)) == (EIP, 80)

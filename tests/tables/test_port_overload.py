"""Overloaded ports: one outside port for many remotes, each remote endpoint with every port for itself."""

from __future__ import annotations

from typing import Any

import pytest

from natcore import Behaviour, ConfigurationError, DnatEntry, Gateway, Policy, Side, Verdict
from support.frames import EIP, HOST, REMOTE, Talk, counted, gateway, udp

STRICT = "address-and-port-dependent"
OUTBOUND = Verdict.OUTBOUND


def overload(last: int = 4003, *more: tuple[int, int]) -> Policy:
    return Policy(ports="overload", mapping=STRICT, filtering=STRICT, port_ranges=((4000, last), *more))


def fill(over: Gateway, remote: str, dport: int, count: int, host: str = HOST, first: int = 5000) -> list[Talk]:
    talks = [Talk(over, sport=first + n, dport=dport, host=host, remote=remote) for n in range(count)]
    assert {talk.out() for talk in talks} == {OUTBOUND}
    return talks


def test_each_remote_endpoint_has_every_port() -> None:
    over = gateway(policy=overload())
    talks = [
        talk
        for remote, dport in ((REMOTE, 53), (REMOTE, 54), ("198.51.100.8", 53))
        for talk in fill(over, remote, dport, 4)
    ]
    for group in (talks[:4], talks[4:8], talks[8:]):
        assert {talk.outside[1] for talk in group} == {4000, 4001, 4002, 4003}
    assert {talk.back() for talk in talks} == {Verdict.INBOUND}
    (row,) = over.ports()[over.ports()["protocol"] == 17]
    assert (row["used"], row["free"]) == (4, 0) and len(over.mappings()) == 12


def test_of_very_many_ports_the_last_one_is_found_and_the_next_is_refused() -> None:
    """Over the borders of the parts that are counted, of which some ports are an entry's, or in no range."""
    over = gateway(max_sessions=5000, policy=overload(4300, (5000, 5040)))
    over.add(DnatEntry(EIP, (4090, 4100), "10.0.0.9", (90, 100), protocol="udp"))
    count = (4301 - 4000) + (5041 - 5000) - 11
    first = fill(over, REMOTE, 53, 1, host="10.0.0.7")[0]
    talks = [first, *fill(over, REMOTE, 53, count - 1)]
    assert len({talk.outside[1] for talk in talks}) == count
    late = Talk(over, sport=9, dport=53, host="10.0.0.6")
    assert late.out() is Verdict.DROP_PORTS_EXHAUSTED
    fill(over, REMOTE, 54, 16)
    over.end(subscriber="10.0.0.7")
    assert late.out() is OUTBOUND and late.outside == first.outside
    assert Talk(over, sport=10, dport=53, host="10.0.0.6").out() is Verdict.DROP_PORTS_EXHAUSTED


def test_only_the_next_one_to_the_same_remote_is_refused() -> None:
    over = gateway(policy=overload())
    talks = fill(over, REMOTE, 53, 4)
    with counted(over, dropped_ports_exhausted=3, created=1):
        for _ in range(3):
            assert Talk(over, sport=9, dport=53, host="10.0.0.6").out() is Verdict.DROP_PORTS_EXHAUSTED
        assert Talk(over, sport=9, dport=54, host="10.0.0.6").out() is OUTBOUND
    (event,) = over.take_events()
    assert (event.reason, event.count, str(event.destination)) == ("ports-exhausted", 3, REMOTE)
    assert {talk.back() for talk in talks} == {Verdict.INBOUND}


def test_a_port_is_free_towards_a_remote_at_once() -> None:
    """Its filtering is address- and port-dependent: RFC 6888 REQ-8 asks for no hold-down."""
    over = gateway(policy=overload())
    fill(over, REMOTE, 53, 4)
    assert Talk(over, sport=9, dport=53, host="10.0.0.6").out() is Verdict.DROP_PORTS_EXHAUSTED
    over.end(subscriber=HOST)
    assert over.ports()["used"].sum() == over.ports()["held_down"].sum() == 0
    fill(over, REMOTE, 53, 4, host="10.0.0.6")


def test_what_comes_in_reaches_the_one_it_answers() -> None:
    over = gateway(policy=overload(last=4000))
    one, other = Talk(over, sport=1, dport=53), Talk(over, host="10.0.0.6", sport=2, dport=54)
    assert one.out() is other.out() is OUTBOUND and one.outside == other.outside
    assert one.back() is other.back() is Verdict.INBOUND
    assert one.back(sport=55) is Verdict.DROP_NO_MAPPING
    assert one.back(source="198.51.100.8") is Verdict.DROP_NO_MAPPING


def test_a_dnat_port_is_no_port_to_overload() -> None:
    over = gateway(policy=overload())
    entry = over.add(DnatEntry(EIP, (4001, 4003), "10.0.0.9", (1, 3), protocol="udp"))
    fill(over, REMOTE, 53, 1)
    assert Talk(over, sport=9).out() is OUTBOUND
    late = Talk(over, sport=9, dport=53)
    assert late.out() is Verdict.DROP_PORTS_EXHAUSTED
    with pytest.raises(ConfigurationError, match=r"port 4000 is held by the mapping of 10\.0\.0\.5:\d+"):
        over.add(DnatEntry(EIP, 4000, "10.0.0.9", 1, protocol="udp"))
    over.remove(entry)
    assert late.out() is OUTBOUND and late.outside[1] in (4001, 4002, 4003)


def test_dead_mappings_block_no_allocation() -> None:
    over = gateway(policy=overload())
    fill(over, REMOTE, 53, 4)
    late = Talk(over, sport=9, dport=53, host="10.0.0.6")
    late.now = 299.999
    assert late.out() is Verdict.DROP_PORTS_EXHAUSTED
    late.now = 300.0
    assert late.out() is OUTBOUND
    over.advance(300.0)
    assert over.counters()["ports_used"] == len(over.mappings()) == 1


@pytest.mark.parametrize("loose, named", [
    ({}, "tcp, udp, icmp"), ({"mapping": STRICT}, "tcp, udp, icmp"), ({"filtering": STRICT}, "tcp, udp, icmp"),
    ({"mapping": STRICT, "filtering": STRICT, "udp": Behaviour(filtering="address-dependent")}, "udp"),
])  # fmt: skip
def test_loose_behaviour_is_refused_by_name(loose: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"Policy\.ports='overload': .* not for {named}$"):
        Policy(ports="overload", **loose)


def test_hairpins_need_their_own_remote() -> None:
    over = gateway(policy=overload(last=4100))
    other = fill(over, REMOTE, 53, 1, host="10.0.0.6")[0]
    assert over.translate_one(udp(HOST, 5000, *other.outside), Side.INSIDE, 0.0)[0] is Verdict.DROP_NO_MAPPING
    assert len(over.sessions()) == 1 and over.ports()["used"].sum() == 1

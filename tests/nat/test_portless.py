"""Protocols without ports (ESP, GRE, SCTP): two hosts may not have one outside address towards one server."""

from __future__ import annotations

import pytest

from natcore import Gateway, Policy, Side, Timeouts, Verdict
from support.frames import HOST, IP, REMOTE, Ether, Raw, ether, gateway, ip, verdict_of

INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE
POOL = ["203.0.113.1", "203.0.113.2", "203.0.113.3"]
HOSTS = [HOST, "10.0.0.6", "10.0.0.7", "10.0.0.8"]


def esp(source: str, destination: str = REMOTE, protocol: int = 50) -> bytes:
    return ether(ip(source, destination, proto=protocol) / Raw(bytes(40)))


def address(
    over: Gateway, source: str, destination: str = REMOTE, protocol: int = 50, now: float = 0.0
) -> str | Verdict:
    verdict, sent = over.translate_one(esp(source, destination, protocol), INSIDE, now)
    return Ether(sent)[IP].src if verdict is Verdict.OUTBOUND else verdict


@pytest.mark.parametrize("protocol", [47, 50, 132])
@pytest.mark.parametrize("pooling", ["arbitrary", "paired-soft", "paired"])
def test_each_new_host_has_an_address_of_its_own_towards_a_server(pooling: str, protocol: int) -> None:
    for seed in range(8):
        over = gateway(pool=POOL, seed=seed, policy=Policy(pooling=pooling))
        given = [address(over, host, protocol=protocol) for host in HOSTS[:3]]
        assert sorted(given) == POOL  # type: ignore[type-var]
        for host, source in zip(HOSTS, given, strict=False):
            back = ether(ip(REMOTE, str(source), proto=protocol) / Raw(bytes(40)))
            verdict, sent = over.translate_one(back, OUTSIDE, 0.0)
            assert verdict is Verdict.INBOUND and Ether(sent)[IP].dst == host


@pytest.mark.parametrize("pooling", ["arbitrary", "paired-soft"])
def test_a_host_with_an_address_has_another_one_for_a_server_that_knows_it_already(pooling: str) -> None:
    for seed in range(8):
        over = gateway(pool=POOL[:2], seed=seed, policy=Policy(pooling=pooling))
        first = [address(over, host, f"198.51.100.{n}") for n, host in enumerate(HOSTS[:2])]
        both = {address(over, host) for host in HOSTS[:2]}
        assert both == set(POOL[:2])
        assert [address(over, host, f"198.51.100.{n}") for n, host in enumerate(HOSTS[:2])] == first


def test_what_is_refused_is_told() -> None:
    over = gateway(pool=POOL[:2], policy=Policy(pooling="arbitrary"))
    assert {address(over, host) for host in HOSTS[:2]} == set(POOL[:2])
    assert verdict_of(over, esp(HOSTS[2])) is Verdict.DROP_CONFLICT
    (event,) = over.take_events()
    assert (event.reason, event.limit, str(event.subscriber), str(event.destination), event.protocol) == (
        "conflict", "pool", HOSTS[2], REMOTE, 50
    )  # fmt: skip
    (told,) = over.take_generated()
    assert (Ether(told.frame)["ICMP"].type, Ether(told.frame)["ICMP"].code) == (3, 1)
    over.end(subscriber=HOSTS[0], now=0.0)
    assert address(over, HOSTS[2]) in POOL


def test_a_paired_host_keeps_its_address_and_is_told() -> None:
    over = gateway(pool=POOL[:1])
    assert address(over, HOSTS[0]) == POOL[0]
    assert verdict_of(over, esp(HOSTS[1])) is Verdict.DROP_CONFLICT
    assert len(over.take_events()) == len(over.take_generated()) == 1


def test_a_host_that_loses_its_pairing_by_a_reclaim_has_an_address_that_is_free_towards_the_server() -> None:
    for seed in range(16):
        times = Timeouts(other=300.0)
        over = gateway(pool=POOL[:2], seed=seed, max_mappings=2, timeouts=times, policy=Policy(pooling="paired"))
        address(over, HOSTS[0], protocol=47)
        taken = address(over, HOSTS[1], now=299.0)
        assert address(over, HOSTS[0], now=300.5) in set(POOL[:2]) - {taken}

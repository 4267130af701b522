"""Limits and thresholds: exact, reported once with what was reached, and no way around them."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import pytest

from natcore import ConfigurationError, DnatEntry, Event, Gateway, Policy, Side, Timeouts, Verdict
from natcore.testhooks import wrappers
from support.frames import EIP, HOST, Talk, counted, gateway, one_port, udp

OTHER = "10.0.0.6"
OUTBOUND = Verdict.OUTBOUND


def told(over: Gateway) -> list[tuple[str, str, int]]:
    return [(event.reason, event.limit, event.count) for event in over.take_events()]


def opened(over: Gateway, count: int, host: str = HOST, first: int = 5000, now: float = 0.0) -> list[Verdict]:
    return [over.translate_one(udp(host, first + n), Side.INSIDE, now)[0] for n in range(count)]


@pytest.mark.parametrize("settings, policy, verdict, expected", [
    ({"max_sessions": 2}, Policy(), Verdict.DROP_SESSION_LIMIT, ("session-limit", "max_sessions", 3)),
    ({"max_mappings": 2}, Policy(), Verdict.DROP_SESSION_LIMIT, ("session-limit", "max_mappings", 3)),
    ({}, Policy(sessions_per_subscriber=2), Verdict.DROP_SUBSCRIBER_LIMIT,
     ("subscriber-limit", "sessions_per_subscriber", 3)),
    ({}, Policy(ports_per_subscriber=2), Verdict.DROP_SUBSCRIBER_LIMIT, ("subscriber-limit", "ports_per_subscriber", 3)),
    ({}, Policy(ports="block", block_size=2, blocks=1), Verdict.DROP_SUBSCRIBER_LIMIT, ("subscriber-limit", "blocks", 3)),
    ({}, Policy(new_sessions_per_second=2), Verdict.DROP_RATE_LIMIT, ("rate-limit", "new_sessions_per_second", 3)),
    ({}, Policy(gateway_new_sessions_per_second=2), Verdict.DROP_RATE_LIMIT,
     ("rate-limit", "gateway_new_sessions_per_second", 3)),
    ({}, Policy(port_ranges=((4000, 4001),)), Verdict.DROP_PORTS_EXHAUSTED, ("ports-exhausted", "pool", 3)),
])  # fmt: skip
def test_every_limit_says_what_was_reached(
    settings: dict[str, Any], policy: Policy, verdict: Verdict, expected: tuple[str, str, int]
) -> None:
    over = gateway(policy=policy, **settings)
    assert opened(over, 5) == [OUTBOUND] * 2 + [verdict] * 3
    assert told(over) == [expected] and told(over) == []


def test_subscribers_are_limited() -> None:
    over = gateway(max_subscribers=1)
    assert [*opened(over, 2), *opened(over, 1, OTHER)] == [OUTBOUND] * 2 + [Verdict.DROP_SESSION_LIMIT]
    assert told(over) == [("session-limit", "max_subscribers", 1)]


def test_the_gateway_s_rate_is_of_all_hosts_together_and_starts_again_with_the_second() -> None:
    over = gateway(policy=Policy(gateway_new_sessions_per_second=3))
    over.add(DnatEntry(EIP, 80, OTHER, 80, protocol="udp"))
    assert [*opened(over, 2), *opened(over, 1, OTHER)] == [OUTBOUND] * 3
    assert opened(over, 1, "10.0.0.7", now=0.999) == [Verdict.DROP_RATE_LIMIT]
    assert opened(over, 2, now=0.999) == [OUTBOUND] * 2  # what is established
    assert over.translate_one(udp("198.51.100.9", 9, EIP, 80), Side.OUTSIDE, 0.999)[0] is Verdict.INBOUND
    assert opened(over, 4, "10.0.0.7", now=1.0) == [OUTBOUND] * 3 + [Verdict.DROP_RATE_LIMIT]


def test_a_rate_limit_outlives_the_last_mapping() -> None:
    over = gateway(policy=Policy(new_sessions_per_second=2), max_subscribers=2)
    assert opened(over, 2) == [OUTBOUND] * 2
    over.end_all(now=0.5)
    assert len(over.mappings()) == 0
    assert opened(over, 1, now=0.999) == [Verdict.DROP_RATE_LIMIT]
    assert opened(over, 1, OTHER, now=0.999) == [OUTBOUND]
    assert opened(over, 1, "10.0.0.7", now=0.999) == [Verdict.DROP_SESSION_LIMIT]  # who may not go is there still
    assert opened(over, 1, "10.0.0.7", now=1.0) == [OUTBOUND]
    over.end_all(now=1.5)
    assert opened(over, 2, now=3.0) == [OUTBOUND] * 2


@pytest.mark.parametrize("name", ["new_sessions_per_second", "gateway_new_sessions_per_second"])
def test_a_refused_hairpin_counts_against_no_rate(name: str) -> None:
    over = gateway(policy=Policy(**{name: 1}, filtering="address-and-port-dependent"))
    assert over.translate_one(udp(destination=EIP), Side.INSIDE, 0.0)[0] is Verdict.DROP_NO_MAPPING
    assert opened(over, 2) == [OUTBOUND, Verdict.DROP_RATE_LIMIT]
    assert told(over) == [("rate-limit", name, 1)]


def closed(over: Gateway, host: str = HOST) -> Talk:
    """A connection that both ends have finished."""
    talk = Talk(over, host=host)
    for flags in ("S", "FA"):
        talk.out(flags, seq=1)
        talk.back("SA" if flags == "S" else "FA", seq=1, ack=2)
    return talk


@pytest.mark.parametrize("name", ["new_sessions_per_second", "gateway_new_sessions_per_second"])
def test_a_syn_from_inside_that_reopens_a_session_is_a_new_one_for_the_rates(name: str) -> None:
    over = gateway(policy=Policy(**{name: 2}))
    talk = closed(over)
    assert talk.out("S", seq=9) is OUTBOUND
    for flags in ("SA", "FA"):
        talk.back(flags, seq=9, ack=10)
        talk.out("FA", seq=10)
    with counted(over, dropped_rate_limit=1, created=0, ended=0):
        assert talk.out("S", seq=99) is Verdict.DROP_RATE_LIMIT
    assert opened(over, 1) == [Verdict.DROP_RATE_LIMIT]
    assert told(over) == [("rate-limit", name, 2)]
    assert talk.out("A", seq=11) is OUTBOUND  # the old one goes on
    talk.now = 1.0
    assert [talk.out("S", seq=99), *opened(over, 2, now=1.0)] == [OUTBOUND, OUTBOUND, Verdict.DROP_RATE_LIMIT]


def test_a_stranger_s_session_that_the_inside_reopens_meets_its_quota() -> None:
    over = gateway(policy=Policy(sessions_per_subscriber=2))
    talk = closed(over)
    assert talk.back("S", seq=9) is Verdict.INBOUND  # opened from outside from now on: no subscriber's quota
    talk.out("SA", seq=9, ack=10)
    for way in (talk.back, talk.out):
        way("FA", seq=10, ack=10)
    assert opened(over, 2) == [OUTBOUND] * 2
    with counted(over, dropped_subscriber_limit=1, created=0):
        assert talk.out("S", seq=99) is Verdict.DROP_SUBSCRIBER_LIMIT
    assert told(over) == [("subscriber-limit", "sessions_per_subscriber", 1)]
    over.end(protocol="udp")
    assert talk.out("S", seq=99) is OUTBOUND
    assert opened(over, 2) == [OUTBOUND, Verdict.DROP_SUBSCRIBER_LIMIT]  # and it counts


def test_a_syn_from_outside_that_reopens_a_session_meets_the_caps() -> None:
    with pytest.warns(UserWarning):
        over = gateway(timeouts=Timeouts(tcp_transitory=100))
    talk = closed(over)
    wrappers.preset_caps(over._core.worker_capsule(), 0, 0)
    with counted(over, dropped_outside_limit=2, created=0):
        assert [talk.back("S", seq=9), talk.back("S", seq=9)] == [Verdict.DROP_OUTSIDE_LIMIT] * 2
    assert told(over) == [("outside-limit", "opened-outside", 2)]
    assert talk.back("A", seq=2, ack=2) is Verdict.INBOUND  # the old one goes on
    wrappers.preset_caps(over._core.worker_capsule(), 1, 1)
    assert talk.back("S", seq=9) is Verdict.INBOUND and over.counters()["created"] == 2
    assert talk.back("S", seq=9) is Verdict.INBOUND  # it counts already


# ---- thresholds


def test_the_session_threshold_is_reported_once_and_again_after_hysteresis() -> None:
    over = gateway(max_sessions=100)
    opened(over, 79, now=1.0)
    assert told(over) == []
    opened(over, 1, first=6000, now=2.0)
    assert over.take_events() == [Event(2.0, "sessions-threshold", None, None, 0, 0, 1, "max_sessions")]
    over.end(subscriber=HOST)
    opened(over, 80)
    opened(over, 5, OTHER)
    assert told(over) == [("sessions-threshold", "max_sessions", 1)]


def test_between_the_two_shares_nothing_is_told_again() -> None:
    over = gateway(max_sessions=100)
    opened(over, 70)
    opened(over, 10, OTHER)
    assert len(told(over)) == 1
    over.end(subscriber=OTHER)  # 70 are left: not below
    opened(over, 10, OTHER)
    assert told(over) == []
    over.end(subscriber=OTHER)
    over.end(subscriber=HOST)
    opened(over, 69)
    opened(over, 11, OTHER)
    assert len(told(over)) == 1


@pytest.mark.parametrize("policy, address_and_protocol", [
    (Policy(port_ranges=((4000, 4099),)), (EIP, 17)), (Policy(port_ranges=((4000, 4099),), parity=True), (EIP, 17)),
    (Policy(port_ranges=((4000, 4099),), ports="block", block_size=1, blocks=200), (EIP, 0)),
])  # fmt: skip
def test_the_port_threshold_is_reported_by_address_and_protocol(
    policy: Policy, address_and_protocol: tuple[str, int]
) -> None:
    over = gateway(policy=policy)
    assert set(opened(over, 80)) == {OUTBOUND}
    (event,) = over.take_events()
    assert (event.reason, str(event.outside), event.protocol, event.subscriber) == (
        "ports-threshold", *address_and_protocol, None,
    )  # fmt: skip
    opened(over, 20, OTHER)
    assert told(over) == []


def test_a_refused_hairpin_reports_no_threshold() -> None:
    strict = Policy(warn_at=0.02, rearm_at=0, port_ranges=((4000, 4099),), filtering="address-dependent")
    over = gateway(max_sessions=100, policy=strict)
    opened(over, 1)
    assert over.translate_one(udp(OTHER, destination=EIP), Side.INSIDE, 0.0)[0] is Verdict.DROP_NO_MAPPING
    assert told(over) == []


@pytest.mark.parametrize("policy", [
    Policy(port_ranges=((4000, 4099),), hold_down=10), Policy(port_ranges=((4000, 4099),), hold_down=10, ports="block",
                                                              block_size=1, blocks=200),
])  # fmt: skip
def test_ports_are_free_for_a_threshold_after_their_hold_down_without_a_sweep(policy: Policy) -> None:
    over = gateway(policy=policy)
    opened(over, 60)
    over.end_all(now=1.0)
    assert set(opened(over, 19, OTHER, now=10.999)) == {OUTBOUND}  # 79 of 100, of which 60 rest
    assert told(over) == []
    assert set(opened(over, 60, OTHER, first=6000, now=11.0)) == {OUTBOUND}
    assert told(over) == []
    assert opened(over, 1, OTHER, first=7000, now=11.0) == [OUTBOUND]
    assert told(over) == [("ports-threshold", "pool", 1)]


def test_thresholds_are_the_policy_s() -> None:
    over = gateway(max_sessions=100, policy=Policy(warn_at=None))
    opened(over, 100)
    assert told(over) == []
    half = gateway(max_sessions=100, policy=Policy(warn_at=0.5, rearm_at=0.1))
    opened(half, 50)
    assert told(half) == [("sessions-threshold", "max_sessions", 1)]
    for values, name in (({"warn_at": 1.5}, "warn_at"), ({"rearm_at": 0.9}, "rearm_at")):
        with pytest.raises(ConfigurationError, match=rf"Policy\.{name}"):
            Policy(**values)


def test_a_small_table_has_no_thresholds() -> None:
    over = gateway(policy=one_port(), max_sessions=99)
    opened(over, 1)
    assert told(over) == []


@pytest.mark.parametrize("ports", ["random", "block", "preserve"])
def test_every_port_of_an_address_can_be_in_use_none_twice(ports: str) -> None:
    """64,512 of 64,512; the next is refused, counted and reported; the others go on."""
    import numpy as np

    from natcore.testing import bulk

    total = 64_512
    over = gateway(policy=Policy(ports=ports, warn_at=None), max_sessions=70_000)
    numbers = np.arange(total, dtype=np.uint64)
    hosts = np.uint64(int(IPv4Address("10.0.1.0"))) + numbers // np.uint64(2048)  # four blocks each
    sports = np.uint64(1024) + numbers % np.uint64(2048)
    frames, lengths = bulk.packets(17, hosts, sports, int(IPv4Address("198.51.100.7")), 53)
    assert (over.translate(frames.copy(), lengths.copy(), Side.INSIDE, 0.0) == OUTBOUND).all()
    used = np.sort(over.mappings()["outside_port"])
    assert (used == np.arange(1024, 65536)).all()
    with counted(over, dropped_ports_exhausted=3, ports_used=0):
        assert opened(over, 3, OTHER) == [Verdict.DROP_PORTS_EXHAUSTED] * 3
    assert told(over) == [("ports-exhausted", "pool", 3)]
    assert (over.translate(frames, lengths, Side.INSIDE, 1.0) == OUTBOUND).all()
    (row,) = over.ports()[over.ports()["protocol"] == 17]
    assert (row["used"], row["free"], row["total"]) == (total, 0, total)

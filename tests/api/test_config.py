"""Configuration values: each bad one is refused with its field, itself and what is expected."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natcore import (
    Behaviour,
    CapacityError,
    ConfigurationError,
    DeliveryError,
    DeliveryPolicy,
    DnatEntry,
    Eip,
    Error,
    InterfaceError,
    Link,
    OutsideInterface,
    Policy,
    RfcWarning,
    SnatEntry,
    Timeouts,
)  # fmt: skip
from natcore.config import exact_ns, expand_pool, to_ns

NAN, INF = float("nan"), float("inf")

BAD: list[tuple[Any, dict[str, Any], str]] = [
    (Link, {"mtu": 67}, r"Link\.mtu must .*68 and 65535.*, got 67"),
    (Link, {"mtu": 65536}, r"Link\.mtu must .*68 and 65535.*, got 65536"),
    (Link, {"mtu": True}, r"Link\.mtu must .*, got True"),
    (Link, {"address": "10.0.0"}, r"Link\.address must .*IPv4.*, got '10\.0\.0'"),
    (Link, {"address": 1 << 32}, r"Link\.address must .*IPv4.*, got 4294967296"),
    (Link, {"address": 1.5}, r"Link\.address must .*str, int or ipaddress.*, got 1\.5"),
    (Timeouts, {"udp": 0}, r"Timeouts\.udp must .*0\.001 and 1e\+06 seconds.*, got 0"),
    (Timeouts, {"icmp": -1.0}, r"Timeouts\.icmp must .*, got -1\.0"),
    (Timeouts, {"tcp_established": NAN}, r"Timeouts\.tcp_established must .*, got nan"),
    (Timeouts, {"unreplied": INF}, r"Timeouts\.unreplied must .*, got inf"),
    (Timeouts, {"other": "300"}, r"Timeouts\.other must .*, got '300'"),
    (Behaviour, {"mapping": "symmetric"}, r"Behaviour\.mapping must .*endpoint-independent.*, got 'symmetric'"),
    (Behaviour, {"filtering": "none"}, r"Behaviour\.filtering must .*address-dependent.*, got 'none'"),
    (Policy, {"filtering": "open"}, r"Policy\.filtering must .*'endpoint-independent'.*, got 'open'"),
    (Policy, {"mapping": 1}, r"Policy\.mapping must .*endpoint-independent.*, got 1"),
    (Policy, {"tcp": "endpoint-independent"}, r"Policy\.tcp must .*a Behaviour or None.*, got "),
    (Policy, {"port_ranges": ()}, r"Policy\.port_ranges must .*one \(first, last\) pair.*, got \(\)"),
    (Policy, {"port_ranges": ((0, 5),)}, r"Policy\.port_ranges must .*1 <= first.*, got "),
    (Policy, {"port_ranges": ((5, 4),)}, r"Policy\.port_ranges must .*, got "),
    (Policy, {"port_ranges": ((1, 65536),)}, r"Policy\.port_ranges must .*, got "),
    (Policy, {"port_ranges": ((1, 5), (5, 9))}, r"Policy\.port_ranges must .*none overlapping.*, got "),
    (Policy, {"port_ranges": (1, 5)}, r"Policy\.port_ranges must .*, got "),
    (Policy, {"port_ranges": (("a", "b"),)}, r"Policy\.port_ranges must .*, got "),
    (Policy, {"port_ranges": 7}, r"Policy\.port_ranges must .*, got 7"),
    (Policy, {"hold_down": -1}, r"Policy\.hold_down must .*0 and 1e\+06 seconds.*, got -1"),
    (Policy, {"hairpin": "yes"}, r"Policy\.hairpin must .*True or False.*, got 'yes'"),
    (Policy, {"icmp_rate": -1}, r"Policy\.icmp_rate must .*0 and 1000000.*, got -1"),
    (Policy, {"icmp_rate": 1.5}, r"Policy\.icmp_rate must .*whole number.*, got 1\.5"),
    (DeliveryPolicy, {"batch": 0}, r"DeliveryPolicy\.batch must .*, got 0"),
    (DeliveryPolicy, {"linger": -1}, r"DeliveryPolicy\.linger must .*, got -1"),
    (DeliveryPolicy, {"backoff_min": 5, "backoff_max": 4}, r"DeliveryPolicy\.backoff_max must .*backoff_min \(5\).*, got 4"),
    (DeliveryPolicy, {"spool_bytes": 5}, r"DeliveryPolicy\.spool_bytes must .*, got 5"),
    (Eip, {"address": "x"}, r"Eip\.address must .*, got 'x'"),
    (Eip, {"address": "1.2.3.4", "private_ip": "::1"}, r"Eip\.private_ip must .*, got '::1'"),
    (SnatEntry, {"source": "10.0.0.1/8", "pool": "1.2.3.4"}, r"SnatEntry\.source must .*, got '10\.0\.0\.1/8' \(.*host bits"),
    (SnatEntry, {"source": None, "pool": "1.2.3.4"}, r"SnatEntry\.source must .*'10\.0\.0\.0/16'.*, got None"),
    (SnatEntry, {"source": "10.0.0.0/8"}, r"SnatEntry\.pool must .*at least one address.*, got \(\)"),
    (SnatEntry, {"source": "10.0.0.0/8", "pool": "x"}, r"SnatEntry\.pool must .*, got 'x'"),
    (SnatEntry, {"source": "10.0.0.0/8", "pool": "1.2.3.9-1.2.3.4"}, r"SnatEntry\.pool must .*first-last.*, got '1\.2\.3\.9-1"),
    (SnatEntry, {"source": "10.0.0.0/8", "pool": "1.2.3.4-"}, r"SnatEntry\.pool must .*, got ''"),
    (SnatEntry, {"source": "10.0.0.0/8", "pool": "10.0.0.0/8"}, r"SnatEntry\.pool must .*65,536.*, got '10\.0\.0\.0/8'"),
    (SnatEntry, {"source": "10.0.0.0/8", "pool": ["1.2.3.4", "1.2.3.0/24"]}, r"SnatEntry\.pool must .*got .*1\.2\.3\.4 twice"),
    (SnatEntry, {"source": "10.0.0.0/8", "pool": "1.2.3.4", "name": 5}, r"SnatEntry\.name must .*, got 5"),
]  # fmt: skip


@pytest.mark.parametrize(
    "kind, arguments, message", BAD, ids=[f"{k.__name__}-{'-'.join(a)}-{i}" for i, (k, a, _) in enumerate(BAD)]
)
def test_bad_values_are_refused(kind: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        kind(**arguments)


@pytest.mark.parametrize(
    "field, minimum", [("udp", 120), ("tcp_established", 7440), ("tcp_transitory", 240), ("icmp", 60)]
)
def test_less_than_the_rfcs_ask_for_is_taken_with_a_warning(field: str, minimum: int) -> None:
    Timeouts(**{field: minimum})
    with pytest.warns(RfcWarning, match=rf"Timeouts\.{field}=1: RFC \d+ REQ-\d asks for {minimum} s"):
        Timeouts(**{field: 1})


def test_values_are_frozen_and_normal() -> None:
    link = Link(address=0x0A000001)
    assert link.address == ipaddress.IPv4Address("10.0.0.1") and link == Link(address="10.0.0.1")
    with pytest.raises(AttributeError):
        link.mtu = 5  # type: ignore[misc]
    assert Policy(port_ranges=[[5, 6], (1, 2)]).port_ranges == ((1, 2), (5, 6))  # type: ignore[list-item]


def test_a_protocol_s_own_behaviour_overrides_the_policy() -> None:
    policy = Policy(filtering="address-dependent", udp=Behaviour(filtering="endpoint-independent"), tcp=Behaviour())
    assert [policy.behaviour(p).filtering for p in ("tcp", "udp", "icmp")] == [
        "address-dependent", "endpoint-independent", "address-dependent",
    ]  # fmt: skip


@pytest.mark.parametrize("pool, expected", [
    ("203.0.113.1", ["203.0.113.1"]),
    (0xCB007101, ["203.0.113.1"]),
    ("203.0.113.1 - 203.0.113.3", ["203.0.113.1", "203.0.113.2", "203.0.113.3"]),
    ("203.0.113.0/30", ["203.0.113.0", "203.0.113.1", "203.0.113.2", "203.0.113.3"]),
    (ipaddress.IPv4Network("203.0.113.4/32"), ["203.0.113.4"]),
    (["203.0.113.9", Eip("203.0.113.5")], ["203.0.113.9", "203.0.113.5"]),
])  # fmt: skip
def test_pools_are_given_in_many_ways(pool: object, expected: list[str]) -> None:
    assert [str(eip.address) for eip in expand_pool(pool)] == expected
    assert SnatEntry("10.0.0.0/8", pool=pool) == SnatEntry("10.0.0.0/8", pool=expected)


def test_a_pool_may_have_the_outside_interfaces_addresses() -> None:
    for pool in (OutsideInterface(), "interface", ["interface"]):
        entry = SnatEntry("10.0.0.0/8", pool=pool)
        assert entry.pool == (OutsideInterface(),) and entry.eips == () and entry.follows_interface
    mixed = SnatEntry("10.0.0.0/8", pool=[OutsideInterface("203.0.113.8-203.0.113.9"), "203.0.113.1"])
    assert [str(each) for each in mixed.pool[0].addresses] == ["203.0.113.8", "203.0.113.9"]  # type: ignore[union-attr]
    assert [str(eip.address) for eip in mixed.eips] == ["203.0.113.1"]
    with pytest.raises(ConfigurationError, match=r"must have each address once, got .*: interface twice"):
        SnatEntry("10.0.0.0/8", pool=["interface", OutsideInterface("203.0.113.8")])
    with pytest.raises(ConfigurationError, match=r"OutsideInterface\.addresses must be addresses, ranges or prefixes"):
        OutsideInterface("interface")


def test_a_dnat_entry_may_have_the_outside_interfaces_address() -> None:
    for address in (OutsideInterface(), "interface"):
        entry = DnatEntry(address, 443, "10.0.0.5", 443)
        assert entry.external_ip == OutsideInterface() and entry.follows_interface
    assert not DnatEntry("203.0.113.1", 443, "10.0.0.5", 443).follows_interface
    with pytest.raises(ConfigurationError, match="1:1 entry must be an address, got the outside interface's"):
        DnatEntry("interface", "any", "10.0.0.5", "any", protocol="any")


def test_host_ports_are_pairs_that_do_not_overlap() -> None:
    assert Policy(host_ports=[[5, 6], (1, 2)]).host_ports == ((1, 2), (5, 6))  # type: ignore[list-item]
    assert Policy(host_ports=()).host_ports == () and Policy().host_ports is None
    with pytest.raises(ConfigurationError, match=r"Policy\.host_ports must be \(first, last\) pairs"):
        Policy(host_ports=((1, 5), (5, 6)))


@given(st.floats(0, 4.6e9) | st.integers(0, 4_600_000_000))
def test_seconds_are_rounded_to_ns_once(seconds: float) -> None:
    from fractions import Fraction

    assert abs(Fraction(exact_ns(seconds)) - Fraction(seconds) * 10**9) <= Fraction(1, 2)


@pytest.mark.parametrize("seconds", [-0.001, NAN, INF, -INF, 4.7e9, "1", None, True, 1j])
def test_other_times_are_refused(seconds: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=re.escape(f"now must be between 0 and 4.6e+09 seconds, got {seconds!r}")
    ):
        to_ns(seconds)


def test_errors_are_also_the_builtins_that_a_caller_expects() -> None:
    assert issubclass(ConfigurationError, Error) and issubclass(ConfigurationError, ValueError)
    assert issubclass(InterfaceError, Error) and issubclass(InterfaceError, OSError)
    assert issubclass(CapacityError, Error) and issubclass(DeliveryError, Error)
    error = DeliveryError("WriteQuotaExceed", "too much", retry_after=3.0)
    assert (error.code, error.action, error.retry_after, str(error)) == (
        "WriteQuotaExceed", "backoff", 3.0, "WriteQuotaExceed: too much",
    )  # fmt: skip

"""Configuration values: each bad one is refused with its field, itself and what is allowed."""

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
    Eip,
    Error,
    InterfaceError,
    Link,
    Policy,
    SnatEntry,
    Timeouts,
)  # fmt: skip
from natcore.config import exact_ns, expand_pool, to_ns

NAN, INF = float("nan"), float("inf")

BAD: list[tuple[Any, dict[str, Any], str]] = [
    (Link, {"mtu": 67}, r"Link\.mtu=67.*68 to 65535"),
    (Link, {"mtu": 65536}, r"Link\.mtu=65536.*68 to 65535"),
    (Link, {"mtu": True}, r"Link\.mtu=True"),
    (Link, {"address": "10.0.0"}, r"Link\.address='10\.0\.0'.*IPv4"),
    (Link, {"address": 1 << 32}, r"Link\.address=4294967296.*IPv4"),
    (Link, {"address": 1.5}, r"Link\.address=1\.5.*str, a whole number or an ipaddress"),
    (Timeouts, {"udp": 0}, r"Timeouts\.udp=0.*0\.001 to 1e\+06 seconds"),
    (Timeouts, {"icmp": -1.0}, r"Timeouts\.icmp=-1\.0"),
    (Timeouts, {"tcp_established": NAN}, r"Timeouts\.tcp_established=nan"),
    (Timeouts, {"unreplied": INF}, r"Timeouts\.unreplied=inf"),
    (Timeouts, {"other": "300"}, r"Timeouts\.other='300'"),
    (Behaviour, {"mapping": "symmetric"}, r"Behaviour\.mapping='symmetric'.*endpoint-independent"),
    (Behaviour, {"filtering": "none"}, r"Behaviour\.filtering='none'.*address-dependent"),
    (Policy, {"filtering": "open"}, r"Policy\.filtering='open'.*'endpoint-independent'"),
    (Policy, {"mapping": 1}, r"Policy\.mapping=1.*endpoint-independent"),
    (Policy, {"tcp": "endpoint-independent"}, r"Policy\.tcp=.*a Behaviour or None"),
    (Policy, {"port_ranges": ()}, r"Policy\.port_ranges=\(\).*one \(first, last\) pair"),
    (Policy, {"port_ranges": ((0, 5),)}, r"Policy\.port_ranges=.*1 <= first"),
    (Policy, {"port_ranges": ((5, 4),)}, r"Policy\.port_ranges="),
    (Policy, {"port_ranges": ((1, 65536),)}, r"Policy\.port_ranges="),
    (Policy, {"port_ranges": ((1, 5), (5, 9))}, r"Policy\.port_ranges=.*none overlapping"),
    (Policy, {"port_ranges": (1, 5)}, r"Policy\.port_ranges="),
    (Policy, {"port_ranges": (("a", "b"),)}, r"Policy\.port_ranges="),
    (Policy, {"port_ranges": 7}, r"Policy\.port_ranges=7"),
    (Policy, {"hold_down": -1}, r"Policy\.hold_down=-1.*0 to 1e\+06 seconds"),
    (Policy, {"hairpin": "yes"}, r"Policy\.hairpin='yes'.*True, False"),
    (Policy, {"icmp_rate": -1}, r"Policy\.icmp_rate=-1.*0 to 1000000"),
    (Policy, {"icmp_rate": 1.5}, r"Policy\.icmp_rate=1\.5.*whole number"),
    (DeliveryPolicy, {"batch": 0}, r"DeliveryPolicy\.batch=0"),
    (DeliveryPolicy, {"linger": -1}, r"DeliveryPolicy\.linger=-1"),
    (DeliveryPolicy, {"backoff_min": 5, "backoff_max": 4}, r"DeliveryPolicy\.backoff_max=4.*backoff_min \(5\)"),
    (DeliveryPolicy, {"spool_bytes": 5}, r"DeliveryPolicy\.spool_bytes=5"),
    (Eip, {"address": "x"}, r"Eip\.address='x'"),
    (Eip, {"address": "1.2.3.4", "private_ip": "::1"}, r"Eip\.private_ip='::1'"),
    (SnatEntry, {"source": "10.0.0.1/8", "pool": "1.2.3.4"}, r"SnatEntry\.source='10\.0\.0\.1/8'.*host bits"),
    (SnatEntry, {"source": None, "pool": "1.2.3.4"}, r"SnatEntry\.source=None.*'10\.0\.0\.0/16'"),
    (SnatEntry, {"source": "10.0.0.0/8"}, r"SnatEntry\.pool=\(\).*one address at least"),
    (SnatEntry, {"source": "10.0.0.0/8", "pool": "x"}, r"SnatEntry\.pool='x'"),
    (SnatEntry, {"source": "10.0.0.0/8", "pool": "1.2.3.9-1.2.3.4"}, r"SnatEntry\.pool='1\.2\.3\.9-1\.2\.3\.4'.*first-last"),
    (SnatEntry, {"source": "10.0.0.0/8", "pool": "1.2.3.4-"}, r"SnatEntry\.pool=''"),
    (SnatEntry, {"source": "10.0.0.0/8", "pool": "10.0.0.0/8"}, r"SnatEntry\.pool='10\.0\.0\.0/8'.*65,536"),
    (SnatEntry, {"source": "10.0.0.0/8", "pool": ["1.2.3.4", "1.2.3.0/24"]}, r"SnatEntry\.pool=.*1\.2\.3\.4 is named twice"),
    (SnatEntry, {"source": "10.0.0.0/8", "pool": "1.2.3.4", "name": 5}, r"SnatEntry\.name=5"),
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
    with pytest.warns(UserWarning, match=rf"Timeouts\.{field}=1: RFC \d+ REQ-\d asks for {minimum} s"):
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


@given(st.floats(0, 4.6e9) | st.integers(0, 4_600_000_000))
def test_seconds_are_rounded_to_ns_once(seconds: float) -> None:
    from fractions import Fraction

    assert abs(Fraction(exact_ns(seconds)) - Fraction(seconds) * 10**9) <= Fraction(1, 2)


@pytest.mark.parametrize("seconds", [-0.001, NAN, INF, -INF, 4.7e9, "1", None, True, 1j])
def test_other_times_are_refused(seconds: Any) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(f"now={seconds!r}")):
        to_ns(seconds)


def test_errors_are_also_the_builtins_that_a_caller_expects() -> None:
    assert issubclass(ConfigurationError, Error) and issubclass(ConfigurationError, ValueError)
    assert issubclass(InterfaceError, Error) and issubclass(InterfaceError, OSError)
    assert issubclass(CapacityError, Error) and issubclass(DeliveryError, Error)
    error = DeliveryError("WriteQuotaExceed", "too much", retry_after=3.0)
    assert (error.code, error.action, error.retry_after, str(error)) == (
        "WriteQuotaExceed", "backoff", 3.0, "WriteQuotaExceed: too much",
    )  # fmt: skip

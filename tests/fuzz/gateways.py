"""The gateways that the fuzzer knows: every filtering, entry kind, port policy, one worker to three; small: limits are met."""

from __future__ import annotations

import ipaddress
import warnings
from typing import Any

from natcore import DnatEntry, Gateway, Link, NoNatEntry, Policy, SnatEntry, Timeouts
from natcore.testhooks import fuzz

FILTERINGS = ("endpoint-independent", "address-dependent", "address-and-port-dependent")
PORTS: tuple[dict[str, Any], ...] = (
    {"ports": "random", "port_ranges": ((1024, 1040),)},
    {"ports": "preserve", "parity": True, "port_ranges": ((1, 80), (1024, 1030))},
    {"ports": "block", "block_size": 4, "blocks": 2, "port_ranges": ((2000, 2031),)},
    {"ports": "overload", "port_ranges": ((3000, 3003),), "mapping": "address-and-port-dependent"},
)
PLACES = (
    "10.0.0.5", "10.0.0.6", "10.0.0.1", "10.9.0.5", "198.51.100.7", "198.51.100.8", "8.8.8.8", "203.0.113.1", "203.0.113.2",
    "203.0.113.40", "203.0.113.41", "203.0.113.254", "0.0.0.0", "255.255.255.248", "169.254.169.254", "240.0.0.1",
)  # fmt: skip
SMALL: dict[str, Any] = {"hold_down": 2, "icmp_rate": 50, "mss": 1200, "unsolicited_syn": "icmp", "warn_at": None}


def make(number: int) -> Gateway:
    """The gateway of a number; all there are in turn."""
    workers, ports = number % 3 + 1, dict(PORTS[number // 3 % 4])
    filtering = "address-and-port-dependent" if ports["ports"] == "overload" else FILTERINGS[number // 12 % 3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # times below what RFCs ask for
        times = Timeouts(udp=20, tcp_established=60, tcp_transitory=9, icmp=5, unreplied=3, other=7, fragment=2)
        policy = Policy(
            filtering=filtering, ip_options=("rfc7126", "pass")[number % 2], reverse_path_filter=number % 4 > 0,
            class_e=number % 5 == 0, sessions_per_subscriber=(None, 5)[number // 3 % 2], **SMALL, **ports,
        )  # fmt: skip
        gateway = Gateway(
            instance="ngw-fuzz", vpc_id="vpc-fuzz", seed=number, workers=workers, max_sessions=24, max_mappings=20,
            max_subscribers=6, timeouts=times, policy=policy, decrement_ttl=number % 7 > 0,
            framing=("ethernet", "ip")[number // 2 % 2], inside=Link(address="10.0.0.1", mtu=1500),
            outside=Link(address="203.0.113.254", mtu=576),
        )  # fmt: skip
    gateway.add(SnatEntry("10.0.0.0/16", pool="203.0.113.1-203.0.113.2"))
    gateway.add(DnatEntry("203.0.113.1", 80, [("10.0.0.5", 1), ("10.0.0.6", 2)], 8080, protocol="tcp"))
    gateway.add(DnatEntry("203.0.113.40", "any", "10.0.0.7", "any", protocol="udp"))
    gateway.add(DnatEntry("203.0.113.41", "any", "10.0.0.6", "any", protocol="any"))
    gateway.add(NoNatEntry("10.0.0.8/29", "198.51.100.0/24"))
    return gateway


GATEWAYS = [make(number) for number in range(36)]
TARGET = fuzz.prepare(
    [gateway._core.worker_capsule() for gateway in GATEWAYS], [int(ipaddress.IPv4Address(place)) for place in PLACES]
)

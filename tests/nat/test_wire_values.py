"""No value that a packet can have is a marker of the tables: every protocol, port 0, id 0, on every kind of entry."""

from __future__ import annotations

from itertools import product
from random import Random

import pytest

from natcore import DnatEntry, Gateway, Link, NoNatEntry, Policy, Side, SnatEntry, Verdict
from natcore.config import FILTERINGS, MAPPINGS
from natcore.testing import craft
from natcore.testing.configurations import Configuration
from oracle.comparison import Pair
from support.frames import EIP, HOST, REMOTE, gateway, parsed

INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE
SECOND_HOST, FORWARDED_TO = "10.0.0.6", "203.0.113.40"
PORTED = (1, 6, 17)
PLAIN = {"kind": "internet", "eip_bind_mode": "NAT", "workers": 1, "framing": "ethernet", "decrement_ttl": True}
ENTRIES = {
    "snat": [SnatEntry("10.0.0.0/16", "203.0.113.1")],
    "dnat": [SnatEntry("10.0.0.0/16", "203.0.113.1"), DnatEntry(FORWARDED_TO, "any", HOST, "any", protocol="udp")],
    "1:1": [SnatEntry("10.0.0.0/16", "203.0.113.1"), DnatEntry(FORWARDED_TO, "any", HOST, "any", protocol="any")],
    "no-nat": [SnatEntry("10.0.0.0/16", "203.0.113.1"), NoNatEntry(HOST + "/32", "198.51.100.0/24")],
}


def packet(protocol: int, source: str, destination: str, port: int = 0) -> bytes:
    """From port to port of the same number; of ICMP an echo request with that id."""
    if protocol == 6:
        return craft.ether(craft.tcp((source, port), (destination, port), 2))
    if protocol == 17:
        return craft.ether(craft.udp((source, port), (destination, port), b"data"))
    if protocol == 1:
        return craft.ether(craft.icmp(source, destination, identifier=port))
    return craft.ether(craft.ipv4(protocol, source, destination, bytes(range(24))))


def one_to_one(filtering: str, **settings: object) -> Gateway:
    made = gateway(policy=Policy(filtering=filtering), **settings)
    made.add(DnatEntry(FORWARDED_TO, "any", HOST, "any", protocol="any"))
    return made


@pytest.mark.parametrize(("first", "second"), [(17, 145), (6, 134), (1, 129), (145, 17), (134, 6)])
@pytest.mark.parametrize("capacity", [8, 1000])
def test_no_protocol_meets_the_filter_entry_of_another(first: int, second: int, capacity: int) -> None:
    """The entry of protocol p once was found by packets of p + 128 to port 0, beyond the table's end."""
    made = one_to_one("address-dependent", max_sessions=capacity)
    for protocol in (first, second):
        verdict, sent = made.translate_one(packet(protocol, REMOTE, FORWARDED_TO), OUTSIDE, 0.0)
        assert verdict is Verdict.INBOUND
        assert parsed(sent).dst == HOST
    assert sorted(row["protocol"] for row in made.sessions()) == sorted((first, second))


@pytest.mark.parametrize("side", [INSIDE, OUTSIDE])
def test_protocol_0_takes_no_room(side: Side) -> None:
    """It is IPv6's hop-by-hop: nothing to translate in IPv4, and no session that is not listed and never ends."""
    made = one_to_one("endpoint-independent", max_sessions=10)
    for i in range(30):
        ends = (f"10.0.1.{i + 1}", REMOTE) if side is INSIDE else (f"198.51.100.{i + 1}", FORWARDED_TO)
        assert made.translate_one(packet(0, *ends), side, 0.0) == (Verdict.DROP_UNSUPPORTED, None)
    assert made.counters()["sessions"] == 0
    for i in range(10):
        assert made.translate_one(packet(17, f"10.0.2.{i + 1}", REMOTE, 53), INSIDE, 0.0)[0] is Verdict.OUTBOUND
    assert made.counters()["dropped_unsupported"] == 30


def test_a_freed_slot_is_found_by_no_packet_though_its_values_stay() -> None:
    """Copies, ends and the sweep pass it by."""
    made = gateway(policy=Policy(hold_down=0))
    for protocol in range(1, 256):
        made.translate_one(packet(protocol, HOST, REMOTE, 7), INSIDE, 0.0)
    full = made.counters()["sessions"]
    assert full == len(made.sessions()) == 252  # DCCP, AH and UDP-Lite are not translated
    assert made.end(protocol=17, now=1.0) == 1
    assert 17 not in made.sessions()["protocol"]
    assert 17 not in made.mappings()["protocol"]
    assert made.end(subscriber=HOST, now=2.0) == full - 1
    assert len(made.sessions()) == len(made.mappings()) == 0
    made.advance(now=100_000.0)
    assert made.counters()["ended"] == full


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("filtering", FILTERINGS)
@pytest.mark.parametrize("kind", ENTRIES)
def test_every_protocol_and_port_0_on_every_entry(kind: str, filtering: str, workers: int) -> None:
    """All 256 protocols from both sides, in a random order, twice: the oracle says what becomes of each."""
    random = Random(f"{kind} {filtering} {workers}")
    options = {
        **PLAIN,
        "max_sessions": 300,
        "workers": workers,
        "policy": Policy(filtering=filtering, mapping=random.choice(MAPPINGS)),
        "inside": Link(address="10.0.0.1"),
        "outside": Link(address="203.0.113.254"),
    }
    pair = Pair(Configuration(ENTRIES[kind], options), seed=1)
    to = EIP if kind == "snat" else HOST if kind == "no-nat" else FORWARDED_TO
    way = [(protocol, side, port) for protocol, side, port in product(range(256), (INSIDE, OUTSIDE), (0, 7, 65535))
           if port == 0 or protocol in PORTED]  # fmt: skip
    random.shuffle(way)
    for seconds in (0.0, 1.0):
        for protocol, side, port in way:
            ends = (random.choice([HOST, SECOND_HOST]), REMOTE) if side is INSIDE else (REMOTE, to)
            pair.frame(packet(protocol, *ends, port), side, seconds)
    pair.look()


@pytest.mark.parametrize(
    "source", ["0.0.0.0", "255.255.255.255", "10.0.0.1", "203.0.113.1", "203.0.113.40", HOST, REMOTE]
)
@pytest.mark.parametrize("side", [INSIDE, OUTSIDE])
def test_sources_from_anywhere(source: str, side: Side) -> None:
    """Addresses that a table might take for nothing, or for its own, from either side: as the oracle says."""
    entries = [*ENTRIES["1:1"], NoNatEntry("10.0.0.6/32", "198.51.100.0/24")]
    options = {**PLAIN, "policy": Policy(filtering="address-dependent"), "max_sessions": 64}
    pair = Pair(Configuration(entries, options), seed=1)
    for protocol, destination in product(
        (*PORTED, 0, 47, 134, 145), ("0.0.0.0", "255.255.255.255", source, FORWARDED_TO, EIP, HOST)
    ):
        for port in (0, 65535):
            pair.frame(packet(protocol, source, destination, port), side, 0.0)
    pair.look()

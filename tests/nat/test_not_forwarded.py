"""Packets that a router must not forward: link-local ends, IPv4 options, land, class E; and entries that could not work."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from natcore import ConfigurationError, DnatEntry, NoNatEntry, Policy, Side, SnatEntry, Verdict
from natcore.testing import craft
from support.command_line import call
from support.frames import EIP, HOST, REMOTE, gateway, verdict_of

INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE
METADATA = "169.254.169.254"
ENTRY = "203.0.113.40"


def udp(source: str, destination: str, ports: tuple[int, int] = (5000, 53), **fields: object) -> bytes:
    return craft.ether(craft.udp((source, ports[0]), (destination, ports[1]), b"query", **fields))


# Link-local (RFC 3927 section 7)


@pytest.mark.parametrize("allowed", [False, True])
def test_link_local_is_not_forwarded(allowed: bool) -> None:
    made = gateway(source="0.0.0.0/0", policy=Policy(link_local=allowed))
    made.add(DnatEntry(ENTRY, 53, HOST, 53, protocol="udp"))
    expected = (Verdict.OUTBOUND, Verdict.OUTBOUND, Verdict.INBOUND) if allowed else (
        Verdict.DROP_UNSUPPORTED, Verdict.DROP_SPOOFED, Verdict.DROP_SPOOFED)  # fmt: skip
    assert verdict_of(made, udp(HOST, METADATA, (5000, 80))) is expected[0]
    assert verdict_of(made, udp("169.254.1.2", REMOTE)) is expected[1]
    assert verdict_of(made, udp("169.254.1.9", ENTRY), OUTSIDE) is expected[2]
    assert verdict_of(made, udp("169.253.255.255", ENTRY), OUTSIDE) is Verdict.INBOUND


# IPv4 options (RFC 791, RFC 7126)

LSRR, SSRR, RECORD_ROUTE, TIMESTAMP, ALERT, SECURITY, UNKNOWN = 131, 137, 7, 68, 148, 130, 94
MALFORMED = [b"\x94\0\0\0", b"\x94\1\0\0", b"\x94\5\0\0", b"\x94\xff\0\0", b"\1\1\1\x94", b"\1\x94\4\0"]


@pytest.mark.parametrize("options", MALFORMED)
@pytest.mark.parametrize("side", [INSIDE, OUTSIDE])
def test_malformed_options_are_dropped(options: bytes, side: Side) -> None:
    """A length of 0 or 1, or one that ends behind the header, or that is not there."""
    made = gateway(policy=Policy(ip_options="pass"))
    made.add(DnatEntry(ENTRY, 53, HOST, 53, protocol="udp"))
    ends = (HOST, REMOTE) if side is INSIDE else (REMOTE, ENTRY)
    assert verdict_of(made, udp(*ends, ip_options=options), side) is Verdict.DROP_MALFORMED
    assert verdict_of(made, udp(*ends, ip_options=b"\1\x94\3\0"), side) is not Verdict.DROP_MALFORMED
    assert verdict_of(made, udp(*ends, ip_options=b"\0" + options[:3]), side) is not Verdict.DROP_MALFORMED


@pytest.mark.parametrize(("policy", "passing"), [
    ("rfc7126", {ALERT, SECURITY, UNKNOWN}),
    ("pass", {ALERT, SECURITY, UNKNOWN, RECORD_ROUTE, TIMESTAMP}),
    ("drop", set()),
])  # fmt: skip
@pytest.mark.parametrize("established", [False, True])
def test_options_by_policy_and_no_source_routes(policy: str, passing: set[int], established: bool) -> None:
    for option in (LSRR, SSRR, RECORD_ROUTE, TIMESTAMP, ALERT, SECURITY, UNKNOWN):
        made = gateway(policy=Policy(ip_options=policy))
        if established:
            assert verdict_of(made, udp(HOST, REMOTE)) is Verdict.OUTBOUND
        for area in (bytes([option, 4, 4, 0]), b"\1" + bytes([option, 7, 4, 0, 0, 0, 0])):
            expected = Verdict.OUTBOUND if option in passing else Verdict.DROP_IP_OPTION
            assert verdict_of(made, udp(HOST, REMOTE, ip_options=area)) is expected, (policy, option)
    assert verdict_of(made, udp(HOST, REMOTE, ip_options=b"\1\1\1\0")) is (
        Verdict.DROP_IP_OPTION if policy == "drop" else Verdict.OUTBOUND
    )


@pytest.mark.parametrize("offset", [0, 1])
def test_options_of_fragments_are_looked_at_too(offset: int) -> None:
    made = gateway()
    frame = udp(HOST, REMOTE, ip_options=bytes([LSRR, 4, 4, 0]), fragment=0x2000 if offset == 0 else 1)
    assert verdict_of(made, frame) is Verdict.DROP_IP_OPTION


# Land


@pytest.mark.parametrize("protocol", [1, 6, 17, 47])
@pytest.mark.parametrize("kind", ["inside", "no-nat", "outside", "own"])
def test_land_is_dropped(protocol: int, kind: str) -> None:
    made = gateway()
    made.add(NoNatEntry("10.9.0.0/16", "10.0.0.0/8"))
    address = {"inside": HOST, "no-nat": "10.9.0.1", "outside": EIP, "own": "203.0.113.254"}[kind]
    payload = {
        1: craft.icmp(address, address), 6: craft.tcp((address, 139), (address, 139), 2),
        17: craft.udp((address, 139), (address, 139)), 47: craft.ipv4(47, address, address, bytes(8)),
    }[protocol]  # fmt: skip
    for side in (INSIDE, OUTSIDE):
        assert verdict_of(made, craft.ether(payload), side) is Verdict.DROP_SPOOFED
    assert made.counters()["sessions"] == made.counters()["generated"] == 0


def test_land_after_translation_is_dropped() -> None:
    """From outside, as if it came from the very host that it would reach."""
    made = gateway(policy=Policy(reverse_path_filter=False))
    made.add(DnatEntry(ENTRY, 139, HOST, 139, protocol="udp"))
    made.add(DnatEntry("203.0.113.41", "any", "10.0.0.9", "any", protocol="any"))
    assert verdict_of(made, udp(HOST, ENTRY, (139, 139)), OUTSIDE) is Verdict.DROP_SPOOFED
    assert (
        verdict_of(made, craft.ether(craft.ipv4(47, "10.0.0.9", "203.0.113.41", bytes(8))), OUTSIDE)
        is Verdict.DROP_SPOOFED
    )
    assert len(made.mappings()) == 0
    assert verdict_of(made, udp("10.0.0.9", ENTRY, (139, 139)), OUTSIDE) is Verdict.INBOUND


# Class E, and addresses that no entry can have


def test_class_e_by_policy() -> None:
    with pytest.raises(ConfigurationError, match=r"SnatEntry.source must .*, got '240.1.0.0/16'.*class E"):
        gateway(source="240.1.0.0/16")
    made = gateway(source="240.1.0.0/16", policy=Policy(class_e=True))
    assert verdict_of(made, udp("240.1.2.3", REMOTE)) is Verdict.OUTBOUND
    assert verdict_of(made, udp("240.1.2.3", "250.0.0.1")) is Verdict.OUTBOUND
    assert verdict_of(made, udp("240.1.2.3", "255.255.255.255")) is Verdict.DROP_UNSUPPORTED
    strict = gateway(source="0.0.0.0/0")
    assert verdict_of(strict, udp("240.1.2.3", REMOTE)) is Verdict.DROP_SPOOFED


@pytest.mark.parametrize("address", ["224.0.0.1", "255.255.255.255", "0.0.0.0", "127.0.0.1", "240.0.0.1", METADATA])
def test_addresses_that_nothing_is_forwarded_for_are_refused(address: str) -> None:
    made = gateway(policy=Policy(class_e=True))
    before = [row.id for row in made.entries()]
    for entry in (
        SnatEntry("10.1.0.0/16", pool=[address]),
        SnatEntry("10.1.0.0/16", pool=["203.0.113.9", address]),
        DnatEntry(address, 80, HOST, 80),
        DnatEntry(ENTRY, 80, address, 80),
        NoNatEntry(HOST + "/32", address + "/32"),
        SnatEntry(address + "/32", pool="203.0.113.9"),
    ):
        inside = not isinstance(entry, SnatEntry) or IPv4Network(entry.source).prefixlen == 32
        if address == "240.0.0.1" and inside and getattr(entry, "external_ip", None) != IPv4Address(address):
            continue  # by the policy an inside host or a remote may be there
        with pytest.raises(ConfigurationError, match=rf"{address.rsplit('.', 1)[0]}.*not forwarded"):
            made.add(entry)
    assert [row.id for row in made.entries()] == before


def test_check_refuses_a_pool_that_cannot_work(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(
        '[gateway]\ninstance = "ngw-1"\nvpc_id = "vpc-1"\n[plane]\ninside = "lan0"\noutside = "wan0"\n'
        '[[snat]]\nsource = "10.0.0.0/8"\npool = "224.0.0.1"\n'
    )
    error = call("check", path, exit_code=78)
    assert "224.0.0.1" in error and "multicast" in error and "must be a forwarded unicast address" in error

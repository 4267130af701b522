"""From one inside link to another: FRAME_CROSSING, as a plane's loop sets it by the routing table."""

from __future__ import annotations

import pytest

from natcore import Gateway, Link, NoNatEntry, Side, SnatEntry, Verdict
from natcore.testhooks import wrappers
from natcore.testing import craft
from natcore.testing.oracle.packets import checksum

CROSSING = 8  # FrameFlag of natcore/frame.pxd
HERE, THERE, POOL = "10.0.0.5", "10.0.1.5", "203.0.113.1"


@pytest.fixture
def gateway() -> Gateway:
    made = Gateway(inside=Link(address="10.0.0.1"))
    made.add(SnatEntry("10.0.0.0/16", pool=POOL))
    made.add(NoNatEntry("10.0.0.0/16", "10.0.1.0/24"))
    return made


def pass_on(gateway: Gateway, packet: bytes, side: Side = Side.INSIDE, flags: int = CROSSING) -> tuple[Verdict, bytes]:
    capsule = gateway._core.worker_capsule()
    verdict, frame = wrappers.translate_frame(capsule, craft.ether(packet), side, 0, flags)
    return Verdict(verdict), frame[14:]


PACKETS = {
    "udp": craft.udp((HERE, 1000), (THERE, 53), b"data"),
    "tcp": craft.tcp((HERE, 1000), (THERE, 80), 0x10, b"data"),
    "echo reply": craft.icmp(HERE, THERE, kind=0),
    "later fragment": craft.ipv4(17, HERE, THERE, bytes(16), fragment=100),
    "another protocol": craft.ipv4(50, HERE, THERE, bytes(16)),
}


@pytest.mark.parametrize("packet", PACKETS.values(), ids=PACKETS.keys())
def test_a_packet_of_any_kind_is_routed_without_a_session(gateway: Gateway, packet: bytes) -> None:
    verdict, passed = pass_on(gateway, packet)
    assert verdict is Verdict.UNTRANSLATED
    assert (passed[:8], passed[12:]) == (packet[:8], packet[12:])
    assert (passed[8], passed[9]) == (packet[8] - 1, packet[9])
    assert checksum(passed[:20]) == 0
    counters = gateway.counters()
    assert (counters["forwarded"], counters["created"], counters["held"]) == (1, 0, 0)


def test_without_an_entry_for_both_ends_it_is_translated(gateway: Gateway) -> None:
    verdict, passed = pass_on(gateway, craft.udp((HERE, 1000), ("10.0.2.5", 53), b""))
    assert (verdict, passed[12:16]) == (Verdict.OUTBOUND, bytes([203, 0, 113, 1]))


def test_inside_routing_opens_nothing_from_outside(gateway: Gateway) -> None:
    assert pass_on(gateway, craft.udp((HERE, 1000), (THERE, 53), b""), Side.OUTSIDE)[0] is Verdict.DROP_SPOOFED


def test_the_gateways_own_addresses_are_not_crossed_to(gateway: Gateway) -> None:
    gateway.add(NoNatEntry("10.0.0.0/16", "0.0.0.0/0"))
    assert pass_on(gateway, craft.icmp(HERE, POOL))[0] is Verdict.LOCAL
    assert pass_on(gateway, craft.icmp(HERE, "10.0.0.1"))[0] is Verdict.LOCAL
    assert pass_on(gateway, craft.udp((HERE, 1), ("224.0.0.1", 2), b""))[0] is Verdict.DROP_UNSUPPORTED


def test_time_to_live_and_length_are_a_routers_business(gateway: Gateway) -> None:
    assert pass_on(gateway, craft.udp((HERE, 1000), (THERE, 53), b"", ttl=1))[0] is Verdict.DROP_TTL
    long = craft.udp((HERE, 1000), (THERE, 53), bytes(2000), dont_fragment=True)
    assert pass_on(gateway, long)[0] is Verdict.DROP_MTU
    errors = [generated.frame[34:36] for generated in gateway.take_generated()]
    assert errors == [b"\x0b\x00", b"\x03\x04"]
    verdict, first = pass_on(gateway, craft.udp((HERE, 1000), (THERE, 53), bytes(2000)))
    (second,) = gateway.take_generated()
    assert verdict is Verdict.UNTRANSLATED and len(first) <= 1500
    assert (second.send_to, second.cause) == (Side.INSIDE, Verdict.UNTRANSLATED)

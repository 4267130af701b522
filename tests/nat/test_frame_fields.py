"""Wrong fields of a frame from a C caller: they harm the caller alone."""

from __future__ import annotations

import pytest

from natcore import DnatEntry, Policy, Side, Verdict
from natcore.testhooks import wrappers
from natcore.testing import craft
from support.frames import HOST, REMOTE, gateway

GSO, CROSSING = 2, 8  # FrameFlag of natcore/frame.pxd
EVERY_FLAG = 0xFFFF & ~1 & ~CROSSING  # a partial checksum would be finished elsewhere
PACKETS = {
    "udp without payload": craft.udp((HOST, 5000), (REMOTE, 53), b""),
    "tcp without payload": craft.tcp((HOST, 5000), (REMOTE, 443), 2),
    "tcp with options": craft.tcp((HOST, 5001), (REMOTE, 443), 2, options=b"\1" * 40),
    "icmp": craft.icmp(HOST, REMOTE),
    "icmp of 1,000 bytes": craft.icmp(HOST, REMOTE, identifier=2, payload=bytes(1000)),
    "esp of no bytes": craft.ipv4(50, HOST, REMOTE, b""),
    "esp of 7 bytes": craft.ipv4(50, HOST, "198.51.100.8", bytes(7)),
    "gre of 1,000 bytes": craft.ipv4(47, HOST, REMOTE, bytes(1000)),
}


@pytest.mark.parametrize("gso_size", [0, 1, 8, 1400, 65535])
@pytest.mark.parametrize("packet", PACKETS)
def test_what_is_no_super_frame_is_one_packet(packet: str, gso_size: int) -> None:
    """One shorter than its headers counted as 4,294,967,288 packets."""
    made = gateway()
    frame = craft.ether(PACKETS[packet])
    assert wrappers.translate_frame(made._core.worker_capsule(), frame, 0, 0, GSO, gso_size)[0] == Verdict.OUTBOUND
    [row] = made.sessions()
    assert (row["packets_out"], row["bytes_out"]) == (1, len(frame) - 14)


@pytest.mark.parametrize("gso_size", [0, 1, 8, 1400])
def test_a_fragment_is_no_super_frame(gso_size: int) -> None:
    made = gateway()
    capsule = made._core.worker_capsule()
    whole = craft.udp((HOST, 5000), (REMOTE, 53), bytes(1000), identification=9)
    first = craft.ipv4(17, HOST, REMOTE, whole[20:820], fragment=0x2000, identification=9)
    last = craft.ipv4(17, HOST, REMOTE, whole[820:], fragment=100, identification=9)
    for piece in (first, last):
        assert wrappers.translate_frame(capsule, craft.ether(piece), 0, 0, GSO, gso_size)[0] == Verdict.OUTBOUND
    [row] = made.sessions()
    assert (row["packets_out"], row["bytes_out"]) == (2, len(first) + len(last))


def test_a_super_frame_of_one_byte_segments_is_counted_as_they_are() -> None:
    made = gateway()
    frame = craft.ether(craft.tcp((HOST, 5000), (REMOTE, 443), 2, bytes(100)))
    assert wrappers.translate_frame(made._core.worker_capsule(), frame, 0, 0, GSO, 1)[0] == Verdict.OUTBOUND
    [row] = made.sessions()
    assert (row["packets_out"], row["bytes_out"]) == (100, 100 * 41)


@pytest.mark.parametrize("side", [2, 254, 1, 3, 255])
def test_only_the_lowest_bit_of_a_side_counts(side: int) -> None:
    made = gateway()
    made.add(DnatEntry("203.0.113.40", 53, HOST, 53, protocol="udp"))
    ends = ((HOST, 5000), (REMOTE, 53)) if side % 2 == 0 else ((REMOTE, 53), ("203.0.113.40", 53))
    frame = craft.ether(craft.udp(*ends, b"query"))
    verdict, _ = wrappers.translate_frame(made._core.worker_capsule(), frame, side, 0)
    assert verdict == (Verdict.INBOUND if side & 1 else Verdict.OUTBOUND)


@pytest.mark.parametrize("side", [Side.INSIDE, Side.OUTSIDE])
@pytest.mark.parametrize("flags", [EVERY_FLAG, CROSSING, CROSSING | GSO])
def test_flags_that_do_not_fit_lead_nowhere_else(side: Side, flags: int) -> None:
    made = gateway(policy=Policy(mss=1200))
    made.add(DnatEntry("203.0.113.40", 53, HOST, 53, protocol="udp"))
    ends = ((HOST, 5000), (REMOTE, 53)) if side is Side.INSIDE else ((REMOTE, 53), ("203.0.113.40", 53))
    verdict, sent = wrappers.translate_frame(
        made._core.worker_capsule(), craft.ether(craft.udp(*ends, b"query")), int(side), 0, flags, 100
    )
    assert verdict == (Verdict.OUTBOUND if side is Side.INSIDE else Verdict.INBOUND)
    [row] = made.sessions()
    assert row["packets_out"] + row["packets_in"] == 1 and len(sent) == 14 + 33

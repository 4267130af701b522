"""scapy's packets through a gateway and back."""

from __future__ import annotations

import pytest

from natcore import ConfigurationError, Side, Verdict
from natcore.testing import craft, frames, scapy_packets
from support.frames import IP, TCP, Ether, assert_checksums, gateway, ip


def test_packets_go_through_a_gateway_and_come_back() -> None:
    asked = [
        Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01") / ip() / TCP(sport=5000 + n, dport=443)
        for n in range(3)
    ]
    rows, lengths = frames(asked)
    assert set(gateway().translate(rows, lengths, Side.INSIDE, now=0.0).tolist()) == {Verdict.OUTBOUND}
    for before, after in zip(asked, scapy_packets(rows, lengths), strict=True):
        assert (after[IP].src, after[IP].dst, after[TCP].dport) == ("203.0.113.1", before[IP].dst, 443)
        assert_checksums(after[IP])


def test_bare_packets_and_bytes_are_taken_too() -> None:
    packet = craft.udp(("10.0.0.5", 5000), ("198.51.100.7", 53))
    rows, lengths = frames([packet, IP(packet)], stride=64)
    assert rows.shape == (2, 64) and lengths.tolist() == [28, 28]
    assert [bytes(each) for each in scapy_packets(rows, lengths, "ip")] == [packet, packet]
    assert frames([])[0].shape == (0, 2048)


def test_a_packet_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="stride must be at least 65, the bytes of the longest packet, got 64"):
        frames([bytes(65)], stride=64)

"""The bulk builder against scapy: another implementation must agree with every byte of a checksum."""

from __future__ import annotations

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether

from natcore.testing import bulk

LAYERS = {bulk.ICMP: ICMP, bulk.TCP: TCP, bulk.UDP: UDP}


@pytest.mark.parametrize("protocol", [bulk.ICMP, bulk.TCP, bulk.UDP])
@pytest.mark.parametrize("length", [64, 77])
def test_checksums_are_what_scapy_computes(protocol: int, length: int) -> None:
    numbers = np.arange(50, dtype=np.uint64)
    frames, lengths = bulk.packets(
        protocol, 0x0A000001 + numbers, 1000 + numbers, 0xC6336401, 53, length=length, stride=96
    )
    assert (lengths == length).all()
    assert bulk.headers_right(frames).all()
    assert (bulk.layer4_sums(frames, protocol, length - 14) == 0xFFFF).all()
    for frame in frames[:, :length]:
        packet = Ether(frame.tobytes())
        expected = packet.copy()
        del expected[IP].chksum, expected[LAYERS[protocol]].chksum
        assert bytes(expected) == frame.tobytes()
        assert len(packet[IP]) == length - 14


def test_answers_exchange_both_endpoints() -> None:
    frames, lengths = bulk.packets(bulk.UDP, [1, 2], [10, 20], 3, 30)
    back, _ = bulk.answers(frames, lengths)
    assert [list(part) for part in bulk.endpoints(back, "destination")] == [[1, 2], [10, 20]]
    assert [list(part) for part in bulk.endpoints(back, "source")] == [[3, 3], [30, 30]]
    assert (bulk.layer4_sums(back, bulk.UDP, 50) == 0xFFFF).all()

"""What an off-path attacker sends who knows both addresses and the remote's port: nothing of it ends or shortens a session."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from natcore import Policy, Side, Verdict
from natcore.testing import craft
from support.frames import EIP, REMOTE, Talk, gateway

OUTSIDE = Side.OUTSIDE
PORTS = np.arange(65536, dtype=np.uint32)
FIN, SYN, RST, ACK = 1, 2, 4, 16
ESTABLISHED = 3


def established() -> Talk:
    made = Talk(gateway(policy=Policy(inbound_refresh=False)))
    made.out("S", seq=1_000_000)
    made.back("SA", seq=2_000_000_000, ack=1_000_001)
    made.out("A", seq=1_000_001, ack=2_000_000_001)
    assert made.session()["state"] == ESTABLISHED
    return made


def segment(flags: int) -> bytes:
    return craft.ether(craft.tcp((REMOTE, 443), (EIP, 0), flags, sequence=0x12345678, acknowledgement=0x0BADCAFE))


def error(code: int) -> bytes:
    """From a router, about a segment with a guessed sequence number. The quoted source port is at 62."""
    quoted = craft.tcp((EIP, 0), (REMOTE, 443), ACK, sequence=0xDEADBEEF)
    return craft.ether(craft.icmp("192.0.2.1", EIP, 3, code, 0, 0, quoted))


def to_every_port(frame: bytes, at: int, sums: tuple[int, ...]) -> np.ndarray:
    """A frame for each port, written at an offset; the checksums at sums are right again."""
    rows = np.tile(np.frombuffer(frame, np.uint8), (65536, 1))
    rows[:, at], rows[:, at + 1] = PORTS >> 8, PORTS & 255
    for where in sums:
        total = (0xFFFF ^ int.from_bytes(frame[where : where + 2], "big")) + PORTS
        total = 0xFFFF ^ ((total & 0xFFFF) + (total >> 16))
        rows[:, where], rows[:, where + 1] = total >> 8, total & 255
    return rows


KINDS = {
    "rst": (segment(RST), 36, (50,)),
    "rst-ack": (segment(RST | ACK), 36, (50,)),
    "fin": (segment(FIN | ACK), 36, (50,)),
    "syn": (segment(SYN), 36, (50,)),
    "icmp": (error(3), 62, (36,)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_port_forged_leaves_the_mapping_alive(kind: str) -> None:
    made = established()
    before = made.gateway.mappings().tobytes(), made.session()["session"]
    made.now = 100.0
    frame, at, sums = KINDS[kind]
    rows = to_every_port(frame, at, sums)
    lengths = np.full(len(rows), rows.shape[1], np.uint32)
    verdicts = made.gateway.translate(rows, lengths, OUTSIDE, now=made.now)
    expected = (
        {Verdict.DROP_NO_MAPPING: 65536} if kind == "icmp" else {Verdict.DROP_NO_MAPPING: 65535, Verdict.INBOUND: 1}
    )
    assert Counter(verdicts.tolist()) == expected
    row = made.session()
    assert (made.gateway.mappings().tobytes(), row["session"]) == before
    assert row["deadline_ns"] == 7_440_000_000_000 and row["last_seen_ns"] == 0
    made.now = 7439.0
    assert made.back("A", seq=2_000_000_001, ack=1_000_001) is Verdict.INBOUND


@pytest.mark.parametrize("sequence", [0x12345678, 2_000_000_001 + (1 << 16), 2_000_000_000, 1_999_990_000, 0xF0000000])
def test_a_forged_segment_does_not_open_the_door_for_a_reset_behind_it(sequence: int) -> None:
    """It moves the end of what the outside has sent; a RST there would fit, were it not far from what was acknowledged."""
    made = established()
    made.back("A", seq=sequence, ack=1)
    assert made.back("R", seq=sequence) is Verdict.INBOUND
    assert made.session()["state"] == ESTABLISHED


@pytest.mark.parametrize("sent", [0, 1, 1000, 65535])
def test_a_reset_behind_data_that_is_on_its_way_fits(sent: int) -> None:
    made = established()
    for at in range(0, sent, 1400):
        made.back("PA", seq=2_000_000_001 + at, ack=1_000_001, load=bytes(min(1400, sent - at)))
    assert made.back("R", seq=2_000_000_001 + sent) is Verdict.INBOUND
    assert made.session()["state"] == 7


def test_a_forged_fin_alone_keeps_the_long_time() -> None:
    made = established()
    made.back("FA", seq=77, ack=88)
    assert made.session()["deadline_ns"] == 7_440_000_000_000
    made.now = 7439.0
    assert made.out("A", seq=1_000_001, ack=2_000_000_001) is Verdict.OUTBOUND

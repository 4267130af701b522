"""Checksums that a sender on a virtual link left unfinished: finished, and nothing else is touched."""

from __future__ import annotations

import pytest

from natcore.testhooks import wrappers
from natcore.testing import craft
from natcore.testing.oracle.packets import ACK, Endpoint

HERE: Endpoint = (craft.address("10.0.0.5"), 5353)
THERE: Endpoint = (craft.address("198.51.100.7"), 53)


def packets(**fields: object) -> dict[str, bytes]:
    """Frames with right checksums, and one with a payload that makes the UDP checksum zero, sent as 0xFFFF."""
    load = bytes(range(101))
    made = {
        "tcp": craft.tcp(HERE, THERE, ACK, load, **fields),  # type: ignore[arg-type]
        "tcp with options": craft.tcp(HERE, THERE, ACK, load, options=b"\x02\x04\x05\xb4", **fields),  # type: ignore[arg-type]
        "udp": craft.udp(HERE, THERE, load, **fields),  # type: ignore[arg-type]
        "udp without payload": craft.udp(HERE, THERE, b"", **fields),  # type: ignore[arg-type]
        "behind IP options": craft.udp(HERE, THERE, load, ip_options=bytes(8), **fields),  # type: ignore[arg-type]
    }
    plain = craft.udp(HERE, THERE, b"\0\0")
    made["udp that sums to zero"] = craft.udp(HERE, THERE, plain[26:28], **fields)  # type: ignore[arg-type]
    return {name: craft.ether(packet) for name, packet in made.items()}


def place_of(frame: bytes) -> int:
    return 14 + (frame[14] & 15) * 4 + (16 if frame[23] == 6 else 6)


def unfinished(frame: bytes) -> bytes:
    """Return the packet as the kernel leaves it for offload: the pseudo-header's sum in the field, not complemented."""
    size = int.from_bytes(frame[16:18]) - (frame[14] & 15) * 4
    pseudo = frame[26:34] + bytes((0, frame[23])) + size.to_bytes(2)
    total = sum(int.from_bytes(pseudo[i : i + 2]) for i in range(0, len(pseudo), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    at = place_of(frame)
    return frame[:at] + total.to_bytes(2) + frame[at + 2 :]


@pytest.mark.parametrize("name", packets())
def test_an_unfinished_checksum_is_finished(name: str) -> None:
    right = packets()[name]
    assert unfinished(right) != right
    assert wrappers.finish_checksum_of(unfinished(right)) == right
    padded = wrappers.finish_checksum_of(unfinished(right) + b"padding")
    assert padded == right + b"padding"


@pytest.mark.parametrize("name", packets())
def test_what_is_finished_right_or_wrong_stays_as_it_is(name: str) -> None:
    right = packets()[name]
    wrong = packets(l4_damage=0x0100)[name]
    for frame in (right, wrong):
        assert wrappers.finish_checksum_of(frame) == frame


def test_a_right_checksum_that_looks_unfinished_stays() -> None:
    """Its payload sums to minus twice the pseudo-header's."""
    for word in range(1 << 16):
        frame = craft.ether(craft.udp(HERE, THERE, word.to_bytes(2)))
        if unfinished(frame) == frame:
            break
    else:
        pytest.fail("there is one")
    assert wrappers.finish_checksum_of(frame) == frame


def test_what_has_no_such_checksum_stays() -> None:
    udp = unfinished(packets()["udp"])
    header = bytearray(udp)
    for first, value in ((20, 0x20), (21, 0x01)):  # more fragments; an offset
        fragment = bytes(header[:first]) + bytes([value]) + bytes(header[first + 1 :])
        assert wrappers.finish_checksum_of(fragment) == fragment
    for frame in (
        udp[:33],  # no IPv4 header
        udp[:41],  # shorter than it says
        udp[:14] + b"\x44" + udp[15:],  # a header of 16 bytes
        udp[:16] + b"\0\x1b" + udp[18:],  # too short for the field
        udp[:23] + b"\x01" + udp[24:],  # ICMP
        craft.ether(craft.udp(HERE, THERE, b"none", no_checksum=True)),
    ):
        assert wrappers.finish_checksum_of(frame) == frame

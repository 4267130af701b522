"""What natcore.testing says of frames: fields, differences, checksums, and whether one is the translation of another."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natcore import Gateway, Side, SnatEntry
from natcore.testing import assert_checksums, assert_translation, craft, describe, differences
from natcore.testing.frame_differences import fields
from support.frames import parsed

HOST, REMOTE, POOL = ("10.0.0.5", 5000), ("198.51.100.7", 53), "203.0.113.1"
FRAMES = {
    "udp": craft.ether(craft.udp(HOST, REMOTE, b"query")),
    "no checksum": craft.ether(craft.udp(HOST, REMOTE, b"query", no_checksum=True)),
    "tcp": craft.ether(craft.tcp(HOST, REMOTE, 0x12, b"x", options=b"\2\4\5\xb4"), 5),
    "icmp": craft.ether(craft.icmp(HOST[0], REMOTE[0], payload=b"ping")),
    "error": craft.ether(craft.icmp(REMOTE[0], HOST[0], 3, 1, 0, 0, craft.udp(HOST, REMOTE))),
    "fragment": craft.ether(craft.ipv4(17, HOST[0], REMOTE[0], bytes(16), fragment=0x2001)),
    "gre": craft.ether(craft.ipv4(47, HOST[0], REMOTE[0], bytes(16))),
    "padded": craft.ether(craft.udp(HOST, REMOTE)) + bytes(18),
    "arp": craft.ether(bytes(28), ethertype=0x0806),
    "short": bytes(9),
}


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_has_no_difference_to_itself_and_every_byte_is_in_a_field(name: str) -> None:
    frame = FRAMES[name]
    assert differences(frame, frame) == []
    for at in range(len(frame)):
        changed = frame[:at] + bytes([frame[at] ^ 0x55]) + frame[at + 1 :]
        assert differences(frame, changed), f"byte {at}"


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_any_two_byte_strings_are_compared(one: bytes, other: bytes) -> None:
    for framing in ("ethernet", "ip"):
        assert bool(differences(one, other, framing)) == (one != other)
        assert describe(one, framing)


def test_a_difference_names_the_field_and_both_values() -> None:
    other = craft.ether(craft.udp(HOST, (REMOTE[0], 54), b"query", ttl=9))
    told = differences(FRAMES["udp"], other)
    assert "destination port: 54, expected 53" in told and "IPv4 TTL: 9, expected 64" in told
    assert all(
        re.match(r"(IPv4 header|UDP) checksum: 0x.... \(right\), expected", line)
        for line in told[1:-2]
        if "sum" in line
    )
    (payload,) = differences(FRAMES["udp"], craft.ether(craft.udp(HOST, REMOTE, b"quEry")))[1:]
    assert payload == f"payload: {b'quEry'.hex()}, expected {b'query'.hex()}"


@pytest.mark.parametrize("name", ["udp", "no checksum", "tcp", "icmp", "error", "fragment", "gre", "padded"])
def test_right_checksums_pass_as_scapy_computes_them(name: str) -> None:
    assert_checksums(FRAMES[name])
    parsed(FRAMES[name])


@pytest.mark.parametrize("frame, what", [
    (craft.ether(craft.udp(HOST, REMOTE, l4_damage=1)), "UDP checksum"),
    (craft.ether(craft.tcp(HOST, REMOTE, 2, l4_damage=1)), "TCP checksum"),
    (craft.ether(craft.icmp(HOST[0], REMOTE[0], l4_damage=1)), "ICMP checksum"),
    (craft.ether(craft.udp(HOST, REMOTE, damage=1)), "IPv4 header checksum"),
    (craft.ether(craft.icmp(REMOTE[0], HOST[0], 3, 1, 0, 0, craft.udp(HOST, REMOTE, damage=1))), "quoted IPv4 header checksum"),
])  # fmt: skip
def test_a_wrong_checksum_is_named(frame: bytes, what: str) -> None:
    with pytest.raises(AssertionError, match=rf"^{what}: 0x.... \(wrong\)"):
        assert_checksums(frame)


@pytest.mark.parametrize("name", ["udp", "no checksum", "tcp", "icmp", "gre"])
def test_a_gateways_translation_is_one(name: str) -> None:
    with Gateway(seed=1) as gateway:
        gateway.add(SnatEntry("10.0.0.0/8", pool=POOL))
        _, sent = gateway.translate_one(FRAMES[name], Side.INSIDE, now=0.0)
        port = int(gateway.mappings()["outside_port"][0])
    assert_translation(FRAMES[name], sent, source=(POOL, port))
    assert sent is not None
    for wrong in (sent[:-1], sent + b"x", sent[:22] + bytes([sent[22] - 1]) + sent[23:]):
        with pytest.raises(AssertionError, match=r"the translation of .* is wrong\n"):
            assert_translation(FRAMES[name], wrong, source=(POOL, port))


def test_what_was_not_forwarded_is_no_translation() -> None:
    with pytest.raises(
        AssertionError, match=r"it was not forwarded: UDP 10\.0\.0\.5:5000 > 198\.51\.100\.7:53, 33 bytes"
    ):
        assert_translation(FRAMES["udp"], None)


def test_a_damaged_checksum_must_stay_as_wrong() -> None:
    before = craft.ether(craft.udp(HOST, REMOTE, b"query", l4_damage=0x0101))
    mended = craft.ether(craft.udp((POOL, 4000), REMOTE, b"query", ttl=63))
    with pytest.raises(AssertionError, match="UDP checksum"):
        assert_translation(before, mended, source=(POOL, 4000))


def test_a_later_fragment_has_addresses_alone() -> None:
    after = craft.ether(craft.ipv4(17, POOL, REMOTE[0], bytes(16), fragment=0x2001, ttl=63))
    assert_translation(FRAMES["fragment"], after, source=(POOL, 4000))


def test_an_identification_may_be_asked_to_stay() -> None:
    after = craft.ether(craft.udp((POOL, 4000), REMOTE, b"query", ttl=63, identification=9))
    assert_translation(FRAMES["udp"], after, source=(POOL, 4000))
    with pytest.raises(AssertionError, match="IPv4 identification: 9, expected 0"):
        assert_translation(FRAMES["udp"], after, source=(POOL, 4000), any_identification=False)


def test_fields_are_those_of_the_frame_in_its_order() -> None:
    found = dict(fields(FRAMES["tcp"]))
    assert (found["802.1Q tag"], found["TCP flags"], found["TCP options"]) == ("5", "SYN+ACK", "020405b4")
    assert dict(fields(FRAMES["error"]))["quoted destination port"] == "53"

"""natcore.capture.replay: a capture as the wire had it, whatever order, offloads and snap length made of it."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from natcore import Gateway, SnatEntry
from natcore.capture.pcap import Packet
from natcore.capture.replay import Replay, in_order, parse, segments

HOST, SERVER = "10.0.0.5", "198.51.100.7"
SECOND = 1_000_000_000


def replayed(packets: Iterable[Packet]) -> tuple[Replay, list[Any]]:
    with Gateway(seed=1) as gateway:
        gateway.add(SnatEntry("10.0.0.0/24", pool="203.0.113.1"))
        replay = Replay(gateway, [IPv4Network("10.0.0.0/24")], keep=True)
        replay.run(packets)
        gateway.advance(gateway._core.now_ns / 1e9 + 10_000)
        return replay, [{name: int(row[name]) for name in row.dtype.names} for row in gateway.take_records()]


def tcp(out: bool, flags: str, seq: int, ack: int, data: bytes = b"") -> bytes:
    ends = {"src": HOST, "dst": SERVER} if out else {"src": SERVER, "dst": HOST}
    sport, dport = (4000, 80) if out else (80, 4000)
    return bytes(
        Ether()
        / IP(**ends, flags="DF", id=7)
        / TCP(sport=sport, dport=dport, flags=flags, seq=seq, ack=ack)
        / Raw(data)
    )


def talk(*frames: bytes) -> list[Packet]:
    opening = [tcp(True, "S", 99, 0), tcp(False, "SA", 499, 100), tcp(True, "A", 100, 500)]
    return [Packet(1000 * SECOND + number, frame) for number, frame in enumerate([*opening, *frames])]


@pytest.mark.parametrize("out", [True, False])
def test_a_super_frame_is_the_segments_that_the_wire_had(out: bool) -> None:
    data = bytes(range(256)) * 114
    replay, rows = replayed(talk(tcp(out, "PA", 100 if out else 500, 500 if out else 100, data[:29_160])))
    assert replay.mended == {"super-frames: cut into segments": 1} and replay.altered == 0
    (row,) = rows
    counts = {"vpc": (2, 80), "pub": (1, 40)}
    side = "vpc" if out else "pub"
    parts = -(-29_160 // 1460)
    counts[side] = (counts[side][0] + parts, counts[side][1] + 29_160 + 40 * parts)
    assert (row["pkts_from_vpc"], row["bytes_from_vpc"]) == counts["vpc"]
    assert (row["pkts_from_pub"], row["bytes_from_pub"]) == counts["pub"]
    assert (replay.from_vpc.packets, replay.from_vpc.bytes) == counts["vpc"]
    assert (replay.from_pub.packets, replay.from_pub.bytes) == counts["pub"]
    assert not [verdict for verdict in replay.verdicts if verdict.is_drop]


@given(st.integers(1461, 40_000), st.integers(600, 9000), st.sampled_from(["A", "PA", "FA", "FPA"]))
def test_segments_are_the_super_frame_again(size: int, mtu: int, flags: str) -> None:
    data = bytes(number % 251 for number in range(size))
    frame = tcp(True, flags, 2**32 - 100, 1, data)
    headers = parse(frame)
    assert headers is not None
    parts = [Ether(part)[IP] for part in segments(frame, headers, size + 40, mtu)]
    assert b"".join(bytes(part[TCP].payload) for part in parts) == data
    at = 2**32 - 100
    for number, part in enumerate(parts):
        assert (part.len, part.id, part[TCP].seq) == (len(part), 7 + number, at % 2**32) and part.len <= mtu
        is_last = number == len(parts) - 1
        assert part[TCP].flags == (flags if is_last else flags.replace("F", "").replace("P", ""))
        at += len(part[TCP].payload)
        sums = part.chksum, part[TCP].chksum
        del part.chksum, part[TCP].chksum
        again = IP(bytes(part))
        assert sums == (again.chksum, again[TCP].chksum)


def test_a_total_length_of_0_and_a_checksum_of_0_are_offloads() -> None:
    plain = talk(tcp(True, "PA", 100, 500, b"x" * 100), tcp(False, "A", 500, 200))
    offloaded = [bytearray(packet.frame) for packet in plain]
    offloaded[3][16:18] = offloaded[3][24:26] = bytes(2)
    offloaded[4][24:26] = bytes(2)
    changed = [packet._replace(frame=bytes(frame)) for packet, frame in zip(plain, offloaded, strict=True)]
    replay, rows = replayed(changed)
    assert rows == replayed(plain)[1] and replay.altered == 0
    assert replay.mended == {"total length 0: the frame's length": 1, "IPv4 checksum left to the card: computed": 1}


def test_frames_out_of_time_order_are_sorted() -> None:
    packets = talk(*(tcp(True, "A", 100 + number, 500, b"x") for number in range(20)))
    replay, rows = replayed([packets[1], packets[0], *reversed(packets[2:])])
    assert rows == replayed(packets)[1] and not replay.mended


def test_what_is_further_out_of_order_than_the_window_goes_in_later_and_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("natcore.capture.replay.WINDOW_PACKETS", 3)
    packets = talk(*(tcp(True, "A", 100, 500) for _ in range(20)))
    replay, _ = replayed([*packets[1:], packets[0]])
    assert replay.frames == len(packets)
    assert replay.mended == {"out of order by more than the window: taken later": 1}


def test_what_is_not_understood_is_counted_and_named() -> None:
    big = bytes(Ether() / IP(src=HOST, dst=SERVER, flags="DF") / UDP(sport=1, dport=2) / Raw(bytes(4000)))
    cut = bytes(Ether() / IP(src=HOST, dst=SERVER) / UDP(sport=1, dport=2) / Raw(bytes(100)))
    replay, rows = replayed([Packet(0, big), Packet(1, b"", 0, 105), Packet(2, cut, 60)])
    assert replay.skipped == {
        "longer than the MTU, not TCP: an offload that the capture does not record": 1, "link type 105": 1,
    }  # fmt: skip
    assert replay.mended == {"cut by the snap length: filled with zeros": 1} and len(rows) == 1


@given(st.lists(st.integers(0, 1000)))
def test_in_order_is_a_stable_sort(times: list[int]) -> None:
    packets = [Packet(time, str(number).encode()) for number, time in enumerate(times)]
    assert list(in_order(packets)) == sorted(packets, key=lambda packet: packet.time_ns)

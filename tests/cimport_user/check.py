"""Drives natcore through cimport_user and checks what comes out; `python check.py [NAME …]` runs some or all checks."""

from __future__ import annotations

import gc
import struct
import sys

import cimport_user
import natcore
from natcore import Gateway, Side, SnatEntry, Verdict

INSIDE, OUTSIDE_ADDRESS, REMOTE = b"\x0a\x00\x00\x05", b"\xcb\x00\x71\x01", b"\xc6\x33\x64\x07"
TCP, UDP = 6, 17
CHECKSUM_AT = {TCP: 16, UDP: 6}


def word_sum(data: bytes) -> int:
    """The ones' complement sum of big-endian words (RFC 1071)."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo_sum(source: bytes, destination: bytes, protocol: int, length: int) -> int:
    return word_sum(source + destination + struct.pack("!HH", protocol, length))


def build(
    protocol: int, source: bytes, sport: int, destination: bytes, dport: int, payload: bytes, partial: bool
) -> bytes:
    """An Ethernet frame; partial: its layer-4 field holds the uncomplemented pseudo-header sum only."""
    if protocol == TCP:
        layer4 = bytearray(struct.pack("!HHIIHHHH", sport, dport, 1, 1, 5 << 12 | 0x10, 8192, 0, 0) + payload)
    else:
        layer4 = bytearray(struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload)
    total = pseudo_sum(source, destination, protocol, len(layer4))
    at = CHECKSUM_AT[protocol]
    if not partial:
        total = word_sum(struct.pack("!H", total) + layer4) ^ 0xFFFF
        if protocol == UDP and total == 0:
            total = 0xFFFF  # RFC 768: 0 says that there is none
    layer4[at : at + 2] = struct.pack("!H", total)
    header = bytearray(
        struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(layer4), 0, 0x4000, 64, protocol, 0, source, destination)
    )
    header[10:12] = struct.pack("!H", word_sum(bytes(header)) ^ 0xFFFF)
    return bytes(12) + b"\x08\x00" + bytes(header) + bytes(layer4)


def fields(frame: bytes) -> tuple[bytes, int, bytes, int, int]:
    """source, its port, destination, its port, layer-4 checksum field."""
    sport, dport = struct.unpack_from("!HH", frame, 34)
    (field,) = struct.unpack_from("!H", frame, 34 + CHECKSUM_AT[frame[23]])
    return frame[26:30], sport, frame[30:34], dport, field


def open_gateway() -> Gateway:
    gateway = Gateway(instance="ngw-1", vpc_id="vpc-1", seed=7)
    gateway.add(SnatEntry("10.0.0.0/16", pool="203.0.113.1"))
    return gateway


def there_and_back(protocol: int, payload: bytes, flags: int, gso_size: int, packets: int) -> None:
    """One frame out, its answer back: endpoints, the layer-4 field, counters, the log's row."""
    partial = bool(flags & cimport_user.CSUM_PARTIAL)
    layer4_bytes = (20 if protocol == TCP else 8) + len(payload)
    with open_gateway() as gateway:
        ring, capsule = cimport_user.Ring(), gateway.capsule()
        ring.push(build(protocol, INSIDE, 5353, REMOTE, 53, payload, partial), Side.INSIDE, flags, gso_size, tag=77)
        [(verdict, out, tag)] = ring.run(capsule, 1_000_000_000)
        assert (verdict, tag) == (Verdict.OUTBOUND, 77), (Verdict(verdict).name, tag)
        source, port, destination, dport, field = fields(out)
        assert (source, destination, dport) == (OUTSIDE_ADDRESS, REMOTE, 53)
        assert out == build_like(out, build(protocol, OUTSIDE_ADDRESS, port, REMOTE, 53, payload, partial))
        if partial:
            assert field == pseudo_sum(OUTSIDE_ADDRESS, REMOTE, protocol, layer4_bytes)

        ring.push(build(protocol, REMOTE, 53, OUTSIDE_ADDRESS, port, payload, partial), Side.OUTSIDE, flags, gso_size)
        [(verdict, back, _)] = ring.run(capsule, 2_000_000_000)
        assert verdict == Verdict.INBOUND, Verdict(verdict).name
        assert fields(back)[2:4] == (INSIDE, 5353)
        assert back == build_like(back, build(protocol, REMOTE, 53, INSIDE, 5353, payload, partial))
        check_counts(gateway, packets, 20 * packets + layer4_bytes + (packets - 1) * (layer4_bytes - len(payload)))


def build_like(frame: bytes, expected: bytes) -> bytes:
    """expected after one hop: TTL 63, and an IPv4 checksum from scratch."""
    header = bytearray(expected[14:34])
    header[8] = 63
    header[10:12] = b"\0\0"
    header[10:12] = struct.pack("!H", word_sum(bytes(header)) ^ 0xFFFF)
    return frame[:14] + bytes(header) + expected[34:]


def check_counts(gateway: Gateway, packets: int, size: int) -> None:
    counters = gateway.counters()
    assert (counters["received"], counters["forwarded"], counters["sessions"]) == (2, 2, 1), counters
    gateway.end_all()
    [row] = gateway.take_records()
    assert (row["pkts_from_vpc"], row["pkts_from_pub"]) == (packets, packets), row
    assert (row["bytes_from_vpc"], row["bytes_from_pub"]) == (size, size), row


def check_udp() -> None:
    """A complete frame: the checksum is right from scratch on the other side."""
    there_and_back(UDP, b"natcore", 0, 0, packets=1)


def check_tcp() -> None:
    there_and_back(TCP, b"natcore", 0, 0, packets=1)


def check_udp_partial() -> None:
    """Unfinished checksum: only the addresses' deltas, not complemented."""
    there_and_back(UDP, b"natcore" * 9, cimport_user.CSUM_PARTIAL, 0, packets=1)


def check_tcp_partial() -> None:
    there_and_back(TCP, b"natcore" * 9, cimport_user.CSUM_PARTIAL, 0, packets=1)


def check_tcp_gso() -> None:
    """A super-frame of 28 segments counts 28 packets, with the headers that they will have."""
    payload = bytes(i % 251 for i in range(40_000))
    there_and_back(TCP, payload, cimport_user.CSUM_PARTIAL | cimport_user.GSO, 1448, packets=28)


def check_gso_larger_than_the_link() -> None:
    """Segments that do not fit the next link are refused, not truncated."""
    with open_gateway() as gateway:
        ring, capsule = cimport_user.Ring(), gateway.capsule()
        frame = build(TCP, INSIDE, 5353, REMOTE, 53, bytes(8000), partial=True)
        ring.push(frame, Side.INSIDE, cimport_user.CSUM_PARTIAL | cimport_user.GSO, 4000)
        [(verdict, _, _)] = ring.run(capsule, 1_000_000_000)
        assert verdict == Verdict.DROP_MTU, Verdict(verdict).name


def check_a_full_ring() -> None:
    """64 frames of good and bad kinds in one batch: each has its own verdict, and they add up."""
    with open_gateway() as gateway:
        ring, capsule = cimport_user.Ring(), gateway.capsule()
        good = build(UDP, INSIDE, 5353, REMOTE, 53, b"x", partial=False)
        foreign = build(UDP, b"\xac\x10\x00\x01", 5353, REMOTE, 53, b"x", partial=False)
        arp = bytes(12) + b"\x08\x06" + bytes(28)
        kinds = [good, good[:20], foreign, arp]
        expected = [Verdict.OUTBOUND, Verdict.DROP_MALFORMED, Verdict.DROP_NO_SNAT_ENTRY, Verdict.DROP_UNSUPPORTED]
        for i in range(64):
            ring.push(kinds[i % 4], Side.INSIDE, tag=i)
        result = ring.run(capsule, 0)
        assert [verdict for verdict, _, _ in result] == expected * 16
        assert [tag for _, _, tag in result] == list(range(64))
        counters = gateway.counters()
        assert (counters["received"], counters["forwarded"], counters["dropped"]) == (64, 16, 48), counters


def check_generated() -> None:
    """An echo request to the pool's address is answered by the gateway itself."""
    with open_gateway() as gateway:
        ring, capsule = cimport_user.Ring(), gateway.capsule()
        echo = bytearray(struct.pack("!BBHHH", 8, 0, 0, 1, 1))
        echo[2:4] = struct.pack("!H", word_sum(bytes(echo)) ^ 0xFFFF)
        header = bytearray(struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 0, 0, 64, 1, 0, REMOTE, OUTSIDE_ADDRESS))
        header[10:12] = struct.pack("!H", word_sum(bytes(header)) ^ 0xFFFF)
        ring.push(bytes(12) + b"\x08\x00" + bytes(header) + bytes(echo), Side.OUTSIDE)
        [(verdict, _, _)] = ring.run(capsule, 0)
        assert verdict == Verdict.LOCAL, Verdict(verdict).name
        frame, send_to, cause = ring.take_generated(capsule)
        assert (frame[26:34], frame[34], send_to, cause) == (OUTSIDE_ADDRESS + REMOTE, 0, Side.OUTSIDE, Verdict.LOCAL)
        assert ring.take_generated(capsule) is None


def check_the_capsule_keeps_the_gateway() -> None:
    """A worker is there for as long as its capsule is; another object is refused."""
    ring, capsule = cimport_user.Ring(), open_gateway().capsule()
    gc.collect()
    ring.push(build(UDP, INSIDE, 5353, REMOTE, 53, b"x", partial=False), Side.INSIDE)
    [(verdict, _, _)] = ring.run(capsule, 0)
    assert verdict == Verdict.OUTBOUND, Verdict(verdict).name
    for other in (None, natcore.C_API):
        try:
            ring.run(other, 0)
        except ValueError:
            continue
        raise AssertionError(other)


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items())
          if name.startswith("check_") and name != "check_counts"}  # fmt: skip

if __name__ == "__main__":
    for name in sys.argv[1:] or CHECKS:
        CHECKS[name]()
        print(f"{name}: ok")

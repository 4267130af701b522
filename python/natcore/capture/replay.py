"""Replay of an inside link's capture, in memory through a gateway."""

from __future__ import annotations

import heapq
import ipaddress
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from natcore.capture.pcap import Packet
from natcore.gateway import Gateway
from natcore.internal.protocols import ICMP, TCP, UDP
from natcore.verdict import Side, Verdict

_QUERIES = (0, 8, *range(13, 19))  # ICMP types that have an identifier
_VLANS = (0x8100, 0x88A8)
WINDOW_PACKETS, WINDOW_BYTES = 65_536, 64 << 20  # that a capture is sorted within


@dataclass(slots=True)
class Traffic:
    """Network-layer packets and their IPv4 total lengths."""

    packets: int = 0
    bytes: int = 0

    def add(self, length_bytes: int) -> None:
        """Count one packet."""
        self.packets += 1
        self.bytes += length_bytes


@dataclass(slots=True)
class Replay:
    """A capture on its way through a gateway, and what became of it.

    Attributes
    ----------
    gateway
        The gateway; its epoch becomes the time of the first packet.
    inside
        Prefixes: their addresses are inside.
    keep
        Collect `outside`, the frames of the outside link.
    frames
        Frames so far.
    skipped
        Frames that a gateway would not see here, or that are not understood, by reason.
    mended
        Frames that the capture has otherwise than the wire had them, by what: offloads of the captured machine's card,
        what the snap length cut off, packets more out of order than the window.
    verdicts
        How often each.
    from_vpc, from_pub
        What was forwarded, each way.
    altered
        Answers that did not come back to the inside host as the capture has them (TTL apart).
    outside
        With keep the frames of the outside link.
    """

    gateway: Gateway
    inside: Sequence[ipaddress.IPv4Network]
    keep: bool = False
    frames: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    mended: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    from_vpc: Traffic = field(default_factory=Traffic)
    from_pub: Traffic = field(default_factory=Traffic)
    altered: int = 0
    outside: list[Packet] = field(default_factory=list)
    _start_ns: int | None = None
    _endpoints: dict[tuple[int, int, int], tuple[int, int]] = field(default_factory=dict)  # inside -> outside endpoint

    def run(self, packets: Iterable[Packet]) -> None:
        """Send the packets of an inside link through the gateway, at the times of the capture.

        A packet from an inside source goes in as it is. A packet to one is an answer, which the capture has with the
        inside host's address: it goes in as the server sent it, to the outside endpoint that the mapping has.
        The gateway's epoch becomes the time of the first packet.
        """
        last_ns = 0
        for packet in in_order(packets):
            if self._start_ns is None:
                self._start_ns = last_ns = packet.time_ns
                self.gateway.set_epoch(packet.time_ns / 1e9)
            self.frames += 1
            if packet.time_ns < last_ns:
                self.mended["out of order by more than the window: taken later"] += 1
            last_ns = max(last_ns, packet.time_ns)
            if reason := self._feed(packet, (last_ns - self._start_ns) / 1e9):
                self.skipped[reason] += 1

    def _feed(self, packet: Packet, now: float) -> str | None:
        """Send one packet; return why it was skipped, or None."""
        if packet.unknown:
            return f"link type {packet.unknown}"
        headers = parse(packet.frame)
        if headers is None:
            return "not IPv4"
        from_inside, to_inside = self._is_inside(headers.source), self._is_inside(headers.destination)
        if from_inside == to_inside:
            return "between inside hosts" if from_inside else "of other hosts"
        endpoint = None
        if to_inside:
            endpoint = self._endpoints.get((headers.protocol, headers.destination, headers.destination_port or 0))
            if endpoint is None or headers.destination_port is None:
                return "answer to nothing in the capture"
        if packet.missing:
            self.mended["cut by the snap length: filled with zeros"] += 1
        frames = self._as_on_the_wire(packet.frame, headers)
        if frames is None:
            return "longer than the MTU, not TCP: an offload that the capture does not record"
        for frame in frames:
            part = parse(frame)
            assert part is not None
            if endpoint is None:
                self._outbound(packet._replace(frame=frame), part, now)
            else:
                self._inbound(packet._replace(frame=frame), part, now, endpoint)
        return None

    def _as_on_the_wire(self, frame: bytes, headers: Headers) -> list[bytes] | None:
        """The frame before the captured machine's card cut it, or after it did; None: it cannot be known."""
        l3, length = headers.l3, headers.length_bytes
        if length == 0 and len(frame) > l3 + 20:
            length = len(frame) - l3
            self.mended["total length 0: the frame's length"] += 1
        elif frame[l3 + 10 : l3 + 12] == b"\0\0" and _ipv4_sum(frame[l3 : headers.l4]) != 0xFFFF:
            self.mended["IPv4 checksum left to the card: computed"] += 1
        elif length <= self._mtu:
            return [frame]
        fragment = int.from_bytes(frame[l3 + 6 : l3 + 8], "big")
        is_tcp = headers.protocol == TCP and fragment & 0x3FFF == 0 and len(frame) >= headers.l4 + 20
        if length > self._mtu and is_tcp:
            self.mended["super-frames: cut into segments"] += 1
            return list(segments(frame, headers, length, self._mtu))
        if length > 65_535 or (length > self._mtu and fragment & 0x4000):
            return None
        return [_with_network_header(frame, headers, length)]

    @property
    def _mtu(self) -> int:
        return min(self.gateway.inside.mtu, self.gateway.outside.mtu)

    def _outbound(self, packet: Packet, headers: Headers, now: float) -> None:
        verdict, frame = self.gateway.translate_one(packet.frame, Side.INSIDE, now)
        self.verdicts[verdict] += 1
        if not verdict.is_forwarded or frame is None:
            return
        self.from_vpc.add(headers.length_bytes)
        translated = parse(frame)
        if translated is not None and translated.source_port is not None:
            key = (headers.protocol, headers.source, headers.source_port or 0)
            self._endpoints[key] = (translated.source, translated.source_port)
        if self.keep:
            self.outside.append(Packet(packet.time_ns, frame))

    def _inbound(self, packet: Packet, headers: Headers, now: float, endpoint: tuple[int, int]) -> None:
        sent = readdress(packet.frame, headers, *endpoint)
        verdict, frame = self.gateway.translate_one(sent, Side.OUTSIDE, now)
        self.verdicts[verdict] += 1
        if self.keep:
            self.outside.append(Packet(packet.time_ns, sent))
        if not verdict.is_forwarded or frame is None:
            return
        self.from_pub.add(headers.length_bytes)
        addresses = slice(headers.l3 + 12, headers.l3 + 20)
        data = slice(headers.l4, headers.l3 + headers.length_bytes)  # layer 4, its checksum included
        self.altered += frame[addresses] != packet.frame[addresses] or frame[data] != packet.frame[data]

    def _is_inside(self, address: int) -> bool:
        return any(address & int(n.netmask) == int(n.network_address) for n in self.inside)


class Headers(NamedTuple):
    """Where an IPv4 packet's headers lie in its frame (bytes), and its endpoints (addresses in host order).

    Ports: of TCP and UDP, or the id of an ICMP query, both ways; None where there are none.
    """

    l3: int
    l4: int
    length_bytes: int
    protocol: int
    source: int
    destination: int
    source_port: int | None
    destination_port: int | None


def parse(frame: bytes) -> Headers | None:
    """The headers of an Ethernet frame; None: not IPv4, or too short."""
    l3 = 14
    while len(frame) >= l3 + 2 and int.from_bytes(frame[l3 - 2 : l3], "big") in _VLANS:
        l3 += 4
    if len(frame) < l3 + 20 or frame[l3 - 2 : l3] != b"\x08\x00":
        return None
    l4 = l3 + (frame[l3] & 15) * 4
    length, fragment, protocol, source, destination = struct.unpack_from("!2xH2xHxB2xII", frame, l3)
    ports: tuple[int | None, int | None] = (None, None)
    if len(frame) >= l4 + 8 and fragment & 0x1FFF == 0:
        if protocol in (TCP, UDP):
            ports = struct.unpack_from("!HH", frame, l4)
        elif protocol == ICMP and frame[l4] in _QUERIES:
            ports = struct.unpack_from("!H", frame, l4 + 4) * 2
    return Headers(l3, l4, length, protocol, source, destination, *ports)


def in_order(packets: Iterable[Packet]) -> Iterator[Packet]:
    """Yield the packets ordered by time within a window of WINDOW_PACKETS and WINDOW_BYTES."""
    waiting: list[tuple[int, int, Packet]] = []
    size = 0
    for number, packet in enumerate(packets):
        heapq.heappush(waiting, (packet.time_ns, number, packet))
        size += len(packet.frame)
        while len(waiting) > WINDOW_PACKETS or size > WINDOW_BYTES:
            first = heapq.heappop(waiting)[2]
            size -= len(first.frame)
            yield first
    while waiting:
        yield heapq.heappop(waiting)[2]


def segments(frame: bytes, headers: Headers, length: int, mtu: int) -> Iterator[bytes]:
    """The TCP segments that a card makes of a super-frame of `length` bytes (IPv4), as large as the MTU allows."""
    l3, l4 = headers.l3, headers.l4
    start = l4 + max(20, (frame[l4 + 12] >> 4) * 4)
    data = frame[start : l3 + length]
    payload_bytes = mtu - (start - l3)
    identification = int.from_bytes(frame[l3 + 4 : l3 + 6], "big")
    sequence = int.from_bytes(frame[l4 + 4 : l4 + 8], "big")
    for number, at in enumerate(range(0, len(data), payload_bytes)):
        part = bytearray(frame[:start] + data[at : at + payload_bytes])
        struct.pack_into("!H", part, l3 + 4, (identification + number) & 0xFFFF)
        struct.pack_into("!I", part, l4 + 4, (sequence + at) & 0xFFFFFFFF)
        if at + payload_bytes < len(data):
            part[l4 + 13] &= ~0x09 & 0xFF  # FIN and PSH belong to the last segment
        if at:
            part[l4 + 13] &= 0x7F  # CWR belongs to the first segment
        whole = bytearray(_with_network_header(bytes(part), headers, len(part) - l3))
        whole[l4 + 16 : l4 + 18] = b"\0\0"
        pseudo = bytes(whole[l3 + 12 : l3 + 20]) + struct.pack("!BBH", 0, TCP, len(whole) - l4)
        struct.pack_into("!H", whole, l4 + 16, ~_ipv4_sum(pseudo + bytes(whole[l4:])) & 0xFFFF)
        yield bytes(whole)


def _with_network_header(frame: bytes, headers: Headers, length: int) -> bytes:
    """Return the frame with this total length and a new IPv4 checksum."""
    mended = bytearray(frame[: headers.l3 + length])
    struct.pack_into("!H", mended, headers.l3 + 2, length)
    struct.pack_into("!H", mended, headers.l3 + 10, 0)
    struct.pack_into("!H", mended, headers.l3 + 10, ~_ipv4_sum(mended[headers.l3 : headers.l4]) & 0xFFFF)
    return bytes(mended)


def _ipv4_sum(data: bytes | bytearray) -> int:
    """Return the one's complement sum of the words (RFC 1071); 0xFFFF if a right checksum is among them."""
    padded = bytes(data) + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def readdress(frame: bytes, headers: Headers, address: int, port: int) -> bytes:
    """Return the frame with another destination address and port (or ICMP id); checksums follow by RFC 1624."""
    rewritten = bytearray(frame)
    l3, l4 = headers.l3, headers.l4
    new_address, new_port = address.to_bytes(4, "big"), port.to_bytes(2, "big")
    old_address = frame[l3 + 16 : l3 + 20]
    at_port, at_checksum, pseudo = {TCP: (2, 16, True), UDP: (2, 6, True), ICMP: (4, 2, False)}[headers.protocol]
    old_port = frame[l4 + at_port : l4 + at_port + 2]
    rewritten[l3 + 16 : l3 + 20] = new_address
    rewritten[l4 + at_port : l4 + at_port + 2] = new_port
    _update(rewritten, l3 + 10, old_address, new_address)
    none_made = headers.protocol == UDP and frame[l4 + 6 : l4 + 8] == b"\0\0"  # RFC 768: 0 is no checksum
    if not none_made and len(frame) >= l4 + at_checksum + 2:
        pseudo_old, pseudo_new = (old_address, new_address) if pseudo else (b"", b"")
        _update(rewritten, l4 + at_checksum, pseudo_old + old_port, pseudo_new + new_port)
        if headers.protocol == UDP and rewritten[l4 + 6 : l4 + 8] == b"\0\0":
            rewritten[l4 + 6 : l4 + 8] = b"\xff\xff"
    return bytes(rewritten)


def _update(frame: bytearray, at: int, old: bytes, new: bytes) -> None:
    """Update the checksum at this offset after `old` became `new` (RFC 1624, eq. 3)."""
    words = len(old) // 2
    total = ~int.from_bytes(frame[at : at + 2], "big") & 0xFFFF
    total += sum(~word & 0xFFFF for word in struct.unpack(f"!{words}H", old)) + sum(struct.unpack(f"!{words}H", new))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    frame[at : at + 2] = (~total & 0xFFFF).to_bytes(2, "big")

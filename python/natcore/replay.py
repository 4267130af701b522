"""A capture of an inside link, replayed in memory through a gateway: what it would have made of this traffic."""

from __future__ import annotations

import ipaddress
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .capture import Packet
from .gateway import Gateway
from .verdict import FORWARDED, Side, Verdict

_ICMP, _TCP, _UDP = 1, 6, 17  # IANA protocol numbers
_QUERIES = (0, 8, *range(13, 19))  # ICMP types that have an identifier
_VLANS = (0x8100, 0x88A8)


@dataclass(slots=True)
class Traffic:
    """Network-layer packets and their IPv4 total lengths."""

    packets: int = 0
    bytes: int = 0

    def add(self, length_bytes: int) -> None:
        self.packets += 1
        self.bytes += length_bytes


@dataclass(slots=True)
class Replay:
    """A capture on its way through a gateway, and what became of it.

    inside: whose sources are inside. keep: collect `outside`, the frames of the outside link.
    skipped: frames that a gateway would not see here, by reason. from_vpc, from_pub: what was forwarded, each way.
    altered: answers that did not come back to the inside host as the capture has them (TTL apart).
    """

    gateway: Gateway
    inside: Sequence[ipaddress.IPv4Network]
    keep: bool = False
    frames: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
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
        for packet in packets:
            if self._start_ns is None:
                self._start_ns = packet.time_ns
                self.gateway.set_epoch(packet.time_ns / 1e9)
            self.frames += 1
            if reason := self._feed(packet, (packet.time_ns - self._start_ns) / 1e9):
                self.skipped[reason] += 1

    def _feed(self, packet: Packet, now: float) -> str | None:
        """Why the packet was skipped; None: it went in."""
        headers = parse(packet.frame)
        if headers is None:
            return "not IPv4"
        from_inside, to_inside = self._is_inside(headers.source), self._is_inside(headers.destination)
        if from_inside == to_inside:
            return "between inside hosts" if from_inside else "of other hosts"
        if from_inside:
            self._outbound(packet, headers, now)
            return None
        endpoint = self._endpoints.get((headers.protocol, headers.destination, headers.destination_port or 0))
        if endpoint is None or headers.destination_port is None:
            return "answer to nothing in the capture"
        self._inbound(packet, headers, now, endpoint)
        return None

    def _outbound(self, packet: Packet, headers: Headers, now: float) -> None:
        verdict, frame = self.gateway.translate_one(packet.frame, Side.INSIDE, now)
        self.verdicts[verdict] += 1
        if verdict not in FORWARDED or frame is None:
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
        if verdict not in FORWARDED or frame is None:
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
    """The headers of an Ethernet frame; None: not IPv4, or too short to tell."""
    l3 = 14
    while len(frame) >= l3 + 2 and int.from_bytes(frame[l3 - 2 : l3], "big") in _VLANS:
        l3 += 4
    if len(frame) < l3 + 20 or frame[l3 - 2 : l3] != b"\x08\x00":
        return None
    l4 = l3 + (frame[l3] & 15) * 4
    length, fragment, protocol, source, destination = struct.unpack_from("!2xH2xHxB2xII", frame, l3)
    ports: tuple[int | None, int | None] = (None, None)
    if len(frame) >= l4 + 8 and fragment & 0x1FFF == 0:
        if protocol in (_TCP, _UDP):
            ports = struct.unpack_from("!HH", frame, l4)
        elif protocol == _ICMP and frame[l4] in _QUERIES:
            ports = struct.unpack_from("!H", frame, l4 + 4) * 2
    return Headers(l3, l4, length, protocol, source, destination, *ports)


def readdress(frame: bytes, headers: Headers, address: int, port: int) -> bytes:
    """The frame, sent to another address and port (or ICMP id) instead; checksums follow by RFC 1624."""
    rewritten = bytearray(frame)
    l3, l4 = headers.l3, headers.l4
    new_address, new_port = address.to_bytes(4, "big"), port.to_bytes(2, "big")
    old_address = frame[l3 + 16 : l3 + 20]
    at_port, at_checksum, pseudo = {_TCP: (2, 16, True), _UDP: (2, 6, True), _ICMP: (4, 2, False)}[headers.protocol]
    old_port = frame[l4 + at_port : l4 + at_port + 2]
    rewritten[l3 + 16 : l3 + 20] = new_address
    rewritten[l4 + at_port : l4 + at_port + 2] = new_port
    _update(rewritten, l3 + 10, old_address, new_address)
    none_made = headers.protocol == _UDP and frame[l4 + 6 : l4 + 8] == b"\0\0"  # RFC 768: 0 is no checksum
    if not none_made and len(frame) >= l4 + at_checksum + 2:
        pseudo_old, pseudo_new = (old_address, new_address) if pseudo else (b"", b"")
        _update(rewritten, l4 + at_checksum, pseudo_old + old_port, pseudo_new + new_port)
        if headers.protocol == _UDP and rewritten[l4 + 6 : l4 + 8] == b"\0\0":
            rewritten[l4 + 6 : l4 + 8] = b"\xff\xff"
    return bytes(rewritten)


def _update(frame: bytearray, at: int, old: bytes, new: bytes) -> None:
    """The checksum at this offset after `old` became `new` (RFC 1624, eq. 3)."""
    words = len(old) // 2
    total = ~int.from_bytes(frame[at : at + 2], "big") & 0xFFFF
    total += sum(~word & 0xFFFF for word in struct.unpack(f"!{words}H", old)) + sum(struct.unpack(f"!{words}H", new))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    frame[at : at + 2] = (~total & 0xFFFF).to_bytes(2, "big")

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
from natcore.capture.prepared import (
    CUT,
    CUT_ERROR,
    CUT_HEADERS,
    LATE,
    LENGTH_0,
    LONGER,
    NO_IPV4_CHECKSUM,
    PARTIAL_CHECKSUM,
    QUERIES,
    SUPER_FRAMES,
    TAGS,
    TOO_LONG,
    WINDOW_PACKETS,
    kind_name,
)
from natcore.capture.readdress import Find, endpoint_of_entries, ones_sum, quoted_endpoint, readdress_error, update
from natcore.capture.reader import CutShortError
from natcore.capture.sides import Sides
from natcore.capture.what_if import CUT_SHORT, NO_MAPPING, is_by_remote
from natcore.gateway import Gateway
from natcore.internal.protocols import ICMP, TCP, UDP
from natcore.verdict import Side, Verdict

WINDOW_BYTES = 64 << 20  # that a capture is sorted within, and WINDOW_PACKETS
_WHY = {  # of verdicts, for a reader
    Verdict.OUTBOUND: "translated, inside to outside",
    Verdict.INBOUND: "translated, outside to inside",
    Verdict.HAIRPIN: "translated both ways, back inside",
    Verdict.UNTRANSLATED: "passed as it is, by a no-NAT entry",
    Verdict.LOCAL: "for the gateway itself",
    Verdict.HELD: "a fragment that waits for its first one",
    Verdict.DROP_MALFORMED: "a length or a header that cannot be",
    Verdict.DROP_CHECKSUM: "the checksum of the IPv4 header, or of an ICMP error, is wrong",
    Verdict.DROP_TTL: "its TTL was 1 or less",
    Verdict.DROP_NO_SNAT_ENTRY: "no entry covers the inside source",
    Verdict.DROP_NO_MAPPING: "nothing is open at this outside endpoint, or a segment that opens no session",
    Verdict.DROP_FILTERED: "open, but not for this remote",
    Verdict.DROP_PORTS_EXHAUSTED: "no port of the pool is free",
    Verdict.DROP_SESSION_LIMIT: "a table is full",
    Verdict.DROP_SUBSCRIBER_LIMIT: "the subscriber's quota is used up",
    Verdict.DROP_RATE_LIMIT: "too many new sessions a second",
    Verdict.DROP_CONFLICT: "another session has the other key already",
    Verdict.DROP_UNSUPPORTED: "a protocol or an ICMP message that is not translated",
    Verdict.DROP_FRAGMENT: "a fragment that cannot be matched",
    Verdict.DROP_SPOOFED: "a source that cannot come from there",
    Verdict.DROP_MTU: "larger than the next link, and DF is set",
    Verdict.DROP_NO_NEIGHBOUR: "no route leads there",
    Verdict.DROP_OUTSIDE_LIMIT: "too many sessions opened from outside",
    Verdict.DROP_PROBE_LIMIT: "the index's probe bound",
    Verdict.DROP_IP_OPTION: "an IPv4 option that is not forwarded",
}


class Replayed(NamedTuple):
    """What became of one packet of a capture.

    Attributes
    ----------
    packet
        As the capture has it.
    side
        Where it came from; None: skipped.
    verdict
        The gateway's, of a super-frame's last segment; None: skipped.
    reason
        Why, in words.
    outside
        Its frames on the outside link.
    """

    packet: Packet
    side: Side | None
    verdict: Verdict | None
    reason: str
    outside: tuple[Packet, ...] = ()

    @property
    def comment(self) -> str:
        """The verdict and the reason in one line."""
        return f"skipped: {self.reason}" if self.verdict is None else f"{self.verdict.name}: {self.reason}"


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
    sides
        Which side a frame came from; None: by the prefixes of `inside`.
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
    sides: Sides | None = None
    _start_ns: int | None = None
    _endpoints: dict[tuple[int, ...], tuple[int, int]] = field(default_factory=dict)  # inside -> outside endpoint
    _hosts: dict[int, int] = field(default_factory=dict)  # inside -> outside address
    _sent: list[Packet] = field(default_factory=list)  # of this step, on the outside link
    _static: Find | None = None
    _by_remote: bool = False

    def run(self, packets: Iterable[Packet]) -> None:
        """Send the packets of an inside link through the gateway, at the times of the capture.

        A packet from an inside source goes in as it is. A packet to one is an answer, which the capture has with the
        inside host's address: it goes in as the server sent it, to the outside endpoint that the mapping has.
        The gateway's epoch becomes the time of the first packet. A capture that was cut off is taken up to there.
        """
        for step in self.steps(packets):
            if self.keep:
                self.outside += step.outside

    def steps(self, packets: Iterable[Packet]) -> Iterator[Replayed]:
        """Do what `run` does, and tell what became of each packet; `outside` is not collected.

        Parameters
        ----------
        packets
            Of an inside link.

        Yields
        ------
        Replayed
            In order of time.
        """
        if self.sides is None:
            self.sides = Sides(tuple(self.inside))
        self._static = endpoint_of_entries(self.gateway)
        self._by_remote = is_by_remote(self.gateway)
        last_ns = 0
        for packet in in_order(self._to_its_end(packets)):
            if self._start_ns is None:
                self._start_ns = last_ns = packet.time_ns
                self.gateway.set_epoch(packet.time_ns / 1e9)
            self.frames += 1
            if packet.time_ns < last_ns:
                self.mended[LATE] += 1
            if packet.longer:
                self.mended[LONGER] += 1
            last_ns = max(last_ns, packet.time_ns)
            self._sent = []
            step = self._feed(packet, (last_ns - self._start_ns) / 1e9)
            if step.verdict is None:
                self.skipped[step.reason] += 1
            yield step._replace(outside=tuple(self._sent))

    def _to_its_end(self, packets: Iterable[Packet]) -> Iterator[Packet]:
        try:
            yield from packets
        except CutShortError:
            self.mended[CUT_SHORT] += 1

    def _feed(self, packet: Packet, now: float) -> Replayed:
        """Send one packet; return what became of it."""
        frame = bare(packet.frame)
        headers, sides = parse(frame), self.sides
        assert sides is not None
        if reason := _not_understood(packet, frame, headers):
            return Replayed(packet, None, None, reason)
        assert headers is not None
        side = sides.of_frame(packet.interface, packet.direction, packet.frame, headers.source, headers.destination)
        if isinstance(side, str):
            return Replayed(packet, None, None, side)
        if reason := _cut_away(packet, frame, headers):
            return Replayed(packet, None, None, reason)
        if packet.missing and len(frame) - packet.missing < headers.l3 + (headers.length_bytes or len(frame)):
            self.mended[CUT] += 1
        frames = self._as_on_the_wire(frame, headers)
        if frames is None:
            return Replayed(packet, None, None, TOO_LONG)
        verdict: Verdict | None = None
        for each in frames:
            part = parse(each)
            assert part is not None
            if side == Side.INSIDE:
                verdict = self._outbound(packet._replace(frame=each), part, now)
                continue
            sent = self._as_sent(each, part)
            if sent is None:
                self.skipped[NO_MAPPING] += len(frames) - 1
                return Replayed(packet, None, None, NO_MAPPING)
            verdict = self._inbound(packet._replace(frame=each), sent, part, now)
        assert verdict is not None
        return Replayed(packet, side, verdict, _WHY[verdict])

    def _key(self, protocol: int, inside: int, port: int, remote: int, remote_port: int) -> tuple[int, ...]:
        ends = (remote, 0 if protocol == ICMP else remote_port) if self._by_remote else ()
        return (protocol, inside, port, *ends)

    def _endpoint(self, protocol: int, inside: int, port: int, remote: int, remote_port: int) -> tuple[int, int] | None:
        found = self._endpoints.get(self._key(protocol, inside, port, remote, remote_port))
        return found or (self._static(protocol, inside, port) if self._static is not None else None)

    def _as_sent(self, frame: bytes, headers: Headers) -> bytes | None:
        """Return an answer as its sender sent it; None: nothing has been sent that it answers."""
        is_whole = len(frame) >= headers.l4 + 8
        if headers.protocol == ICMP and headers.destination_port is None and is_whole and not headers.is_later:
            quoted = quoted_endpoint(frame)
            endpoint = None if quoted is None else self._endpoint(*quoted)
            return None if endpoint is None else readdress_error(frame, *endpoint)
        if headers.destination_port is None or headers.source_port is None:
            address = self._hosts.get(headers.destination)
            return None if address is None else _readdress_bare(frame, headers, address)
        endpoint = self._endpoint(
            headers.protocol, headers.destination, headers.destination_port, headers.source, headers.source_port
        )
        return None if endpoint is None else readdress(frame, headers, *endpoint)

    def _as_on_the_wire(self, frame: bytes, headers: Headers) -> list[bytes] | None:
        """The frame before the captured machine's card cut it, or after it did; None: it cannot be known."""
        l3, length = headers.l3, headers.length_bytes
        changed = False
        if length == 0 and len(frame) > l3 + 20:
            length, changed = len(frame) - l3, True
            self.mended[LENGTH_0] += 1
        elif frame[l3 + 10 : l3 + 12] == b"\0\0" and _header_sum(frame, headers) != 0xFFFF:
            changed = True
            self.mended[NO_IPV4_CHECKSUM] += 1
        fragment = int.from_bytes(frame[l3 + 6 : l3 + 8], "big")
        has_ports = headers.source_port is not None and fragment & 0x3FFF == 0
        there = min(length, len(frame) - l3)  # a frame that is shorter than it says is the gateway's to drop
        if there > self._mtu and has_ports and headers.protocol == TCP:
            self.mended[SUPER_FRAMES] += 1
            return list(segments(frame, headers, there, self._mtu))
        if there > 65_535 or (there > self._mtu and fragment & 0x4000):
            return None
        if changed:
            frame = _with_network_header(frame, headers, length)
        if has_ports and (at := {TCP: 16, UDP: 6}.get(headers.protocol)) is not None:
            frame = self._finished(frame, headers, headers.l4 + at, length)
        return [frame]

    def _finished(self, frame: bytes, headers: Headers, at: int, length: int) -> bytes:
        """Return the frame with the layer-4 checksum that a card would have put in place of the pseudo-header's sum."""
        l3, end = headers.l3, headers.l3 + length
        if end < headers.l4:
            return frame  # the length cannot be, which the gateway says
        pseudo = frame[l3 + 12 : l3 + 20] + struct.pack("!HH", headers.protocol, end - headers.l4)
        if int.from_bytes(frame[at : at + 2], "big") != ones_sum(pseudo):
            return frame
        self.mended[PARTIAL_CHECKSUM] += 1
        checksum = ~ones_sum(frame[headers.l4 : end]) & 0xFFFF  # the pseudo-header's sum is in it
        checksum = 0xFFFF if not checksum and headers.protocol == UDP else checksum
        return frame[:at] + checksum.to_bytes(2, "big") + frame[at + 2 :]

    @property
    def _mtu(self) -> int:
        return min(self.gateway.inside.mtu, self.gateway.outside.mtu)

    def _outbound(self, packet: Packet, headers: Headers, now: float) -> Verdict:
        verdict, frame = self.gateway.translate_one(packet.frame, Side.INSIDE, now)
        self.verdicts[verdict] += 1
        if not verdict.is_forwarded or frame is None:
            return verdict
        self.from_vpc.add(headers.length_bytes)
        translated = parse(frame)
        if translated is not None and verdict in (
            Verdict.OUTBOUND,
            Verdict.UNTRANSLATED,
        ):  # answers go where it came from
            self._hosts[headers.source] = translated.source
            if translated.source_port is not None and headers.source_port is not None:
                assert headers.destination_port is not None
                key = self._key(
                    headers.protocol, headers.source, headers.source_port, headers.destination, headers.destination_port
                )
                self._endpoints[key] = (translated.source, translated.source_port)
        self._sent.append(Packet(packet.time_ns, frame))
        return verdict

    def _inbound(self, packet: Packet, sent: bytes, headers: Headers, now: float) -> Verdict:
        verdict, frame = self.gateway.translate_one(sent, Side.OUTSIDE, now)
        self.verdicts[verdict] += 1
        self._sent.append(Packet(packet.time_ns, sent))
        if not verdict.is_forwarded or frame is None:
            return verdict
        self.from_pub.add(headers.length_bytes)
        addresses = slice(headers.l3 + 12, headers.l3 + 20)
        data = slice(headers.l4, headers.l3 + headers.length_bytes)  # layer 4, its checksum included
        if (
            headers.destination_port is not None or headers.is_later
        ):  # an error's quotation has the translated packet's TTL
            self.altered += frame[addresses] != packet.frame[addresses] or frame[data] != packet.frame[data]
        return verdict


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
    is_later: bool = False  # a fragment without a layer-4 header


def bare(frame: bytes) -> bytes:
    """Return an Ethernet frame without 802.1Q tags."""
    at = 12
    while frame[at : at + 2] in _TAGS and len(frame) >= at + 6:
        at += 4
    return frame if at == 12 else frame[:12] + frame[at:]


_TAGS = {tag.to_bytes(2, "big") for tag in TAGS}


def _not_understood(packet: Packet, frame: bytes, headers: Headers | None) -> str:
    """Return why no gateway takes a frame; "": one would."""
    if packet.unknown:
        return f"link type {packet.unknown}"
    there = len(frame) - packet.missing
    if there < 14 or not packet.frame:
        return CUT_HEADERS if packet.missing else "not IPv4"
    kind = int.from_bytes(frame[12:14], "big")
    if kind != 0x0800:
        return kind_name(kind)
    if there < 34 or headers is None:
        return CUT_HEADERS if len(frame) >= 34 else "not IPv4"
    version = frame[14] >> 4
    return "" if version == 4 else f"IP version {version} in an IPv4 frame"


def _cut_away(packet: Packet, frame: bytes, headers: Headers) -> str:
    """Return what the snap length cut off of a frame's headers; "": nothing."""
    if not packet.missing:
        return ""
    there, needed = len(frame) - packet.missing, headers.l4
    if not headers.is_later:
        needed += {TCP: 20, UDP: 8, ICMP: 8}.get(headers.protocol, 0)
    if there < needed <= len(frame):
        return CUT_HEADERS
    length = headers.length_bytes or len(frame)
    is_error = headers.protocol == ICMP and headers.source_port is None and not headers.is_later
    return CUT_ERROR if is_error and there < min(len(frame), headers.l3 + length) else ""


def parse(frame: bytes) -> Headers | None:
    """The headers of an Ethernet frame; None: not IPv4, or too short."""
    l3 = 14
    while len(frame) >= l3 + 2 and int.from_bytes(frame[l3 - 2 : l3], "big") in TAGS:
        l3 += 4
    if len(frame) < l3 + 20 or frame[l3 - 2 : l3] != b"\x08\x00":
        return None
    l4 = l3 + (frame[l3] & 15) * 4
    length, fragment, protocol, source, destination = struct.unpack_from("!2xH2xHxB2xII", frame, l3)
    ports: tuple[int | None, int | None] = (None, None)
    if len(frame) >= l4 + (20 if protocol == TCP else 8) and fragment & 0x1FFF == 0:
        if protocol in (TCP, UDP):
            ports = struct.unpack_from("!HH", frame, l4)
        elif protocol == ICMP and frame[l4] in QUERIES:
            ports = struct.unpack_from("!H", frame, l4 + 4) * 2
    return Headers(l3, l4, length, protocol, source, destination, *ports, fragment & 0x1FFF != 0)


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
    start = min(l4 + max(20, (frame[l4 + 12] >> 4) * 4), l3 + length)
    data = frame[start : l3 + length]
    payload_bytes = max(mtu - (start - l3), 1)  # options may take all that a small MTU has
    identification = int.from_bytes(frame[l3 + 4 : l3 + 6], "big")
    sequence = int.from_bytes(frame[l4 + 4 : l4 + 8], "big")
    for number, at in enumerate(range(0, max(len(data), 1), payload_bytes)):
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
        struct.pack_into("!H", whole, l4 + 16, ~ones_sum(pseudo + bytes(whole[l4:])) & 0xFFFF)
        yield bytes(whole)


def _with_network_header(frame: bytes, headers: Headers, length: int) -> bytes:
    """Return the frame with this total length and a new IPv4 checksum."""
    mended = bytearray(frame)
    struct.pack_into("!H", mended, headers.l3 + 2, length)
    struct.pack_into("!H", mended, headers.l3 + 10, 0)
    struct.pack_into("!H", mended, headers.l3 + 10, ~ones_sum(mended[headers.l3 : headers.l4]) & 0xFFFF)
    return bytes(mended)


def _header_sum(frame: bytes, headers: Headers) -> int:
    return ones_sum(frame[headers.l3 : headers.l4])


def _readdress_bare(frame: bytes, headers: Headers, address: int) -> bytes:
    """Return a packet without ports with another destination address."""
    rewritten, at = bytearray(frame), headers.l3 + 16
    new = address.to_bytes(4, "big")
    update(rewritten, headers.l3 + 10, frame[at : at + 4], new)
    rewritten[at : at + 4] = new
    return bytes(rewritten)


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
    update(rewritten, l3 + 10, old_address, new_address)
    none_made = headers.protocol == UDP and frame[l4 + 6 : l4 + 8] == b"\0\0"  # RFC 768: 0 is no checksum
    if not none_made and len(frame) >= l4 + at_checksum + 2:
        pseudo_old, pseudo_new = (old_address, new_address) if pseudo else (b"", b"")
        update(rewritten, l4 + at_checksum, pseudo_old + old_port, pseudo_new + new_port)
        if headers.protocol == UDP and rewritten[l4 + 6 : l4 + 8] == b"\0\0":
            rewritten[l4 + 6 : l4 + 8] = b"\xff\xff"
    return bytes(rewritten)

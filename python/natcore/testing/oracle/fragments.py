"""The oracle's fragments: what RFC 4787 REQ-14 asks for, and the making of them (RFC 791 section 3.2, REQ-13a)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from natcore.testing.oracle import packets
from natcore.testing.oracle.packets import ICMP, TCP, UDP, Endpoint, Packet, long, word
from natcore.testing.oracle.sessions import MS, Session
from natcore.verdict import Side, Verdict

DONT, MORE, OFFSET = 0x4000, 0x2000, 0x1FFF  # of the flags-and-offset word; the offset in units of 8 bytes
Key = tuple[Side, int, int, int, int]  # side, source, destination, protocol, identification
Outcome = tuple[Verdict, bytes | None]


def split(frame: bytes, link: int, mtu: int) -> list[bytes]:
    """The frame as fragments that fit, where it is longer than mtu and may be cut; else alone."""
    ip = frame[link:]
    header, said = (ip[0] & 15) * 4, word(ip, 6)
    if len(ip) <= mtu or said & DONT or mtu < header + 8:
        return [frame]
    data, offset, head = ip[header:], 0, ip[:header]
    pieces: list[bytes] = []
    while offset < len(data):
        most = mtu - len(head)
        part = data[offset:] if len(data) - offset <= most and pieces else data[offset : offset + most // 8 * 8]
        more = MORE if offset + len(part) < len(data) else said & MORE
        pieces.append(frame[:link] + _headed(head, part, (said & ~MORE) + offset // 8 | more))
        offset += len(part)
        head = _later_header(ip[:header])
    return pieces


def _headed(head: bytes, data: bytes, flags_and_offset: int) -> bytes:
    new = bytearray(head)
    new[2:4] = (len(head) + len(data)).to_bytes(2, "big")
    new[6:8] = flags_and_offset.to_bytes(2, "big")
    new[10:12] = b"\0\0"
    new[10:12] = packets.checksum(new).to_bytes(2, "big")
    return bytes(new) + data


def _later_header(head: bytes) -> bytes:
    """With those options alone that are copied (the type's highest bit); what is malformed ends them."""
    options, kept = head[20:], b""
    while options and options[0] != 0:
        length = 1 if options[0] == 1 else options[1] if len(options) > 1 else 0
        if length > len(options) or (length < 2 and options[0] != 1):
            break
        kept += options[:length] if options[0] & 0x80 else b""
        options = options[length:]
    kept += bytes(-len(kept) % 4)
    return bytes([0x40 | (20 + len(kept)) // 4]) + head[1:20] + kept


@dataclass
class Datagram:
    """A datagram with fragments on their way."""

    since: int  # ms
    spans: list[tuple[int, int]] = field(default_factory=list)  # bytes seen: from, to
    pieces: set[tuple[int, bool, bytes]] = field(default_factory=set)  # fragments seen: offset, more, bytes
    end: int | None = None  # bytes of the whole payload
    verdict: Verdict | None = None  # of the first fragment; None: it has not come
    broken: bool = False
    session: Session | None = None
    ends: tuple[Endpoint, Endpoint] = ((0, 0), (0, 0))  # source and destination of the first fragment
    number: int = 0  # the identification that its fragments leave with
    sequence: int = 0  # TCP: of the byte where the header begins
    waiting: list[Packet] = field(default_factory=list)

    def repeated(self, packet: Packet) -> bool:
        """Whether the very fragment came before (RFC 8200 section 4.5)."""
        return (packet.offset, packet.more, packet.ip[packet.header :]) in self.pieces

    def add(self, packet: Packet) -> bool:
        """Whether the fragment fits to those seen: none of its bytes came before, and there is one end."""
        first = packet.offset
        after = first + (packet.total - packet.header + 7) // 8 * 8
        if any(first < to and after > start for start, to in self.spans) or (self.end is not None and after > self.end):
            return False
        if not packet.more:
            if self.end is not None or any(to > after for _, to in self.spans):
                return False
            self.end = after
        self.spans.append((first, after))
        self.pieces.add((first, packet.more, packet.ip[packet.header :]))
        return True

    @property
    def whole(self) -> bool:
        return sum(to - start for start, to in self.spans) == self.end


def first_of(packet: Packet, side: Side) -> Packet | Verdict:
    """The first fragment as a packet, if it holds the whole layer-4 header (RFC 1858)."""
    data = packet.ip[packet.header :]
    need = {TCP: 20, UDP: 8, ICMP: 8}.get(packet.protocol, 0)
    if packet.protocol == TCP and len(data) >= 20:
        need = max(need, (data[12] >> 4) * 4)
    if len(data) < need:
        return Verdict.DROP_FRAGMENT
    return packets.layer_4(packet.frame, packet.link, packet.header, side, whole=False)


class Fragments:
    """Datagrams on their way through a gateway. judge: what becomes of a first fragment; find: a packet's live session."""

    def __init__(
        self,
        timeout: float,
        judge: Callable[[Packet, Side], Outcome],
        find: Callable[[Packet, Side], Session | None],
        follow: Callable[[Packet, Side, Session, int], Outcome],
    ) -> None:
        self.timeout = round(timeout * 1000)
        self.judge, self.find, self.follow = judge, find, follow
        self.datagrams: dict[Key, Datagram] = {}
        self.released: list[tuple[Verdict, bytes | None, int]] = []  # what waited: verdict, frame, link header's bytes

    def expire(self, now: int) -> int:
        """How many fragments had waited too long by now (ns)."""
        if not self.datagrams:
            return 0
        over = [key for key, datagram in self.datagrams.items() if now // MS - datagram.since >= self.timeout]
        return sum(len(self.datagrams.pop(key).waiting) for key in over)

    def take(self, packet: Packet, side: Side, now: int) -> tuple[Outcome, int]:
        """A fragment's outcome, and how many of those that waited were dropped for it."""
        size = packet.total - packet.header
        if size == 0 or packet.offset + packet.total > 0xFFFF or (packet.more and size % 8):
            return (Verdict.DROP_MALFORMED, None), 0
        key = (side, packet.source[0], packet.destination[0], packet.protocol, word(packet.ip, 4))
        datagram = self.datagrams.setdefault(key, Datagram(now // MS))
        deceiving = packet.protocol == TCP and 0 < packet.offset < 20
        if not deceiving and not datagram.broken and datagram.repeated(packet):
            return (Verdict.DROP_FRAGMENT, None), 0
        if datagram.broken or deceiving or not datagram.add(packet):
            lost, datagram.waiting, datagram.broken = len(datagram.waiting), [], True
            return (Verdict.DROP_FRAGMENT, None), lost
        if packet.offset == 0:
            outcome = self._first(datagram, packet, side)
        elif datagram.verdict is None:
            datagram.waiting.append(packet)
            return (Verdict.HELD, None), 0
        else:
            outcome = self._later(datagram, packet, side)
        if datagram.whole:
            del self.datagrams[key]
        return outcome, 0

    def _first(self, datagram: Datagram, packet: Packet, side: Side) -> Outcome:
        parsed = first_of(packet, side)
        outcome = (parsed, None) if isinstance(parsed, Verdict) else self.judge(parsed, side)
        datagram.verdict = outcome[0]
        if outcome[0].is_forwarded:
            assert isinstance(parsed, Packet)
            assert outcome[1] is not None
            datagram.number = word(outcome[1], packet.link + 4)
            data = packet.ip[packet.header :]
            datagram.ends = _ends(packet, side, data)
            datagram.session = self.find(replace(parsed, source=datagram.ends[0], destination=datagram.ends[1]), side)
            if packet.protocol == TCP:
                datagram.sequence = long(data, 4) - (data[12] >> 4) * 4 + bool(data[13] & 2) + bool(data[13] & 1)
        for waiting in datagram.waiting:
            self.released.append((*self._later(datagram, waiting, side), waiting.link))
        datagram.waiting = []
        return outcome

    def _later(self, datagram: Datagram, packet: Packet, side: Side) -> Outcome:
        assert datagram.verdict is not None
        if not datagram.verdict.is_forwarded:
            return datagram.verdict, None
        packet = replace(packet, source=datagram.ends[0], destination=datagram.ends[1])
        session = self.find(packet, side)
        if session is None or session is not datagram.session:
            return Verdict.DROP_NO_MAPPING, None
        end = datagram.sequence + packet.offset + packet.total - packet.header
        verdict, out = self.follow(packet, side, session, end & 0xFFFFFFFF)
        return verdict, out and packets.numbered(out, packet.link, datagram.number)


def _ends(packet: Packet, side: Side, data: bytes) -> tuple[Endpoint, Endpoint]:
    """Source and destination as a session has them."""
    if packet.protocol in (TCP, UDP):
        ports = word(data, 0), word(data, 2)
    elif packet.protocol == ICMP:
        ports = (word(data, 4), 0) if side is Side.INSIDE else (0, word(data, 4))
    else:
        ports = 0, 0
    return (packet.source[0], ports[0]), (packet.destination[0], ports[1])

"""Frames for tests, made and taken apart by scapy, which shares no line with natcore."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)

from scapy.layers.inet import ICMP, IP, TCP, UDP  # noqa: E402
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether  # noqa: E402
from scapy.packet import Packet, Raw  # noqa: E402

from natcore import Gateway, Policy, Side, SnatEntry, Verdict  # noqa: E402

HOST = "10.0.0.5"
REMOTE = "198.51.100.7"
EIP = "203.0.113.1"
MACS: dict[str, Any] = {"dst": "02:00:00:00:00:01", "src": "02:00:00:00:00:02"}


def remembered(make: Callable[..., bytes]) -> Callable[..., bytes]:
    """The same arguments give the frame that they gave before: scapy takes a millisecond for one."""
    known = functools.lru_cache(maxsize=4096)(make)

    @functools.wraps(make)
    def call(*arguments: Any, **fields: Any) -> bytes:
        try:
            return known(*arguments, **fields)
        except TypeError:  # a list among them
            return make(*arguments, **fields)

    return call


def ether(packet: Packet, *tags: int) -> bytes:
    """In Ethernet, behind 802.1Q tags."""
    frame = Ether(**MACS)
    for tag in tags:
        frame /= Dot1Q(vlan=tag)
    return bytes(frame / packet)


def ip(source: str = HOST, destination: str = REMOTE, **fields: Any) -> IP:
    return IP(src=source, dst=destination, **{"ttl": 64, "id": 7, **fields})


@remembered
def udp(source: str = HOST, sport: int = 5000, destination: str = REMOTE, dport: int = 53, load: bytes = b"query",
        **fields: Any) -> bytes:  # fmt: skip
    return ether(ip(source, destination, **fields) / UDP(sport=sport, dport=dport) / Raw(load))


@remembered
def tcp(flags: str, /, source: str = HOST, sport: int = 5000, destination: str = REMOTE, dport: int = 443,
        seq: int = 0, ack: int = 0, load: bytes = b"", **fields: Any) -> bytes:  # fmt: skip
    packet = ip(source, destination, **fields) / TCP(sport=sport, dport=dport, flags=flags, seq=seq, ack=ack)
    return ether(packet / Raw(load) if load else packet)


@remembered
def echo(source: str = HOST, destination: str = REMOTE, kind: int = 8, ident: int = 77, load: bytes = b"ping",
         **fields: Any) -> bytes:  # fmt: skip
    return ether(ip(source, destination, **fields) / ICMP(type=kind, id=ident, seq=3) / Raw(load))


def parsed(frame: bytes | None) -> IP:
    """The packet in an Ethernet frame; AssertionError unless all its checksums are right."""
    assert frame is not None
    packet = Ether(frame)[IP]
    assert_checksums(packet)
    return packet


def assert_checksums(packet: IP) -> None:
    """Every checksum against one that scapy computes from scratch."""
    again = packet.copy()
    del again.chksum
    for layer in (TCP, UDP, ICMP):
        if layer in again and not (layer is UDP and again[UDP].chksum == 0):
            del again[layer].chksum
    assert bytes(again) == bytes(packet)


def gateway(pool: Any = EIP, source: str = "10.0.0.0/8", **settings: Any) -> Gateway:
    """A gateway with one entry; repeatable unless told otherwise."""
    made = Gateway(**{"seed": 1, "max_sessions": 1000, **settings})
    made.add(SnatEntry(source, pool=pool))
    return made


def one_port(port: int = 4000, **settings: Any) -> Policy:
    """A policy with a single port, so that what is drawn is known."""
    return Policy(port_ranges=((port, port),), **settings)


class Talk:
    """An inside host and a remote over a gateway; the clock stands still until it is set."""

    def __init__(self, over: Gateway, sport: int = 5000, dport: int = 443, host: str = HOST, remote: str = REMOTE):
        self.gateway, self.now = over, 0.0
        self.host, self.sport, self.remote, self.dport = host, sport, remote, dport
        self.outside = ("", 0)

    def out(self, flags: str = "", **fields: Any) -> Verdict:
        """A segment (or without flags a datagram) from inside; its outside endpoint is remembered."""
        ends = {"source": self.host, "sport": self.sport, "destination": self.remote, "dport": self.dport}
        frame = tcp(flags, **ends, **fields) if flags else udp(**ends, **fields)
        verdict, sent = self.gateway.translate_one(frame, Side.INSIDE, self.now)
        if verdict is Verdict.OUTBOUND:
            packet = parsed(sent)
            self.outside = (packet.src, packet.sport)
        return verdict

    def back(self, flags: str = "", **fields: Any) -> Verdict:
        ends = {"source": self.remote, "sport": self.dport, "destination": self.outside[0], "dport": self.outside[1]}
        frame = tcp(flags, **{**ends, **fields}) if flags else udp(**{**ends, **fields})
        verdict, sent = self.gateway.translate_one(frame, Side.OUTSIDE, self.now)
        if verdict is Verdict.INBOUND:
            packet = parsed(sent)
            assert (packet.dst, packet.dport) == (self.host, self.sport)
        return verdict

    def session(self) -> Any:
        """The one session of the gateway."""
        rows = self.gateway.sessions()
        assert len(rows) == 1
        return rows[0]


@contextmanager
def counted(over: Gateway, **expected: int) -> Iterator[None]:
    """Each counter named grows by exactly so much."""
    before = over.counters()
    yield
    after = over.counters()
    assert {name: after[name] - before[name] for name in expected} == expected


def verdict_of(over: Gateway, frame: bytes, side: Side = Side.INSIDE, now: float = 0.0) -> Verdict:
    """The verdict; its counter and received grow by one, and only a forwarded frame comes back."""
    before = over.counters()
    verdict, sent = over.translate_one(frame, side, now)
    after = over.counters()
    assert (sent is not None) == (verdict < Verdict.LOCAL)
    grown = {name for name in after if name.startswith("dropped") and after[name] != before[name]}
    reason = "dropped_" + verdict.name.removeprefix("DROP_").lower()
    assert grown == ({"dropped", reason} if verdict.is_drop else set())
    assert after["received"] == before["received"] + 1
    assert after["received"] == after["forwarded"] + after["local"] + after["dropped"] + after["held"]
    return verdict


def fragments(frame: bytes, size: int) -> list[bytes]:
    """The frame's packet in fragments of size payload bytes (a multiple of 8), as a host would send them."""
    assert size % 8 == 0
    packet, head = Ether(frame)[IP], frame[: frame.index(bytes(Ether(frame)[IP]))]
    data, base = bytes(packet.payload), packet.frag
    pieces = []
    for at in range(0, len(data), size):
        part = packet.copy()
        part.remove_payload()
        part.frag, part.flags = base + at // 8, "MF" if at + size < len(data) else packet.flags
        del part.chksum, part.len
        pieces.append(head + bytes(part / Raw(data[at : at + size])))
    return pieces


def reassembled(frames: list[bytes]) -> IP:
    """The datagram that the fragments make, whatever their order; AssertionError unless they make exactly one."""
    pieces = sorted((Ether(frame)[IP] for frame in frames), key=lambda piece: piece.frag)
    assert len({(p.src, p.dst, p.proto, p.id, p.ttl) for p in pieces}) == 1
    data = b""
    for piece in pieces:
        again = piece.copy()
        del again.chksum
        assert bytes(again) == bytes(piece), "the header's checksum is wrong"
        assert piece.frag * 8 == len(data) and bool(piece.flags.MF) == (piece is not pieces[-1])
        data += bytes(piece.payload)
    whole = pieces[0].copy()
    whole.remove_payload()
    whole.flags = 0
    del whole.chksum, whole.len
    packet = IP(bytes(whole / Raw(data)))
    assert_checksums(packet)
    return packet


def damaged(frame: bytes, at: int, value: int, *, fix: bool = True) -> bytes:
    """One byte of the IPv4 packet changed; its header's checksum made right again."""
    packet = bytearray(frame)
    packet[14 + at] = value
    if fix:
        words = (packet[14] & 15) * 2
        packet[24:26] = b"\0\0"
        total = sum(int.from_bytes(packet[14 + 2 * i : 16 + 2 * i], "big") for i in range(words))
        total = (total & 0xFFFF) + (total >> 16)
        packet[24:26] = (~((total & 0xFFFF) + (total >> 16)) & 0xFFFF).to_bytes(2, "big")
    return bytes(packet)


__all__ = ["Dot1AD", "Dot1Q", "Ether", "ICMP", "IP", "Raw", "TCP", "UDP"]  # noqa: RUF022

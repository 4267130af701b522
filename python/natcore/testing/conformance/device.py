"""The NAT under test as a case sees it: frames that go in, packets that leave, and a clock. Scapy makes and reads them."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from natcore.config import AnyEntry, SnatEntry
from natcore.errors import ConfigurationError
from natcore.internal.extras import extra
from natcore.testing.checker import Sent
from natcore.testing.configurations import Configuration
from natcore.testing.data_path import DataPath, NotSupportedError
from natcore.verdict import Side

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)

with extra("testing"):
    from scapy.layers.inet import ICMP as ICMP
    from scapy.layers.inet import IP, TCP, UDP
    from scapy.layers.l2 import Ether
    from scapy.packet import Raw

if TYPE_CHECKING:
    from natcore.events import Event

INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE
HOST, OTHER_HOST = "10.0.0.5", "10.0.0.6"
REMOTE, OTHER_REMOTE, STRANGER = "198.51.100.7", "198.51.100.8", "198.51.100.99"
EIP = "203.0.113.1"  # the outside address
ROUTER = "192.0.2.1"  # outside, on the way to a remote
GATEWAY_MAC, PEER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
ICMP_QUERIES = {8: 0, 13: 14, 15: 16, 17: 18}  # each and its answer
_READING = threading.RLock()  # scapy has global state


class NotJudged(Exception):
    """A case cannot be decided with this data path, and why."""


def ether(packet: Any) -> bytes:
    """Return a packet of scapy's as an Ethernet frame."""
    with _READING:
        return bytes(Ether(dst=GATEWAY_MAC, src=PEER_MAC) / packet)


def ip(source: str = HOST, destination: str = REMOTE, **fields: Any) -> Any:
    """Return an IPv4 header. fields: scapy's, such as id and flags."""
    return IP(src=source, dst=destination, **{"ttl": 64, "id": 7, **fields})


@functools.lru_cache(maxsize=4096)  # scapy takes a millisecond for a frame
def udp(source: str = HOST, sport: int = 5000, destination: str = REMOTE, dport: int = 53, load: bytes = b"query",
        **fields: Any) -> bytes:  # fmt: skip
    """Return a frame with a UDP datagram."""
    return ether(ip(source, destination, **fields) / UDP(sport=sport, dport=dport) / Raw(load))


@functools.lru_cache(maxsize=4096)
def tcp(flags: str, source: str = HOST, sport: int = 5000, destination: str = REMOTE, dport: int = 443,
        seq: int = 0, ack: int = 0, load: bytes = b"", **fields: Any) -> bytes:  # fmt: skip
    """Return a frame with a TCP segment. flags: scapy's letters, such as "SA"."""
    packet = ip(source, destination, **fields) / TCP(sport=sport, dport=dport, flags=flags, seq=seq, ack=ack)
    return ether(packet / Raw(load) if load else packet)


@functools.lru_cache(maxsize=4096)
def echo(source: str = HOST, destination: str = REMOTE, kind: int = 8, ident: int = 77, load: bytes = b"ping",
         **fields: Any) -> bytes:  # fmt: skip
    """Return a frame with an ICMP query or an answer to one. kind: its type."""
    return ether(ip(source, destination, **fields) / ICMP(type=kind, id=ident, seq=3) / Raw(load))


def error(quoted: Any, source: str, destination: str, kind: int = 3, code: int = 1) -> bytes:
    """Return a frame with an ICMP error about a packet. quoted: of scapy's, or its bytes."""
    return ether(IP(src=source, dst=destination) / ICMP(type=kind, code=code) / Raw(bytes(quoted)))


def fragments(frame: bytes, size: int) -> list[bytes]:
    """Return a frame's packet in fragments of size payload bytes (a multiple of 8), as a host would send them."""
    packet = read(frame)
    data, base = bytes(packet.payload), packet.frag
    pieces = []
    for at in range(0, len(data), size):
        part = packet.copy()
        part.remove_payload()
        part.frag, part.flags = base + at // 8, "MF" if at + size < len(data) else packet.flags
        del part.chksum, part.len
        pieces.append(ether(part / Raw(data[at : at + size])))
    return pieces


def read(frame: bytes) -> Any:
    """Return the IPv4 packet in a frame, of scapy's."""
    with _READING:
        return Ether(frame)[IP]


def quoted(packet: Any) -> Any:
    """Return the packet that an ICMP error quotes."""
    with _READING:
        return IP(bytes(packet[ICMP].payload))


def assert_right(packet: Any) -> None:
    """Assert that every checksum is what scapy computes from scratch."""
    again = packet.copy()
    del again.chksum
    if packet.frag == 0 and not packet.flags.MF:
        for layer in (TCP, UDP, ICMP):
            if layer in again and not (layer is UDP and again[UDP].chksum == 0):
                del again[layer].chksum
    assert bytes(again) == bytes(packet), f"a checksum is wrong: {packet.summary()}"


def reassembled(packets: Sequence[Any]) -> Any:
    """Return the datagram that fragments make, in whatever order they are."""
    pieces = sorted(packets, key=lambda piece: int(piece.frag))
    heads = {(piece.src, piece.dst, piece.proto, piece.id, piece.ttl) for piece in pieces}
    assert len(heads) == 1, f"the fragments are not of one datagram: {sorted(heads)}"
    data = b""
    for piece in pieces:
        assert piece.frag * 8 == len(data), f"the fragment at {piece.frag * 8} follows {len(data)} bytes"
        assert bool(piece.flags.MF) == (piece is not pieces[-1]), "the flag MF is wrong"
        data += bytes(piece.payload)
    whole = pieces[0].copy()
    whole.remove_payload()
    whole.flags = 0
    del whole.chksum, whole.len
    packet = IP(bytes(whole / Raw(data)))
    assert_right(packet)
    return packet


class Left(NamedTuple):
    """What left for one frame.

    Attributes
    ----------
    packet
        The frame's own packet as it left, of scapy's; None: it was dropped.
    side
        Where to.
    others
        All else: ICMP errors, later fragments, what had waited.
    """

    packet: Any
    side: Side | None
    others: list[Sent]

    def __bool__(self) -> bool:
        return self.packet is not None

    def errors(self) -> list[Any]:
        """Return the ICMP messages among the others."""
        packets = [read(each.frame) for each in self.others]
        return [packet for packet in packets if packet.proto == 1]


class Device:
    """A data path of a configuration; its clock stands still until it is set.

    Attributes
    ----------
    now
        Seconds since it began. A case only lets it grow.
    tolerance
        Seconds by which a time-out may be early or late.
    """

    def __init__(self, path: DataPath, configuration: Configuration, patience: float) -> None:
        self.path, self._patience = path, patience
        path.start(configuration)
        self.now, self._begun = 0.0, time.monotonic()
        self.tolerance = path.tolerance

    def advance(self, now: float) -> list[Sent]:
        """Let the clock go on to a moment, and return what left meanwhile."""
        self._wait(now)
        return self._seen(self.path.advance(self.now))

    def send(self, frame: bytes, side: Side) -> Left:
        """Put a frame in, and say what left."""
        self._wait(self.now)
        sent, packet = self._seen(self.path.translate(frame, side, self.now)), read(frame)
        for number, each in enumerate(sent):
            left = read(each.frame)
            if left.proto == packet.proto and (left.proto != 1 or packet.frag or left[ICMP].type == packet[ICMP].type):
                return Left(left, each.side, sent[:number] + sent[number + 1 :])
        return Left(None, None, sent)

    def send_all(self, frames: Iterable[bytes], side: Side) -> list[Any]:
        """Put frames in, and return all packets that left, of scapy's."""
        packets = []
        for frame in frames:
            left = self.send(frame, side)
            packets += [left.packet] if left else []
            packets += [read(each.frame) for each in left.others]
        return packets

    def events(self) -> list[Event]:
        """Return the data path's events; a case that needs them is not judged where there are none."""
        events = self.path.events()
        if events is None:
            raise NotJudged("the data path tells no events")
        return list(events)

    def rows(self) -> Any:
        """Return the rows of its session log, RECORD (n,), likewise."""
        rows = self.path.rows()
        if rows is None:
            raise NotJudged("the data path tells no rows of a session log")
        return rows

    def counters(self) -> dict[str, int]:
        """Return its counters, likewise."""
        counters = self.path.counters()
        if counters is None:
            raise NotJudged("the data path tells no counters")
        return dict(counters)

    def _wait(self, now: float) -> None:
        self.now = max(self.now, now)
        if not self.path.is_real_time:
            return
        rest = self.now - (time.monotonic() - self._begun)
        if self.now > self._patience:
            raise NotJudged(f"it takes {self.now:g} s of waiting")
        time.sleep(max(0.0, rest))

    @staticmethod
    def _seen(sent: Iterable[tuple[Side, bytes]]) -> list[Sent]:
        frames = [Sent(Side(side), frame) for side, frame in sent]
        for each in frames:
            assert_right(read(each.frame))
        return frames


class Bench:
    """Makes the data paths of a case, and gives them up.

    Parameters
    ----------
    make
        Makes one that has not started.
    patience
        Seconds that a real clock may be waited for.
    """

    def __init__(self, make: Callable[[], DataPath], patience: float = float("inf")) -> None:
        self._make, self._patience = make, patience
        self._devices: list[Device] = []

    def device(self, pool: Any = EIP, source: str = "10.0.0.0/8", entries: Sequence[AnyEntry] = (),
               redact_destination: bool = False, log_rows: Any = "all", **options: Any) -> Device:  # fmt: skip
        """Return a new NAT: one SNAT entry, and others. options: keywords of `natcore.Gateway`.

        Raises
        ------
        NotSupportedError
            The data path cannot be that.
        """
        configuration = Configuration(
            [SnatEntry(source, pool=pool), *entries], {"max_sessions": 1000, **options},
            redact_destination=redact_destination, log_rows=log_rows,
        )  # fmt: skip
        path = self._make()
        try:
            device = Device(path, configuration, self._patience)
        except ConfigurationError as refused:
            path.stop()
            raise NotSupportedError(str(refused)) from refused
        except BaseException:
            path.stop()
            raise
        self._devices.append(device)
        return device

    def close(self) -> None:
        """Stop all data paths."""
        while self._devices:
            self._devices.pop().path.stop()


class Talk:
    """An inside host and a remote over a device. TCP's numbers go on as those of real ends do.

    Attributes
    ----------
    outside
        The outside endpoint of the last packet that passed outbound: address and port.
    """

    def __init__(self, over: Device, sport: int = 5000, dport: int = 443, host: str = HOST, remote: str = REMOTE):
        self.device = over
        self.host, self.sport, self.remote, self.dport = host, sport, remote, dport
        self.outside = ("", 0)
        self.inside_next, self.outside_next = 1000, 9000  # TCP's next numbers of either end
        self._syn = {"inside_next": -1, "outside_next": -1}  # that of a SYN which may be sent again

    def out(self, flags: str = "", load: bytes = b"", **fields: Any) -> bool:
        """Send a segment (or without flags a datagram) from inside; say whether it passed. fields: of the IPv4 header."""
        ends = {"source": self.host, "sport": self.sport, "destination": self.remote, "dport": self.dport}
        left = self.device.send(self._made(flags, load, ends, "inside_next", "outside_next", fields), INSIDE)
        if left.side is not OUTSIDE:
            return False
        if left.packet.frag == 0:
            self.outside = (left.packet.src, left.packet.sport)
        assert (left.packet.dst, left.packet.dport) == (self.remote, self.dport), "the remote endpoint was changed"
        return True

    def back(self, flags: str = "", load: bytes = b"", source: str | None = None, sport: int | None = None) -> bool:
        """Send one from outside to the outside endpoint; say whether it reached the host. source, sport: another sender's."""
        ends = {
            "source": source or self.remote, "sport": self.dport if sport is None else sport,
            "destination": self.outside[0], "dport": self.outside[1],
        }  # fmt: skip
        left = self.device.send(self._made(flags, load, ends, "outside_next", "inside_next", {}), OUTSIDE)
        if left.side is not INSIDE:
            return False
        assert (left.packet.dst, left.packet.dport) == (self.host, self.sport), (
            f"it went to {left.packet.dst}:{left.packet.dport}, not to {self.host}:{self.sport}"
        )
        return True

    def handshake(self) -> Talk:
        """Open a TCP connection from inside."""
        assert [self.out("S"), self.back("SA"), self.out("A")] == [True] * 3, "the handshake does not pass"
        return self

    def error(self, kind: int = 3, code: int = 1, *, outward: bool = False) -> bytes:
        """Return an ICMP error about a datagram of the talk: from a router outside, or from the host inside."""
        if outward:
            return error(read(udp(self.remote, self.dport, self.host, self.sport)), self.host, self.remote, kind, code)
        return error(read(udp(*self.outside, self.remote, self.dport)), ROUTER, self.outside[0], kind, code)

    def _made(
        self, flags: str, load: bytes, ends: dict[str, Any], mine: str, theirs: str, fields: dict[str, Any]
    ) -> bytes:
        if not flags:
            return udp(**ends, load=load or b"query", **fields)
        number = getattr(self, mine)
        if "S" not in flags:
            self._syn[mine] = -1
        elif self._syn[mine] < 0:
            self._syn[mine] = number
        else:
            number = self._syn[mine]
        numbers = {"seq": number, "ack": getattr(self, theirs) if "A" in flags else 0}
        setattr(self, mine, number + len(load) + ("S" in flags) + ("F" in flags))
        return tcp(flags, **ends, **numbers, load=load, **fields)


def one_port(port: int = 4000) -> tuple[tuple[int, int], ...]:
    """Return port ranges of a single port, so that what is drawn is known."""
    return ((port, port),)

"""The oracle's sessions: the TCP states of RFC 6146 and 7857, idle times, and the rows that a session leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from natcore.config import Timeouts
from natcore.dtypes import CREATE, END, OPENED_OUTSIDE, WINDOW
from natcore.testing.oracle.packets import ACK, FIN, ICMP, RST, SYN, TCP, UDP, Endpoint, Packet
from natcore.verdict import Side

MS = 1_000_000  # ns


class Tcp(Enum):
    """States of a TCP session."""

    INIT_OUT = auto()  # the inside's SYN was seen
    INIT_IN = auto()  # the outside's
    PICKED = auto()  # a segment of a connection that was there before the session
    ESTABLISHED = auto()
    FIN_OUT = auto()  # the inside has finished
    FIN_IN = auto()  # the outside has
    CLOSING = auto()  # both have
    TRANS = auto()  # a RST that may be genuine (RFC 7857 section 2.2)
    PICKED_IN = auto()  # as PICKED, by a segment from outside


RST_WINDOW = 1 << 16  # bytes
OPEN = (Tcp.ESTABLISHED, Tcp.FIN_OUT, Tcp.FIN_IN)


class Counts(NamedTuple):
    """Packets and bytes (IPv4 total lengths) of both directions."""

    bytes_from_pub: int = 0
    pkts_from_pub: int = 0
    bytes_from_vpc: int = 0
    pkts_from_vpc: int = 0

    def plus(self, packet: Packet, side: Side) -> Counts:
        out = side is Side.INSIDE
        return Counts(
            self.bytes_from_pub + packet.total * (not out),
            self.pkts_from_pub + (not out),
            self.bytes_from_vpc + packet.total * out,
            self.pkts_from_vpc + out,
        )

    def minus(self, packet: Packet, side: Side) -> Counts:
        one = Counts().plus(packet, side)
        return Counts(*(mine - its for mine, its in zip(self, one, strict=True)))


class Row(NamedTuple):
    """A row of the journal; times in ns of the gateway's clock."""

    session: int
    kind: int  # WINDOW, CREATE or END
    protocol: int
    pri: Endpoint
    pub: Endpoint
    nat: Endpoint
    counts: Counts
    start: int
    end: int
    flags: int
    eip: int = 0  # of the outside address; 0: none


@dataclass(eq=False)
class Mapping:
    """An inside endpoint's outside endpoint, the same towards every remote (RFC 4787 REQ-1) unless it has one."""

    protocol: int
    inside: Endpoint
    outside: Endpoint
    entry: int = 0  # its number
    static: bool = False  # a DNAT or no-NAT entry says the outside endpoint; else it was drawn
    remote: Endpoint | None = None  # address-and-port-dependent mapping: of one remote alone
    sessions: list[Session] = field(default_factory=list)
    rests_until: int = 0  # ns: the end of its port's hold-down, as far as its sessions are gone

    def alive(self, now: int) -> bool:
        return any(session.alive(now) for session in self.sessions)


@dataclass(eq=False)
class Session:
    """One five-tuple of an inside endpoint, both directions."""

    id: int
    slot: int
    mapping: Mapping
    remote: Endpoint
    opened_outside: bool
    logged: bool
    born: int  # ns
    timeouts: Timeouts
    window: int  # ns
    hairpinned: bool = False  # its remote was an outside address of ours when it began
    answered: bool = field(init=False)  # the inside has sent a packet that was no RST
    tcp: Tcp | None = field(default=None, init=False)
    last_seen: int = field(init=False)  # ms
    total: Counts = field(default=Counts(), init=False)
    in_window: Counts = field(default=Counts(), init=False)
    window_start: int | None = field(default=None, init=False)  # ns; None: no packet since the last window closed
    ack: dict[Side, int] = field(default_factory=dict, init=False)  # the highest acknowledgement sent from a side
    sent: dict[Side, int] = field(default_factory=dict, init=False)  # the end of the highest segment sent from a side
    fresh: dict[Side, int] = field(default_factory=dict, init=False)  # what follows a side's SYN on a live connection

    def __post_init__(self) -> None:
        self.answered = not self.opened_outside
        self.last_seen = self.born // MS

    @property
    def protocol(self) -> int:
        return self.mapping.protocol

    @property
    def untranslated(self) -> bool:
        """A no-NAT entry's."""
        return self.mapping.static and self.mapping.inside == self.mapping.outside

    @property
    def timer(self) -> str:
        """Which of the gateway's time-outs holds."""
        if self.tcp in OPEN:
            return "tcp_established"
        if not self.answered:
            return "unreplied"
        return {TCP: "tcp_transitory", ICMP: "icmp", UDP: "udp"}.get(self.protocol, "other")

    @property
    def timeout(self) -> int:
        """Milliseconds of idleness after which the session is dead."""
        seconds: float = getattr(self.timeouts, self.timer)
        return round(seconds * 1000)

    @property
    def deadline(self) -> int:
        """ns: when it dies if nothing comes any more."""
        return (self.last_seen + self.timeout) * MS

    def alive(self, now: int) -> bool:
        return now // MS - self.last_seen < self.timeout

    # What a packet does

    def may_reopen(self, packet: Packet) -> bool:
        """A SYN on a connection that is over begins a new session."""
        return self.tcp in (Tcp.CLOSING, Tcp.TRANS) and packet.flags & (SYN | ACK | RST | FIN) == SYN

    def take(self, packet: Packet, side: Side, now: int, refreshing: bool, counted: bool = True) -> list[Row]:
        """Count a packet that was translated, follow its flags; the window that it found closed."""
        rows = self.roll(now)
        if self.window_start is None:
            self.window_start = now
        if counted:
            self.in_window = self.in_window.plus(packet, side)
            self.total = self.total.plus(packet, side)
        if packet.flags & RST:
            self._reset(packet, side, now)
            return rows
        before = self.timer
        self.answered = self.answered or side is Side.INSIDE
        if self.protocol == TCP and not self._opens(packet, side):
            self._follow(packet.flags, side)
            self._remember(packet, side)
        if refreshing or self.timer != before:  # RFC 6146 section 3.5.2.2: a state's timer starts with the state
            self.last_seen = now // MS
        return rows

    def take_back(self, packet: Packet, side: Side) -> None:
        """What was counted just now was not delivered; a window without packets is none."""
        self.in_window, self.total = (counts.minus(packet, side) for counts in (self.in_window, self.total))
        if self.in_window == Counts():
            self.window_start = None

    def take_later(
        self, packet: Packet, side: Side, now: int, refreshing: bool, end: int, counted: bool = True
    ) -> list[Row]:
        """Count a later fragment. end: of its bytes as TCP numbers them."""
        rows = self.roll(now)
        if self.window_start is None:
            self.window_start = now
        if counted:
            self.in_window = self.in_window.plus(packet, side)
            self.total = self.total.plus(packet, side)
        if refreshing:
            self.last_seen = now // MS
        if side in self.sent:
            self.sent[side] = later(self.sent[side], end)
        return rows

    def _reset(self, packet: Packet, side: Side, now: int) -> None:
        """RFC 7857 section 2.2 and RFC 5961: only a RST at an expected sequence shortens the session's time.

        Where its side's data ends counts only near what was acknowledged: others may have forged that data.
        """
        acked, sent = self.ack.get(Side(1 - side)), self.sent.get(side)
        near = acked is None or (packet.sequence - acked) % (1 << 32) < 1 << 16
        hits = near and packet.sequence in (acked, sent)
        if self.tcp in OPEN and (hits or self._answers(packet, side)):  # or it refuses a new connection
            self.tcp, self.last_seen = Tcp.TRANS, now // MS

    def _answers(self, packet: Packet, side: Side) -> bool:
        """Whether a segment acknowledges the other side's SYN on the live connection, and its data (RFC 7413)."""
        syn = self.fresh.get(Side(1 - side))
        return bool(packet.flags & ACK) and syn is not None and (packet.acknowledgement - syn) & 0xFFFFFFFF < 1 << 11

    def _opens(self, packet: Packet, side: Side) -> bool:
        """A SYN on a session that is there, apart from the first answer: a lone one changes nothing of a live connection,
        since anybody may send it; the SYN-ACK that acknowledges it begins the connection's state and marks anew."""
        first = packet.flags & (SYN | ACK | FIN) == SYN
        own = Tcp.INIT_OUT if side is Side.INSIDE else Tcp.INIT_IN
        if first and self.tcp is own:  # sent again, or another one: the first was not answered
            self.sent.pop(side, None)
            self.ack.pop(side, None)
            return False
        if not packet.flags & SYN or self.tcp in (None, Tcp.INIT_OUT, Tcp.INIT_IN):
            return False
        if first:
            self.fresh[side] = (packet.sequence + 1) & 0xFFFFFFFF
            if self.tcp is Tcp.PICKED_IN and side is Side.INSIDE:
                self.tcp = Tcp.ESTABLISHED
            return True
        if not self._answers(packet, side):
            return False
        self.fresh.clear()
        self.tcp, self.ack, self.sent = Tcp.ESTABLISHED, {}, {Side(1 - side): packet.acknowledgement}
        self._remember(packet, side)
        return True

    def in_flight(self, sequence: int, side: Side) -> bool:
        """Whether a side may have sent a segment that is not acknowledged yet (RFC 5927), or a keep-alive.

        Windows are of 2^30 bytes at most. Who acknowledges what was not sent says nothing.
        """
        end, syn = self.sent.get(side), self.fresh.get(side)
        if end is None or (syn is not None and (sequence + 1) & 0xFFFFFFFF == syn):
            return True
        window = 1 << (11 if self.tcp in (Tcp.INIT_OUT, Tcp.INIT_IN) else 30)  # of a SYN that has no answer: its data
        acked = self.ack.get(Side(1 - side))
        if acked is not None and (end - acked) & 0xFFFFFFFF <= 1 << 31:
            window = (end - acked) & 0xFFFFFFFF
            low, window = acked, min(window, 1 << 30)
        else:
            low = end - window
        return (sequence - low + 1) & 0xFFFFFFFF <= window + 1

    def _follow(self, flags: int, side: Side) -> None:
        """The state after a segment without RST."""
        syn, fin = bool(flags & SYN), bool(flags & FIN)
        inside = side is Side.INSIDE
        match self.tcp:
            case None:
                picked = Tcp.PICKED if inside else Tcp.PICKED_IN
                self.tcp = (Tcp.INIT_OUT if inside else Tcp.INIT_IN) if syn else picked
            case Tcp.INIT_OUT if syn and not inside:
                self.tcp = Tcp.ESTABLISHED
            case Tcp.INIT_IN if syn and inside:
                self.tcp = Tcp.ESTABLISHED
            case Tcp.PICKED if not inside:
                self.tcp = Tcp.ESTABLISHED
            case Tcp.PICKED_IN if inside:
                self.tcp = Tcp.ESTABLISHED
            case Tcp.TRANS:
                self.tcp = Tcp.ESTABLISHED
            case Tcp.ESTABLISHED if fin:
                self.tcp = Tcp.FIN_OUT if inside else Tcp.FIN_IN
            case Tcp.FIN_OUT if fin and not inside:
                self.tcp = Tcp.CLOSING
            case Tcp.FIN_IN if fin and inside:
                self.tcp = Tcp.CLOSING

    def _remember(self, packet: Packet, side: Side) -> None:
        if packet.flags & ACK:
            self.ack[side] = later(self.ack.get(side), packet.acknowledgement)
        length = packet.payload + bool(packet.flags & SYN) + bool(packet.flags & FIN)
        self.sent[side] = later(self.sent.get(side), (packet.sequence + length) & 0xFFFFFFFF)

    # The rows of the log (contract R1)

    def row(self, kind: int, counts: Counts, start: int, end: int) -> Row:
        mapping = self.mapping
        flags = OPENED_OUTSIDE if self.opened_outside else 0
        ends = mapping.inside, self.remote, mapping.outside
        return Row(self.id, kind, self.protocol, *ends, counts, start, end, flags)

    def created(self) -> list[Row]:
        return [self.row(CREATE, Counts(), self.born, self.born)] if self.logged else []

    def roll(self, now: int) -> list[Row]:
        """The open window, if it is over by now."""
        if self.window_start is None or now < self.window_start + self.window:
            return []
        return self._close(self.window_start + self.window)

    def ended(self, end: int) -> list[Row]:
        """The last window, and the end with the totals of the session's life."""
        last = [] if self.window_start is None else self._close(min(self.window_start + self.window, end))
        return [*last, self.row(END, self.total, self.born, end)] if self.logged else []

    def _close(self, end: int) -> list[Row]:
        assert self.window_start is not None
        row = self.row(WINDOW, self.in_window, self.window_start, end)
        self.in_window, self.window_start = Counts(), None
        return [row] if self.logged else []


def later(old: int | None, new: int) -> int:
    """The higher of two sequence numbers (RFC 9293 section 3.4: modulo 2^32)."""
    return new if old is None or 0 < (new - old) & 0xFFFFFFFF < 1 << 31 else old

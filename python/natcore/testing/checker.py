"""Compares a NAT with the oracle from what leaves it: nothing inside of it is looked at."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from copy import deepcopy
from typing import TYPE_CHECKING, Any, NamedTuple

from natcore.choices import Framing
from natcore.dtypes import END, RECORD
from natcore.testing.configurations import Configuration
from natcore.testing.frame_differences import describe, differences
from natcore.testing.oracle import packets
from natcore.testing.oracle.admission import NAMES
from natcore.testing.oracle.entries import PORTED
from natcore.testing.oracle.model import Nat
from natcore.testing.oracle.packets import ICMP, TCP, UDP, Endpoint, Packet, long, word
from natcore.testing.oracle.sessions import Row
from natcore.testing.oracle.tables import Choices
from natcore.verdict import Side, Verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from natcore.events import Event
    from natcore.gateway import Gateway

EXACT_SESSIONS = 100  # in larger tables the oracle does not release in natcore's order what has ended
ENOUGH_DRAWS = 64  # that the parity of ports may be judged by
_LEAST_RANDOM = 64  # ports of a range of which some have either parity


class Sent(NamedTuple):
    """A frame that leaves a NAT.

    Attributes
    ----------
    side
        The side that it leaves by.
    frame
        Its bytes, with the Ethernet header that it came with.
    """

    side: Side
    frame: bytes


def leaving(gateway: Gateway, frame: bytes, side: Side, now: float) -> list[Sent]:
    """Put a frame through a gateway and return all that leaves it then.

    Parameters
    ----------
    gateway
        A natcore gateway, in memory.
    frame
        As `Gateway.translate_one` takes it.
    side
        The side that it comes from.
    now
        Seconds on the gateway's clock.

    Returns
    -------
    list
        The frame's translation, if it was forwarded, then what the gateway made or released: later fragments, ICMP errors,
        echo replies.
    """
    verdict, sent = gateway.translate_one(frame, side, now)
    to = verdict.egress(side)
    return [*([] if to is None or sent is None else [Sent(to, sent)]), *released(gateway)]


def released(gateway: Gateway) -> list[Sent]:
    """Return what a gateway has made or released by itself: `Gateway.take_generated` as `Sent`."""
    return [Sent(made.send_to, made.frame) for made in gateway.take_generated()]


class Checker:
    """Follows a NAT with the oracle: each frame that goes in, and all that leaves.

    Parameters
    ----------
    configuration
        What the NAT is: entries and the keywords of `natcore.Gateway`. Its `workers` and `hosts` are not looked at.

    Attributes
    ----------
    nat
        The oracle: `natcore.testing.oracle.Nat`.

    Notes
    -----
    What a NAT is free to choose is read from the frames: the outside endpoint of a new mapping and the IPv4
    identification. Of a frame that did not leave the oracle takes any endpoint that could have been drawn. What it cannot
    read: which of several targets a DNAT entry chose for a frame that was dropped; give each entry one target.

    With more than a hundred sessions let the NAT and `advance` know each new moment before the frame: sessions that have
    ended and are not released yet are met in an order that the oracle does not know.
    """

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.nat = configuration.model()
        self.framing: Framing = "ip" if self.nat.framing == "ip" else "ethernet"
        self._rows: list[dict[str, int]] = []
        self._draws: list[tuple[int, int]] = []  # inside and outside ports, where ports are random
        self._seen: bytes | None = None

    def frame(self, frame: bytes, side: Side, now: float, sent: Iterable[tuple[Side, bytes]]) -> Verdict:
        """Check what left of one frame.

        Parameters
        ----------
        frame, side
            What came in, and from where.
        now
            Seconds on the NAT's clock; it may stand still, and backwards is as if it did.
        sent
            All that left: (side, frame).

        Returns
        -------
        Verdict
            What became of the frame, as natcore would call it.

        Raises
        ------
        AssertionError
            Something else had to leave; it says what, field by field.
        """
        left = [Sent(Side(to), data) for to, data in sent]
        packet = packets.parse(frame, self.framing, side)
        main = None if isinstance(packet, Verdict) else self._translation(packet, side, left)
        self._seen = None if main is None else main.frame
        drawn = None if main is None or isinstance(packet, Verdict) else _source(main.frame, packet)
        moment = to_ns(now)
        unseen = main is None and isinstance(packet, Packet) and self._may_hairpin(packet, side)
        unseen = unseen and isinstance(packet, Packet) and self._may_be_filtered(packet)
        before = deepcopy(self.nat) if unseen else None
        try:
            verdict, expected = self._expect(self.nat, frame, side, moment, drawn)
        except AssertionError as error:
            raise AssertionError(f"{self.describe(frame)} from {_word(side)}: {error}") from None
        for passed_over in range(1, 8) if before is not None and expected else ():
            other = deepcopy(before)
            assert other is not None
            again = self._expect(other, frame, side, moment, None, passed_over)
            if not again[1]:
                self.nat, (verdict, expected) = other, again
                break
        if drawn is not None and isinstance(packet, Packet) and verdict is Verdict.OUTBOUND:
            self._note_draw(packet, drawn)
        if Counter(expected) != Counter(left):
            what = f"{self.describe(frame)} from {_word(side)}: {verdict.name}"
            raise AssertionError(self._told(what, expected, left))
        return verdict

    def describe(self, frame: bytes) -> str:
        """Say in a few words what a frame is, as `describe` does."""
        return describe(frame, self.framing)

    def advance(self, now: float, sent: Iterable[tuple[Side, bytes]] = ()) -> None:
        """Check what left while the clock went on.

        Parameters
        ----------
        now
            Seconds on the NAT's clock.
        sent
            What left by itself, such as late answers to unsolicited SYNs.

        Raises
        ------
        AssertionError
            Something else had to leave.
        """
        self.nat.advance(to_ns(now))
        expected, left = self._generated(self.nat), [Sent(Side(to), data) for to, data in sent]
        if Counter(expected) != Counter(left):
            raise AssertionError(self._told(f"at {now} s", expected, left))

    def events(self, events: Iterable[Event]) -> None:
        """Check the events since they were last taken: `Gateway.take_events`, after `advance` to the same moment.

        Raises
        ------
        AssertionError
            They are others.
        """
        expected = self._as_seen(expected_events(self.nat))
        got = self._as_seen(event_rows(events))
        assert got == expected, f"events: {got}, expected {expected}"

    def _as_seen(self, rows: list[EventRow]) -> list[EventRow]:
        """Without the outside endpoint of a hairpin that was refused: it was drawn, and never left."""
        eips = self.nat.eips
        return sorted((*row[:4], 0, 0, *row[6:]) if row[4] in eips else row for row in rows)

    def rows(self, records: NDArray[Any]) -> None:
        """Keep rows of the session log, to be checked by `finish`: RECORD (n,), of windows, beginnings and ends."""
        for record in records[records["kind"] <= END]:
            self._rows.append({name: int(record[name]) for name in RECORD.names or () if name != "number"})

    def finish(self, *, rows: bool = False, epoch: float = 0.0) -> None:
        """Check what can be judged at the end alone: the session log, and whether ports are hard to guess.

        Parameters
        ----------
        rows
            All rows were given to `rows`.
        epoch
            Seconds since 1970 when the NAT's clock was 0, in the rows.

        Raises
        ------
        AssertionError
            Rows are missing, too many or others, or every port has its inside port's parity though none is asked for.
        """
        self._check_draws()
        if not rows:
            return
        expected = [record(row, epoch) for row in self.nat.rows]
        if self.configuration.redact_destination:
            expected = [{**row, "pub_ip": 0, "pub_port": 0} for row in expected]
        same_by_session(self._rows, expected)

    def _expect(
        self, nat: Nat, frame: bytes, side: Side, now: int, drawn: Endpoint | None, passed_over: int = 0
    ) -> tuple[Verdict, list[Sent]]:
        choices = Choices(lambda: drawn, sent=lambda: self._seen, passed_over=passed_over)
        verdict, out = nat.translate_one(frame, side, now, choices)
        frames = [] if out is None else [Sent(nat.egress(side, verdict), out)]
        return verdict, frames + self._generated(nat)

    @staticmethod
    def _generated(nat: Nat) -> list[Sent]:
        made = [Sent(generated.send_to, generated.frame) for generated in nat.generated]
        nat.generated.clear()
        return made

    def _may_be_filtered(self, packet: Packet) -> bool:
        """Whether it depends on the endpoint drawn if a hairpin passes."""
        name = NAMES.get(packet.protocol)
        return name is not None and self.nat.policy.behaviour(name).filtering != "endpoint-independent"

    def _may_hairpin(self, packet: Packet, side: Side) -> bool:
        return side is Side.INSIDE and packet.destination[0] in self.nat.eips

    def _translation(self, packet: Packet, side: Side, sent: list[Sent]) -> Sent | None:
        """That of a packet among the frames that left; others are ICMP errors, echo replies, fragments of others."""
        return next((each for each in sent if self._is_translation(packet, side, each)), None)

    def _is_translation(self, packet: Packet, side: Side, sent: Sent) -> bool:
        new = packets.parse(sent.frame, self.framing, Side.INSIDE)
        if (
            isinstance(new, Verdict)
            or new.protocol != packet.protocol
            or (new.offset, new.link) != (packet.offset, packet.link)
        ):
            return False
        if packet.protocol == ICMP and packet.offset == 0 and new.ip[new.header] != packet.ip[packet.header]:
            return False
        if side is Side.OUTSIDE:
            return sent.side is Side.INSIDE and new.source[0] == packet.source[0]
        if sent.side is Side.OUTSIDE:
            return new.destination[0] == packet.destination[0]
        return self._may_hairpin(packet, side)

    def _note_draw(self, packet: Packet, drawn: Endpoint) -> None:
        policy = self.nat.policy
        plain = policy.ports == "random" and not policy.parity and self.nat.range_size >= _LEAST_RANDOM
        if plain and packet.protocol in (TCP, UDP) and packet.kind == "session":
            self._draws.append((packet.source[1], drawn[1]))

    def _check_draws(self) -> None:
        draws = set(self._draws)
        alike = sum((inside - outside) % 2 == 0 for inside, outside in draws)
        assert len(draws) < ENOUGH_DRAWS or alike < len(draws), (
            f"all of {len(draws)} outside ports have the parity of their inside port, which the policy does not ask for: "
            "they are easier to guess (RFC 7857 REQ-8, RFC 6056)"
        )

    def _told(self, what: str, expected: list[Sent], got: list[Sent]) -> str:
        """What must leave and did not, and what did; those most alike are compared field by field."""
        missing, extra = Counter(expected) - Counter(got), Counter(got) - Counter(expected)
        lines = [what]
        absent, more = list(missing.elements()), list(extra.elements())
        while absent and more:
            mine = absent.pop(0)
            other = min(
                more, key=lambda each: (each.side != mine.side, len(differences(mine.frame, each.frame, self.framing)))
            )
            more.remove(other)
            lines.append(f"what left is not as it must be: {self.describe(mine.frame)}")
            if other.side != mine.side:
                lines.append(f"  it left to the {_word(other.side)}, expected the {_word(mine.side)}")
            lines += [f"  {line}" for line in differences(mine.frame, other.frame, self.framing)]
        lines += [f"did not leave to the {_word(each.side)}: {self.describe(each.frame)}" for each in absent]
        lines += [f"left to the {_word(each.side)}, and must not: {self.describe(each.frame)}" for each in more]
        return "\n".join(lines)


def _word(side: Side) -> str:
    return side.name.lower()


def _source(frame: bytes, packet: Packet) -> Endpoint:
    """The outside endpoint of a translation that begins with its layer-4 header."""
    ip = frame[packet.link :]
    address, data = long(ip, 12), (ip[0] & 15) * 4
    if packet.protocol not in PORTED:
        return address, 0
    return address, word(ip, data + (4 if packet.protocol == ICMP else 0))


def to_ns(seconds: float) -> int:
    """Return nanoseconds, rounded half to even, of the exact value: what round() gives of a fraction."""
    numerator, denominator = seconds.as_integer_ratio()
    whole, rest = divmod(numerator * 10**9, denominator)
    return whole + (2 * rest > denominator or (2 * rest == denominator and whole & 1))


EventRow = tuple[str, int, int, str, int, int, int, int]


def event_rows(events: Iterable[Event]) -> list[EventRow]:
    """Return events as rows that can be compared: reason, address, ns, limit, destination, port, protocol, count."""
    return sorted(
        (e.reason, int(e.subscriber or e.outside or 0), to_ns(e.time), e.limit, int(e.destination or 0), e.port,
         e.protocol, e.count)
        for e in events
    )  # fmt: skip


def expected_events(nat: Nat) -> list[EventRow]:
    """Return the oracle's events in the same form, and forget them."""
    expected = sorted(
        (reason, address, to_ns(e.time / 1e9), e.limit, *e.destination, e.protocol, e.count)
        for (reason, address, _), e in nat.events.items()
    )
    nat.events.clear()
    return expected


def record(row: Row, epoch: float) -> dict[str, int]:
    """Return a row of the oracle's as natcore numbers its fields. epoch: seconds since 1970 at the clock's 0."""
    zero = round(epoch * 1e6)
    return {
        "protocol": row.protocol,
        **dict(zip(("pri_ip", "pri_port", "pub_ip", "pub_port"), (*row.pri, *row.pub), strict=True)),
        "nat_ip": row.nat[0],
        "nat_port": row.nat[1],
        **row.counts._asdict(),
        "start_time": zero + row.start // 1000,
        "end_time": zero + row.end // 1000,
        "eip": row.eip,
        "session": row.session,
        "kind": row.kind,
        "flags": row.flags,
    }


def by_session(rows: Iterable[dict[str, int]]) -> dict[int, list[dict[str, int]]]:
    """Return the rows of each session, in order: those of different sessions may come in any order but for their ends."""
    result: dict[int, list[dict[str, int]]] = defaultdict(list)
    for row in rows:
        result[row["session"]].append(row)
    return result


def same_by_session(got: Iterable[dict[str, int]], expected: Iterable[dict[str, int]]) -> None:
    """Assert that two lists of rows are the same, session by session; only those that differ are shown."""
    ours, theirs = by_session(got), by_session(expected)
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    assert not keys, (
        f"rows: { {key: ours.get(key) for key in keys} }, expected { {key: theirs.get(key) for key in keys} }"
    )

"""A gateway's standby beside the oracle's: both are told the same, all of it or a part, and both take over."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from random import Random
from typing import Any, NamedTuple

import numpy as np

from natcore import Gateway, Side
from natcore.peer.feed import Feed
from natcore.peer.messages import ROW_BYTES, TIME, Kind, Message
from natcore.peer.standby import Standby
from natcore.testing.oracle import Nat
from natcore.testing.oracle.packets import ICMP, TCP, UDP, Endpoint
from natcore.testing.oracle.sessions import MS, Session
from natcore.testing.oracle.standby import HeldDown, row_of
from natcore.testing.oracle.standby import Standby as ExpectedStandby

SESSION = np.dtype(
    {"names": ["slot", "low", "high"], "formats": ["<u4", "<u4", "<u2"], "offsets": [0, 4, 8], "itemsize": 72}
)
HELD_DOWN = np.dtype(
    [("address", ">u4"), ("owner", ">u4"), ("until", "<u4"), ("port", "<u2"), ("space", "u1"), ("unused", "u1")]
)
SPACES = (TCP, UDP, ICMP)
Ends = tuple[int, Endpoint, Endpoint, Endpoint]


def ends(session: Session) -> Ends:
    return session.protocol, session.mapping.inside, session.remote, session.mapping.outside


class Image(NamedTuple):
    """Of the oracle; and the bytes that had been carried, and the rows that had been taken, when it began."""

    standby: ExpectedStandby
    carried: Counter[Side]
    taken: int


class Followed:
    """A gateway's stream to its standby. What was taken from it waits in order, as in a connection, until it is delivered or
    the gateway dies."""

    def __init__(self, gateway: Gateway, model: Nat, counted: Callable[[], tuple[Counter[Side], int]]) -> None:
        self._model, self._counted = model, counted
        self._feed, self._standby = Feed(gateway), Standby(Gateway)
        self._expected: Image | None = None  # the complete one
        self._coming: Image | None = None
        self._numbers: dict[tuple[int, int], int] = {}  # of the sessions that were told, by worker and slot
        self._told: dict[int, Session] = {}  # as they were told last
        self._acknowledged: set[int] = set()  # sessions
        self._waiting: deque[tuple[Message, Callable[[], None]]] = deque()
        self._begun = False

    def tell(self, random: Random) -> list[str]:
        """Take what changed, and deliver what waits or a part of it; what was told."""
        kind = "snapshot" if not self._begun or self._feed.is_outdated else "changes"
        if kind == "snapshot":
            self._begun = True
            self._numbers.clear()
            self._told.clear()
            self._take(self._feed.snapshot(), random)
            self._same_rest()
        else:
            self._take(self._feed.changes(), random)
        self._same_sessions()
        whole = random.random() < 0.6
        told = [kind if whole else f"{kind}, in part"]
        if random.random() < 0.5:
            told.append("refreshes")
            self._take(self._feed.refreshes(), random)
            assert {s.id: s.last_seen for s in self._model.sessions} == {n: s.last_seen for n, s in self._told.items()}
        for _ in range(len(self._waiting) if whole else random.randrange(len(self._waiting) + 1)):
            message, expect = self._waiting.popleft()
            self._standby.receive(message)
            expect()
        if not self._waiting:
            self._acknowledged = {session.id for session in self._model.sessions}
        return told

    @property
    def has_image(self) -> bool:
        return self._expected is not None

    def restarted(self, gateway: Gateway) -> None:
        """The gateway is another one, which begins a stream of its own; what is on its way is lost."""
        self._feed.close()
        self._feed = Feed(gateway)
        self._waiting.clear()
        self._standby.begin()
        self._coming, self._begun = None, False

    def take_over(self, random: Random) -> tuple[Gateway, Nat, Counter[Side], int]:
        """The gateway dies, and its standby goes on."""
        assert self._expected is not None
        expected, carried, taken = self._expected
        silent = self._model.now - expected.image.now + random.choice([0, 300 * MS, 3000 * MS])
        grace = random.choice([0.0, 3.0])
        gateway = self._standby.promote(elapsed=silent / 1e9, grace=grace)
        assert self._standby.evicted == 0
        self._feed.close()
        model = expected.promote(silent, round(grace * 1000))
        alive, known = ({each.id: ends(each) for each in nat.sessions} for nat in (self._model, model))
        for number in self._acknowledged & alive.keys():
            assert known[number] == alive[number], "a session that was acknowledged does not go on with its port"
        assert gateway.now == model.now / 1e9
        return gateway, model, carried, taken

    def close(self) -> None:
        self._feed.close()
        self._standby.close()

    def _take(self, messages: Iterable[Message], random: Random) -> None:
        for message in messages:
            for part in parts(message, random):
                self._waiting.append((part, self._expectation(part)))

    def _expectation(self, message: Message) -> Callable[[], None]:
        """What the oracle does when a message arrives; its rows are of now."""
        body, model = message.body, self._model
        if message.kind == Kind.BASE:
            coming = Image(ExpectedStandby(model), *self._counted())
            return lambda: setattr(self, "_coming", coming)
        if message.kind == Kind.TIME:
            now, _, last = TIME.unpack(body)
            assert (now, last) == (model.now, model.last_id)
            return lambda: self._image().time(now, last)
        if message.kind == Kind.COMPLETE:
            return self._complete
        if message.kind == Kind.ENDS:
            ended = [self._numbers.pop((message.worker, slot)) for slot in np.frombuffer(body, "<u4").tolist()]
            for number in ended:
                del self._told[number]
            return lambda: self._apply(ExpectedStandby.ended, ended)
        if message.kind == Kind.HELD_DOWN:
            held = held_down(model, body)
            return lambda: self._apply(ExpectedStandby.held_down, held)
        alive = {session.id: session for session in model.sessions}
        if message.kind == Kind.SESSIONS:
            for slot, low, high in np.frombuffer(body, SESSION).tolist():
                self._numbers[message.worker, slot] = high << 32 | low
        size = ROW_BYTES[message.kind]
        slots = [int.from_bytes(body[at : at + 4], "little") for at in range(0, len(body), size)]
        told = [row_of(alive[self._numbers[message.worker, slot]]) for slot in slots]
        self._told.update((row.id, row) for row in told)
        if message.kind == Kind.SESSIONS:
            return lambda: self._apply(ExpectedStandby.session, told)
        return lambda: self._apply(ExpectedStandby.refreshed, told)

    def _image(self) -> ExpectedStandby:
        image = self._coming or self._expected
        assert image is not None
        return image.standby

    def _apply(self, apply: Callable[[ExpectedStandby, Any], None], rows: Iterable[Any]) -> None:
        for row in rows:
            apply(self._image(), row)

    def _complete(self) -> None:
        self._expected, self._coming = self._coming, None

    def _same_sessions(self) -> None:
        """Every session was told, with the state that it has: nothing was left out."""
        alive = {s.id: (s.tcp, s.timer) for s in self._model.sessions}
        assert alive == {number: (s.tcp, s.timer) for number, s in self._told.items()}

    def _same_rest(self) -> None:
        """A snapshot has the ports that are held down."""
        told = {row.key for message, _ in self._waiting if message.kind == Kind.HELD_DOWN
                for row in held_down(self._model, message.body)}  # fmt: skip
        assert set(self._model.resting()) == told


def parts(message: Message, random: Random) -> Iterable[Message]:
    """The message as one, or as two that say the same."""
    body = bytes(message.body)
    if message.rows < 2 or random.random() < 0.5:
        return [message._replace(body=body)]
    size = ROW_BYTES[message.kind]
    rows = random.randrange(1, message.rows)
    return [
        message._replace(body=body[: rows * size]),
        message._replace(body=body[rows * size :], number=message.number + rows),
    ]


def held_down(model: Nat, body: bytes | memoryview) -> list[HeldDown]:
    """What rows say, but for those that are over by now; the oracle holds the ports down likewise."""
    found = []
    for row in np.frombuffer(body, HELD_DOWN):
        if 0 < (int(row["until"]) - model.now // MS) % (1 << 32) < 1 << 31:
            key = SPACES[row["space"]], (int(row["address"]), int(row["port"]))
            owner, until = model.held[key]
            assert (owner, until // MS % (1 << 32)) == (int(row["owner"]), int(row["until"]))
            found.append(HeldDown(key, owner, until))
    return found

"""The oracle's standby: what it has of a gateway by what it was told, and what that is worth when it takes over.

What is told is free, as the stream of natcore is: each row holds for the moment when it was taken. What a row says, and what
becomes of it, is the oracle's.
"""

from __future__ import annotations

from collections import Counter
from copy import copy
from typing import NamedTuple

from natcore.testing.oracle.model import Nat
from natcore.testing.oracle.packets import Endpoint
from natcore.testing.oracle.sessions import MS, Counts, Mapping, Session


class HeldDown(NamedTuple):
    """A port that is held down: protocol and outside endpoint, the inside address that had it, and until when (ns)."""

    key: tuple[int, Endpoint]
    owner: int
    until: int


def row_of(session: Session) -> Session:
    """Return a session as it is now, for the stream: its counts, its open window and SYNs without an answer are not told."""
    row = copy(session)
    row.ack, row.sent, row.fresh = dict(session.ack), dict(session.sent), {}
    row.total = row.in_window = Counts()
    row.window_start, row.born = None, session.born // MS * MS
    return row


class Standby:
    """What a standby has of a gateway: at first its settings, entries and counters, and no session."""

    def __init__(self, active: Nat) -> None:
        image = active.without_sessions()
        image.counts["created"] = image.counts["ended"]  # a session counts when it is told
        image.began = list(image.over)
        held = image.counts.pop("held", 0)  # fragments that wait are lost with their gateway
        image.counts.update(dropped=held, dropped_fragment=held)
        self.image = image
        self.last_id = 0  # the highest number of a session that was told
        self._there: dict[int, Session] = {}  # by their numbers

    def session(self, row: Session) -> None:
        """A session is as the row says."""
        self.last_id = max(self.last_id, row.id)
        own = self._there.get(row.id)
        if own is None:
            own = self._open(row)
        own.tcp, own.answered, own.last_seen = row.tcp, row.answered, row.last_seen
        own.ack, own.sent = dict(row.ack), dict(row.sent)

    def _open(self, row: Session) -> Session:
        image, mapping = self.image, self._mapping_of(row.mapping)
        image.last_id = row.id - 1
        own = image.open(mapping, row.remote, outside=row.opened_outside, hairpinned=row.hairpinned, logged=row.logged)
        own.born = row.born
        self._there[own.id] = own
        return own

    def _mapping_of(self, told: Mapping) -> Mapping:
        """The image's own; of a new one the port is not held down any more."""
        image = self.image
        key = told.protocol, told.inside, told.outside, told.entry, told.static, told.remote
        for own in image.mappings:
            if (own.protocol, own.inside, own.outside, own.entry, own.static, own.remote) == key:
                return own
        if not told.static:
            image.held.pop((told.protocol, told.outside), None)
        return Mapping(*key)

    def ended(self, number: int) -> None:
        """A session has ended; its port is held down from now on."""
        self.image.end(self._there.pop(number), self.image.now)

    def refreshed(self, row: Session) -> None:
        """Packets of a session passed."""
        own = self._there.get(row.id)
        if own is not None:
            own.last_seen = row.last_seen
            own.ack.update(
                (side, row.ack[side]) for side in own.ack.keys() & row.ack.keys()
            )  # which are set, a session says
            own.sent.update((side, row.sent[side]) for side in own.sent.keys() & row.sent.keys())

    def held_down(self, row: HeldDown) -> None:
        """A port is held down."""
        self.image.held[row.key] = row.owner, row.until

    def time(self, now: int, last_id: int) -> None:
        """The active gateway's clock (ns), and the highest number of a session."""
        self.image.now = max(self.image.now, now)
        self.last_id = max(self.last_id, last_id)

    def promote(self, elapsed: int, grace: int) -> Nat:
        """Return the gateway that takes over, so many ns after the last sign of life. grace: ms by which a session may have
        been refreshed later than was told."""
        image = self.image
        image.now += elapsed
        now = image.now // MS
        for session in image.sessions:
            idle = now - session.last_seen
            session.last_seen = now - (idle - grace if idle > grace else 0)
        image.swept, image.sweep_at = image.now, 0
        never_told = self.last_id - image.counts["created"]
        image.counts.update(Counter(created=never_told, ended=never_told))
        image.began[3] += never_told
        image.over[3] += never_told
        image.last_id = self.last_id
        image.rows.clear()
        return image

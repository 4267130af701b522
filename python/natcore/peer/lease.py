"""Who of two gateways translates: votes that are lent for a time, counted. Pure: time is an argument, nothing is sent here.

Theory of operation. There are three voters: each gateway of the pair, and a witness at a third place. A voter lends its vote to
one gateway at a time, for `duration` seconds, and to another one not before that is over. A gateway may translate while it has
the votes of a majority. Any two majorities have a voter in common, so two gateways never have one at once.

A gateway counts a vote from the moment when it asked, the voter from the moment when it was asked, which is later: so the
gateway's time is over first, whatever the way there and back takes. Clocks need not agree; they must run as fast, within
`DRIFT`. They are CLOCK_BOOTTIME (`clock`), which goes on while a machine is suspended: it wakes up without a vote. Those of
a virtual machine that its host pauses stand still: do not pause one of the pair. A voter that was started anew does not know
who has its vote, and lends it to none for one duration.

What follows. Whichever gateway, or the witness, dies or is cut off, two are left that hear each other, and one of the gateways
among them translates. Two that hear each other and are not enough for a majority translate nothing: without a third place, the
other one's death cannot be told from a cut line. Two candidates may each have a vote and want the other's: who has no majority
after two durations gives back what it has, and begins again a random moment later (natcore.peer.pair).
"""

from __future__ import annotations

import time
from typing import NamedTuple

DRIFT = 0.01  # how much faster one clock may run than another
MARGIN = 0.1  # of the duration: what is over that much sooner, a gateway does not count on


def clock() -> float:
    """Return the moment from which votes are counted, in seconds."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Ballot(NamedTuple):
    """A voter's answer. granted: the vote is lent to who asked. turn: of the request that it answers. left: seconds for which
    it is lent to another one still."""

    voter: str
    granted: bool
    turn: int
    left: float = 0.0


class Voter:
    """Lends one vote. duration: seconds that every voter and gateway of the group knows; started: when it began to listen."""

    def __init__(self, name: str, duration: float, started: float) -> None:
        self.name, self.duration = name, duration
        self._holder: str | None = None
        self._until = started + duration  # lent to someone unknown before the start
        self._turn = 0

    def holder(self, now: float) -> str | None:
        """Who has the vote; None: none, or none that it knows."""
        return self._holder if now < self._until else None

    def ask(self, who: str, turn: int, now: float) -> Ballot:
        """A gateway asks for the vote, or for having it longer."""
        if who != self._holder and now < self._until:
            return Ballot(self.name, False, turn, self._until - now)
        goes_on = who == self._holder and now < self._until
        self._turn = max(turn, self._turn) if goes_on else turn  # a request that comes late makes no later one void
        self._holder, self._until = who, now + self.duration
        return Ballot(self.name, True, turn)

    def give_back(self, who: str, turn: int, now: float) -> None:
        """A gateway that has ceased to translate needs the vote no more. turn: its last request; a later one stands."""
        if who == self._holder and turn >= self._turn and now < self._until:
            self._until = now


class Candidate:
    """Counts the votes that a gateway has. voters: the names of all; duration: as theirs."""

    def __init__(self, name: str, voters: tuple[str, ...], duration: float) -> None:
        self.name, self.voters, self.duration = name, voters, duration
        self._asked: dict[tuple[str, int], float] = {}
        self._until: dict[str, float] = {}
        self._turn = 0

    @property
    def majority(self) -> int:
        """How many votes are needed."""
        return len(self.voters) // 2 + 1

    @property
    def turn(self) -> int:
        """The number of the last request."""
        return self._turn

    def asks(self, voter: str, now: float) -> int:
        """A request to a voter leaves now; return its number, from 1."""
        self._turn += 1
        self._asked = {key: at for key, at in self._asked.items() if now - at < self.duration}
        self._asked[voter, self._turn] = now
        return self._turn

    def hears(self, ballot: Ballot) -> None:
        """An answer came."""
        asked = self._asked.pop((ballot.voter, ballot.turn), None)
        if asked is None or ballot.voter not in self.voters:
            return  # too old to count, or of an unknown voter
        if ballot.granted:
            lent = self.duration * (1 - DRIFT - MARGIN)
            self._until[ballot.voter] = max(asked + lent, self._until.get(ballot.voter, 0.0))

    def gives_back(self) -> None:
        """Count on no vote any more, and on no answer to what was asked so far; then tell the voters, with `turn`."""
        self._until.clear()
        self._asked.clear()

    def until(self) -> float:
        """When the majority is lost unless more votes come; in the past: there is none."""
        ends = sorted(self._until.values(), reverse=True)
        return ends[self.majority - 1] if len(ends) >= self.majority else float("-inf")

    def may_translate(self, now: float) -> bool:
        """Whether the gateway may translate now."""
        return now < self.until()

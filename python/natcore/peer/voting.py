"""Voting: asks the voters for their votes, so that this gateway may translate, and tells until when it may."""

from __future__ import annotations

import json
import logging
import random
import threading
from collections.abc import Callable
from typing import Any

from natcore.errors import Error, PeerError
from natcore.internal import threads
from natcore.internal.closing import Closing
from natcore.internal.redaction import show
from natcore.peer.channel import Address, Channel, Credentials
from natcore.peer.lease import Ballot, Candidate, clock
from natcore.peer.messages import Kind, Message, is_name, parse_json
from natcore.peer.server import Server

WITNESS = "witness"  # the name of the third voter
ROUNDS = 6  # of asking, in one duration of a vote, at least
SOONEST = 0.001  # seconds between two requests to a voter, at least
MOST_LEFT = 1e9  # seconds for which a vote may be lent to another one still
KEEP_SECONDS = 1.0  # after which who asks for nothing says so: the connection is there, and warm, when it does

_log = logging.getLogger(__name__)


class Voting(Closing):
    """Asks for votes from `begin` to `end`, and tells until when the gateway may translate.

    name: of this gateway. server: has the vote of this place. others: the other voters by name. changed: called with the moment
    until which the gateway may translate (`lease.clock`; -inf: not at all), whenever an answer came; it must not block.
    """

    def __init__(
        self, name: str, server: Server, others: dict[str, Address], credentials: Credentials, duration: float,
        changed: Callable[[float], None],
    ) -> None:  # fmt: skip
        self._server, self._duration, self._changed = server, duration, changed
        self._context = credentials.context(server=False)
        self._candidate = Candidate(name, (name, *others), duration)
        self._lock = threading.RLock()
        self._changed_course = threading.Condition(self._lock)
        self._course = 0  # a number for each begin and end
        self._closed = threading.Event()
        self._wanted = False
        self._begun = self._pause = 0.0
        self._given_back = 0
        self._failed: dict[str, str] = {}  # why a voter's answers do not count, as it was told last
        self._channels: dict[str, Channel] = {}  # the newest to each voter
        self.holders: dict[str, str | None] = {}
        """Who has each voter's vote, by its last answer."""
        self._threads = [threads.start("natcore-vote", self._ask_own)]
        self._threads += [threads.start("natcore-vote", self._ask, *each) for each in others.items()]

    @property
    def until(self) -> float:
        """Until when the gateway may translate (time.monotonic); -inf: it may not."""
        with self._lock:
            return self._candidate.until()

    def begin(self) -> bool:
        """Ask for votes from now on; return whether that was not done yet."""
        with self._lock:
            if self._wanted:
                return False
            self._wanted, self._begun = True, clock()
            self._turn_about()
            return True

    def end(self) -> None:
        """Ask no more, and give back what there is: the gateway has ceased to translate. Idempotent."""
        with self._lock:
            if self._wanted:
                self._wanted = False
                self._give_back()
                self._turn_about()

    def _turn_about(self) -> None:
        self._course += 1
        self._changed_course.notify_all()

    def _wait(self, course: int, seconds: float) -> int:
        """Wait so long, or until voting begins or ends; return the course since. course: as it was."""
        with self._lock:
            self._changed_course.wait_for(lambda: self._course != course or self._closed.is_set(), seconds)
            return self._course

    def _pause_after(self, ballot: Ballot) -> float:
        """Return when to ask the voter again, in seconds: as soon as its vote is back from another one."""
        return max(SOONEST, min(self._duration / ROUNDS, ballot.left or self._duration))

    def _give_back(self) -> None:
        self._candidate.gives_back()
        self._given_back = self._candidate.turn
        self._changed(self._candidate.until())
        self._server.ask(self._candidate.name, self._given_back, back=True)

    def _may_ask(self) -> bool:
        """Whether to ask now. Who has waited for a majority for two durations lets others have theirs, and begins again."""
        with self._lock:
            now = clock()
            if not self._wanted or now < self._pause:
                return False
            if self._candidate.may_translate(now):
                self._begun = now
            elif now - self._begun > 2 * self._duration:
                self._give_back()
                self._pause = now + random.uniform(0.3, 1.5) * self._duration
                self._begun = self._pause
                return False
            return True

    def _ask_own(self) -> None:
        pause, course = 0.0, 0
        while not self._closed.is_set():
            course = self._wait(course, pause)
            pause = self._duration / ROUNDS
            if self._may_ask():
                with self._lock:
                    name = self._candidate.name
                    turn = self._candidate.asks(name, clock())
                    ballot, holder = self._server.ask(name, turn)
                    self._hear(ballot, holder)
                pause = self._pause_after(ballot)

    def _hear(self, ballot: Ballot, holder: str | None) -> None:
        with self._lock:
            self.holders[ballot.voter] = holder
            self._candidate.hears(ballot)
            self._changed(self._candidate.until())

    def _check_voter(self, channel: Channel, voter: str) -> None:
        """Raise PeerError if another one answers (its vote would count twice), or one that lends it for another time."""
        name, duration = channel.hello.get("voter"), channel.hello.get("lease")
        if name != voter:
            raise PeerError(f"the voter there must be {voter!r}, got {show(name)}")
        if duration != self._duration:
            raise PeerError(f"lease must be {self._duration:g} s there too, got {show(duration)}")

    def _ask(self, voter: str, at: Address) -> None:
        while not self._closed.is_set():
            try:
                hello = {"name": self._candidate.name, "want": "votes"}
                with Channel.connect(at, self._context, hello, self._duration) as channel:
                    self._channels[voter] = channel
                    self._check_voter(channel, voter)
                    self._ask_over(channel, voter)
            except PeerError as error:
                if str(error) != self._failed.get(voter):
                    self._failed[voter] = str(error)
                    _log.warning("the vote of %s at %s does not count: %s", voter, at, error)
            except (Error, OSError, EOFError) as error:
                _log.debug("the vote of %s cannot be asked for: %s", voter, error)
            except Exception:  # whatever a voter sends, it is asked again
                _log.exception("the vote of %s cannot be asked for", voter)
            self._closed.wait(self._duration / ROUNDS)

    def _ask_over(self, channel: Channel, voter: str) -> None:
        given_back, course, pause = -1, 0, 0.0
        said_at = clock()
        while not self._closed.is_set():
            course = self._wait(course, pause)
            pause = self._duration / ROUNDS
            back = self._given_back > given_back
            if not back and not self._may_ask():
                if clock() - said_at < KEEP_SECONDS:
                    continue
                back = True
            with self._lock:
                said_at = clock()
                turn = self._given_back if back else self._candidate.asks(voter, said_at)
            said = {"who": self._candidate.name, "turn": turn, "back": back}
            channel.send(Message(Kind.ASK, 0, 0, json.dumps(said).encode()))
            answer = channel.receive(self._duration)
            if answer is None:
                raise PeerError(f"{voter} does not answer")
            ballot, holder = _ballot(answer, voter)
            self._failed.pop(voter, None)
            if back:
                given_back = turn
                self.holders[voter] = holder
            else:
                self._hear(ballot, holder)
                pause = self._pause_after(ballot)

    def close(self) -> None:
        """Give back the votes, and ask no more. Idempotent."""
        if not self._closed.is_set():
            self.end()
        self._closed.set()
        with self._lock:
            self._turn_about()
        for channel in list(self._channels.values()):
            channel.abort()
        for thread in self._threads:
            thread.join()


def _ballot(message: Message, voter: str) -> tuple[Ballot, str | None]:
    """Return an answer, and who has the vote. Raises PeerError."""
    said = parse_json(message.body) if message.kind == Kind.VOTE else {}
    granted, turn, holder = said.get("granted"), said.get("turn"), said.get("holder")
    left: Any = said.get("left")
    if not (
        isinstance(granted, bool) and type(turn) is int and (holder is None or is_name(holder))
        and type(left) in (int, float) and 0 <= left <= MOST_LEFT
    ):  # fmt: skip
        raise PeerError(f"the answer of {voter} is none")
    return Ballot(voter, granted, turn, float(left)), holder

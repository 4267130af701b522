"""Delivery: what a session log does next, as a state machine of plain values.

Theory of operation
-------------------
Two things have a state. A `Target` is a destination: available, or unavailable until a time
(docs/session-log-contract.md D1 to D6). A `Progress` is one log's delivery: its status, its backoff, and the rows of
the next batch. `decide` maps both to an action, Wait or Attempt; `settle` maps both and an answer to the states after it
and to what becomes of the rows.
Nothing here reads a clock, draws a number, waits or sends: sender.py does, and passes `now` and `jitter` in.

A sink answers an attempt with one of five outcomes:

- delivered: the rows are acknowledged; the batch size doubles, up to the largest.
- backoff: the rows stay; the next attempt waits, twice as long after each failure, up to `backoff_max`.
- split: the batch is halved and tried at once; a single row that is too large is set aside.
- reject: the rows are set aside as dead letters; delivery goes on with the next.
- unavailable: no attempt for `unavailable` seconds (D1). Then, if rows wait (D5), one test delivery (D2). A failed
  test starts the pause again, whatever its code (D3); a successful one makes the target available (D4).

A `Destination` holds a Target for all logs of this process that deliver there (D6) and gives the test to one of them.
Its lock is held for a state change alone, never while a watcher is called or a row is sent.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Literal

from natcore.config import DeliveryPolicy
from natcore.errors import DeliveryAction

UNAVAILABLE_CODE = "UnavaliableTarget"  # the contract's spelling
DeliveryState = Literal["Modifying", "Success", "Failed"]


@dataclass(frozen=True, slots=True)
class Target:
    """A destination. until: unavailable, no attempt before this time; None: available.

    cause, message: the code and the words that made it so. testing: its single test delivery is on its way.
    """

    until: float | None = None
    cause: str = ""
    message: str = ""
    testing: bool = False

    @property
    def available(self) -> bool:
        return self.until is None


@dataclass(frozen=True, slots=True)
class Progress:
    """A session log's delivery. limit: rows of the next batch at most; not_before: the time of the next attempt."""

    limit: int
    state: DeliveryState = "Modifying"
    code: str = ""
    cause: str = ""
    message: str = ""
    failures: int = 0  # since the last success
    not_before: float = -math.inf


@dataclass(frozen=True, slots=True)
class Delivered:
    """An attempt's good answer, for so many rows (0: the sink was opened, nothing else).

    proven: the destination has answered; else the sink was opened without a word to it, and nothing is known.
    """

    rows: int
    proven: bool = True


@dataclass(frozen=True, slots=True)
class Refused:
    """An attempt's bad answer: `DeliveryError`'s fields."""

    rows: int
    code: str
    message: str
    action: DeliveryAction = "backoff"
    retry_after: float | None = None


Answer = Delivered | Refused


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing before `until`; None: until rows come, or the destination's state changes."""

    until: float | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """Deliver the first waiting rows, `limit` at most. test: this is the unavailable destination's single test."""

    limit: int
    test: bool


Disposal = Literal["acknowledge", "keep", "set-aside"]  # what becomes of the rows of an answered attempt


def decide(target: Target, progress: Progress, waiting: bool, now: float, *, opening: bool = False) -> Wait | Attempt:
    """Return the next action. waiting: rows wait for delivery; where none do there is no attempt, and no test (D5).

    opening: the sink has not been opened yet, which is worth an attempt of its own where the target is available.
    """
    if target.testing or not (waiting or (opening and target.available)):
        return Wait(None)
    until = progress.not_before if target.until is None else max(progress.not_before, target.until)
    if now < until:
        return Wait(until)
    return Attempt(progress.limit, test=not target.available)


def settle(
    target: Target,
    progress: Progress,
    answer: Answer,
    *,
    tested: bool,
    now: float,
    policy: DeliveryPolicy,
    largest: int,
    jitter: float,
) -> tuple[Target, Progress, Disposal]:
    """Return the states after an answer that came at `now`, and what becomes of its rows.

    tested: the attempt was the destination's test. largest: rows of a batch at most, which successes grow back to.
    jitter: 0 to 1, drawn by the caller.
    """
    if isinstance(answer, Delivered):
        grown = min(largest, max(1, progress.limit * 2))
        state: DeliveryState = "Success" if answer.proven else "Modifying"
        return (Target() if tested else target), Progress(grown, state=state), "acknowledge"
    disposal: Disposal = "keep"
    after = progress
    if answer.action == "split" and answer.rows > 1:
        after = replace(progress, limit=answer.rows // 2)
    elif answer.action in ("split", "reject") and answer.rows > 0:
        disposal = "set-aside"
        after = replace(_failed(progress, answer), failures=0)
    elif answer.action != "unavailable":
        pause = max(backoff(policy, progress.failures, jitter), answer.retry_after or 0.0)
        after = replace(_failed(progress, answer), failures=progress.failures + 1, not_before=now + pause)
    if tested or answer.action == "unavailable":  # D1; D3: whatever the test's code
        pause = max(policy.unavailable, answer.retry_after or 0.0)
        testing = target.testing and not tested  # a late answer of another log does not end the test
        target = Target(now + pause, answer.code, answer.message, testing)
        after = replace(_failed(after, answer), code=UNAVAILABLE_CODE, cause=answer.code, not_before=-math.inf)
    return target, after, disposal


def give_up_test(target: Target, now: float, policy: DeliveryPolicy) -> Target:
    """End the test of a log that was stopped before the answer came: it counts as a time-out (D3)."""
    if not target.testing:
        return target
    return Target(now + policy.unavailable, "Timeout", "the test delivery has not been answered")


def backoff(policy: DeliveryPolicy, failures: int, jitter: float) -> float:
    """Return the seconds before the next attempt after so many failures before: doubled each time up to the cap, the
    upper half of it drawn, so that many gateways do not come back at one moment."""
    ceiling = min(policy.backoff_max, policy.backoff_min * 2.0 ** min(failures, 60))
    return max(0.01, ceiling * (0.5 + 0.5 * jitter))


def _failed(progress: Progress, answer: Refused) -> Progress:
    return replace(progress, state="Failed", code=answer.code, cause="", message=answer.message)


class Destination:
    """A target's state in this process, shared by every log that delivers there (D6)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._target = Target()
        self._watchers: list[Callable[[], None]] = []

    @property
    def target(self) -> Target:
        return self._target

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` after each change of the state, in whichever thread made it."""
        with self._lock:
            self._watchers.append(changed)

    def unwatch(self, changed: Callable[[], None]) -> None:
        with self._lock:
            self._watchers.remove(changed)

    def decide(self, progress: Progress, waiting: bool, now: float, *, opening: bool = False) -> Wait | Attempt:
        """As `decide`; one caller alone gets a test, until `settle`, `cancel_test` or `give_up_test`."""
        with self._lock:
            action = decide(self._target, progress, waiting, now, opening=opening)
            if isinstance(action, Attempt) and action.test:
                self._target = replace(self._target, testing=True)
            return action

    def settle(
        self,
        progress: Progress,
        answer: Answer,
        *,
        tested: bool,
        now: float,
        policy: DeliveryPolicy,
        largest: int,
        jitter: float,
    ) -> tuple[Progress, Disposal]:
        """As `settle`, for this destination."""
        with self._lock:
            before = self._target
            self._target, progress, disposal = settle(
                before, progress, answer, tested=tested, now=now, policy=policy, largest=largest, jitter=jitter
            )
        self._notify(before)
        return progress, disposal

    def retry(self, now: float) -> None:
        """Have the pause of an unavailable destination end now: its next attempt is its test."""
        with self._lock:
            before = self._target
            if before.until is not None and not before.testing:
                self._target = replace(before, until=min(before.until, now))
        self._notify(before)

    def cancel_test(self) -> None:
        """Return a test that was not sent: another log may take it."""
        with self._lock:
            before = self._target
            self._target = replace(before, testing=False)
        self._notify(before)

    def give_up_test(self, now: float, policy: DeliveryPolicy) -> None:
        with self._lock:
            before = self._target
            self._target = give_up_test(before, now, policy)
        self._notify(before)

    def _notify(self, before: Target) -> None:
        if self._target != before:
            with self._lock:
                watchers = list(self._watchers)
            for changed in watchers:
                changed()


_destinations: weakref.WeakValueDictionary[Hashable, Destination] = weakref.WeakValueDictionary()
_destinations_lock = threading.Lock()


def destination_of(key: Hashable | None) -> Destination:
    """Return the process's one Destination for the key; None: a new one."""
    if key is None:
        return Destination()
    with _destinations_lock:
        found = _destinations.get(key)
        if found is None:
            _destinations[key] = found = Destination()
        return found


def _forget() -> None:
    """In the child of a fork: what the parent's logs know of destinations, and the locks that its threads hold, are its own."""
    global _destinations, _destinations_lock
    _destinations, _destinations_lock = weakref.WeakValueDictionary(), threading.Lock()


os.register_at_fork(after_in_child=_forget)

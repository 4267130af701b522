"""A NAT under Hypothesis: random lives of it, compared with the oracle by what leaves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any, ClassVar

from natcore.internal.extras import extra
from natcore.testing import strategies, traffic
from natcore.testing.checker import EXACT_SESSIONS, Checker, to_ns
from natcore.testing.configurations import Configuration
from natcore.testing.data_path import EPOCH, DataPath, NotSupportedError
from natcore.verdict import Side

with extra("testing"):
    from hypothesis import note, reject
    from hypothesis import strategies as st
    from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

_BURST = 12  # frames of a step at most
_FEW_PORTS = 4  # of an outside address
_LATE = 0.05  # of fragments, those that come when their datagram is given up
_LONG = 1_000_000.0  # seconds after which every session has ended


class NatMachine(DataPath, RuleBasedStateMachine):
    """A Hypothesis state machine that puts a data path through random lives and compares it with the oracle.

    Subclass it and say how a frame goes through; `Machine.TestCase` is then a test for pytest or unittest. Each life has a
    random configuration: every kind of entry, policy and limit. Frames are sound, odd and damaged ones of TCP, UDP, ICMP
    with errors, other protocols, and fragments; the clock goes in small and in large steps, to where something is due.

    Attributes
    ----------
    configurations
        A strategy of `Configuration`: what the data path is asked to be. Narrow it to what yours can be.
    gateway
        What `start` makes: a natcore gateway of the configuration, in memory.

    Notes
    -----
    The methods that may be overridden are those of `DataPath`: `start`, `translate`, `advance`, `events`, `rows`, `stop`. A
    data path that is no natcore gateway overrides `start`, `translate` and `advance`; events and rows are then not compared.

    A failure prints the configuration and every frame of the shortest life that Hypothesis found, and says what differs,
    field by field. `stateful_step_count` and `max_examples` of `hypothesis.settings` say how long a search is.

    Examples
    --------
    >>> from natcore.testing import NatMachine, leaving
    >>> class Machine(NatMachine):
    ...     def translate(self, frame, side, now):
    ...         return leaving(self.gateway, frame, side, now)
    >>> TestTranslation = Machine.TestCase
    """

    configurations: ClassVar[st.SearchStrategy[Configuration]] = strategies.followable()
    _checker: Checker | None = None
    _failed = False

    # The rules

    @initialize(configuration=st.runner().flatmap(lambda machine: machine.configurations))
    def _begin(self, configuration: Configuration) -> None:
        note(f"{configuration}")
        try:
            self.start(configuration)
        except NotSupportedError:
            reject()
        self._checker, self._trace = Checker(configuration), list[tuple[float, Side | None, bytes]]()
        self._pass_time(configuration.start)
        ports = sum(last - first + 1 for first, last in self._nat.policy.drawn_ranges)
        if ports <= _FEW_PORTS or self._nat.max_sessions > traffic.CROWD:
            # A host that needs more ports than an address has meets pooling; of many ports it is seen how they are drawn.
            self._fill(Random(repr(configuration)))

    @rule(seed=strategies.seeds(), count=st.integers(1, _BURST))
    def _frames(self, seed: int, count: int) -> None:
        random = Random(seed)
        for _ in range(count):
            self._frame(*traffic.frame(random, self._nat), self._later(random))

    @rule(seed=strategies.seeds())
    def _fragments(self, seed: int) -> None:
        random = Random(seed)
        now = self._later(random)
        for frame, side in traffic.fragments(random, self._nat):
            now += random.choice([0.0, 0.0, 0.001, 0.5]) if random.random() < 0.3 else 0.0
            if random.random() < _LATE:  # about when those that wait are given up
                now += self._nat.timeouts.fragment + random.choice([-0.001, 0.0, 0.001])
            self._frame(frame, side, now)

    @rule(seed=strategies.seeds())
    def _conversation(self, seed: int) -> None:
        random = Random(seed)
        for frame, side in traffic.conversation(random, self._nat):
            soon = self._nat.now / 1e9 + random.choice([0.0, 0.001, 0.03])
            self._frame(frame, side, self._later(random) if random.random() < 0.08 else soon)

    @precondition(lambda self: self._nat.eips)
    @rule(seed=strategies.seeds(), after=st.sampled_from([5.999, 6.0, 7.0]))
    def _unsolicited(self, seed: int, after: float) -> None:
        self._frame(*traffic.unsolicited(Random(seed), self._nat), self._nat.now / 1e9)
        self._pass_time(self._nat.now / 1e9 + after)

    @rule(seed=strategies.seeds())
    def _crowd(self, seed: int) -> None:
        self._fill(Random(seed))

    @rule(seed=strategies.seeds())
    def _pause(self, seed: int) -> None:
        self._pass_time(self._later(Random(seed)))
        if (events := self.events()) is not None:
            with self._watched() as checker:
                checker.events(events)

    def teardown(self) -> None:
        """End a life: everything that was open ends, and the rows are compared."""
        try:
            if self._checker is not None and not self._failed:
                self._pass_time(self._nat.now / 1e9 + _LONG)
                rows = self.rows()
                if rows is not None:
                    self._checker.rows(rows)
                self._checker.finish(rows=rows is not None, epoch=EPOCH)
        finally:
            self.stop()

    # What the rules have in common

    @property
    def _nat(self) -> Any:
        assert self._checker is not None
        return self._checker.nat

    @contextmanager
    def _watched(self) -> Iterator[Checker]:
        """The checker; a life that failed is not judged at its end too."""
        assert self._checker is not None
        self._failed = True
        try:
            yield self._checker
        except Exception:
            for now, side, frame in self._trace:
                what = "time passes" if side is None else f"from {side.name.lower()}: {self._checker.describe(frame)}"
                note(f"{now!r} s, {what}{f'  # {frame.hex()}' if frame else ''}")
            raise
        self._failed = False

    def _fill(self, random: Random) -> None:
        now = self._nat.now / 1e9
        for frame, side in traffic.crowd(random, self._nat):
            self._frame(frame, side, now)

    def _later(self, random: Random) -> float:
        return traffic.clock(random, self._nat) / 1e9

    def _frame(self, frame: bytes, side: Side, now: float) -> None:
        if self._nat.max_sessions > EXACT_SESSIONS and to_ns(now) > self._nat.now:
            self._pass_time(now)  # what has ended is released: else it would matter in which order it is met
        self._trace.append((now, side, frame))
        with self._watched() as checker:
            checker.frame(frame, side, now, self.translate(frame, side, now))

    def _pass_time(self, now: float) -> None:
        self._trace.append((now, None, b""))
        with self._watched() as checker:
            checker.advance(now, self.advance(now))

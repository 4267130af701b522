"""A NAT under Hypothesis: random lives of it, compared with the oracle by what leaves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from natcore.internal.extras import extra
from natcore.sinks.memory import MemorySink
from natcore.testing import strategies, traffic
from natcore.testing.checker import EXACT_SESSIONS, Checker, leaving, released, to_ns
from natcore.testing.configurations import Configuration
from natcore.verdict import Side

with extra("testing"):
    from hypothesis import note
    from hypothesis import strategies as st
    from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from natcore.events import Event
    from natcore.gateway import Gateway
    from natcore.sessionlog.session_log import SessionLog

_EPOCH = 1_700_000_000.25  # Unix seconds at now = 0, in the rows
_BURST = 12  # frames of a step at most
_WAIT = 60.0  # seconds that a session log may take
_LONG = 1_000_000.0  # seconds after which every session has ended


class NatMachine(RuleBasedStateMachine):
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
    The methods that may be overridden: `start`, `translate`, `advance`, `events`, `rows`, `stop`. A data path that is no
    natcore gateway overrides `start`, `translate` and `advance`; events and rows are then not compared.

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
    gateway: Gateway
    _log: SessionLog | None = None
    _checker: Checker | None = None
    _failed = False

    def start(self, configuration: Configuration) -> None:
        """Make a new data path of a configuration: here `gateway`, with a session log in memory."""
        self.gateway = configuration.gateway(seed=1, epoch=_EPOCH, records=4096)
        self._sink = MemorySink()
        self._log = self.gateway.start_session_log(self._sink, redact_destination=configuration.redact_destination)

    def translate(self, frame: bytes, side: Side, now: float) -> Iterable[tuple[Side, bytes]]:
        """Put a frame through the data path and return all that leaves, with the side that each leaves by.

        Parameters
        ----------
        frame
            An Ethernet frame, or an IPv4 packet with the configuration's framing="ip".
        side
            The side that it comes from.
        now
            Seconds since the data path began; it may stand still or go back a little.
        """
        return leaving(self.gateway, frame, side, now)

    def advance(self, now: float) -> Iterable[tuple[Side, bytes]]:
        """Let time pass without a frame, and return what leaves by itself."""
        if not self._has_gateway:
            return ()
        self.gateway.advance(now)
        return released(self.gateway)

    def events(self) -> Iterable[Event] | None:
        """Return the events since the last call; None: they are not compared."""
        return self.gateway.take_events() if self._has_gateway else None

    def rows(self) -> NDArray[Any] | None:
        """Return all rows of the session log at the end of a life, RECORD (n,); None: they are not compared."""
        if self._log is None:
            return None
        self._log.wait(_WAIT)
        return self._sink.records

    def stop(self) -> None:
        """Give up what a life's data path holds."""
        if self._has_gateway:
            self.gateway.close()

    # The rules

    @initialize(configuration=st.runner().flatmap(lambda machine: machine.configurations))
    def _begin(self, configuration: Configuration) -> None:
        note(f"{configuration}")
        self._checker, self._trace = Checker(configuration), list[tuple[float, Side | None, bytes]]()
        self.start(configuration)
        self._pass_time(configuration.start)

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
            self._frame(frame, side, now)

    @precondition(lambda self: self._nat.max_sessions > traffic.CROWD)
    @rule(seed=strategies.seeds())
    def _crowd(self, seed: int) -> None:
        now = self._nat.now / 1e9
        for frame, side in traffic.crowd(Random(seed), self._nat):
            self._frame(frame, side, now)

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
                self._checker.finish(rows=rows is not None, epoch=_EPOCH)
        finally:
            self.stop()

    # What the rules have in common

    @property
    def _has_gateway(self) -> bool:
        return "gateway" in vars(self)

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

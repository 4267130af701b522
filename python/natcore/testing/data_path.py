"""What is tested: a NAT that takes a frame and says what leaves; by default a natcore gateway in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from natcore.errors import Error
from natcore.sinks.memory import MemorySink
from natcore.testing.checker import leaving, released
from natcore.testing.configurations import Configuration
from natcore.verdict import Side

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from natcore.events import Event
    from natcore.gateway import Gateway
    from natcore.sessionlog.session_log import SessionLog

Translate = Callable[[bytes, Side, float], Iterable[tuple[Side, bytes]]]
EPOCH = 1_700_000_000.25  # Unix seconds at now = 0, in the rows
_WAIT = 60.0  # seconds that a session log may take


class NotSupportedError(Error):
    """Raised by `DataPath.start`: the data path cannot be what the configuration asks for. It says what is missing."""


class DataPath:
    """A NAT under test: `NatMachine` puts one through random lives, `natcore conformance` asks it for the RFCs' requirements.

    Subclass it and say how a frame goes through. A data path that is no natcore gateway overrides `start`, `translate`,
    `advance` and, where it holds something, `stop`; what it cannot tell (`events`, `rows`, `counters`) is then not judged.

    Attributes
    ----------
    gateway
        What `start` makes: a natcore gateway of the configuration, in memory.
    title
        Of the page that `natcore conformance` writes; None: it names the class.
    is_real_time
        The clock cannot be set: it runs from `start` on, and whoever tests waits.
    tolerance
        Seconds by which a time-out may be early or late.

    Examples
    --------
    >>> from natcore.testing import DataPath, leaving
    >>> class Own(DataPath):
    ...     def translate(self, frame, side, now):
    ...         return leaving(self.gateway, frame, side, now)
    """

    title: ClassVar[str | None] = None
    is_real_time: ClassVar[bool] = False
    tolerance: ClassVar[float] = 0.001
    gateway: Gateway
    _log: SessionLog | None = None

    @classmethod
    def about(cls) -> str:
        """Return what is tested, in Markdown, for the page; empty: nothing is said."""
        return ""

    def start(self, configuration: Configuration) -> None:
        """Make a new data path of a configuration: here `gateway`, with a session log in memory.

        Raises
        ------
        NotSupportedError
            It cannot be that; conformance then says so, and does not call it wrong.
        """
        self.gateway = configuration.gateway(seed=1, epoch=EPOCH, records=4096)
        self._sink = MemorySink()
        self._log = self.gateway.start_session_log(
            self._sink, redact_destination=configuration.redact_destination, rows=configuration.log_rows
        )

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

    def counters(self) -> Mapping[str, int] | None:
        """Return counters by the names of `Gateway.counters`; None: they are not looked at."""
        return self.gateway.counters() if self._has_gateway else None

    def stop(self) -> None:
        """Give up what a life's data path holds."""
        if self._has_gateway:
            self.gateway.close()

    @classmethod
    def of(cls, make: Callable[[Configuration], Translate]) -> Callable[[], DataPath]:
        """Return what makes data paths of a function.

        Parameters
        ----------
        make
            Called with a configuration; it returns `translate(frame, side, now)` of a new NAT, which returns all that leaves.
        """
        return lambda: _OfFunction(make)

    @property
    def _has_gateway(self) -> bool:
        return "gateway" in vars(self)


class _OfFunction(DataPath):
    def __init__(self, make: Callable[[Configuration], Translate]) -> None:
        self._make = make

    def start(self, configuration: Configuration) -> None:
        self._function = self._make(configuration)

    def translate(self, frame: bytes, side: Side, now: float) -> Iterable[tuple[Side, bytes]]:
        return self._function(frame, side, now)

    def advance(self, now: float) -> Iterable[tuple[Side, bytes]]:
        return ()

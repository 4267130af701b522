"""History: what a gateway counted over the last hour, and its last events; it is sampled by the control socket's own thread."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from natcore.dtypes import PORTS

if TYPE_CHECKING:
    from natcore.events import Event
    from natcore.gateway import Gateway

SAMPLE_SECONDS = 10.0
SAMPLES = 360  # an hour
MOST_PORTS = 768  # outside addresses and protocols of a sample: those with the fewest free ports
MOST_EVENTS = 256
COUNTERS = (
    "received", "forwarded", "local", "dropped", "bytes_from_inside", "bytes_from_outside", "created", "ended", "sessions",
    "mappings",
)  # fmt: skip
_KEPT = np.dtype([(name, PORTS[name]) for name in ("outside_ip", "total", "used", "held_down", "reserved", "protocol")])


class Sample(NamedTuple):
    """A look at the counters: Unix seconds, and the values of COUNTERS by name."""

    time: float
    counters: dict[str, int]


class TimedEvent(NamedTuple):
    """An event, and when it happened in Unix seconds."""

    time: float
    event: Event


class History:
    """The last hour of a gateway in 10-second steps, and its last 256 events. From one thread.

    Memory is bounded: 360 samples, each with at most 768 outside addresses and protocols, are 8 MB.

    Parameters
    ----------
    gateway
        The gateway; it outlives the history.
    wall
        Unix seconds.
    """

    def __init__(self, gateway: Gateway, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._feed = gateway.watch_events()
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)
        self._ports: deque[NDArray[np.void]] = deque(maxlen=SAMPLES)
        self._events: deque[TimedEvent] = deque(maxlen=MOST_EVENTS)
        self._due = 0.0

    def look(self, gateway: Gateway, now: float) -> None:
        """Take a sample where one is due. now: seconds, any origin."""
        if now < self._due:
            return
        self._due = now + SAMPLE_SECONDS
        self.sample(gateway)

    def sample(self, gateway: Gateway) -> None:
        """Take a sample now."""
        counters = gateway.counters()
        self._samples.append(Sample(self._wall(), {name: counters[name] for name in COUNTERS}))
        rows = gateway.ports()
        if len(rows) > MOST_PORTS:
            rows = rows[np.argpartition(rows["free"], MOST_PORTS - 1)[:MOST_PORTS]]
        kept = np.empty(len(rows), _KEPT)
        for name in _KEPT.names or ():
            kept[name] = rows[name]
        self._ports.append(kept)
        self._take_events(gateway)

    def samples(self) -> list[Sample]:
        """Return the samples, oldest first."""
        return list(self._samples)

    def ports(self) -> list[tuple[float, NDArray[np.void]]]:
        """Return the port use at each sample, oldest first: Unix seconds, and rows with columns of PORTS."""
        return [(sample.time, rows) for sample, rows in zip(self._samples, self._ports, strict=True)]

    def events(self, gateway: Gateway) -> list[TimedEvent]:
        """Return the last events, oldest first."""
        self._take_events(gateway)
        return list(self._events)

    def _take_events(self, gateway: Gateway) -> None:
        epoch = gateway.epoch
        self._events.extend(TimedEvent(epoch + event.time, event) for event in self._feed.take())

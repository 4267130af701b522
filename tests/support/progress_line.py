"""A line on standard error now and then that says how far a long run is, and how long it will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO


class ProgressLine:
    """Where a long run is. every: seconds between two lines, and before the first one; a short run prints none."""

    def __init__(
        self,
        what: str,
        total: int,
        *,
        every: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
        out: TextIO | None = None,
    ) -> None:
        self._what, self._total, self._every, self._clock = what, total, every, clock
        self._out = sys.stderr if out is None else out
        self._began = self._last = clock()

    def at(self, done: int, note: str = "") -> None:
        """Print a line if it is time. done: of the total; note: what went wrong so far, for example."""
        now = self._clock()
        if done <= 0 or now - self._last < self._every:
            return
        self._last = now
        left = (now - self._began) / done * (self._total - done)
        text = f"{done:,} of {self._total:,} {self._what}, {_time(now - self._began)}, about {_time(left)} left"
        print(f"{text}; {note}" if note else text, file=self._out, flush=True)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"

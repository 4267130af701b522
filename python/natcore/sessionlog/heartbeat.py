"""Heartbeats: they bound the rows that may be missing, so that a crash leaves a gap of a known size."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace
from typing import Protocol

ROUND_BEATS = 32  # in which every part of the table is looked at; the first 65,536 sessions at each beat


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat of a run. Times in microseconds since 1970.

    oldest: the start of the oldest window without a row in the spool. now: the gateway's clock, as rows have it.
    wall: the machine's clock. next_number: of the next row. ended: the end mark, after which no row came.
    made, swept: rows before next_number tell of all that began by `made`, and of all that ended by `swept`. facts: how many
    rows about the log itself there are.
    """

    oldest: int
    now: int
    wall: int
    next_number: int
    ended: bool = False
    made: int = 0
    swept: int = 0
    facts: int = 0

    def end(self) -> Beat:
        return replace(self, ended=True)

    def gap_end(self, wall: int) -> int:
        """Return the latest time of a last packet, for a run with this last heartbeat that was dead at `wall`.

        The gateway's clock may have stood still at this beat, since packets move it, and have been set right by the next
        one: so `wall`, unless the gateway was ahead of the machine's clock.
        """
        return max(wall, self.now + max(1_000_000, wall - self.wall))


class Windows(Protocol):
    """The core's open windows."""

    @property
    def now_ns(self) -> int: ...

    def oldest_window(self, part: int) -> tuple[int, int]:
        """Return the start of the oldest open window in a part of the table, ns (now if none), and the number of parts."""
        ...


class OldestWindow:
    """The start of the oldest open window, or an earlier time, since a large table is scanned in parts."""

    def __init__(self, core: Windows) -> None:
        self._core = core
        self._begun: list[int] = []  # by part of the table: no window open there now began before this
        self._at = 0
        self._before = 0  # when the last look began: the parts that have come since have no older window
        self._lock = threading.Lock()  # held while it waits for the packets

    def look(self) -> int:
        """Return ns of the gateway's clock. A window that opens in a scanned part begins after its scan."""
        with self._lock:
            return self._look()

    def _look(self) -> int:
        before, self._before = self._before, self._core.now_ns
        begun, parts = self._core.oldest_window(0)
        if not self._begun:
            self._begun = [self._core.oldest_window(part)[0] for part in range(parts)]
        self._begun[0] = begun
        self._begun += [before] * (parts - len(self._begun))
        for _ in range(math.ceil((parts - 1) / ROUND_BEATS)):
            self._at = self._at % (parts - 1) + 1
            self._begun[self._at] = self._core.oldest_window(self._at)[0]
        return min(self._begun)

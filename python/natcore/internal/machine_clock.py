"""Detects that the machine's clock was set, or that the machine slept: row labels must follow."""

from __future__ import annotations

import time
from typing import NamedTuple

LIMIT_NS = 500_000_000  # most by which labels may differ from the machine's time
_LOOKS = 3


class Readings(NamedTuple):
    """Of CLOCK_REALTIME, CLOCK_MONOTONIC and CLOCK_BOOTTIME (which goes on while the machine sleeps) at one moment, ns."""

    real: int
    monotonic: int
    boot: int


class Change(NamedTuple):
    """Unix time at now = 0 from now on, ns. asleep: the machine slept so long; no clock was set."""

    epoch_ns: int
    asleep: bool


def read() -> Readings:
    """Return the fastest of several readings: a thread may be descheduled between two clocks."""
    return min((_look() for _ in range(_LOOKS)), key=lambda found: found[0])[1]


def _look() -> tuple[int, Readings]:
    before = time.monotonic_ns()
    real, boot = time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    took = time.monotonic_ns() - before
    return took, Readings(real, before + took // 2, boot)


class ClockWatch:
    """Compares the labels of a gateway that runs by CLOCK_MONOTONIC with the machine's clock."""

    def __init__(self, begun: Readings) -> None:
        self._asleep = begun.boot - begun.monotonic

    def look(self, now: Readings, epoch_ns: int, offset_ns: int) -> Change | None:
        """Return the change; None: the labels are right. offset_ns: the gateway's clock less CLOCK_MONOTONIC."""
        wanted = now.real - now.monotonic - offset_ns
        change = wanted - epoch_ns
        if abs(change) <= LIMIT_NS:
            return None
        slept = now.boot - now.monotonic - self._asleep
        self._asleep += slept
        return Change(wanted, slept > 0 and abs(change - slept) <= LIMIT_NS)

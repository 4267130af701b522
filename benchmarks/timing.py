"""Ratios that hold on a shared machine: pairs in turns, the median of their ratios, a second look at what falls short."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from load import FRAME_BYTES, Load, Rows, Sides
from natcore import Side

ATTEMPTS = 3  # others' work on a shared machine only ever makes a ratio worse
AS_INSTALLED = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # an import's: bytecode is there from the second on
CHECKED = 0.01  # of the frames that a timing put out, byte for byte


@dataclass(frozen=True, slots=True)
class Outcome:
    """One gate: a figure, what it was compared with, and the ratio that must not exceed the limit."""

    name: str
    ours: float
    baseline: float
    ratio: float
    limit: float
    unit: str = "ns"

    @property
    def ok(self) -> bool:
        return self.ratio <= self.limit

    def __str__(self) -> str:
        return (
            f"{self.name:<62} {self.ours:>9.1f} {self.unit:<5} against {self.baseline:>9.1f}"
            f"   ratio {self.ratio:5.2f}   limit {self.limit:g}   {'ok' if self.ok else 'TOO SLOW'}"
        )

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "ok": self.ok}


def paired(one: Callable[[], float], other: Callable[[], float], rounds: int) -> tuple[float, float, float]:
    """Medians of one, of other, and of their ratio, taken in turns."""
    one(), other()  # warm
    pairs = [(one(), other()) for _ in range(rounds)]
    first, second = zip(*pairs, strict=True)
    return statistics.median(first), statistics.median(second), statistics.median(a / b for a, b in pairs)


def best_of(measure: Callable[[], Outcome]) -> Outcome:
    """The first attempt that holds, or the best."""
    outcomes: list[Outcome] = []
    while len(outcomes) < ATTEMPTS and not (outcomes and outcomes[-1].ok):
        outcomes.append(measure())
    return min(outcomes, key=lambda outcome: outcome.ratio)


def translate_seconds(
    loaded: Load, rows: Callable[[], Rows], sides: Callable[[int], Sides | Side], calls: int
) -> float:
    """Seconds a packet over some calls; frames are made, and verdicts, bytes and counters checked, outside the timed part."""
    seconds = 0.0
    done = 0
    before = loaded.gateway.counters()
    for _ in range(calls):
        chosen = rows()
        side = sides(len(chosen))
        each = np.full(len(chosen), side, np.uint8) if isinstance(side, Side) else side
        frames, lengths = loaded.take(chosen, each, loaded.pristine), np.full(len(chosen), FRAME_BYTES, np.uint32)
        verdicts = np.full(len(chosen), 255, np.uint8)
        start = time.perf_counter()
        loaded.gateway.translate(frames, lengths, side, now=loaded.now, out=verdicts)
        seconds += time.perf_counter() - start
        done += len(chosen)
        for one in Side:
            loaded.expect(verdicts[each == one], one)
        some = loaded.random.integers(0, len(chosen), max(1, int(len(chosen) * CHECKED)))
        if not (frames[some] == loaded.take(chosen[some], each[some], loaded.expected)).all():
            raise AssertionError("a frame came out otherwise than the first time")
    after = loaded.gateway.counters()
    if [after[name] - before[name] for name in ("received", "forwarded", "created")] != [done, done, 0]:
        raise AssertionError(f"{done} packets were sent, the counters say otherwise")
    return seconds / done

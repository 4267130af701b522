"""How long the packets of a load take."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from natcore import Side
from natcore.testing.load import FRAME_BYTES, Load, Rows, Sides

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

AS_INSTALLED = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # an import's: bytecode is there from the second on
CHECKED = 0.01  # of the frames that a timing put out, byte for byte


def seconds_of(benchmark: BenchmarkFixture) -> Any:
    """Its statistics (median, min, …): the fixture has none before it ran."""
    assert benchmark.stats is not None, "nothing was run"
    return benchmark.stats.stats


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

"""The speed gates: translation's time as a multiple of the memory's limit, in one run, as medians of paired rounds.

What falls short is measured again, twice at most: others' work on a shared machine only ever makes a ratio worse.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from compiled import build, walk
from load import Load
from natcore import Side

FRAMES = 16_384  # a call
LIMITS = {1_000: 8.0, 1_048_576: 4.0}  # sessions: times walk's time
IMPORT_LIMIT = 1.3  # times numpy's
WALK_PACKETS = 12_000_000
ATTEMPTS = 3


def translate_seconds(loaded: Load, side: Side, calls: int) -> float:
    """Seconds a packet over some calls; frames are restored, and verdicts checked, outside the timed part."""
    seconds = 0.0
    verdicts = np.zeros(FRAMES, np.uint8)
    for _ in range(calls):
        frames, lengths = loaded.frames(side, FRAMES)
        verdicts[:] = 255
        start = time.perf_counter()
        loaded.gateway.translate(frames, lengths, side, now=loaded.now, out=verdicts)
        seconds += time.perf_counter() - start
        loaded.expect(verdicts, side)
    return seconds / (calls * FRAMES)


def import_seconds(module: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - start


def paired(one: Callable[[], float], other: Callable[[], float], rounds: int) -> tuple[float, float, float]:
    """Medians of one, of other, and of their ratio, taken in turns."""
    one(), other()  # warm
    pairs = [(one(), other()) for _ in range(rounds)]
    first, second = zip(*pairs, strict=True)
    return statistics.median(first), statistics.median(second), statistics.median(a / b for a, b in pairs)


def holds(measure: Callable[[], float], limit: float) -> bool:
    """Whether a ratio is within its limit, at one of three attempts."""
    return any(measure() <= limit for _ in range(ATTEMPTS))


def translation(loaded: Load, side: Side, limit: float, rounds: int, calls: int) -> float:
    ours, walks, ratio = paired(
        lambda: translate_seconds(loaded, side, calls), lambda: walk(loaded.sessions, WALK_PACKETS), rounds
    )
    print(
        f"{loaded.sessions:>9,} sessions from {side.name.lower():7}  natcore {ours * 1e9:6.1f} ns ({1e-6 / ours:5.1f} M/s)"
        f"  walk {walks * 1e9:6.1f} ns ({1e-6 / walks:5.1f} M/s)  ratio {ratio:5.2f}  limit {limit:g}"
        f"  {'ok' if ratio <= limit else 'TOO SLOW'}",
        flush=True,
    )
    return ratio


def gate(sessions: int, limit: float, rounds: int, calls: int) -> bool:
    loaded = Load(sessions)
    passed = [holds(lambda side=side: translation(loaded, side, limit, rounds, calls), limit) for side in Side]
    loaded.gateway.close()
    return all(passed)


def importing(limit: float, rounds: int) -> float:
    ours, numpys, ratio = paired(lambda: import_seconds("natcore"), lambda: import_seconds("numpy"), rounds)
    print(f"import natcore {ours * 1e3:.0f} ms  numpy {numpys * 1e3:.0f} ms  ratio {ratio:.2f}  limit {limit:g}")
    return ratio


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="pairs a gate (9 or more for a figure to quote)")
    parser.add_argument("--calls", type=int, default=64, help=f"timed calls of {FRAMES:,} frames a round")
    parser.add_argument("--slack", type=float, default=1.0, help="times every limit: where others' work disturbs")
    options = parser.parse_args()
    build("walk")
    results = [gate(n, limit * options.slack, options.rounds, options.calls) for n, limit in LIMITS.items()]
    import_limit = IMPORT_LIMIT * options.slack
    results.append(holds(lambda: importing(import_limit, options.rounds), import_limit))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())

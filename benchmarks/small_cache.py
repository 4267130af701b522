"""Established packets and `walk` on a simulated processor with 512 KB of second-level cache, which is not at hand.

    python benchmarks/small_cache.py --sessions 1000 65536 1048576

Callgrind counts instructions, and the misses of 32 KB and of 512 KB behind it, a packet. It knows no prefetch: a miss says that
memory was touched, not that it was waited for. A quarter of the packets goes through the caches uncounted first: frames in
memory are new ones each time, as a network card's are, whereas lines of tables are found again where they fit.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from callgrind import Count, counted, dumps
from compiled import build, load_module
from natcore.testing.bulk import TCP, UDP
from natcore.testing.load import FRAME_BYTES, Load

SESSIONS = (1_000, 65_536, 1_048_576)
FRAMES = 131_072  # counted
EVENTS = ("instructions", "misses of 32 KB", "misses of 512 KB")


def run(sessions: int) -> None:
    """What is counted; called under valgrind. Each count is named by what and how many packets it has."""
    counter, walk = load_module("counted"), load_module("walk").walk
    loaded = Load(sessions, churn=1, protocols=(UDP, TCP))
    capsule = loaded.gateway._core.worker_capsule()
    for packets in (FRAMES // 4, FRAMES // 4 + FRAMES):  # each count begins with empty caches
        rows, sides = loaded.rows(packets), loaded.sides(packets)
        frames, lengths = loaded.take(rows, sides, loaded.pristine), np.full(packets, FRAME_BYTES, np.uint32)
        verdicts = np.full(packets, 255, np.uint8)
        counter.count_translate(capsule, frames, lengths, sides, loaded.now, verdicts, f"natcore {packets}".encode())
        if (verdicts >= 128).any() or not (frames == loaded.take(rows, sides, loaded.expected)).all():
            raise AssertionError("a packet was not translated as before")
        counter.count_call(lambda packets=packets: walk(sessions, packets), f"walk {packets}".encode())


def counts(folder: Path) -> Iterator[tuple[str, int, Count]]:
    """(what, packets, what they took) of every count."""
    for name, took in dumps(folder):
        what, packets = name.split()
        yield what, int(packets), took


def measure(sessions: int) -> dict[str, tuple[float, ...]]:
    """A packet of natcore and of walk, by EVENTS: what FRAMES more packets took."""
    build("counted")
    build("walk")
    totals: dict[str, dict[int, Count]] = {}
    with counted(Path(__file__).resolve(), "--run", str(sessions)) as folder:
        for what, packets, took in counts(folder):
            totals.setdefault(what, {})[packets] = took
    return {
        what: tuple((more - less) / FRAMES for less, more in zip(*(of[packets] for packets in sorted(of)), strict=True))
        for what, of in totals.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, nargs="+", default=SESSIONS, help="table sizes (default: %(default)s)")
    parser.add_argument("--run", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(options.run)
        return
    print(f"{'sessions':>10}  {'':<8}", *(f"{event:>17}" for event in EVENTS))
    for sessions in options.sessions:
        for what, figures in sorted(measure(sessions).items()):
            print(f"{sessions:>10,}  {what:<8}", *(f"{figure:>17.2f}" for figure in figures), flush=True)


if __name__ == "__main__":
    main()

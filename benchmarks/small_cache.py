"""Established packets and `walk` on a simulated processor with 512 KB of second-level cache, which is not at hand.

    python benchmarks/small_cache.py --sessions 1000 65536 1048576

Callgrind counts instructions, and the misses of 32 KB and of 512 KB behind it, a packet. It knows no prefetch: a miss says that
memory was touched, not that it was waited for. A quarter of the packets goes through the caches uncounted first: frames in
memory are new ones each time, as a network card's are, whereas lines of tables are found again where they fit.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from compiled import build, load_module
from instructions import CACHES, DUMPED, FRAME_BYTES
from natcore.testing.bulk import TCP, UDP
from natcore.testing.load import Load

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


def counts(folder: Path) -> Iterator[tuple[str, int, tuple[int, int, int]]]:
    """(what, packets, totals by EVENTS) of every count."""
    for path in folder.glob("out.*"):
        text = path.read_text()
        trigger, total = re.search(r"Trigger: Client Request: (\w+) (\d+)$", text, re.M), DUMPED.search(text)
        if trigger and total:
            instructions, _, _, _, reads, writes, _, far_reads, far_writes = (int(word) for word in total[1].split())
            yield trigger[1], int(trigger[2]), (instructions, reads + writes, far_reads + far_writes)


def measure(sessions: int) -> dict[str, tuple[float, ...]]:
    """A packet of natcore and of walk, by EVENTS: what FRAMES more packets took."""
    build("counted")
    build("walk")
    with tempfile.TemporaryDirectory() as folder:
        valgrind = [
            "valgrind",
            "--tool=callgrind",
            "--instr-atstart=no",
            "--callgrind-out-file=out",
            "--quiet",
            *CACHES,
        ]
        program = [sys.executable, str(Path(__file__).resolve()), "--run", str(sessions)]
        ran = subprocess.run([*valgrind, *program], cwd=folder, capture_output=True, text=True)
        if ran.returncode:
            raise SystemExit(f"the counted run failed:\n{ran.stdout}{ran.stderr}")
        totals: dict[str, dict[int, tuple[int, int, int]]] = {}
        for what, packets, found in counts(Path(folder)):
            totals.setdefault(what, {})[packets] = found
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

"""A long comparison of natcore with the oracle: `python tests/runs/soak.py --seeds 10000 --jobs 2`; it goes on where it was.

Prints how often each verdict, drop reason, kind of entry and policy occurred; with --least N fewer than N is a failure.
With --restored each life has two gateways, of which one is saved and restored again and again; they must be the same.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # tests/

import argparse
import json
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat

from natcore.testing.configurations import TRAITS, WORKERS
from natcore.testing.oracle.entries import KINDS
from natcore.verdict import Verdict
from oracle.comparison import SHARED, run, twins
from support.multi_worker import COUNTS
from support.progress_line import ProgressLine

SEEDS_AT_ONCE = 20
UNTRIED = {f"workers={count}" for count in WORKERS} - {f"workers={count}" for count in COUNTS}
# What has to occur; what else did is counted too.
EXPECTED = {
    *(f"verdict {verdict.name}" for verdict in Verdict),
    *(f"policy {trait}" for trait in TRAITS if trait not in UNTRIED),
    *(f"entry of a session: {kind}" for kind in KINDS),
    *(f"shared address: {what}" for what in SHARED),
    *(f"modified {name}" for name in ("policy", "timeouts", "eip_bind_mode")),
    "modification refused",
    *("restart at once", "restart count", "restart freeze"),
    *(f"standby told {what}" for what in ("snapshot", "snapshot, in part", "changes", "changes, in part", "refreshes")),
    "standby took over",
}


def lives(first: int, seeds: int, operations: int, restored: bool) -> tuple[int, Counter[str], dict[int, str]]:
    """The histogram of some seeds, and the traceback of each that differs."""
    histogram: Counter[str] = Counter()
    failures: dict[int, str] = {}
    for seed in range(first, first + seeds):
        try:
            histogram += (twins if restored else run)(seed, operations).histogram
        except Exception:  # the oracle's own defects too: a run goes on
            failures[seed] = traceback.format_exc()
    return first, histogram, failures


class Progress:
    """What is done, on disk if it has a path: a run that was stopped goes on."""

    def __init__(self, path: Path | None, operations: int, restored: bool) -> None:
        self.path, self.lives = path, {"operations": operations, "restored": restored}
        self.done: set[int] = set()
        self.failed: set[int] = set()
        self.histogram: Counter[str] = Counter()
        if path is not None and path.exists():
            known = json.loads(path.read_text())
            if self.lives.items() <= known.items():
                self.done, self.failed = set(known["done"]), set(known["failed"])
                self.histogram = Counter(known["histogram"])

    def add(self, first: int, histogram: Counter[str], failures: dict[int, str]) -> None:
        self.done.add(first)
        self.failed |= failures.keys()
        self.histogram += histogram
        for text in failures.values():
            print(text, flush=True)
        if self.path is not None:
            state = {**self.lives, "done": sorted(self.done), "failed": sorted(self.failed)}
            self.path.write_text(json.dumps({**state, "histogram": self.histogram}))


def report(histogram: Counter[str], least: int) -> list[str]:
    """Prints the histogram by kind; what occurred too seldom."""
    rows = {name: histogram[name] for name in {*histogram, *EXPECTED}}
    for name, count in sorted(rows.items(), key=lambda row: (row[0].split()[0], -row[1])):
        print(f"{name:58}{count:14,}")
    return sorted(name for name in EXPECTED if rows[name] < least)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="random gateways, each with a life of its own")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--operations", type=int, default=500, help="frames, batches, clock steps of each")
    parser.add_argument(
        "--restored", action="store_true", help="compare a restored gateway with the one that was saved"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--failures", type=int, default=3, help="stop after so many")
    parser.add_argument("--least", type=int, default=0, help="how often everything has to occur")
    parser.add_argument("--resume", type=Path, help="a file that keeps what is done")
    arguments = parser.parse_args()
    progress = Progress(arguments.resume, arguments.operations, arguments.restored)
    started = time.monotonic()
    starts = [
        first for first in range(arguments.first, arguments.first + arguments.seeds, SEEDS_AT_ONCE)
        if first not in progress.done
    ]  # fmt: skip
    sizes = [min(SEEDS_AT_ONCE, arguments.first + arguments.seeds - first) for first in starts]
    line, seeds = ProgressLine("seeds", sum(sizes)), 0
    with ProcessPoolExecutor(arguments.jobs) as pool:
        each = repeat(arguments.operations), repeat(arguments.restored)
        for result, size in zip(pool.map(lives, starts, sizes, *each), sizes, strict=True):
            progress.add(*result)
            seeds += size
            line.at(seeds, f"{len(progress.failed)} differ")
            if len(progress.failed) >= arguments.failures:
                pool.shutdown(cancel_futures=True)
                break
    seldom = report(progress.histogram, arguments.least)
    frames = sum(count for name, count in progress.histogram.items() if name.startswith("verdict "))
    print(f"{frames:,} frames in {time.monotonic() - started:.1f} s, {len(progress.failed)} seeds differ: "
          f"{sorted(progress.failed)}")  # fmt: skip
    if seldom:
        print(f"fewer than {arguments.least:,}: {', '.join(seldom)}")
    return 1 if progress.failed or seldom else 0


if __name__ == "__main__":
    raise SystemExit(main())

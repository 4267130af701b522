"""What scrapes cost: the time of one with a million sessions, and the throughput while there are ten a second, in one run.

Rounds in turns, A B A B: A translates packets of random sessions, B does so while another thread scrapes ten times a second.
Throughput is frames by the translating thread's own processor time, which has what it waits for a lock, and not what other
work on the machine takes: the median of the ratios of each A to its B.

Asserted: a scrape takes 10 ms of its thread's processor time at most, and the throughput falls by at most 1 %. What falls
short is measured again, twice at most. `python benchmarks/gate_metrics.py`
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from prometheus_client.openmetrics.exposition import generate_latest

from load import FRAME_BYTES, Load
from natcore import Side
from natcore.metrics import Collector

SESSIONS = 1_000_000
FRAMES = 1 << 19  # a call: the interpreter's lock, which a plane's loop does not take, is taken seldom
SCRAPE_SECONDS, LOSS = 0.010, 0.01
A_SECOND = 10
ATTEMPTS = 3


class Scraper:
    """Scrapes ten times a second while it is on; `seconds` has the processor time of each."""

    def __init__(self, load: Load) -> None:
        self._registry = Collector(load.gateway).registry()
        self._on, self._end = threading.Event(), threading.Event()
        self.seconds: list[float] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.wait(1 / A_SECOND):
            if self._on.is_set():
                begun = time.thread_time()
                generate_latest(self._registry)
                self.seconds.append(time.thread_time() - begun)

    def turn(self, on: bool) -> None:
        (self._on.set if on else self._on.clear)()

    def close(self) -> None:
        self._end.set()
        self._thread.join()


def rate(load: Load, seconds: float) -> float:
    """Frames translated in a second of this thread's processor time, for about so many seconds on the wall."""
    frames, spent, end = 0, 0.0, time.monotonic() + seconds
    lengths = np.full(FRAMES, FRAME_BYTES, np.uint32)
    while time.monotonic() < end:
        batch = load.pristine[Side.INSIDE][load.rows(FRAMES)]
        begun = time.thread_time()
        verdicts = load.gateway.translate(batch, lengths, Side.INSIDE, now=load.now)
        spent += time.thread_time() - begun
        load.expect(verdicts, Side.INSIDE)
        frames += FRAMES
    return frames / spent


def measure(load: Load, rounds: int, seconds: float) -> tuple[float, float]:
    """The median scrape in seconds, and the part of the throughput that is lost."""
    scraper = Scraper(load)
    try:
        ratios = []
        for _ in range(rounds):
            scraper.turn(False)
            without = rate(load, seconds)
            scraper.turn(True)
            ratios.append(rate(load, seconds) / without)
    finally:
        scraper.close()
    scrape, lost = statistics.median(scraper.seconds), 1 - statistics.median(ratios)
    print(
        f"{len(scraper.seconds)} scrapes of {SESSIONS:,} sessions: median {scrape * 1e3:.2f} ms, most "
        f"{max(scraper.seconds) * 1e3:.2f} ms; throughput lost {lost:+.2%}, rounds {min(ratios):.3f} to {max(ratios):.3f}"
    )
    return scrape, lost


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each half of a round")
    options = parser.parse_args()
    load = Load(SESSIONS, churn=1)
    for _ in range(ATTEMPTS):
        scrape, lost = measure(load, options.rounds, options.seconds)
        if scrape <= SCRAPE_SECONDS and lost <= LOSS:
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())

"""Two workers in two threads, each with the frames of its own hosts, beside one worker that does as many alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from natcore import Gateway, Side, SnatEntry, Verdict
from natcore.testing.bulk import UDP, packets

FRAME_BYTES = 64
NOW = 1.0


class Crew:
    """A gateway of so many workers with so many sessions of each, in random order."""

    def __init__(self, workers: int, sessions: int) -> None:
        self.gateway = Gateway(workers=workers, max_sessions=2 * workers * sessions, seed=1)
        self.gateway.add(SnatEntry("10.0.0.0/8", pool="203.0.113.0-203.0.113.63"))
        hosts = 0x0A000000 + np.arange(1, 2 * workers * sessions + 1)
        frames, lengths = packets(UDP, hosts, 5000, 0xC6336407, 53, length=FRAME_BYTES)
        owners = self.gateway.owner(frames, lengths, Side.INSIDE)
        random = np.random.default_rng(1)
        self.pristine = [frames[random.permutation(np.flatnonzero(owners == w)[:sessions])] for w in range(workers)]
        for worker in range(workers):
            self.translate(worker, self.pristine[worker].copy())

    def translate(self, worker: int, frames: np.ndarray) -> None:
        lengths = np.full(len(frames), FRAME_BYTES, np.uint32)
        verdicts = self.gateway.translate(frames, lengths, Side.INSIDE, now=NOW, worker=worker)
        if not (verdicts == Verdict.OUTBOUND).all():
            raise AssertionError(f"worker {worker}: {np.unique(verdicts)}")

    def seconds(self, calls: int) -> float:
        """Until every worker has translated its frames so many times, each in a thread."""
        rows = [[frames.copy() for _ in range(calls)] for frames in self.pristine]
        together = threading.Barrier(len(rows) + 1)

        def work(worker: int) -> Callable[[], None]:
            def run() -> None:
                together.wait()
                for frames in rows[worker]:
                    self.translate(worker, frames)

            return run

        threads = [threading.Thread(target=work(worker)) for worker in range(len(rows))]
        for thread in threads:
            thread.start()
        together.wait()
        start = time.perf_counter()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - start
        if self.gateway.counters()["handed_over"]:
            raise AssertionError("frames were handed off")
        return took

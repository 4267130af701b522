"""What it costs to look at a gateway with a million sessions ten times a second: a scrape, and a filtered list of sessions.

Packets wait for whoever looks only while it holds a worker's lock, and it holds one only within calls to the core: Python never
runs with a worker locked. So the processor time of these calls, of the thread that looks, is the most that a worker can wait;
ten times it is the most of a second that is lost. Other work on the machine is not in it. A search reads the table without the
lock, and takes it for the rows that it found: the time of a slice with rows, less that of slices without, is the most of it.

Asserted: a scrape takes 10 ms of its thread's processor time at most, an answer with sessions 50 ms (the server's thread), and
what packets can wait for is 1 % of a second at most, ten times. Reported: the throughput while someone scrapes ten times a
second, in turns with none (A B A B), which has the shared cache in it and is known no better than to some percent on a busy
machine. `python benchmarks/gate_metrics.py`
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client.openmetrics.exposition import generate_latest

import natcore.internal.searches
from natcore import Side, format_ipv4
from natcore.control import Client, connection
from natcore.metrics import Collector, collector
from natcore.testing.load import FRAME_BYTES, Load

SESSIONS = 1_000_000
FRAMES = 1 << 19  # a call: the interpreter's lock, which a plane's loop does not take, is taken seldom
SCRAPE_SECONDS, ANSWER_SECONDS, LOSS = 0.010, 0.050, 0.01
A_SECOND = 10
LOOKS = 100

Spent = list[tuple[float, int]]  # of calls to the core: processor time, rows found


class Timed:
    """Stands for an object of the core, and takes the processor time of each call of its methods."""

    def __init__(self, target: Any, spent: Spent) -> None:
        self._target, self._spent = target, spent

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not callable(value):
            return Timed(value, self._spent) if type(value).__module__.startswith("natcore.api") else value

        def timed(*arguments: Any) -> Any:
            begun = time.thread_time()
            found = value(*arguments)
            self._spent.append((time.thread_time() - begun, found if isinstance(found, int) else 0))
            return found

        return timed


@contextmanager
def replaced(owner: Any, name: str, by: Callable[[Any], Any]) -> Iterator[None]:
    """Have a name stand for by(what it stood for)."""
    before = getattr(owner, name)
    setattr(owner, name, by(before))
    try:
        yield
    finally:
        setattr(owner, name, before)


def report(name: str, spent: list[float], held: list[float], limit: float) -> bool:
    """Print what looks cost, by their medians; whether it is within the limits."""
    seconds, locked = statistics.median(spent), statistics.median(held)
    is_good = seconds <= limit and locked * A_SECOND <= LOSS
    print(
        f"{name}: {seconds * 1e3:.2f} ms of its thread, at most {limit * 1e3:.0f}; packets can wait {locked * 1e6:.0f} us, "
        f"{locked * A_SECOND:.3%} of a second at ten a second, at most {LOSS:.0%}: {'ok' if is_good else 'TOO MUCH'}",
        flush=True,
    )
    return is_good


def scrapes(load: Load) -> bool:
    """Scrape again and again."""
    calls: Spent = []
    registry = Collector(load.gateway).registry()
    spent, held = [], []

    def parts(before: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda gateway: (found := before(gateway))._replace(core=Timed(found.core, calls))

    with replaced(collector, "parts_of", parts):
        for _ in range(LOOKS):
            calls.clear()
            begun = time.thread_time()
            generate_latest(registry)
            spent.append(time.thread_time() - begun)
            held.append(sum(seconds for seconds, _ in calls))
    return report(f"a scrape, {len(calls)} calls to the core", spent, held, SCRAPE_SECONDS)


def searches(load: Load, subscriber: str) -> bool:
    """Ask for a subscriber's sessions over the control socket, again and again."""
    calls: Spent = []
    spent, held = [], []
    turns: list[float] = []  # processor time of the server's thread

    def search(before: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: Timed(before(*arguments), calls)

    def work(before: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> None:
            begun = time.thread_time()
            before(*arguments)
            turns.append(time.thread_time() - begun)

        return timed

    with (
        tempfile.TemporaryDirectory() as folder,
        replaced(natcore.internal.searches, "SessionSearch", search),
        replaced(connection.Connection, "work", work),
        load.gateway.serve_control(Path(folder, "s")),
        Client(Path(folder, "s")) as client,
    ):
        for _ in range(LOOKS):
            calls.clear()
            turns.clear()
            rows = client.ask("sessions", subscriber=subscriber)
            spent.append(sum(turns))
            empty = statistics.median([seconds for seconds, found in calls if not found] or [0.0])
            held.append(sum(max(0.0, seconds - empty) for seconds, found in calls if found))
    return report(f"sessions --subscriber {subscriber}, {len(rows)} rows", spent, held, ANSWER_SECONDS)


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


def throughput(load: Load, rounds: int, seconds: float) -> None:
    """Print the ratios of rounds in turns, with scrapes and without."""
    is_on, is_over = threading.Event(), threading.Event()
    registry = Collector(load.gateway).registry()

    def run() -> None:
        while not is_over.wait(1 / A_SECOND):
            if is_on.is_set():
                generate_latest(registry)

    thread = threading.Thread(target=run)
    thread.start()
    ratios = []
    for _ in range(rounds):
        is_on.clear()
        without = rate(load, seconds)
        is_on.set()
        ratios.append(rate(load, seconds) / without)
    is_over.set()
    thread.join()
    lost = 1 - statistics.median(ratios)
    print(f"throughput lost to scrapes (reported): {lost:+.2%}, rounds {min(ratios):.3f} to {max(ratios):.3f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11, help="of the throughput that is reported")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each half of a round")
    options = parser.parse_args()
    load = Load(SESSIONS, churn=1)
    host = int(load.gateway.sessions()[0]["inside_ip"])
    network = f"{format_ipv4(host & ~63)}/26"
    results = [scrapes(load), searches(load, format_ipv4(host)), searches(load, network)]
    if options.rounds:
        throughput(load, options.rounds, options.seconds)
    load.gateway.close()
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())

"""The speed gates: what natcore takes as a multiple of a baseline of the same run, as medians of paired rounds.

Exit status 1 when one falls short. `--full` adds eight million sessions; `--json FILE` writes the figures.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from admission import Admission
from asking import asked
from compiled import build, walk
from instructions import IMPORT_LIMIT
from memory import bytes_a_session
from natcore import Side
from natcore.testing.bulk import TCP, UDP, endpoints, packets
from natcore.testing.gates import Outcome, best_of, paired
from natcore.testing.load import FRAME_BYTES, Load
from timing import AS_INSTALLED, translate_seconds
from workers import Crew

FRAMES = 16_384  # a call
# Limits are what was asked for; docs/performance.md says which of them are missed.
WALK_LIMITS = {1_000: 5.0, 65_536: 5.0, 1_048_576: 2.2, 8_388_608: 2.2}  # sessions: times walk's time
WALK_PACKETS = 12_000_000
SPREAD_LIMIT = 4.0  # a packet among the most sessions, times one among the fewest
MISS_LIMIT = 2.0  # times a hit
ADMISSION_LIMITS = {0.5: (2.5, 6.0), 0.95: (4.0, 7.0)}  # share of ports in use: times a null admission; with its end
MEMORY_LIMITS = {"shared": 176, "own": 240}  # bytes a session
SESSIONS_MS = 50.0  # sessions(out=…) of a million
ASKED_MS = 50.0  # a filtered list of a million sessions over the control socket
ASKED_LIMIT = 1.01  # a packet while someone asks ten times a second, times one while no one does
ASKED_SESSIONS = 1_048_576
ONE_US = {"translate": 2.0, "translate_one": 3.0}
WORKERS_GAIN = 1.7  # two workers do so many times as much as one

Gate = tuple[str, Callable[[argparse.Namespace], Iterator[Outcome]]]


def established(sessions: int, options: argparse.Namespace) -> Iterator[Outcome]:
    """Packets of established sessions in random order, against the memory's limit."""
    loaded = Load(sessions, protocols=(UDP, TCP))
    ways: dict[str, tuple[int | None, Callable[[int], object]]] = {
        "UDP, outbound": (UDP, lambda _: Side.INSIDE),
        "UDP, inbound": (UDP, lambda _: Side.OUTSIDE),
        "TCP, outbound": (TCP, lambda _: Side.INSIDE),
        "TCP, inbound": (TCP, lambda _: Side.OUTSIDE),
        "UDP and TCP, both ways": (None, loaded.sides),
    }
    limit = WALK_LIMITS[sessions]
    for name, (protocol, sides) in ways.items():

        def measure(
            name: str = name, protocol: int | None = protocol, sides: Callable[[int], object] = sides
        ) -> Outcome:
            ours, walks, ratio = paired(
                lambda: translate_seconds(loaded, lambda: loaded.rows(FRAMES, protocol), sides, options.calls),  # type: ignore[arg-type]
                lambda: walk(sessions, WALK_PACKETS),
                options.rounds,
            )
            return Outcome(f"{sessions:,} sessions, {name}, against walk", ours * 1e9, walks * 1e9, ratio, limit)

        yield best_of(measure)
    loaded.gateway.close()


def spread(options: argparse.Namespace) -> Iterator[Outcome]:
    """A packet among many sessions against one among few; a look-up that misses against one that hits."""
    few, many = Load(1_000), Load(max(options.sessions))

    def seconds(loaded: Load) -> float:
        return translate_seconds(loaded, lambda: loaded.rows(FRAMES), lambda _: Side.INSIDE, options.calls)

    def cost() -> Outcome:
        ours, base, ratio = paired(lambda: seconds(many), lambda: seconds(few), options.rounds)
        return Outcome(f"{many.sessions:,} sessions against 1,000", ours * 1e9, base * 1e9, ratio, SPREAD_LIMIT)

    def scan() -> float:
        pool, _ = endpoints(many.pristine[Side.OUTSIDE][many.rows(FRAMES)], "destination")
        strangers = many.random.integers(0x0B000000, 0x0BFFFFFF, FRAMES)
        frames, lengths = packets(UDP, strangers, 1, pool, 9, length=FRAME_BYTES)  # a port without a mapping
        start = time.perf_counter()
        verdicts = many.gateway.translate(frames, lengths, Side.OUTSIDE, now=many.now)
        took = time.perf_counter() - start
        if (verdicts < 128).any():
            raise AssertionError("a scan was let in")
        return took / FRAMES

    def misses() -> Outcome:
        ours, base, ratio = paired(scan, lambda: seconds(many), options.rounds)
        return Outcome(
            f"{many.sessions:,} sessions, a miss against a hit",
            ours * 1e9,
            base * 1e9,
            ratio,
            MISS_LIMIT,
        )

    yield best_of(cost)
    yield best_of(misses)


def against_null(bench: Admission, parts: int, name: str, limit: float, rounds: int) -> Outcome:
    """parts: of what both measure, 1 the sessions' opening, 2 that and their end."""
    ours, null, ratio = paired(lambda: sum(bench.seconds()[:parts]), lambda: sum(bench.null_seconds()[:parts]), rounds)
    return Outcome(name, ours * 1e9, null * 1e9, ratio, limit)


def admission(options: argparse.Namespace) -> Iterator[Outcome]:
    """New sessions against a null admission."""
    for used, limits in ADMISSION_LIMITS.items():
        for hold_down in (0.0, 120.0):
            bench = Admission(used, hold_down)
            for parts, what in ((1, "opened"), (2, "opened and ended")):
                name = f"a session {what}, {used:.0%} of the ports in use, hold-down {hold_down:g} s"
                limit = limits[parts - 1]
                yield best_of(partial(against_null, bench, parts, name, limit, options.rounds))
            bench.gateway.close()


def memory(options: argparse.Namespace) -> Iterator[Outcome]:
    """Bytes a session in a process of its own: resident, beyond what an idle gateway has."""
    for sessions in (1_000_000, 10_000_000) if options.full else (1_000_000,):
        for kind, limit in MEMORY_LIMITS.items():
            figure = bytes_a_session(kind, sessions)
            name = f"{sessions:,} sessions, {kind} mappings: memory a session"
            yield Outcome(name, figure, limit, figure / limit, 1.0, "bytes")


def calls(options: argparse.Namespace) -> Iterator[Outcome]:
    """What a call from Python costs."""
    loaded = Load(1_000)
    frames, lengths = loaded.frames(Side.INSIDE, 1)
    pristine, out = frames.copy(), np.zeros(1, np.uint8)
    packet = pristine.tobytes()

    def translate() -> float:
        frames[:] = pristine
        start = time.perf_counter()
        loaded.gateway.translate(frames, lengths, Side.INSIDE, now=loaded.now, out=out)
        return time.perf_counter() - start

    def translate_one() -> float:
        start = time.perf_counter()
        verdict, _ = loaded.gateway.translate_one(packet, Side.INSIDE, now=loaded.now)
        took = time.perf_counter() - start
        loaded.expect(np.array([verdict], np.uint8), Side.INSIDE)
        return took

    for name, one in (("translate", translate), ("translate_one", translate_one)):
        took = float(np.median([one() for _ in range(5_000)])) * 1e6
        limit = ONE_US[name]
        yield Outcome(f"{name} of one frame", took, limit, took / limit, 1.0, "us")


def looking(options: argparse.Namespace) -> Iterator[Outcome]:
    """A copy of a million sessions."""
    loaded = Load(1_048_576, churn=1)
    out = loaded.gateway.sessions()

    def measure() -> float:
        start = time.perf_counter()
        rows = loaded.gateway.sessions(out=out)
        took = time.perf_counter() - start
        if len(rows) != loaded.sessions:
            raise AssertionError(f"{len(rows)} rows")
        return took

    took = min(measure() for _ in range(5)) * 1e3
    limit = SESSIONS_MS
    yield Outcome("sessions(out=…) of 1,048,576", took, limit, took / limit, 1.0, "ms")


def workers(options: argparse.Namespace) -> Iterator[Outcome]:
    """Two workers in two threads: twice the packets in little more than the time that one takes for its own."""
    one, two = Crew(1, 65_536), Crew(2, 65_536)

    def measure() -> Outcome:
        ours, base, ratio = paired(
            lambda: two.seconds(options.calls), lambda: one.seconds(options.calls), options.rounds
        )
        packets = 65_536 * options.calls
        name = "65,536 sessions of each of two workers, against one's own alone"
        return Outcome(name, ours / packets * 1e9, base / packets * 1e9, ratio, 2 / WORKERS_GAIN)

    yield best_of(measure)
    one.gateway.close()
    two.gateway.close()


def importing(options: argparse.Namespace) -> Iterator[Outcome]:
    def seconds(module: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True, env=AS_INSTALLED)
        return time.perf_counter() - start

    def measure() -> Outcome:
        ours, numpys, ratio = paired(lambda: seconds("natcore"), lambda: seconds("numpy"), options.rounds)
        return Outcome("import natcore against import numpy", ours * 1e3, numpys * 1e3, ratio, IMPORT_LIMIT, "ms")

    yield best_of(measure)


def asking(options: argparse.Namespace) -> Iterator[Outcome]:
    """A filtered list of sessions over the control socket: its time, and what it takes from packets."""
    with asked(ASKED_SESSIONS) as running:

        def answer() -> Outcome:
            running.asks(2.0)
            taken = statistics.median(running.answers())
            name = f"sessions of one host among {ASKED_SESSIONS:,}, over the control socket"
            return Outcome(name, taken, ASKED_MS, taken / ASKED_MS, 1.0, "ms")

        def packets_meanwhile() -> Outcome:
            ours, alone, ratio = paired(running.while_asked, running.alone, options.rounds)
            return Outcome("a packet while asked ten times a second", ours * 1e9, alone * 1e9, ratio, ASKED_LIMIT)

        yield best_of(answer)
        yield best_of(packets_meanwhile)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="pairs a gate (9 or more for a figure to quote)")
    parser.add_argument("--calls", type=int, default=16, help=f"timed calls of {FRAMES:,} frames a round")
    parser.add_argument(
        "--report", action="store_true", help="exit status 0 whatever the ratios: they are the machine's too"
    )
    parser.add_argument("--full", action="store_true", help="eight million sessions too (4 GB)")
    parser.add_argument("--only", default="", metavar="REGEX", help="groups with a matching name")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    options.sessions = [n for n in WALK_LIMITS if options.full or n <= 1_048_576]
    build("walk")
    groups: list[Gate] = [
        (f"established-{n}", lambda options, n=n: established(n, options))  # type: ignore[misc]
        for n in options.sessions
    ]
    groups += [("spread", spread), ("admission", admission), ("memory", memory), ("calls", calls)]
    groups += [("workers", workers), ("looking", looking), ("asking", asking), ("import", importing)]
    outcomes = []
    for name, group in groups:
        if re.search(options.only, name):
            for outcome in group(options):
                print(outcome, flush=True)
                outcomes.append(outcome)
    if options.json:
        options.json.write_text(json.dumps([outcome.as_json() for outcome in outcomes], indent=1) + "\n")
    return 0 if options.report or all(outcome.ok for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())

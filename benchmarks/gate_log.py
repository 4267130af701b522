"""What the session log costs the data path: throughput with it on as a share of without, on one core, in one run.

Two processes on one core, each a gateway with a million active sessions, windows spread over ten minutes, new sessions
coming all the time. One logs to Parquet and to an SLS that never answers, its rows into a spool. Rounds in turns, the
other process standing still; the processor's time is taken, without that for the making and comparing of frames.

Asserted: the output frames of both are identical, no row is lost, and 1 / (slowdown + threads) is at least the limit.
slowdown: of the translating thread, the median of the rounds' ratios; so what disturbs a round does not decide. threads:
what the log's own threads took in all rounds, as a part of the translating: they work now and then, so a median would
not see them. What falls short is measured again, twice at most.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from natcore import Gateway, Side, SnatEntry, Timeouts, Verdict
from natcore.sinks import ParquetSink, SlsSink
from natcore.testing.bulk import Frames, Lengths
from natcore.testing.load import flows

FRAMES = 16_384  # a call
PACKETS_A_SECOND = 15e6  # the clock that the gateways are given
WINDOW = 600.0
LIMIT = 0.95
ATTEMPTS = 3
BUSY = 1.3  # seconds on the wall for one of the processor, where the machine has other work


class Traffic:
    """A gateway with `sessions` active sessions, and batches of frames for it, `new` of them a second of new sessions."""

    def __init__(self, sessions: int, new: float, logs: Callable[[Gateway], None] = lambda gateway: None) -> None:
        self.new = round(new * FRAMES / PACKETS_A_SECOND)  # a batch
        self.gateway = Gateway(
            instance="ngw-1", vpc_id="vpc-1", seed=1, max_sessions=2 * sessions, timeouts=Timeouts(udp=4 * WINDOW)
        )
        self.gateway.add(SnatEntry("10.0.0.0/8", pool="203.0.113.0/25"))
        logs(self.gateway)
        self.now = 0.0
        self.next_flow = sessions
        pristine, lengths = flows(0, sessions)
        for part in np.array_split(np.arange(sessions), 6000):  # windows open, and later close, at all times
            self.now += WINDOW / 6000
            frames = pristine[part]
            assert (self.gateway.translate(frames, lengths[part], Side.INSIDE, self.now) == Verdict.OUTBOUND).all()
        self.shuffled = pristine[np.random.default_rng(1).permutation(sessions)]
        self.at = 0

    def batches(self, calls: int) -> Iterator[tuple[Frames, Lengths]]:
        """Each session again and again in the same random order, so that nothing of it is in a cache."""
        coming = flows(self.next_flow, self.new * calls)[0].reshape(calls, self.new, -1)
        self.next_flow += self.new * calls
        for call in range(calls):
            if self.at + FRAMES > len(self.shuffled):
                self.at = 0
            frames = self.shuffled[self.at : self.at + FRAMES].copy()
            frames[: self.new] = coming[call]
            self.at += FRAMES
            self.now += FRAMES / PACKETS_A_SECOND
            yield frames, np.full(FRAMES, frames.shape[1], np.uint32)

    def round(self, calls: int) -> tuple[float, int]:
        """(seconds of the processor that the translating thread took, a sum over all output frames)."""
        seconds, total = 0.0, 0
        for call, (frames, lengths) in enumerate(self.batches(calls)):
            start = time.thread_time()
            verdicts = self.gateway.translate(frames, lengths, Side.INSIDE, self.now)
            if call % 91 == 90:  # ten times a second
                self.gateway.advance(self.now)
            seconds += time.thread_time() - start
            if not (verdicts == Verdict.OUTBOUND).all():
                raise AssertionError(f"not all OUTBOUND: {np.unique(verdicts, return_counts=True)}")
            total = (
                total * 31 + int(np.add.reduce(frames.view("u8"), axis=None, dtype=np.uint64))
            ) & 0xFFFFFFFFFFFFFFFF
        return seconds, total


def start_logs(folder: Path, port: int, gateway: Gateway) -> None:
    sls = SlsSink(f"http://127.0.0.1:{port}", "p", "l", access_key_id="i", access_key_secret="s",
                  create=False)  # fmt: skip
    gateway.start_session_log(ParquetSink(folder / "rows"), name="parquet")
    gateway.start_session_log(sls, name="sls", spool=folder / "spool")


def serve(sessions: int, new: float, folder: Path | None, port: int) -> None:
    """A gateway's process: for each line on stdin, a number of calls, a round; one line of JSON about it on stdout."""
    traffic = Traffic(
        sessions, new, (lambda gateway: start_logs(folder, port, gateway)) if folder else lambda gateway: None
    )
    before = _other_threads()
    for line in sys.stdin:
        wall, own = time.monotonic(), time.process_time()
        seconds, total = traffic.round(int(line))
        wall, own = time.monotonic() - wall, time.process_time() - own
        now = _other_threads()
        rows = traffic.gateway._collector.counters() if traffic.gateway._collector else {}
        told = {"seconds": seconds, "threads": now - before, "busy": wall / own, "total": total, "rows": rows}
        print(json.dumps(told), flush=True)
        before = now


def _other_threads() -> float:
    """Seconds of the processor that all threads but this one took so far."""
    return time.process_time() - time.thread_time()


class Process:
    """A gateway's, which stands still between its rounds."""

    def __init__(self, options: argparse.Namespace, *more: str) -> None:
        command = [sys.executable, __file__, "--serve", "--sessions", str(options.sessions), "--new", str(options.new)]
        self.process = subprocess.Popen([*command, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def round(self, calls: int) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(f"{calls}\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        self.process.send_signal(signal.SIGSTOP)
        return answer

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass(frozen=True, slots=True)
class Outcome:
    """off_ns, on_ns: of the translating thread, a packet. threads: the log's, as a part of the translating."""

    off_ns: float
    on_ns: float
    slowdown: float
    threads: float
    busy: float

    @property
    def share(self) -> float:
        return 1 / (max(1.0, self.slowdown) + self.threads)  # a log makes nothing faster: that is noise

    def __str__(self) -> str:
        busy = f"; the machine was busy: {self.busy:.1f} s for one of the processor" if self.busy > BUSY else ""
        return (
            f"{self.off_ns:.1f} ns a packet without logs, {self.on_ns:.1f} ns with two ({self.slowdown - 1:+.1%}), "
            f"their threads {self.threads:.1%}: {self.share:.1%}{busy}"
        )


def measure(off: Process, on: Process, rounds: int, calls: int) -> Outcome:
    pairs = []
    for _ in range(rounds):
        without, with_logs = off.round(calls), on.round(calls)
        if without["total"] != with_logs["total"]:
            raise AssertionError("the output frames differ")
        if with_logs["rows"]["lost_ring"]:
            raise AssertionError(f"rows were lost: {with_logs['rows']}")
        pairs.append((without, with_logs))
    one, other = ([each[which]["seconds"] for each in pairs] for which in (0, 1))
    packets = calls * FRAMES
    return Outcome(
        statistics.median(one) * 1e9 / packets,
        statistics.median(other) * 1e9 / packets,
        statistics.median(b / a for a, b in zip(one, other, strict=True)),
        sum(with_logs["threads"] for _, with_logs in pairs) / sum(one),
        statistics.median(each["busy"] for pair in pairs for each in pair),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=1_000_000)
    parser.add_argument("--new", type=float, default=10_000, help="new sessions a second")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=1830, help=f"calls of {FRAMES:,} frames a round; 915 are a second")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.sessions, options.new, options.folder, options.port)
        return 0
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as stalled:  # it never answers
        off = Process(options)
        on = Process(options, "--folder", folder, "--port", str(stalled.getsockname()[1]))
        try:
            measure(off, on, 1, options.calls)  # warms, and has the rows of the beginning
            while len(outcomes) < ATTEMPTS and not (outcomes and outcomes[-1].share >= LIMIT):
                outcomes.append(measure(off, on, options.rounds, options.calls))
                print(f"{options.sessions:,} sessions, {options.new:,.0f} new a second: {outcomes[-1]}", flush=True)
        finally:
            off.end()
            on.end()
    best = max(outcome.share for outcome in outcomes)
    print(f"limit {LIMIT:.0%}  {'ok' if best >= LIMIT else 'TOO SLOW'}; output frames identical, no row lost")
    return 0 if best >= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())

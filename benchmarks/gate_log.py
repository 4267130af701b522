"""What the session log costs the data path: throughput with it on as a share of without, on one core, in one run.

Two processes on one core, each a gateway with a million active sessions, windows spread over ten minutes, new sessions coming
all the time. One logs to Parquet and to an SLS that never answers, its rows into a spool. Rounds in turns; of each the
processor's time is taken, that of all threads and of what goes on between two rounds, but for the making of the frames.
The output frames of both are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from bulk import Frames, Lengths
from load import flows
from natcore import Gateway, Side, SnatEntry, Timeouts, Verdict
from natcore.sinks import ParquetSink, SlsSink

FRAMES = 16_384  # a call
PACKETS_A_SECOND = 15e6  # the clock that the gateways are given
WINDOW = 600.0
LIMIT = 0.95


class Traffic:
    """A gateway with `sessions` active sessions, and batches of frames for it, `new` of them a second of new sessions."""

    def __init__(self, sessions: int, new: float, logs: Callable[[Gateway], None] = lambda gateway: None) -> None:
        self.sessions = sessions
        self.new = round(new * FRAMES / PACKETS_A_SECOND)  # a batch
        self.gateway = Gateway(
            instance="ngw-1", vpc_id="vpc-1", seed=1, max_sessions=2 * sessions, timeouts=Timeouts(udp=4 * WINDOW)
        )
        self.gateway.add(SnatEntry("10.0.0.0/8", pool="203.0.113.0/25"))
        logs(self.gateway)
        self.random = np.random.default_rng(1)
        self.now = 0.0
        self.next_flow = sessions
        self.pristine, lengths = flows(0, sessions)
        for part in np.array_split(np.arange(sessions), 6000):  # windows open, and later close, at all times
            self.now += WINDOW / 6000
            frames = self.pristine[part]
            assert (self.gateway.translate(frames, lengths[part], Side.INSIDE, self.now) == Verdict.OUTBOUND).all()

    def batch(self) -> tuple[Frames, Lengths]:
        frames = self.pristine[self.random.integers(0, self.sessions, FRAMES)]
        if self.new:
            frames[: self.new] = flows(self.next_flow, self.new)[0]
            self.next_flow += self.new
        self.now += FRAMES / PACKETS_A_SECOND
        return frames, np.full(FRAMES, frames.shape[1], np.uint32)

    def round(self, calls: int) -> tuple[float, int]:
        """(seconds of the processor that the making of the frames took, a sum over all output frames)."""
        aside, total = 0.0, 0
        for call in range(calls):
            start = time.thread_time()
            frames, lengths = self.batch()
            aside += time.thread_time() - start
            verdicts = self.gateway.translate(frames, lengths, Side.INSIDE, self.now)
            if call % 91 == 90:  # ten times a second
                self.gateway.advance(self.now)
            start = time.thread_time()
            if not (verdicts == Verdict.OUTBOUND).all():
                raise AssertionError(f"not all OUTBOUND: {np.unique(verdicts, return_counts=True)}")
            total = (
                total * 31 + int(np.add.reduce(frames.view("u8"), axis=None, dtype=np.uint64))
            ) & 0xFFFFFFFFFFFFFFFF
            aside += time.thread_time() - start
        return aside, total


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
    before = time.process_time()
    for line in sys.stdin:
        aside, total = traffic.round(int(line))
        now = time.process_time()
        rows = traffic.gateway._collector.counters() if traffic.gateway._collector else {}
        print(json.dumps({"seconds": now - before - aside, "total": total, "rows": rows}), flush=True)
        before = now


class Process:
    def __init__(self, options: argparse.Namespace, *more: str) -> None:
        command = [
            sys.executable,
            __file__,
            "--serve",
            "--sessions",
            str(options.sessions),
            "--new",
            str(options.new),
            *more,
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def round(self, calls: int) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{calls}\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=1_000_000)
    parser.add_argument("--new", type=float, default=10_000, help="new sessions a second")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=915, help=f"calls of {FRAMES:,} frames a round; 915 are a second")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.sessions, options.new, options.folder, options.port)
        return 0
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as stalled:  # it never answers
        off = Process(options)
        on = Process(options, "--folder", folder, "--port", str(stalled.getsockname()[1]))
        pairs = []
        for number in range(1 + options.rounds):
            without, with_logs = off.round(options.calls), on.round(options.calls)
            if without["total"] != with_logs["total"]:
                raise AssertionError("the output frames differ")
            if number:  # the first warms, and has the rows of the beginning
                pairs.append((without["seconds"], with_logs["seconds"]))
        for each in (off, on):
            each.process.kill()
            each.process.wait()
    share = statistics.median(without / with_log for without, with_log in pairs)
    one, other = (statistics.median(times) * 1e9 / (options.calls * FRAMES) for times in zip(*pairs, strict=True))
    print(
        f"{options.sessions:,} sessions, {options.new:,.0f} new a second: {one:.1f} ns a packet without logs, "
        f"{other:.1f} ns with two: {share:.1%}  limit {LIMIT:.0%}  {'ok' if share >= LIMIT else 'TOO SLOW'}\n"
        f"rows {with_logs['rows']['produced']:,}, lost {with_logs['rows']['lost_ring']:,}; output frames identical"
    )
    return 0 if share >= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())

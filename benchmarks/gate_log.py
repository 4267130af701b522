"""What the session log costs the data path: throughput with it on as a share of without, on one core, in one run.

Two gateways with a million active sessions each, windows spread over ten minutes, new sessions coming all the time. One logs
to Parquet and to an SLS that never answers, its rows into a spool. Rounds in turns; of each the processor's time of the
whole process, all its threads, is taken (what one core gives), but for the making of the frames; a round ends when its rows are
delivered and spooled. The output frames of both gateways are compared.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

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
        logs(self.gateway)  # before there are sessions: a start closes open windows
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

    def round(self, calls: int, settle: Callable[[], object] = lambda: None) -> tuple[float, int]:
        """(seconds of the processor a packet, a sum over all output frames). settle: brings the round's rows away."""
        aside, total = 0.0, 0
        began = time.process_time()
        for call in range(calls):
            start = time.thread_time()
            frames, lengths = self.batch()
            aside += time.thread_time() - start
            verdicts = self.gateway.translate(frames, lengths, Side.INSIDE, self.now)
            if call % 61 == 60:  # ten times a second, as a plane's sweep has it
                self.gateway.advance(self.now)
            start = time.thread_time()
            if not (verdicts == Verdict.OUTBOUND).all():
                raise AssertionError(f"not all OUTBOUND: {np.unique(verdicts, return_counts=True)}")
            total = (
                total * 31 + int(np.add.reduce(frames.view("u8"), axis=None, dtype=np.uint64))
            ) & 0xFFFFFFFFFFFFFFFF
            aside += time.thread_time() - start
        settle()
        return (time.process_time() - began - aside) / (calls * FRAMES), total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=1_000_000)
    parser.add_argument("--new", type=float, default=10_000, help="new sessions a second")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=915, help=f"calls of {FRAMES:,} frames a round; 915 are a second")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    stalled = socket.create_server(("127.0.0.1", 0))  # connections wait, nobody answers
    with tempfile.TemporaryDirectory() as folder:

        def start_logs(gateway: Gateway) -> None:
            gateway.start_session_log(ParquetSink(Path(folder) / "rows"), name="parquet")
            sls = SlsSink(f"http://127.0.0.1:{stalled.getsockname()[1]}", "p", "l", access_key_id="i",
                          access_key_secret="s", create=False)  # fmt: skip
            gateway.start_session_log(sls, name="sls", spool=Path(folder) / "spool")

        off, on = Traffic(options.sessions, options.new), Traffic(options.sessions, options.new, start_logs)
        collector = on.gateway._collector
        assert collector is not None
        parquet, sls = collector.logs

        def settle() -> None:
            parquet.wait(60)
            while sls.counters()["queued"]:
                time.sleep(0.01)

        pairs = []
        off.round(options.calls), on.round(options.calls, settle)  # warm
        for _ in range(options.rounds):
            (without, one), (with_log, other) = off.round(options.calls), on.round(options.calls, settle)
            if one != other:
                raise AssertionError("the output frames differ")
            pairs.append((without, with_log))
        share = statistics.median(without / with_log for without, with_log in pairs)
        medians = [statistics.median(times) * 1e9 for times in zip(*pairs, strict=True)]
        rows = collector.counters()
        print(
            f"{options.sessions:,} sessions, {options.new:,.0f} new a second: {medians[0]:.1f} ns a packet without logs, "
            f"{medians[1]:.1f} ns with two: {share:.1%}  limit {LIMIT:.0%}  {'ok' if share >= LIMIT else 'TOO SLOW'}\n"
            f"rows {rows['produced']:,}, lost {rows['lost_ring']:,}; waiting for SLS {sls.counters()['spooled']:,}; "
            f"output frames identical"
        )
        on.gateway.stop_session_log(sls, timeout=0.0)
        on.gateway.close()
    return 0 if share >= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())

"""A gateway is killed at random moments while it translates and logs: `python tests/runs/crash.py --kills 200`.

A child translates packets, each written down before, and logs to a local SLS and to JSON lines. It is killed with SIGKILL
again and again, also while it starts, and must start each time. In the end it stops in order; then every packet lies in
a row, counted exactly, or inside a gap that the log declares.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # tests/

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from natcore import DeliveryPolicy, Gateway, Side, SnatEntry, Timeouts
from natcore.dtypes import GAP
from natcore.sinks import Batch, JsonLinesSink, Receipt, SlsSink
from natcore.testing import SlsServer
from natcore.testing.bulk import UDP, packets

FLOWS = 200  # of a run, each with an inside port of its own
SECOND = 1_000_000  # microseconds
SENT = np.dtype([("time", "i8"), ("run", "i4"), ("flow", "i4")])  # microseconds since 1970
KEY = ("test-id", "test-secret")


class DeclaringSlsSink(SlsSink):
    """Rows to SLS, which knows no gap rows; these into a file."""

    gaps = True

    def __init__(self, file: Path, endpoint: str) -> None:
        super().__init__(endpoint, "p", "l", access_key_id=KEY[0], access_key_secret=KEY[1], timeout=5.0)
        self._file = file

    def deliver(self, batch: Batch) -> Receipt:
        is_gap = batch.records["kind"] == GAP
        with self._file.open("a") as file:
            for row in batch.records[is_gap]:
                file.write(f"{row['start_time']} {row['end_time']}\n")
        rest = batch.records[~is_gap]
        return super().deliver(Batch(batch.instance, batch.vpc_id, batch.run, rest)) if len(rest) else Receipt(0, 0)


def live(folder: Path, endpoint: str, run: int) -> None:
    """The child: it translates until it is killed, or the file `finish` is there."""
    warnings.simplefilter("ignore")  # the time-outs are far below the RFCs'
    chance = np.random.default_rng(run)
    began_us, began = time.time_ns() // 1000, time.monotonic_ns()
    epoch = began_us // SECOND
    gateway = Gateway(
        instance="ngw-1", vpc_id="vpc-1", window=1.0, epoch=float(epoch), max_sessions=4096, timeouts=Timeouts(udp=1.0)
    )
    gateway.add(SnatEntry("10.0.0.0/8", pool="203.0.113.1"))
    policy = DeliveryPolicy(linger=0.05, batch=256, backoff_min=0.05, backoff_max=0.2)
    sinks = (DeclaringSlsSink(folder / "sls-gaps", endpoint), JsonLinesSink(folder / "rows", batch_seconds=0.05))
    for sink, name in zip(sinks, ("sls", "json"), strict=True):
        gateway.start_session_log(sink, name=name, spool=folder / "spool", delivery=policy)
    frames, lengths = packets(UDP, 0x0A000000 + run, 1024 + np.arange(FLOWS), 0xC6336407, 53)
    sent = os.open(folder / "sent", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    while not (folder / "finish").exists():
        now_us = began_us - epoch * SECOND + (time.monotonic_ns() - began) // 1000
        flows = chance.integers(0, 1 + int(chance.integers(FLOWS)), 32)
        note = np.zeros(len(flows), SENT)
        note["time"], note["run"], note["flow"] = epoch * SECOND + now_us, run, flows
        os.write(sent, note.tobytes())
        assert (gateway.translate(frames[flows], lengths[: len(flows)], Side.INSIDE, now_us / SECOND) < 128).all()
        if chance.random() < 0.05:
            gateway.advance(now_us / SECOND)
        time.sleep(0.003)
    gateway.close()


@dataclass
class Log:
    """What one destination has. rows: by (run, flow), [(start, end, packets)], microseconds since 1970."""

    gaps: list[tuple[int, int]] = field(default_factory=list)
    rows: dict[tuple[int, int], list[tuple[int, int, int]]] = field(default_factory=dict)

    def add(self, row: dict[str, Any], *, unit: int = 1) -> None:
        run = int(row["pri_ip"].rpartition(".")[2]) + 256 * int(row["pri_ip"].split(".")[2])
        start, end = int(row["start_time"]) * unit, int(row["end_time"]) * unit + unit - 1
        key = (run, int(row["pri_port"]) - 1024)
        self.rows.setdefault(key, []).append((start, end, int(row["pkts_from_vpc"])))


def log_of_sls(server: SlsServer, folder: Path) -> Log:
    log = Log()
    if (folder / "sls-gaps").exists():
        lines = (folder / "sls-gaps").read_text().splitlines()
        log.gaps = [(int(start), int(end)) for start, end in map(str.split, lines)]
    for row in server.rows("p", "l"):
        log.add(row, unit=SECOND)
    return log


def log_of_json(folder: Path) -> Log:
    log, seen = Log(), set()
    for path in sorted((folder / "rows").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # the unfinished last line of a process that died
            if (row["run"], row["number"]) in seen:
                continue
            seen.add((row["run"], row["number"]))
            if row["kind"] == "gap":
                log.gaps.append((row["start_time"], row["end_time"]))
            elif row["kind"] == "window":
                log.add(row)
    return log


def check(sent: np.ndarray[Any, Any], log: Log) -> tuple[int, int]:
    """Every packet is in a row or a gap; (packets, those of them that gaps alone account for)."""
    in_gap = np.zeros(len(sent), bool)
    for start, end in log.gaps:
        in_gap |= (start <= sent["time"]) & (sent["time"] <= end)
    in_rows = 0
    for run, flow in np.unique(sent[["run", "flow"]]).tolist():
        mine = (sent["run"] == run) & (sent["flow"] == flow)
        rows = log.rows.get((run, flow), [])
        counted = sum(packets for _, _, packets in rows)
        surely = sent["time"][mine & ~in_gap]
        assert surely.size <= counted <= int(mine.sum()), (run, flow, counted, int(mine.sum()), surely.size)
        for moment in surely.tolist():
            assert any(start <= moment <= end for start, end, _ in rows), f"run {run}, flow {flow}: nothing at {moment}"
        in_rows += counted
    return len(sent), len(sent) - in_rows


class Crash(AssertionError):
    """A child that did not start, or ended by itself."""


def start(folder: Path, endpoint: str, run: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--live", str(folder), "--endpoint", endpoint, "--run", str(run)]
    with (folder / "errors").open("ab") as errors:
        return subprocess.Popen(command, stderr=errors)


def torment(folder: Path, kills: int, longest: float, seed: int) -> dict[str, tuple[int, int]]:
    """Kill a child `kills` times, each within `longest` seconds of its start; -> by log (packets, those in gaps alone)."""
    chance = random.Random(seed)
    with SlsServer({KEY[0]: KEY[1]}) as server:
        for run in range(kills):
            child = start(folder, server.endpoint, run)
            try:
                code = child.wait(chance.uniform(0.0, longest))
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                code = child.wait()
            if code != -signal.SIGKILL:
                raise Crash(f"run {run} ended with {code}: {(folder / 'errors').read_text()}")
            server.recover()
            if chance.random() < 0.3:
                server.fail(chance.choice(["ServerBusy", "drop", "lost-answer", "html-502"]), chance.randrange(1, 4))
        server.recover()
        last = start(folder, server.endpoint, kills)
        before = _size(folder)
        while _size(folder) == before and last.poll() is None:
            time.sleep(0.05)
        (folder / "finish").touch()
        if last.wait() != 0:
            raise Crash(f"the last run: {(folder / 'errors').read_text()}")
        logs = {"sls": log_of_sls(server, folder), "json": log_of_json(folder)}
    sent = np.frombuffer((folder / "sent").read_bytes(), SENT)
    return {name: check(sent, log) for name, log in logs.items()}


def _size(folder: Path) -> int:
    return (folder / "sent").stat().st_size if (folder / "sent").exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--longest", type=float, default=4.0, help="seconds of a life at most, its start included")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--live", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--endpoint", help=argparse.SUPPRESS)
    parser.add_argument("--run", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.live is not None:
        live(arguments.live, arguments.endpoint, arguments.run)
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, (sent, lost) in torment(Path(folder), arguments.kills, arguments.longest, arguments.seed).items():
            print(
                f"{name}: {arguments.kills} kills, {sent:,} packets, {sent - lost:,} in rows, {lost:,} in gaps alone, 0 unsaid"
            )


if __name__ == "__main__":
    main()

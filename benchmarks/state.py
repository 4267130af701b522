"""What saving and restoring a full gateway costs on this machine: `python benchmarks/state.py --sessions 1000000`.

Sessions are opened by packets. The hold, in which packets wait, is told apart from the write; each figure is the best of
several rounds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from natcore import Gateway, Policy, Side, SnatEntry
from natcore.api.state import State
from natcore.testing import craft

BATCH = 4096


def opened(sessions: int, per_host: int, policy: Policy) -> Gateway:
    """A gateway with so many UDP sessions, of hosts that have per_host each, every one over a port of its own."""
    gateway = Gateway(max_sessions=sessions, policy=policy)
    pool = 1 + sessions // 50_000
    gateway.add(SnatEntry("10.0.0.0/8", f"203.0.113.1-203.0.113.{pool}"))
    frame = np.frombuffer(craft.ether(craft.udp(("10.0.0.1", 1024), ("198.51.100.7", 53), no_checksum=True)), np.uint8)
    frames, lengths = np.zeros((BATCH, 64), np.uint8), np.full(BATCH, len(frame), np.uint32)
    for first in range(0, sessions, BATCH):
        numbers = np.arange(first, min(first + BATCH, sessions))
        hosts, ports = 0x0A000001 + numbers // per_host, 1024 + numbers % per_host
        frames[:, : len(frame)] = frame
        frames[: len(numbers), 26:30] = hosts.astype(">u4").view(np.uint8).reshape(-1, 4)
        frames[: len(numbers), 34:36] = ports.astype(">u2").view(np.uint8).reshape(-1, 2)
        frames[:, 24:26] = 0
        words = frames[:, 14:34].reshape(BATCH, 10, 2).astype(np.uint32)
        total = (words[:, :, 0] << 8 | words[:, :, 1]).sum(axis=1)
        total = (total & 0xFFFF) + (total >> 16)
        total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
        frames[:, 24:26] = total.astype(">u2").view(np.uint8).reshape(-1, 2)
        gateway.translate(frames[: len(numbers)], lengths[: len(numbers)], Side.INSIDE, now=1.0)
        gateway.take_records()
    found = gateway.counters()["sessions"]
    assert found == sessions, f"{found:,} of {sessions:,} sessions"
    return gateway


def best(rounds: int, call: object) -> tuple[float, float]:
    """Seconds of the fastest round, and of the one with the least processor time: a busy machine shows only in the first."""
    took, used = [], []
    for _ in range(rounds):
        began, cpu = time.perf_counter(), time.process_time()
        call()  # type: ignore[operator]
        took.append(time.perf_counter() - began)
        used.append(time.process_time() - cpu)
    return min(took), min(used)


def hold(gateway: Gateway) -> tuple[float, float]:
    """Seconds in which packets wait: the copy alone, into memory that is there."""
    state = State(gateway._core.log_rows)
    sizes = State.row_bytes()
    buffers = [
        [np.ones((count + 1024) * sizes[number], np.uint8) for number, count in enumerate(own)]
        for own in state.expected()
    ]
    return best(5, lambda: state.copy(buffers, False, True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=1_000_000)
    parser.add_argument("--per-host", type=int, default=100, help="sessions of an inside host")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the file is written; default: a temporary one")
    arguments = parser.parse_args()
    gateway = opened(arguments.sessions, arguments.per_host, Policy())
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "nat.state"
        waits = hold(gateway)
        saves = best(arguments.rounds, lambda: gateway.save(path))
        restores = best(arguments.rounds, lambda: Gateway.restore(path))
        size = path.stat().st_size
    print(f"{arguments.sessions:,} sessions with a mapping each, {size / arguments.sessions:.1f} bytes a session")
    for what, (took, used) in (("packets wait", waits), ("save", saves), ("restore", restores)):
        print(f"{what}: {took:.3f} s, {used:.3f} s of a processor")


if __name__ == "__main__":
    main()

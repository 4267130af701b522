"""Rows and bytes of a log of port blocks alone beside one of every session, for the same traffic.

    python benchmarks/block_log.py --hosts 10000 --sessions 100

Each host begins its sessions one after another, spread over an hour; all end by their time-outs, and the blocks with their
hold-downs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from natcore import DeliveryPolicy, Gateway, Policy, Side, SnatEntry, Timeouts
from natcore.dtypes import BLOCK_ALLOCATED, BLOCK_RELEASED, CREATE, END, WINDOW, is_of_block
from natcore.sinks import Batch, ParquetSink, Receipt

HOUR = 3600.0
FRAME = 64


class Counted(ParquetSink):
    """Counts the rows that it writes, by kind, and those of a block's life."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, compact=False)
        self.kinds: Counter[int] = Counter()
        self.lives: Counter[int] = Counter()

    def deliver(self, batch: Batch) -> Receipt:
        receipt = super().deliver(batch)
        self.kinds.update(batch.records["kind"].tolist())
        self.lives.update(batch.records["session"][is_of_block(batch.records)].tolist())
        return receipt


def frames_of(hosts: np.ndarray[Any, Any], session: int) -> np.ndarray[Any, Any]:
    """One UDP packet of each host, uint8 (n, FRAME) of bare IPv4."""
    frames = np.zeros((len(hosts), FRAME), np.uint8)
    frames[:, :12] = [0x45, 0, 0, 48, 0, 0, 0x40, 0, 64, 17, 0, 0]
    frames[:, 12:16] = hosts.astype(">u4").view(np.uint8).reshape(-1, 4)
    frames[:, 16:20] = [198, 51, 100, 7]
    frames[:, 20:22] = np.array([10_000 + session], ">u2").view(np.uint8)
    frames[:, 22:28] = [0, 53, 0, 28, 0, 0]
    words = frames[:, :20].reshape(-1, 10, 2).astype(np.uint32)
    total = (words[:, :, 0] << 8 | words[:, :, 1]).sum(axis=1)
    total = (total & 0xFFFF) + (total >> 16)
    check = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    frames[:, 10], frames[:, 11] = check >> 8, check & 0xFF
    return frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=10_000)
    parser.add_argument("--sessions", type=int, default=100, help="of a host")
    parser.add_argument("--block-size", type=int, default=512)
    arguments = parser.parse_args()
    hosts = np.arange(arguments.hosts, dtype=np.uint32) + 0x0A000001
    with tempfile.TemporaryDirectory() as folder:
        sinks = {rows: Counted(Path(folder) / rows) for rows in ("all", "blocks")}
        gateway = Gateway(
            framing="ip", max_sessions=arguments.hosts * arguments.sessions, records=1 << 20, timeouts=Timeouts(udp=300),
            policy=Policy(ports="block", block_size=arguments.block_size),
        )  # fmt: skip
        gateway.add(SnatEntry("10.0.0.0/8", pool="203.0.113.0-203.0.113.255"))
        for rows, sink in sinks.items():
            gateway.start_session_log(sink, name=rows, rows=rows, delivery=DeliveryPolicy(batch=100_000))  # type: ignore[arg-type]
        lengths = np.full(len(hosts), 48, np.uint32)
        for session in range(arguments.sessions):
            now = 1.0 + session * HOUR / arguments.sessions
            verdicts = gateway.translate(frames_of(hosts, session), lengths, Side.INSIDE, now=now)
            assert (verdicts < 128).all(), Counter(verdicts.tolist())
            gateway.advance(now)
        for now in (HOUR + 200.0, HOUR + 400.0, HOUR + 700.0, HOUR + 900.0):
            gateway.advance(now)
        assert not len(gateway.blocks())
        gateway.close(timeout=600.0)
        blocks = sum(sinks["blocks"].kinds[kind] for kind in (BLOCK_ALLOCATED, BLOCK_RELEASED))
        assert max(sinks["blocks"].lives.values()) <= 2
        bytes_of = {
            rows: sum(path.stat().st_size for path in (Path(folder) / rows).rglob("*.parquet")) for rows in sinks
        }
        sessions = sum(sinks["all"].kinds[kind] for kind in (WINDOW, CREATE, END))
        print(json.dumps({
            "sessions": arguments.hosts * arguments.sessions, "rows_of_sessions": sessions, "rows_of_blocks": blocks,
            "blocks": len(sinks["blocks"].lives), "most_rows_of_a_block": max(sinks["blocks"].lives.values()),
            "rows_of_sessions_for_one_of_blocks": round(sessions / blocks, 1),
            "bytes_of_sessions_for_one_of_blocks": round(bytes_of["all"] / bytes_of["blocks"], 1), "bytes": bytes_of,
        }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()

"""A capture of 1 GB replayed under configurations: packets a second, and the most memory: `python benchmarks/replay.py [MB]`.

The capture is made in a temporary folder: 50,000 conversations of TCP and UDP at a time, of 4,000 inside hosts, with frames of
64 to 1,514 bytes, each answered 20 ms later. It is replayed in a process of its own, first under one configuration, then under
two. The counts of packets are compared with what was written.
"""

from __future__ import annotations

import argparse
import json
import resource
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOWS = 50_000  # at a time
HOSTS = 4_000
PACKETS_A_SECOND = 200_000
DELAY_NS = 20_000_000  # until the answer
SIZES = (64, 64, 64, 576, 1514, 1514, 1514, 1514)  # mean: 852
BATCH = 20_000
LIFE = 40  # packets of a conversation, both ways
FILES = {
    "plain": '[[snat]]\nsource = "10.0.0.0/16"\npool = "203.0.113.0/28"\n',
    "blocks": '[policy]\nports = "block"\nblock_size = 256\n[[snat]]\nsource = "10.0.0.0/16"\npool = "203.0.113.0/27"\n',
}


def frames(rng: np.random.Generator, first: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Headers of BATCH outbound packets and their answers, lengths and times, in order of time."""
    out = np.zeros((BATCH, 54), np.uint8)
    number = np.arange(first, first + BATCH)
    flow = number % FLOWS + number // (FLOWS * LIFE // 2) * FLOWS
    host, port = flow % HOSTS, 1024 + flow // HOSTS % 60_000
    tcp = flow % 2 == 0
    length = np.array(SIZES)[rng.integers(0, len(SIZES), BATCH)]
    out[:, 12], out[:, 14] = 8, 0x45
    total = length - 14
    out[:, 16], out[:, 17], out[:, 20], out[:, 22] = total >> 8, total & 0xFF, 0x40, 64
    out[:, 23] = np.where(tcp, 6, 17)
    out[:, 26], out[:, 28], out[:, 29] = 10, host >> 8, host & 0xFF
    out[:, 30:34] = (198, 51, 100, 0)
    out[:, 33] = flow % 250 + 1
    out[:, 34], out[:, 35], out[:, 36], out[:, 37] = port >> 8, port & 0xFF, 1, 187
    udp_length = total - 20
    out[:, 38], out[:, 39] = np.where(tcp, 1, udp_length >> 8), np.where(tcp, 0, udp_length & 0xFF)
    out[tcp, 46], out[tcp, 47] = 0x50, 0x10
    back = out.copy()
    back[:, 26:30], back[:, 30:34] = out[:, 30:34], out[:, 26:30]
    back[:, 34:36], back[:, 36:38] = out[:, 36:38], out[:, 34:36]
    both = np.concatenate([out, back])
    both[:, 24:26] = 0
    words = both[:, 14:34:2].astype(np.int64) * 256 + both[:, 15:34:2]
    checksum = words.sum(axis=1)
    checksum = (checksum & 0xFFFF) + (checksum >> 16)
    checksum = ~((checksum & 0xFFFF) + (checksum >> 16)) & 0xFFFF
    both[:, 24], both[:, 25] = checksum >> 8, checksum & 0xFF
    sent = 1_700_000_000_000_000_000 + number * (2_000_000_000 // PACKETS_A_SECOND)
    return both, np.concatenate([length, length]), np.concatenate([sent, sent + DELAY_NS])


def make(path: Path, size_bytes: int) -> int:
    """Write the capture, and return its packets."""
    rng = np.random.default_rng(1)
    count, first = 0, 0
    waiting: list[tuple[Any, ...]] = []
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262_144, 1))
        while file.tell() < size_bytes:
            waiting = [tuple(np.concatenate(each) for each in zip(*waiting, frames(rng, first), strict=True))]
            first += BATCH
            headers, length, time_ns = waiting[0]
            order = np.argsort(time_ns, kind="stable")
            upto = 1_700_000_000_000_000_000 + first * (2_000_000_000 // PACKETS_A_SECOND)
            now, later = order[time_ns[order] < upto], order[time_ns[order] >= upto]
            count += len(now)
            file.write(_records(headers[now], length[now], time_ns[now]))
            waiting = [(headers[later], length[later], time_ns[later])]
    return count


def _records(headers: NDArray[np.uint8], length: NDArray[np.int64], time_ns: NDArray[np.int64]) -> bytes:
    """Return the records of a capture file."""
    head = np.zeros((len(length), 4), "<u4")
    head[:, 0], head[:, 1] = time_ns // 10**9, time_ns % 10**9
    head[:, 2] = head[:, 3] = length
    start = np.cumsum(length + 16) - length - 16
    made = np.zeros(int(start[-1] + length[-1] + 16), np.uint8)
    for at, part in ((0, head.view(np.uint8).reshape(-1, 16)), (16, headers)):
        made[(start[:, None] + at + np.arange(part.shape[1])).reshape(-1)] = part.reshape(-1)
    return made.tobytes()


def replay(path: Path, files: list[Path]) -> dict[str, Any]:
    """Replay the capture in this process."""
    from natcore.capture.sides import make_sides
    from natcore.capture.what_if import gateways_of, what_if

    stack, gateways, prefixes = gateways_of(files, seed=1)
    with stack:
        begin, begin_cpu = time.perf_counter(), time.process_time()
        found = what_if(path, gateways, make_sides(prefixes))
        seconds, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
    verdicts = [dict(sorted((each.name, count) for each, count in one.verdicts.items())) for one in found.outcomes]
    return {
        "frames": found.frames, "configurations": len(files), "seconds": seconds, "cpu_seconds": cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "verdicts": verdicts, "sessions": [each.sessions for each in found.outcomes],
        "log_rows": [each.log_rows for each in found.outcomes],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("megabytes", nargs="?", type=int, default=1000)
    parser.add_argument("--replay", nargs="+", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.replay:
        print(json.dumps(replay(asked.replay[0], asked.replay[1:])))
        return
    with tempfile.TemporaryDirectory(prefix="natcore-replay-") as folder:
        path = Path(folder, "x.pcap")
        count = make(path, asked.megabytes * 1_000_000)
        files = []
        for name, text in FILES.items():
            files.append(Path(folder, f"{name}.toml"))
            files[-1].write_text(text)
        print(f"{path.stat().st_size / 1e6:,.0f} MB, {count:,} packets")
        for chosen in (files[:1], files):
            command = [sys.executable, __file__, "--replay", str(path), *map(str, chosen)]
            told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            assert told["frames"] == count, told
            rate, cpu_rate = (count * len(chosen) / told[name] / 1e6 for name in ("seconds", "cpu_seconds"))
            print(
                f"{len(chosen)} configuration(s): {told['seconds']:.1f} s, {rate:.2f} M packets/s a configuration "
                f"({cpu_rate:.2f} by processor time), {told['peak_mb']:.0f} MB at most"
            )
            for file, verdicts, sessions in zip(chosen, told["verdicts"], told["sessions"], strict=True):
                print(f"  {file.stem}: {verdicts}, {sessions:,} sessions")


if __name__ == "__main__":
    main()

"""Memory that a session takes, everything counted, in a process of its own: what is resident, and each table's size.

python benchmarks/memory.py own 1000000
"""

from __future__ import annotations

import subprocess
import sys
from ipaddress import IPv4Address
from pathlib import Path

import numpy as np

from natcore import Gateway, Side, SnatEntry, Verdict
from natcore.testing.bulk import UDP, packets
from natcore.testing.load import FRAME_BYTES

HERE = Path(__file__).resolve().parent
STEP = 16_000
KINDS = {"shared": 16, "own": 1}  # remotes of each inside endpoint: sessions of a mapping


def resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status: no VmRSS")


def filled(kind: str, sessions: int) -> Gateway:
    """A gateway with so many live sessions, in tables that are full at that number, half of its outside ports in use."""
    remotes = KINDS[kind]
    mappings = sessions // remotes
    gateway = Gateway(
        instance="ngw",
        vpc_id="vpc",
        max_sessions=sessions,
        max_mappings=mappings,
        max_subscribers=mappings // 16 + 1,
        records=1_024,  # rows that are not taken are no session's
    )
    pool = f"203.0.0.0-{IPv4Address(0xCB000000 + mappings // 32_256)}"
    gateway.add(SnatEntry("10.0.0.0/8", pool=pool))
    step = STEP - STEP % remotes
    for first in range(0, sessions, step):
        numbers = np.arange(first, min(first + step, sessions), dtype=np.uint64)
        mapping, remote = np.divmod(numbers, np.uint64(remotes))
        host, port = np.divmod(mapping, np.uint64(16))
        frames, lengths = packets(UDP, 0x0A000000 + host, 20_000 + port, 0x5DB80000 + remote, 443, length=FRAME_BYTES)
        if not (gateway.translate(frames, lengths, Side.INSIDE, now=0.0) == Verdict.OUTBOUND).all():
            raise AssertionError("not all were let out")
    counters = gateway.counters()
    if (counters["sessions"], counters["mappings"]) != (sessions, mappings):
        raise AssertionError(f"{counters['sessions']} sessions, {counters['mappings']} mappings")
    return gateway


def measure(kind: str, sessions: int) -> tuple[float, dict[str, float]]:
    """(bytes a session that a process grows by, from before its gateway to `sessions` live ones; and those of each table
    when it is full)."""
    filled(kind, STEP)  # Python's and numpy's own memory, once
    before = resident_bytes()
    gateway = filled(kind, sessions)
    tables = {name: size / sessions for name, size in gateway._core.tables().items()}
    return (resident_bytes() - before) / sessions, tables


def bytes_a_session(kind: str, sessions: int) -> float:
    """measure() in a new process. kind: "shared" (sixteen sessions a mapping) or "own" (each its own)."""
    paths = [str(HERE), str(HERE.parent / "tests")]
    program = f"import sys; sys.path[:0] = {paths!r}; import memory; print(memory.measure({kind!r}, {sessions})[0])"
    run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return float(run.stdout)


if __name__ == "__main__":
    resident, tables = measure(sys.argv[1], int(sys.argv[2]))
    for name, size in sorted(tables.items(), key=lambda item: -item[1]):
        print(f"{name:30} {size:8.2f} bytes a session, full")
    print(f"{'resident':30} {resident:8.2f} bytes a session")

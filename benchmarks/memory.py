"""Resident memory that a session takes, everything counted, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
KINDS = {"shared": 16, "own": 1}  # remotes of each inside endpoint: sessions of a mapping


def resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status: no VmRSS")


def measure(kind: str, sessions: int) -> float:
    """Bytes a session that a gateway grows by, from its creation to `sessions` live ones: tables, indexes, ports."""
    import numpy as np

    from bulk import UDP, packets
    from load import FRAME_BYTES
    from natcore import Gateway, Side, SnatEntry, Verdict

    remotes = KINDS[kind]
    mappings = sessions // remotes
    step = 16_000 - 16_000 % remotes
    packets(UDP, 1, 1, 1, np.arange(step), length=FRAME_BYTES)  # numpy's own memory, once
    before = resident_bytes()
    gateway = Gateway(
        instance="ngw",
        vpc_id="vpc",
        max_sessions=sessions,
        max_mappings=mappings,
        max_subscribers=mappings // 16 + 1,
        records=1_024,  # rows that nobody took are no session's
    )
    addresses = mappings // 32_256 + 1  # half of the ports
    gateway.add(SnatEntry("10.0.0.0/8", pool=f"203.0.113.1-203.0.113.{addresses}"))
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
    return (resident_bytes() - before) / sessions


def bytes_a_session(kind: str, sessions: int) -> float:
    """measure() in a new process. kind: "shared" (sixteen sessions a mapping) or "own" (each its own)."""
    paths = [str(HERE), str(HERE.parent / "tests")]
    program = f"import sys; sys.path[:0] = {paths!r}; import memory; print(memory.measure({kind!r}, {sessions}))"
    run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return float(run.stdout)

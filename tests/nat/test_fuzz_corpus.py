"""What the fuzzer has found so far holds in the ordinary build: each input of its corpus, and the invariants after it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REPLAY = """
import sys
from pathlib import Path
folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
from gateways import GATEWAYS
from natcore.testhooks import fuzz, planted_faults
met = set()
for path in sorted((folder / "corpus").iterdir()):
    data = path.read_bytes()
    fuzz.replay(data)
    gateway = GATEWAYS[data[0] % len(GATEWAYS)]
    broken = planted_faults.broken(gateway._core.worker_capsule())
    assert broken is None, f"{path.name}: {broken}"
    met.add(data[0] % len(GATEWAYS))
created = sum(gateway.counters()["created"] for gateway in GATEWAYS)
forwarded = sum(gateway.counters()["forwarded"] for gateway in GATEWAYS)
print(len(met), len(GATEWAYS), created, forwarded)
"""


def test_the_corpus_passes() -> None:
    """In a process of its own, which an input that fails would end."""
    done = subprocess.run(
        [sys.executable, "-c", REPLAY, str(ROOT / "tests" / "fuzz")], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-2000:]
    met, gateways, created, forwarded = map(int, done.stdout.split())
    assert met == gateways  # every kind of gateway has an input
    assert created > 100 and forwarded > created

"""Programs run under callgrind, with a Zen 3's data caches: what each count that they ask for took."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

_COMMAND = (
    *("valgrind", "--tool=callgrind", "--instr-atstart=no", "--callgrind-out-file=out", "--quiet"),
    *("--cache-sim=yes", "--I1=32768,8,64", "--D1=32768,8,64", "--LL=524288,8,64"),
)
_TRIGGER = re.compile(r"^desc: Trigger: Client Request: (.*)$", re.M)
_TOTALS = re.compile(r"^totals: (.*)$", re.M)


class Count(NamedTuple):
    """Instructions, and misses of 32 KB and of the 512 KB behind it."""

    instructions: int
    near: int
    far: int


@contextmanager
def counted(*program: str | Path) -> Iterator[Path]:
    """Run a Python program with its arguments; yield the folder of its dumps."""
    if shutil.which("valgrind") is None:
        raise SystemExit("valgrind is missing: apt-get install valgrind")
    with tempfile.TemporaryDirectory() as folder:
        ran = subprocess.run(
            [*_COMMAND, sys.executable, *map(str, program)], cwd=folder, capture_output=True, text=True
        )
        if ran.returncode:
            raise SystemExit(f"the counted run failed:\n{ran.stdout}{ran.stderr}")
        yield Path(folder)


def dumps(folder: Path) -> Iterator[tuple[str, Count]]:
    """(name, what it took) of every count."""
    for path in folder.glob("out.*"):
        text = path.read_text()
        trigger, totals = _TRIGGER.search(text), _TOTALS.search(text)
        if trigger and totals:
            # as callgrind has them: instructions, reads, writes, then misses of the first level by each, then of the last
            instructions, _, _, _, reads, writes, _, far_reads, far_writes = (int(word) for word in totals[1].split())
            yield trigger[1], Count(instructions, reads + writes, far_reads + far_writes)

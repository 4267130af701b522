"""Import time: natcore beside numpy, which it needs, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from timing import AS_INSTALLED


@pytest.mark.parametrize("module", ["numpy", "natcore"])
def bench_import(benchmark: BenchmarkFixture, module: str) -> None:
    program = f"import {module}, sys; print('pyarrow' in sys.modules, 'duckdb' in sys.modules)"

    def load() -> str:
        command = [sys.executable, "-c", program]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=AS_INSTALLED).stdout

    assert benchmark.pedantic(load, rounds=15, warmup_rounds=1).split() == ["False", "False"]

"""Import time: natcore beside numpy, which it needs, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from pytest_benchmark.fixture import BenchmarkFixture


@pytest.mark.parametrize("module", ["numpy", "natcore"])
def bench_import(benchmark: BenchmarkFixture, module: str) -> None:
    compiled_once = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # as installed: bytecode is there from the second on
    program = f"import {module}, sys; print('pyarrow' in sys.modules, 'duckdb' in sys.modules)"

    def load() -> str:
        command = [sys.executable, "-c", program]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=compiled_once).stdout

    assert benchmark.pedantic(load, rounds=15, warmup_rounds=1).split() == ["False", "False"]

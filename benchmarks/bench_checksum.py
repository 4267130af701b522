"""Checksums: from scratch over 64 and 1,500 bytes, and incremental; each result is compared with numpy's."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from compiled import load_module

ROWS = 4_096


def expected(rows: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """RFC 1071 in numpy: words in the machine's own order."""
    sums = rows.view(np.uint16).astype(np.uint64).sum(1)
    for _ in range(4):
        sums = (sums & np.uint64(0xFFFF)) + (sums >> np.uint64(16))
    return (~sums).astype(np.uint16)


@pytest.mark.parametrize("size", [20, 64, 1_500])
def bench_checksum_from_scratch(benchmark: BenchmarkFixture, size: int) -> None:
    rows = np.random.default_rng(1).integers(0, 256, (ROWS, size), np.uint8)
    out = np.zeros(ROWS, np.uint16)
    benchmark(load_module("checksums").from_scratch, rows, out)
    assert (out == expected(rows)).all()


def bench_checksum_by_delta(benchmark: BenchmarkFixture) -> None:
    rows = np.random.default_rng(2).integers(0, 256, (ROWS, 20), np.uint8)
    changed = rows.copy()
    changed[:, 12:16] = np.random.default_rng(3).integers(0, 256, (ROWS, 4), np.uint8)
    old, new = (np.ascontiguousarray(r[:, 12:16]).view(np.uint32)[:, 0] for r in (rows, changed))
    out = np.zeros(ROWS, np.uint16)
    benchmark(load_module("checksums").by_delta, expected(rows), old, new, out)
    assert (out == expected(changed)).all()

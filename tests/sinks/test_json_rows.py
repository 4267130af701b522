"""Rows as JSON: each line is what `Batch.rows(local=True)` says, and nothing in a name breaks it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from natcore.dtypes import RECORD
from natcore.sinks._json_rows import json_rows
from natcore.sinks.base import Batch


@pytest.mark.parametrize("name", ["ngw-1", '100%s "x"', "ü\\\n", ""])
def test_each_row_is_what_rows_says(name: str) -> None:
    records = np.zeros(8, RECORD)
    records["number"] = np.arange(8, dtype=np.uint64) + np.uint64(1 << 63)
    records["kind"] = np.arange(8)
    records["eip"] = [0, 1, 0, 2, 3, 0, 0, 0xFFFFFFFF]
    records["pri_ip"] = 0x0A000005
    records["start_time"] = -1
    batch = Batch(name, f"vpc {name}", f"run {name}", records)
    lines = json_rows(batch)
    assert [json.loads(line) for line in lines] == list(batch.rows(local=True))
    assert [list(json.loads(line)) for line in lines] == [list(row) for row in batch.rows(local=True)]
    assert not any("\n" in line for line in lines)

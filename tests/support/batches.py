"""Batches of rows for sinks."""

from __future__ import annotations

import numpy as np

from natcore.dtypes import CREATE, END, GAP, OPENED_OUTSIDE, WINDOW
from natcore.sinks import Batch
from support.log_fakes import make_records


def batch_of(count: int, first: int = 0, *, events: bool = True, gaps: bool = False) -> Batch:
    records = make_records(count, first)
    if events:
        records["kind"] = np.resize([CREATE, WINDOW, WINDOW, END], count)
    if gaps:
        records["kind"][::10] = GAP
    records["flags"] = np.where(np.arange(count) % 5 == 0, OPENED_OUTSIDE, 0)
    return Batch("ngw-1", 'vpc "1\\]', "run1", records)

"""Counts of the windows that were open when a log started: the log counts from its start (docs/session-log-contract.md R1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from natcore.dtypes import RECORD, WINDOW, copied
from natcore.sinks.base import Records

_COUNTERS = ("bytes_from_pub", "pkts_from_pub", "bytes_from_vpc", "pkts_from_vpc")


class Baseline:
    """Subtracts them from the next row of each of these windows, for this log alone.

    windows: RECORD (n,), the open windows at the start as rows. start_us: the start, microseconds since 1970.
    """

    def __init__(self, windows: Records, start_us: int) -> None:
        order = np.argsort(windows["session"])
        self._sessions = windows["session"][order]
        self._counted = {name: windows[name][order] for name in _COUNTERS}
        self._waits = np.ones(len(order), bool)
        self._start_us = start_us

    def __bool__(self) -> bool:
        """Return whether some of the windows are still open."""
        return bool(self._waits.any())

    def take_off(self, records: Records) -> Records:
        """Return RECORD (n,) as this log has it. A row without a remainder stays, with counters of 0: it has a number."""
        rows = np.flatnonzero((records["kind"] == WINDOW) & (records["start_time"] < self._start_us))
        if not len(rows) or not len(self._sessions):
            return records
        at = np.searchsorted(self._sessions, records["session"][rows])
        at[at == len(self._sessions)] = 0
        known = (self._sessions[at] == records["session"][rows]) & self._waits[at]
        rows, at = rows[known], at[known]
        self._waits[at] = False
        records = copied(records)
        for name in _COUNTERS:
            records[name][rows] -= self._counted[name][at]
        records["start_time"][rows] = self._start_us
        return records


def has_packets(records: Records) -> NDArray[np.bool_]:
    """Return bool (n,): False for a window row that a baseline has emptied."""
    has: NDArray[np.bool_] = (records["kind"] != WINDOW) | (records["pkts_from_vpc"] + records["pkts_from_pub"] != 0)
    return has


def empty_part() -> Records:
    """An array for the open windows of a part of the table."""
    return np.empty(65_536, RECORD)

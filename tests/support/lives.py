"""Lives of a gateway and its log, as questions are asked of them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from natcore import Policy, SnatEntry, Timeouts
from natcore.dtypes import CREATE, END, RECORD, WINDOW
from natcore.sessionlog.facts import ALONE, EMPTY, STARTED, cover_row, entry_rows, setting_rows
from natcore.sinks import Batch, ParquetSink

EPOCH = 1_700_000_000  # seconds


ADDRESS, PRIVATE = 0xCB007101, 0xAC100A0D  # 203.0.113.1, 172.16.10.13


ANN, BOB = 0x0A000005, 0x0A000006


WEB, DNS = 0xC6336407, 0xC6336435


OTHER, OTHER_REMOTE = 0x0A0000C8, 0xC00002C8


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(EPOCH + seconds, UTC)


def label(seconds: float) -> int:
    return round((EPOCH + seconds) * 1e6)


class Log:
    """Rows that a test writes one by one, in seconds from EPOCH."""

    def __init__(self, folder: Path, run: str = "run1", first: int = 0, instance: str = "ngw-1") -> None:
        self.folder, self.run, self.number, self.instance = folder, run, first, instance
        self.rows: list[np.ndarray] = []
        self.facts = 0

    def add(self, kind: int, start: float, end: float, session: int, host: int, port: int = 4000, **more: int) -> Log:
        row = np.zeros(1, RECORD)
        fields = {"protocol": 6, "pri_ip": host, "pri_port": 555, "pub_ip": WEB, "pub_port": 443, "nat_ip": PRIVATE,
                  "eip": ADDRESS, "nat_port": port, "bytes_from_vpc": 100, "pkts_from_vpc": 1}  # fmt: skip
        for name, value in {**fields, "session": session, "kind": kind, "number": self.number, **more}.items():
            row[name] = value
        row["start_time"], row["end_time"] = round((EPOCH + start) * 1e6), round((EPOCH + end) * 1e6)
        self.rows.append(row)
        self.number += 1
        return self

    def session(self, number: int, host: int, start: float, windows: list[tuple[float, float]], end: float | None,
                **more: int) -> Log:  # fmt: skip
        self.add(CREATE, start, start, number, host, **more)
        for window in windows:
            self.add(WINDOW, *window, number, host, **more)
        if end is not None:
            self.add(END, start, end, number, host, **more)
        return self

    def tick(self, seconds: float, timeouts: Timeouts | None = None, flags: int = STARTED | EMPTY | ALONE) -> Log:
        """A row about something else, and a cover row: the log knows that time. The first one begins the log."""
        if not self.facts:
            self.fact(cover_row(label(seconds), label(seconds), label(seconds), flags))
            pool = [(PRIVATE, ADDRESS)]
            for row in entry_rows(1, SnatEntry("10.0.0.0/8", pool="203.0.113.1"), pool):
                self.fact(row, seconds)
            for row in setting_rows(timeouts or Timeouts(), 600.0, Policy()).values():
                self.fact(row, seconds)
        self.add(WINDOW, seconds, seconds, 9999, OTHER, port=1, pub_ip=OTHER_REMOTE)
        return self.fact(cover_row(label(seconds), label(seconds), label(seconds)))

    def fact(self, row: np.ndarray, seconds: float | None = None) -> Log:
        row["number"], row["pkts_from_vpc"] = self.number, self.facts
        if seconds is not None:
            row["start_time"] = row["end_time"] = label(seconds)
        self.facts += 1
        self.rows.append(row)
        return self

    def batch(self) -> Batch:
        rows, self.rows = np.concatenate(self.rows).astype(RECORD), []
        return Batch(self.instance, "vpc-1", self.run, rows)

    def write(self) -> Path:
        sink = ParquetSink(self.folder)
        sink.open()
        sink.deliver(self.batch())
        sink.close()
        return self.folder

"""Rows that a log had to give up, and the gap row in their place."""

from __future__ import annotations

from dataclasses import dataclass

from natcore.dtypes import GAP, GAP_LOST, gap_row, is_fact
from natcore.sinks.base import Records


@dataclass(slots=True)
class Span:
    """Between which times rows began and ended (microseconds since 1970), and the number of the last of them."""

    start: int
    end: int
    last_number: int

    @classmethod
    def of(cls, records: Records) -> Span:
        """Return the span of RECORD (n,), n >= 1."""
        return cls(int(records["start_time"].min()), int(records["end_time"].max()), int(records["number"][-1]))

    def widen(self, other: Span) -> None:
        self.start = min(self.start, other.start)
        self.end = max(self.end, other.end)
        self.last_number = max(self.last_number, other.last_number)


class PendingGap:
    """Counts the rows that were given up, until its gap row is taken."""

    def __init__(self) -> None:
        self._span: Span | None = None
        self._rows = 0

    def __bool__(self) -> bool:
        return self._span is not None

    def add(self, rows: int, span: Span) -> None:
        self._rows += rows
        if self._span is None:
            self._span = Span(span.start, span.end, span.last_number)
        else:
            self._span.widen(span)

    def add_records(self, records: Records) -> None:
        """Add RECORD (n,), n >= 1; a gap row among them stands for its count of rows, a row about the log for none."""
        is_gap = records["kind"] == GAP
        self.add(int((~is_gap & ~is_fact(records)).sum()) + int(records["session"][is_gap].sum()), Span.of(records))

    def take(self) -> Records:
        """Return the gap row, RECORD (1,); the next gap begins after it."""
        assert self._span is not None
        row = gap_row(self._span.start, self._span.end, self._span.last_number, self._rows, GAP_LOST)
        self._span, self._rows = None, 0
        return row

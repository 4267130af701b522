"""What the footer of a session log's Parquet file says: whose rows, which numbers, from when to when, and what came before.

The texts of the Parquet key-value metadata: natcore_format, instance, vpc_id, run; first_number, last_number;
first_time and last_time, the earliest and the latest end_time in microseconds since 1970; longest_window, microseconds;
addresses, JSON of the [nat_ip, eip or null] pairs in the file (null: too many to name); missing, JSON of
[first, last, from, to] for numbers that are missing between the file's own, with the times around them; gaps, JSON of
[start, end, number, reason] of its gap rows; previous and previous_sha256, the file written before it in the folder ("": none).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .records import GAP, WINDOW, format_ipv4
from .sinks.base import Batch

FORMAT = "1"  # of the columns and the footer
_MOST_ADDRESSES = 512
_MOST_GAPS = 512  # of one file; more are told as one, from the first to the last


class Missing(NamedTuple):
    """Numbers of a run that no row has, and the times (microseconds since 1970) of the rows around them."""

    first: int
    last: int
    start: int
    end: int


class ToldGap(NamedTuple):
    """A gap row (records.gap_row): times in microseconds since 1970, its number, and the reason in its flags."""

    start: int
    end: int
    number: int
    reason: int


class Pair(NamedTuple):
    """An outside address as it is on the wire, and its EIP."""

    nat_ip: str
    eip: str | None


@dataclass(frozen=True, slots=True)
class Footer:
    """Times in microseconds since 1970. addresses None: not told."""

    instance: str
    vpc_id: str
    run: str
    first_number: int
    last_number: int
    first_time: int
    last_time: int
    longest_window: int = 0
    addresses: tuple[Pair, ...] | None = ()
    missing: tuple[Missing, ...] = ()
    gaps: tuple[ToldGap, ...] = ()
    previous: str = ""
    previous_sha256: str = ""

    @classmethod
    def of(cls, batch: Batch) -> Footer:
        """The footer of a file with this batch alone."""
        rows = batch.records
        windows = rows["kind"] == WINDOW
        longest = int((rows["end_time"] - rows["start_time"])[windows].max(initial=0))
        told = rows[rows["kind"] == GAP][["start_time", "end_time", "number", "flags"]].tolist()
        ended = rows["end_time"]
        return cls(
            batch.instance, batch.vpc_id, batch.run, batch.first_number, batch.last_number,
            int(ended.min()), int(ended.max()), longest, _pairs(rows), _missing(rows),
            _few([ToldGap(*gap) for gap in told]),
        )  # fmt: skip

    def joined(self, later: Footer) -> Footer:
        """The footer of this file's rows and, behind them, the later one's."""
        between = missing_between(self, later)
        return replace(
            self,
            last_number=max(self.last_number, later.last_number),
            first_time=min(self.first_time, later.first_time),
            last_time=max(self.last_time, later.last_time),
            longest_window=max(self.longest_window, later.longest_window),
            addresses=_bounded(self.addresses, later.addresses),
            missing=(*self.missing, *((between,) if between else ()), *later.missing),
            gaps=_few([*self.gaps, *later.gaps]),
        )

    def encode(self) -> dict[str, str]:
        return {
            "natcore_format": FORMAT, "instance": self.instance, "vpc_id": self.vpc_id, "run": self.run,
            "first_number": str(self.first_number), "last_number": str(self.last_number),
            "first_time": str(self.first_time), "last_time": str(self.last_time),
            "longest_window": str(self.longest_window), "addresses": json.dumps(self.addresses),
            "missing": json.dumps(self.missing), "gaps": json.dumps(self.gaps),
            "previous": self.previous, "previous_sha256": self.previous_sha256,
        }  # fmt: skip


def decode(metadata: Mapping[bytes, bytes]) -> Footer | None:
    """None: not a file of a session log."""
    if metadata.get(b"natcore_format") != FORMAT.encode():
        return None
    try:
        text = {key.decode(): value.decode() for key, value in metadata.items()}
        addresses = json.loads(text["addresses"])
        return Footer(
            instance=text["instance"], vpc_id=text["vpc_id"], run=text["run"],
            first_number=int(text["first_number"]), last_number=int(text["last_number"]),
            first_time=int(text["first_time"]), last_time=int(text["last_time"]),
            longest_window=int(text["longest_window"]),
            addresses=None if addresses is None else tuple(Pair(*pair) for pair in addresses),
            missing=tuple(Missing(*each) for each in json.loads(text["missing"])),
            gaps=tuple(ToldGap(*each) for each in json.loads(text["gaps"])),
            previous=text["previous"], previous_sha256=text["previous_sha256"],
        )  # fmt: skip
    except (KeyError, ValueError, TypeError):
        return None


def missing_between(before: Footer, after: Footer) -> Missing | None:
    """The numbers between two neighbours of one run, and the times around them; None: none is missing, or a gap row
    tells of them."""
    if after.first_number <= before.last_number + 1 or any(gap.number == after.first_number for gap in after.gaps):
        return None
    times = sorted((before.last_time, after.first_time))
    return Missing(before.last_number + 1, after.first_number - 1, *times)


def _missing(rows: np.ndarray[Any, Any]) -> tuple[Missing, ...]:
    numbers = rows["number"].astype(np.int64)
    at = np.flatnonzero((np.diff(numbers) > 1) & (rows["kind"][1:] != GAP))  # a gap row tells of those before it
    ended = rows["end_time"]
    return tuple(
        Missing(int(numbers[n]) + 1, int(numbers[n + 1]) - 1, *sorted((int(ended[n]), int(ended[n + 1])))) for n in at
    )


def _pairs(rows: np.ndarray[Any, Any]) -> tuple[Pair, ...] | None:
    both = pc.unique(pa.array(rows["nat_ip"].astype(np.uint64) << np.uint64(32) | rows["eip"]))  # hashed, not sorted
    if len(both) > _MOST_ADDRESSES:
        return None
    halves = ((pair >> 32, pair & 0xFFFFFFFF) for pair in sorted(both.to_pylist()) if pair)  # 0: a gap row's
    return tuple(Pair(format_ipv4(nat_ip), format_ipv4(eip) if eip else None) for nat_ip, eip in halves)


def _bounded(some: Sequence[Pair] | None, others: Sequence[Pair] | None) -> tuple[Pair, ...] | None:
    if some is None or others is None:
        return None
    both = tuple(dict.fromkeys((*some, *others)))
    return both if len(both) <= _MOST_ADDRESSES else None


def _few(gaps: list[ToldGap]) -> tuple[ToldGap, ...]:
    if len(gaps) <= _MOST_GAPS:
        return tuple(gaps)
    return (ToldGap(min(gap.start for gap in gaps), max(gap.end for gap in gaps), gaps[0].number, gaps[-1].reason),)

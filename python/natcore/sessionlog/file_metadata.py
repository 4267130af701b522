"""What the footer of a session log's Parquet file states: the run, the row numbers, the times, and the file before.

The texts of the Parquet key-value metadata: natcore_format, instance, vpc_id, run;
first_number, last_number; first_time and last_time, the earliest and the latest end_time in microseconds since 1970;
longest_window, microseconds; addresses, JSON of the [nat_ip, eip or null] pairs in the file (null: too many to name);
ranges, JSON of [first, last] for the numbers that are there, without a gap; blocks, likewise for rows of port blocks;
events, likewise for rows of refusals and events;
covers, JSON of the cover rows around these;
facts, JSON of what is in force by its end (facts.py); gaps, JSON of [start, end, number, reason] of its gap rows;
previous and previous_sha256, the file written before it in the folder ("": none); earlier, JSON of [name, SHA-256] of the
files before that one; removals and compactions, the SHA-256 of the last line of removed.jsonl and of compacted.jsonl then;
replaces, JSON of [name, SHA-256] of the files that it replaces: it holds their rows; order: how its rows are sorted ("": by
number); labels: "1", it has the column label; groups, of a sorted file: JSON of its row groups (`Group`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from natcore.dtypes import GAP, WINDOW, format_ipv4, is_event, is_of_block
from natcore.internal.extras import extra
from natcore.sessionlog.facts import NO_FACTS, Cover, InForce, covers_of
from natcore.sinks.base import Batch

with extra("parquet"):
    import pyarrow as pa
    import pyarrow.compute as pc

FORMAT = "2"  # of the columns and the footer
GROUPS = "groups"
_MOST_ADDRESSES = 512
_MOST_GAPS = 512  # of one file; more are recorded as one, from the first to the last

Numbers = tuple[int, int]


class LoggedGap(NamedTuple):
    """A gap row (records.gap_row): times in microseconds since 1970, its number, and the reason in its flags."""

    start: int
    end: int
    number: int
    reason: int


class Group(NamedTuple):
    """A row group of a sorted file: `rows` rows, and the SHA-256 of its bytes, which end at `end` and begin where those of the
    group before it end (the first: at 0). Of its rows the least and the greatest nat_ip, protocol, nat_port and eip (None: no
    row has one), addresses by the order of texts."""

    end: int
    rows: int
    sha256: str
    addresses: tuple[str, str]
    protocols: tuple[int, int]
    ports: tuple[int, int]
    eips: tuple[str, str] | None

    @classmethod
    def decode(cls, end: int, rows: int, sha256: str, *bounds: Any) -> Group:
        """Return the group of such a list in JSON."""
        addresses, protocols, ports, eips = bounds
        return cls(
            int(end), int(rows), str(sha256), _both(addresses, str), _both(protocols, int), _both(ports, int),
            None if eips is None else _both(eips, str),
        )  # fmt: skip


class Pair(NamedTuple):
    """An outside address as it is on the wire, and its EIP."""

    nat_ip: str
    eip: str | None


@dataclass(frozen=True, slots=True)
class Footer:
    """Times in microseconds since 1970. addresses None: not recorded. ranges: numbers, first and last, without a gap; blocks:
    likewise, of rows of port blocks; events: of refusals and events; groups: of a sorted file (older ones have none)."""

    instance: str
    vpc_id: str
    run: str
    first_number: int
    last_number: int
    first_time: int
    last_time: int
    longest_window: int = 0
    addresses: tuple[Pair, ...] | None = ()
    ranges: tuple[Numbers, ...] = ()
    covers: tuple[Cover, ...] = ()
    facts: InForce = NO_FACTS
    gaps: tuple[LoggedGap, ...] = ()
    previous: str = ""
    previous_sha256: str = ""
    earlier: tuple[tuple[str, str], ...] = ()
    removals: str = ""
    replaces: tuple[tuple[str, str], ...] = ()
    order: str = ""
    compactions: str = ""
    blocks: tuple[Numbers, ...] = ()
    events: tuple[Numbers, ...] = ()
    has_labels: bool = True
    groups: tuple[Group, ...] = ()

    @classmethod
    def of(cls, batch: Batch, facts: InForce | None = None) -> Footer:
        """Return the footer of a file with this batch alone. facts: in force before it."""
        rows = batch.records
        windows = rows["kind"] == WINDOW
        longest = int((rows["end_time"] - rows["start_time"])[windows].max(initial=0))
        told = rows[rows["kind"] == GAP][["start_time", "end_time", "number", "flags"]].tolist()
        ended = rows["end_time"]
        ranges = _ranges(rows[rows["kind"] < GAP]["number"])
        first = ranges[0][0] if ranges else batch.first_number
        of_blocks = rows[is_of_block(rows)]
        blocks = _ranges(of_blocks["pkts_from_vpc"])
        named = rows[rows["kind"] < GAP] if not len(of_blocks) else rows[(rows["kind"] < GAP) | is_of_block(rows)]
        return cls(
            batch.instance, batch.vpc_id, batch.run, min(first, batch.first_number), ranges[-1][1] if ranges else first - 1,
            int(ended.min()), int(ended.max()), longest, _pairs(named), ranges,
            few_covers(ranges, blocks, covers_of(rows)), (facts or NO_FACTS).after(rows),
            _few([LoggedGap(*gap) for gap in told]), blocks=blocks,
            events=_ranges(rows[is_event(rows)]["pkts_from_vpc"]),
        )  # fmt: skip

    @property
    def rows(self) -> int:
        """The number of rows with numbers of their own."""
        return sum(last - first + 1 for first, last in self.ranges)

    def joined(self, later: Footer) -> Footer:
        """Return the footer of this file's rows followed by a later file's, which had this one's facts."""
        ranges = joined_ranges([*self.ranges, *later.ranges])
        blocks = joined_ranges([*self.blocks, *later.blocks])
        return replace(
            self,
            first_number=min(self.first_number, later.first_number),
            last_number=ranges[-1][1] if ranges else self.last_number,
            first_time=min(self.first_time, later.first_time),
            last_time=max(self.last_time, later.last_time),
            longest_window=max(self.longest_window, later.longest_window),
            addresses=_bounded(self.addresses, later.addresses),
            ranges=ranges,
            blocks=blocks,
            events=joined_ranges([*self.events, *later.events]),
            covers=few_covers(ranges, blocks, [*self.covers, *later.covers]),
            facts=later.facts.behind(self.facts),
            gaps=_few([*self.gaps, *later.gaps]),
        )

    def encode(self) -> dict[str, str]:
        return {
            "natcore_format": FORMAT, "instance": self.instance, "vpc_id": self.vpc_id, "run": self.run,
            "first_number": str(self.first_number), "last_number": str(self.last_number),
            "first_time": str(self.first_time), "last_time": str(self.last_time),
            "longest_window": str(self.longest_window), "addresses": json.dumps(self.addresses),
            "ranges": json.dumps(self.ranges), "blocks": json.dumps(self.blocks),
            "events": json.dumps(self.events), "covers": json.dumps(self.covers),
            "facts": json.dumps(self.facts.encode()), "gaps": json.dumps(self.gaps),
            "previous": self.previous, "previous_sha256": self.previous_sha256, "removals": self.removals,
            "earlier": json.dumps(self.earlier),
            "replaces": json.dumps(self.replaces), "order": self.order, "compactions": self.compactions, "labels": "1",
        }  # fmt: skip


def decode(metadata: Mapping[bytes, bytes]) -> Footer | None:
    """Parse a footer; None: not a file of a session log, or of another format."""
    if metadata.get(b"natcore_format") != FORMAT.encode():
        return None
    try:
        text = {key.decode(): value.decode() for key, value in metadata.items() if key != b"ARROW:schema"}
        addresses = json.loads(text["addresses"])
        return Footer(
            instance=text["instance"], vpc_id=text["vpc_id"], run=text["run"],
            first_number=int(text["first_number"]), last_number=int(text["last_number"]),
            first_time=int(text["first_time"]), last_time=int(text["last_time"]),
            longest_window=int(text["longest_window"]),
            addresses=None if addresses is None else tuple(Pair(*pair) for pair in addresses),
            ranges=tuple((int(first), int(last)) for first, last in json.loads(text["ranges"])),
            covers=tuple(Cover(*each) for each in json.loads(text["covers"])),
            facts=InForce.decode(json.loads(text["facts"])),
            gaps=tuple(LoggedGap(*each) for each in json.loads(text["gaps"])),
            previous=text["previous"], previous_sha256=text["previous_sha256"], removals=text["removals"],
            earlier=tuple((str(name), str(sha256)) for name, sha256 in json.loads(text["earlier"])),
            replaces=tuple((str(name), str(sha256)) for name, sha256 in json.loads(text["replaces"])),
            order=text.get("order", ""), compactions=text.get("compactions", ""),
            blocks=tuple((int(first), int(last)) for first, last in json.loads(text.get("blocks", "[]"))),
            events=tuple((int(first), int(last)) for first, last in json.loads(text.get("events", "[]"))),
            has_labels="labels" in text,
            groups=tuple(Group.decode(*each) for each in json.loads(text.get(GROUPS, "[]"))),
        )  # fmt: skip
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):  # it is damaged
        return None


def _both(values: Any, kind: type) -> Any:
    least, greatest = values
    return kind(least), kind(greatest)


def joined_ranges(ranges: Iterable[Numbers]) -> tuple[Numbers, ...]:
    """Return the ranges sorted and merged."""
    joined: list[Numbers] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return tuple(joined)


def missing_numbers(wanted: Iterable[Numbers], there: Iterable[Numbers]) -> tuple[Numbers, ...]:
    """The numbers of `wanted` that are not in `there`."""
    missing: list[Numbers] = []
    ranges = joined_ranges(there)
    for first, last in joined_ranges(wanted):
        at = first
        for begin, end in ranges:
            if end < at or begin > last:
                continue
            if begin > at:
                missing.append((at, begin - 1))
            at = end + 1
        if at <= last:
            missing.append((at, last))
    return tuple(missing)


def few_covers(ranges: Sequence[Numbers], blocks: Sequence[Numbers], covers: Iterable[Cover]) -> tuple[Cover, ...]:
    """Return the covers that imply the others: the first and last of each range of numbers, of sessions' rows and of port
    blocks', and those with flags."""
    kept: dict[int, Cover] = {}
    by_range: dict[tuple[bool, Numbers], list[Cover]] = {}
    for cover in sorted(covers, key=lambda cover: cover.sequence):
        if cover.flags:
            kept[cover.sequence] = cover
        for of_blocks, there, number, is_told in (
            (False, ranges, cover.number, not cover.sparse), (True, blocks, cover.blocks, cover.blocks >= 0),
        ):  # fmt: skip
            if not is_told:
                continue
            around = [each for each in there if each[0] <= number <= each[1] + 1] or [(number, number - 1)]
            for numbers in around:
                by_range.setdefault((of_blocks, numbers), []).append(cover)
    for found in by_range.values():
        for cover in (found[0], found[-1]):
            kept[cover.sequence] = cover
    return tuple(kept[sequence] for sequence in sorted(kept))


def _ranges(numbers: np.ndarray[Any, Any]) -> tuple[Numbers, ...]:
    if not len(numbers):
        return ()
    numbers = np.sort(numbers.astype(np.int64))
    cuts = np.flatnonzero(np.diff(numbers) > 1)
    firsts, lasts = numbers[np.r_[0, cuts + 1]], numbers[np.r_[cuts, len(numbers) - 1]]
    return tuple(zip(firsts.tolist(), lasts.tolist(), strict=True))


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


def _few(gaps: list[LoggedGap]) -> tuple[LoggedGap, ...]:
    if len(gaps) <= _MOST_GAPS:
        return tuple(gaps)
    return (LoggedGap(min(gap.start for gap in gaps), max(gap.end for gap in gaps), gaps[0].number, gaps[-1].reason),)

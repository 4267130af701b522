"""What was refused to whom, and when thresholds were reached: a question to the log's rows of refusals and events."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from ipaddress import IPv4Address
from typing import Any, Literal

from natcore.config import Address, parse_ipv4
from natcore.dtypes import format_ipv4, is_event
from natcore.errors import ConfigurationError
from natcore.events import words_of
from natcore.internal.redaction import show
from natcore.sessionlog.file_metadata import Numbers, joined_ranges
from natcore.sessionlog.refusals import MINUTE, STARTED
from natcore.sinks.base import KINDS, Batch
from natcore.who.conclude import Gap
from natcore.who.query import plain
from natcore.who.question import EPOCH, LONGEST_SPAN, checked_moment, micros
from natcore.who.source import EventRow, FoundEvents, Source
from natcore.who.store import Store

_REACHES = (3 * MINUTE, 60 * MINUTE)  # a row is of a minute's first refusals, and is written when the minute is over


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """A row of a refusal, or of another event.

    Attributes
    ----------
    instance, vpc_id
        The gateway's.
    reason, limit
        As of `natcore.Event`: docs/reference/events.md.
    count
        How often.
    start, end
        Of the first one, and when they were counted: all were between these.
    subscriber
        The inside address to which sessions were refused; None: an event that concerns no one subscriber, or refusals of
        several, which found no place in a list.
    destination, port, protocol
        Where the first refused packet was going; None: not known, or redacted.
    outside
        The outside address of a threshold, or one that came or went.
    run, sequence
        Name the row for ever.
    """

    instance: str
    vpc_id: str
    reason: str
    limit: str
    count: int
    start: datetime
    end: datetime
    subscriber: IPv4Address | None
    destination: IPv4Address | None
    port: int
    protocol: int
    outside: IPv4Address | None
    run: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Refusals:
    """Refusals and events in a span.

    Attributes
    ----------
    status
        "complete": all of every gateway of which there are such rows. "incomplete": there may be more; `gaps` says when.
    start, end, subscriber
        The question.
    rows
        Those that were then, or may have been: a row is of a span. In the order of their begin.
    perhaps
        Refusals of several subscribers, the one that is asked for perhaps among them.
    gaps
        When there may have been others: (start, end, why).
    """

    status: Literal["complete", "incomplete"]
    start: datetime
    end: datetime
    subscriber: IPv4Address | None
    rows: tuple[LoggedEvent, ...]
    perhaps: tuple[LoggedEvent, ...]
    gaps: tuple[tuple[datetime, datetime, str], ...]

    @property
    def count(self) -> int:
        """How often, all rows together."""
        return sum(row.count for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON: times in ISO 8601, addresses dotted."""
        result: dict[str, Any] = plain(asdict(self))
        return result | {"count": self.count}


def refusals(
    store: Source | str | os.PathLike[str] | None,
    *,
    start: datetime,
    end: datetime,
    subscriber: Address | None = None,
    spool: str | os.PathLike[str] | None = None,
) -> Refusals:
    """List what was refused, and other events, of a log with `refusals=True`.

    Parameters
    ----------
    store
        Where the rows are: a `Source`, or a folder of Parquet files; None: only the spool is asked.
    start, end
        The span, with a time zone.
    subscriber
        The inside address: its refusals alone. None: all refusals, and events.
    spool
        The folder of logs with rows that still wait.

    Returns
    -------
    Refusals
        Its status says whether there may be more.

    Raises
    ------
    ConfigurationError
        A time without a zone, an end before the start, no such folder.
    """
    start, end = checked_moment("start", start), checked_moment("end", end)
    if not start <= end <= start + LONGEST_SPAN:
        raise ConfigurationError(
            f"end must be after {show(start)}, by {LONGEST_SPAN.days} days at most, got {show(end)}"
        )
    address = None if subscriber is None else parse_ipv4(subscriber, "subscriber")
    if store is None and spool is None:
        raise ConfigurationError("store must be a folder unless spool is given, got None")
    source = store if isinstance(store, Source) or store is None else Store(store)
    first, last, inside = micros(start), micros(end), None if address is None else str(address)
    gaps: list[Gap] = []
    found = FoundEvents((), {})
    for reach in _REACHES:
        waiting = _waiting(spool)  # before the source: rows move from here to there
        told = [waiting]
        if source is not None:
            there = source
            told.append(there.retried(lambda: there.find_events(max(0, first - reach), last + reach, inside)))  # noqa: B023
        found = _joined(told)
        gaps = _gaps(found, first, last)
        if not gaps:
            break
    rows = [row for row in found.rows if row.kind != "event-cover" and row.start <= last and row.end >= first]
    several = [row for row in rows if inside is not None and row.kind == "refusal" and row.pri_ip == "0.0.0.0"]
    if inside is not None:
        rows = [row for row in rows if row.pri_ip == inside]
    return Refusals(
        "incomplete" if gaps else "complete", start, end, address, tuple(map(_logged, rows)), tuple(map(_logged, several)),
        tuple((_time(gap.start), _time(last if gap.end is None else gap.end), gap.reason) for gap in gaps),
    )  # fmt: skip


def _joined(told: Iterable[FoundEvents]) -> FoundEvents:
    """Return the rows of all, each once, in the order of their begin."""
    rows: dict[tuple[str, str, int], EventRow] = {}
    sequences: dict[tuple[str, str], list[Numbers]] = defaultdict(list)
    for found in told:
        for row in found.rows:
            key = (row.instance, row.run, row.sequence)
            if key not in rows or rows[key].pub_ip == "0.0.0.0":  # another log may have its destination
                rows[key] = row
        for run, ranges in found.sequences.items():
            sequences[run] += ranges
    return FoundEvents(
        sorted(rows.values(), key=lambda row: (row.start, row.instance, row.run, row.sequence)),
        {run: joined_ranges(ranges) for run, ranges in sequences.items()},
    )


def _gaps(found: FoundEvents, first: int, last: int) -> list[Gap]:
    """Return the times from first to last that no chain of event-cover rows covers, of each gateway."""
    known: dict[str, list[Numbers]] = {}
    for row in found.rows:
        known.setdefault(row.instance, [])
    for run, covers in _covers(found.rows).items():
        known[run[0]] += _stretches(covers, found.sequences.get(run, ()))
    if not known:
        return [Gap(first, last, "no log has rows of refusals of that time")]
    gaps = []
    for instance, stretches in sorted(known.items()):
        at = first
        for begin, end in sorted(stretches):
            if at < begin <= last:
                gaps.append(Gap(at, begin, f"rows of {instance} may be missing, or it had no log of refusals"))
            at = max(at, end + 1)
            if at > last:
                break
        if at <= last:
            gaps.append(Gap(at, last, f"rows of {instance} may be missing, or it had no log of refusals"))
    return gaps


def _covers(rows: Iterable[EventRow]) -> Mapping[tuple[str, str], list[EventRow]]:
    found: dict[tuple[str, str], list[EventRow]] = defaultdict(list)
    for row in rows:
        if row.kind == "event-cover":
            found[row.instance, row.run].append(row)
    return found


def _stretches(covers: Sequence[EventRow], there: Sequence[Numbers]) -> list[Numbers]:
    """Return the times in which nothing is missing: from one cover row to another without a missing row between them."""
    found: list[Numbers] = []
    last: EventRow | None = None
    for cover in sorted(covers, key=lambda cover: cover.sequence):
        is_behind = (
            last is not None
            and not cover.flags & STARTED
            and any(begin <= last.sequence and cover.sequence <= end for begin, end in there)
        )
        if is_behind:
            begin, _ = found[-1]
            found[-1] = (begin, max(found[-1][1], cover.end))
        else:
            found.append((cover.start, cover.end))
        last = cover
    return [(begin, end) for begin, end in found if begin <= end]


def _waiting(spool: str | os.PathLike[str] | None) -> FoundEvents:
    """Return the rows that wait in a spool."""
    if spool is None:
        return FoundEvents((), {})
    from natcore.sessionlog.spool.reading import waiting_rows

    rows: list[EventRow] = []
    sequences: dict[tuple[str, str], list[Numbers]] = defaultdict(list)
    for batch in waiting_rows(spool):
        for row in _event_rows(batch):
            rows.append(row)
            sequences[row.instance, row.run].append((row.sequence, row.sequence))
    return FoundEvents(rows, sequences)


def _event_rows(batch: Batch) -> Iterable[EventRow]:
    for row in batch.records[is_event(batch.records)]:
        yield EventRow(
            batch.instance, batch.vpc_id, batch.run, int(row["pkts_from_vpc"]), KINDS[int(row["kind"])], int(row["flags"]),
            int(row["protocol"]), format_ipv4(row["pri_ip"]), format_ipv4(row["pub_ip"]), int(row["pub_port"]),
            format_ipv4(row["nat_ip"]), int(row["session"]), int(row["start_time"]), int(row["end_time"]),
        )  # fmt: skip


def _logged(row: EventRow) -> LoggedEvent:
    reason, limit = words_of(row.flags)
    return LoggedEvent(
        row.instance, row.vpc_id, reason, limit, row.counted, _time(row.start), _time(row.end), _address(row.pri_ip),
        _address(row.pub_ip), row.pub_port, row.protocol, _address(row.nat_ip), row.run, row.sequence,
    )  # fmt: skip


def _address(text: str) -> IPv4Address | None:
    return None if text == "0.0.0.0" else IPv4Address(text)


def _time(microseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=microseconds)

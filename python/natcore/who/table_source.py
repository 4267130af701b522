"""What sources over a table share: a run's rows in a stretch of time are one part, and the service counts its numbers.

Numbers are counted in chunks: a chunk without a missing number is one range, and of the others the numbers themselves are
read. What the service's answer lacks is a gap.
"""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from natcore.dtypes import FIELDS, GAP, RECORD, format_ipv4
from natcore.internal.validation import check_number, parse_ipv4
from natcore.sessionlog.facts import NO_FACTS, Cover, covers_of
from natcore.sessionlog.file_metadata import Footer, LoggedGap, Numbers, few_covers, joined_ranges, missing_numbers
from natcore.sinks.base import KINDS, Records
from natcore.who.conclude import Row
from natcore.who.source import REDACTED, EventRow, FoundEvents, FoundRow, Part, Sought, Source, without_redacted_copies

HOUR = 3_600_000_000  # microseconds
CHUNK = 1 << 16  # numbers
FOREVER = 1 << 52  # microseconds since 1970: the year 2112
COLUMNS = ("number", "kind", "protocol", "pri_ip", "pri_port", "pub_ip", "pub_port", "nat_ip", "nat_port", "eip",
           "start_time", "end_time", "session")  # fmt: skip
_SLACKS = (HOUR, 49 * HOUR)  # around the time that is asked for: rows come in the order of their ends, but for these
_MOST_REMEMBERED = 64  # stretches of time

Key = tuple[str, str, str]  # instance, vpc_id, run
Counted = Literal["sessions", "facts", "blocks", "events"]  # rows of sessions are counted by number, others by sequence
NUMBER_OF: Mapping[Counted, str] = {  # the column that has the number or sequence
    "sessions": "number",
    "facts": "pkts_from_vpc",
    "blocks": "pkts_from_vpc",
    "events": "pkts_from_vpc",
}
EVENT_COLUMNS = (
    "pkts_from_vpc", "kind", "flags", "protocol", "pri_ip", "pub_ip", "pub_port", "nat_ip", "session", "start_time", "end_time",
)  # fmt: skip


class TableSource(Source):
    """Rows in a table that is asked by queries.

    Parameters
    ----------
    name
        Of the table.
    fresh
        Seconds, 0 to 86,400, for which what is known of a stretch of time is not asked again.
    clock
        Seconds of any origin; for tests.
    """

    def __init__(self, name: str, fresh: float, clock: Callable[[], float] = time.monotonic) -> None:
        check_number("fresh", fresh, 0, 86_400, unit="seconds")
        self.name = name
        self._fresh, self._clock = fresh, clock
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[int, int], tuple[float, list[Part]]] = OrderedDict()

    # ---- what a table is asked ----

    @abstractmethod
    def fact_rows(self, start: int, end: int) -> Sequence[Sequence[Any]]:
        """Return instance, vpc_id, run and FIELDS as integers (times in microseconds) of the rows that are no session's.

        All gap, entry, setting and clock rows, and cover rows with flags; of the other cover rows those from start to end.
        """

    @abstractmethod
    def chunks(self, counted: Counted, start: int, end: int) -> Sequence[Sequence[Any]]:
        """Return instance, vpc_id, run, the first number of a chunk, the least, the greatest and the count of different
        values, and the longest window, of the sessions' rows that ended from start to end; or of all facts, or rows of port
        blocks; or of rows of refusals and events that ended from start to end."""

    @abstractmethod
    def values(self, counted: Counted, key: Key, firsts: Sequence[int], start: int, end: int) -> Sequence[int]:
        """Return all numbers in a run's chunks that begin with these."""

    @abstractmethod
    def session_rows(self, sought: Sought, parts: Sequence[Part], start: int, end: int) -> Sequence[Sequence[Any]]:
        """Return instance, vpc_id, run and COLUMNS (addresses as integers) of the sessions' rows, and the label where the table
        has one ("": none); more of them do no harm."""

    @abstractmethod
    def block_rows(self, sought: Sought, parts: Sequence[Part], start: int, end: int) -> Sequence[Sequence[Any]]:
        """Return instance, vpc_id, run and COLUMNS, with the sequence for the number, of the rows of port blocks with the
        sought address, port and inside address that ended from start to end, and the label as of `session_rows`; more of them
        do no harm."""

    @abstractmethod
    def event_rows(self, start: int, end: int, inside: str | None) -> Sequence[Sequence[Any]]:
        """Return instance, vpc_id, run and EVENT_COLUMNS (addresses as integers, times in microseconds) of the rows of refusals
        and events that ended from start to end; of refusals those of an inside address and of 0.0.0.0, if one is given."""

    # ---- the source ----

    def parts(self, start: int | None = None, end: int | None = None) -> list[Part]:
        """Return one part a run: the numbers of its rows around that time, and its facts. Whole hours are asked for."""
        first = 0 if start is None else max(0, start // HOUR * HOUR)
        last = FOREVER if end is None else -(-end // HOUR) * HOUR
        with self._lock:
            known = self._known.get((first, last))
            if known is not None and self._clock() - known[0] < self._fresh:
                return known[1]
            asked = self._clock()
            found = self._parts(first, last)
            self._known[first, last] = asked, found
            self._known.move_to_end((first, last))
            while len(self._known) > _MOST_REMEMBERED:
                self._known.popitem(last=False)
            return found

    def _parts(self, start: int, end: int) -> list[Part]:
        facts = _records(self.fact_rows(start - HOUR, end + HOUR))
        sequences, _ = self._ranges("facts", 0, FOREVER)
        of_blocks, _ = self._ranges("blocks", 0, FOREVER)
        covers = {key: covers_of(rows) for key, rows in facts.items()}
        numbers: Mapping[Key, tuple[Numbers, ...]] = {}
        longest: Mapping[Key, int] = {}
        for slack in _SLACKS:
            numbers, longest = self._ranges("sessions", start - slack, end + slack)
            if not any(_lacks(covers[key], start, end, numbers.get(key, ())) for key in covers):
                break
        found = []
        for key in sorted({*facts, *numbers, *of_blocks}):
            rows = facts.get(key, np.empty(0, RECORD))
            ranges, blocks = numbers.get(key, ()), of_blocks.get(key, ())
            inside = [each for each in covers.get(key, []) if each.flags or start - HOUR <= each.made <= end + HOUR]
            gaps = {
                tuple(row) for row in rows[rows["kind"] == GAP][["start_time", "end_time", "number", "flags"]].tolist()
            }
            footer = Footer(
                *key, ranges[0][0] if ranges else 0, ranges[-1][1] if ranges else -1, start, end, longest.get(key, 0), None,
                ranges, few_covers(ranges, blocks, inside), NO_FACTS.after(rows, sequences.get(key, ())),
                tuple(LoggedGap(*each) for each in sorted(gaps)), blocks=blocks,
            )  # fmt: skip
            found.append(Part(f"{self.name} {key[0]} {key[2]}", footer))
        return found

    def _ranges(self, counted: Counted, start: int, end: int) -> tuple[dict[Key, tuple[Numbers, ...]], dict[Key, int]]:
        """Return the numbers as ranges by run, and the longest window of these rows."""
        found: dict[Key, list[Numbers]] = defaultdict(list)
        longest: dict[Key, int] = defaultdict(int)
        torn: dict[Key, list[int]] = defaultdict(list)
        for instance, vpc_id, run, chunk, first, last, count, window in self.chunks(counted, start, end):
            key = (instance, vpc_id, run)
            longest[key] = max(longest[key], int(window))
            if int(last) - int(first) + 1 == int(count):
                found[key].append((int(first), int(last)))
            else:
                torn[key].append(int(chunk))
        for key, firsts in torn.items():
            found[key] += [(value, value) for value in map(int, self.values(counted, key, firsts, start, end))]
        return {key: joined_ranges(each) for key, each in found.items()}, longest

    def find(self, sought: Sought, parts: Sequence[Part], start: int, end: int) -> list[FoundRow]:
        """Return the sessions' rows that ended from start to end."""
        names = {(part.footer.instance, part.footer.vpc_id, part.footer.run): part.name for part in parts}
        found = []
        for instance, vpc_id, run, *values in self.session_rows(sought, parts, start, end):
            part = names.get((instance, vpc_id, run))
            if part is None:  # a run that began meanwhile: nothing is known of it yet
                continue
            row = _row(instance, vpc_id, run, values)
            if start <= row.end <= end and sought.fits(row):
                found.append(FoundRow(part, row))
        return without_redacted_copies(sought, parts, found)

    def find_blocks(self, sought: Sought, parts: Sequence[Part], start: int, end: int) -> list[FoundRow]:
        """Return the rows of the port blocks with the sought address, port and inside address that ended from start to end."""
        names = {(part.footer.instance, part.footer.vpc_id, part.footer.run): part.name for part in parts}
        found = []
        for instance, vpc_id, run, *values in self.block_rows(sought, parts, start, end):
            row = _row(instance, vpc_id, run, values)
            if (instance, vpc_id, run) in names and start <= row.end <= end and sought.is_in_block(row):
                found.append(FoundRow(names[instance, vpc_id, run], row))
        return found

    def find_events(self, start: int, end: int, inside: str | None) -> FoundEvents:
        """Return the rows of refusals and events that ended from start to end."""
        ranges, _ = self._ranges("events", start, end)
        sequences: dict[tuple[str, str], list[Numbers]] = defaultdict(list)
        for (instance, _, run), told in ranges.items():
            sequences[instance, run] += told
        rows = []
        for instance, vpc_id, run, *values in self.event_rows(start, end, inside):
            sequence, kind, flags, protocol, pri_ip, pub_ip, pub_port, nat_ip, count, began, ended = map(int, values)
            rows.append(
                EventRow(instance, vpc_id, run, sequence, KINDS[kind], flags, protocol, format_ipv4(pri_ip),
                         format_ipv4(pub_ip), pub_port, format_ipv4(nat_ip), count, began, ended)
            )  # fmt: skip
        return FoundEvents(rows, sequences)


def _row(instance: str, vpc_id: str, run: str, values: Sequence[Any]) -> Row:
    """Return a row. values: of COLUMNS, and perhaps the label."""
    number, kind, protocol, pri_ip, pri_port, pub_ip, pub_port, nat_ip, nat_port, eip, began, ended, session = (
        int(value) for value in values[: len(COLUMNS)]
    )
    label = values[len(COLUMNS)] or None if len(values) > len(COLUMNS) else None
    remote = format_ipv4(pub_ip)
    return Row(
        instance, vpc_id, run, number, KINDS[kind], protocol, format_ipv4(pri_ip), pri_port,
        None if remote == REDACTED else remote, pub_port, format_ipv4(nat_ip), nat_port, format_ipv4(eip) if eip else None,
        began, ended, session, label=label,
    )  # fmt: skip


def _records(rows: Sequence[Sequence[Any]]) -> dict[Key, Records]:
    """Return RECORD (n,) by run, facts in their order."""
    by_run: dict[Key, list[Sequence[Any]]] = defaultdict(list)
    for instance, vpc_id, run, *values in rows:
        by_run[instance, vpc_id, run].append(values)
    found = {}
    for key, told in by_run.items():
        records = np.zeros(len(told), RECORD)
        for name, column in zip(FIELDS, zip(*told, strict=True), strict=True):
            records[name] = [int(value) for value in column]
        found[key] = records[np.lexsort((records["kind"], records["pkts_from_vpc"]))]
    return found


def _lacks(covers: Sequence[Cover], start: int, end: int, ranges: Sequence[Numbers]) -> bool:
    """Return whether a number is missing between the cover rows around the time that is asked for."""
    near = [each.number for each in covers if start - HOUR <= each.made <= end + HOUR]
    return bool(near) and bool(missing_numbers([(min(near), max(near) - 1)] if min(near) < max(near) else [], ranges))


def wire_addresses(address: str, parts: Sequence[Part]) -> list[str] | None:
    """Return the addresses on the wire that may stand for an address, by the entries; None: entries are not all known."""
    asked = int(parse_ipv4(address, "address"))
    found = {address}
    for part in parts:
        if part.footer.ranges and not part.footer.facts.whole:
            return None
        for entry in part.footer.facts.entries:
            if entry.eip and entry.eip <= asked <= entry.eip + entry.last_ip - entry.first_ip:
                found.add(format_ipv4(entry.first_ip + asked - entry.eip))
    return sorted(found)

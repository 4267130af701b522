"""The session log in ClickHouse, for queries: a `Source` over the table of a ClickHouseSink, by HTTP.

A run's rows in a stretch of time are one part. Its numbers are counted by the server in chunks: a chunk without a missing
number is one range, and of the others the numbers themselves are read. Whatever the server's answer lacks is a gap.
"""

from __future__ import annotations

import json
import re
import ssl
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np

from natcore.dtypes import FIELDS, GAP, RECORD, format_ipv4
from natcore.errors import ConfigurationError, Error
from natcore.internal.http_request import post
from natcore.internal.redaction import show
from natcore.internal.validation import check_number, check_optional_text, check_url, parse_ipv4
from natcore.sessionlog.facts import NO_FACTS, Cover, InForce, covers_of
from natcore.sessionlog.file_metadata import Footer, LoggedGap, Numbers, few_covers, joined_ranges, missing_numbers
from natcore.sinks.base import ADDRESSES, KINDS, TIMES, Records
from natcore.who.conclude import Row
from natcore.who.source import REDACTED, FoundRow, Part, Sought, Source, without_redacted_copies

HOUR = 3_600_000_000  # microseconds
_CHUNK = 1 << 16  # numbers
_SLACKS = (HOUR, 49 * HOUR)  # around the time that is asked for: rows come in the order of their ends, but for these
_MOST_REMEMBERED = 64  # stretches of time
_SESSION_KINDS = "('window', 'create', 'end')"
_FACT_KINDS = "('gap', 'cover', 'entry', 'setting', 'clock')"
_SETTINGS = {  # an exception has a status of its own, and no part of an answer is taken for the whole
    "wait_end_of_query": "1", "default_format": "JSONCompact", "output_format_json_quote_64bit_integers": "1",
    "result_overflow_mode": "throw", "read_overflow_mode": "throw", "timeout_overflow_mode": "throw",
    "skip_unavailable_shards": "0",
}  # fmt: skip
_RECORD_COLUMNS = tuple(name for name in FIELDS)

Key = tuple[str, str, str]  # instance, vpc_id, run


class ClickHouseSource(Source):
    """The rows of a ClickHouseSink's table. The user needs SELECT, and a profile that is not `readonly = 1`.

    Parameters
    ----------
    url
        "http://host:8123" or "https://host:8443".
    table, database
        Their names: letters, digits and '_'.
    user, password
        None: the server's default.
    timeout
        Seconds of a request, 0.1 to 3,600.
    fresh
        Seconds, 0 to 86,400, for which what is known of a stretch of time is not asked again: rows that come meanwhile are
        found, but a gap that they close is told a while longer.
    clock
        Seconds of any origin; for tests.

    Raises
    ------
    ConfigurationError
        A name that is none, a value out of range.
    """

    def __init__(
        self,
        url: str,
        *,
        table: str = "session_log",
        database: str = "default",
        user: str | None = None,
        password: str | None = None,
        timeout: float = 60.0,
        fresh: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = check_url("url", url)
        for name, value in (("table", table), ("database", database)):
            if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_]\w{0,127}", value, re.ASCII):
                raise ConfigurationError(f"{name} must be letters, digits and '_', got {show(value)}")
        check_number("timeout", timeout, 0.1, 3600, unit="seconds")
        check_number("fresh", fresh, 0, 86_400, unit="seconds")
        check_optional_text("user", user)
        check_optional_text("password", password)
        self.name, self._table = f"{database}.{table}", f"`{database}`.`{table}`"
        self._timeout, self._fresh, self._clock = timeout, fresh, clock
        named = {"X-ClickHouse-User": user, "X-ClickHouse-Key": password}
        self._login = {name: value for name, value in named.items() if value is not None}
        self._tls = ssl.create_default_context() if urlsplit(url).scheme == "https" else None
        self._has_types: bool | None = None
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[int, int], tuple[float, list[Part]]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<ClickHouseSource {self._url} {self.name}>"

    # ---- what the log has ----

    def parts(self, start: int | None = None, end: int | None = None) -> list[Part]:
        """Return one part a run: the numbers of its rows around that time, and its facts. Whole hours are asked for."""
        first = 0 if start is None else max(0, start // HOUR * HOUR)
        last = 1 << 61 if end is None else -(-end // HOUR) * HOUR
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
        facts, sequences = self._facts(start - HOUR, end + HOUR), self._sequences()
        numbers: dict[Key, list[Numbers]] = {}
        longest: dict[Key, int] = {}
        covers = {key: covers_of(rows) for key, rows in facts.items()}
        for slack in _SLACKS:
            numbers, longest = self._numbers(start - slack, end + slack)
            if not any(_lacks(covers[key], start, end, numbers.get(key, [])) for key in covers):
                break
        found = []
        for key in sorted({*facts, *numbers}):
            rows = facts.get(key, np.empty(0, RECORD))
            ranges = joined_ranges(numbers.get(key, []))
            inside = [each for each in covers.get(key, []) if each.flags or start - HOUR <= each.made <= end + HOUR]
            in_force: InForce = NO_FACTS.after(rows, sequences.get(key, ()))
            gaps = {
                tuple(row) for row in rows[rows["kind"] == GAP][["start_time", "end_time", "number", "flags"]].tolist()
            }
            footer = Footer(
                *key, ranges[0][0] if ranges else 0, ranges[-1][1] if ranges else -1, start, end, longest.get(key, 0), None,
                ranges, few_covers(ranges, inside), in_force, tuple(LoggedGap(*each) for each in sorted(gaps)),
            )  # fmt: skip
            found.append(Part(f"{self.name} {key[0]} {key[2]}", footer))
        return found

    def _facts(self, start: int, end: int) -> dict[Key, Records]:
        """Return RECORD (n,) by run, in order: gap rows and facts of all times, but of the cover rows those with flags, and
        those from start to end."""
        columns = ", ".join(self._output(name) for name in _RECORD_COLUMNS)
        rows = self._select(
            f"SELECT instance, vpc_id, run, {columns} FROM {self._table} WHERE kind IN {_FACT_KINDS} "
            f"AND (kind != 'cover' OR flags != 0 OR ({self._within(start, end)}))"
        )
        by_run: dict[Key, list[list[Any]]] = defaultdict(list)
        for instance, vpc_id, run, *values in rows:
            by_run[instance, vpc_id, run].append(values)
        found = {}
        for key, told in by_run.items():
            records = np.zeros(len(told), RECORD)
            for name, column in zip(_RECORD_COLUMNS, zip(*told, strict=True), strict=True):
                records[name] = [int(value) for value in column]
            found[key] = records[np.lexsort((records["kind"], records["pkts_from_vpc"]))]
        return found

    def _sequences(self) -> dict[Key, tuple[Numbers, ...]]:
        """Return which facts of each run are there, by their sequences."""
        return self._ranges("pkts_from_vpc", "kind IN ('cover', 'entry', 'setting', 'clock')")[0]

    def _numbers(self, start: int, end: int) -> tuple[dict[Key, list[Numbers]], dict[Key, int]]:
        """Return the numbers of the sessions' rows that ended from start to end, and the longest window."""
        ranges, longest = self._ranges("number", f"kind IN {_SESSION_KINDS} AND {self._within(start, end)}")
        return {key: list(each) for key, each in ranges.items()}, longest

    def _ranges(self, column: str, where: str) -> tuple[dict[Key, tuple[Numbers, ...]], dict[Key, int]]:
        """Return the values of a column as ranges by run, and the longest window of these rows."""
        length = f"if(kind = 'window', {self._micros('end_time')} - {self._micros('start_time')}, 0)"
        rows = self._select(
            f"SELECT instance, vpc_id, run, intDiv({column}, {_CHUNK}) AS chunk, min({column}), max({column}), "
            f"uniqExact({column}), max({length}) FROM {self._table} WHERE {where} GROUP BY instance, vpc_id, run, chunk"
        )
        found: dict[Key, list[Numbers]] = defaultdict(list)
        longest: dict[Key, int] = defaultdict(int)
        torn: dict[Key, list[int]] = defaultdict(list)
        for instance, vpc_id, run, chunk, first, last, count, window in rows:
            key = (instance, vpc_id, run)
            longest[key] = max(longest[key], int(window))
            if int(last) - int(first) + 1 == int(count):
                found[key].append((int(first), int(last)))
            else:
                torn[key].append(int(chunk))
        for key, chunks in torn.items():
            here = f"instance = {_quoted(key[0])} AND vpc_id = {_quoted(key[1])} AND run = {_quoted(key[2])}"
            inside = f"intDiv({column}, {_CHUNK}) IN ({', '.join(map(str, chunks))})"
            told = self._select(f"SELECT DISTINCT {column} FROM {self._table} WHERE {here} AND {inside} AND {where}")
            found[key] += [(int(value), int(value)) for (value,) in told]
        return {key: joined_ranges(each) for key, each in found.items()}, longest

    # ---- rows ----

    def find(self, sought: Sought, parts: Sequence[Part], start: int, end: int) -> list[FoundRow]:
        """Return the sessions' rows that ended from start to end."""
        names = {(part.footer.instance, part.footer.vpc_id, part.footer.run): part.name for part in parts}
        columns = ("number", "kind", "protocol", "pri_ip", "pri_port", "pub_ip", "pub_port", "nat_ip", "nat_port", "eip",
                   "start_time", "end_time", "session")  # fmt: skip
        told = self._select(
            f"SELECT instance, vpc_id, run, {', '.join(map(self._output, columns))} FROM {self._table} "
            f"WHERE kind IN {_SESSION_KINDS} AND {self._within(start, end)}{self._conditions(sought, parts)}"
        )
        found = []
        for instance, vpc_id, run, *values in told:
            part = names.get((instance, vpc_id, run))
            if part is None:  # a run that began meanwhile: nothing is known of it yet
                continue
            number, kind, protocol, pri_ip, pri_port, pub_ip, pub_port, nat_ip, nat_port, eip, began, ended, session = (
                int(value) for value in values
            )
            remote = format_ipv4(pub_ip)
            row = Row(
                instance, vpc_id, run, number, KINDS[kind], protocol, format_ipv4(pri_ip), pri_port,
                None if remote == REDACTED else remote, pub_port, format_ipv4(nat_ip), nat_port,
                format_ipv4(eip) if eip else None, began, ended, session,
            )  # fmt: skip
            if start <= ended <= end and sought.fits(row):
                found.append(FoundRow(part, row))
        return without_redacted_copies(sought, parts, found)

    def _conditions(self, sought: Sought, parts: Sequence[Part]) -> str:
        conditions = [
            f" AND {name} = {value}" for name, value in (("nat_port", sought.port), ("protocol", sought.protocol))
            if value is not None
        ]  # fmt: skip
        if sought.inside is not None:
            conditions.append(f" AND pri_ip = {self._address(sought.inside)}")
        if sought.remote is not None:
            conditions.append(f" AND pub_ip IN ({self._address(sought.remote)}, {self._address(REDACTED)})")
        if sought.address is not None:
            own = self._address(sought.address)
            wire = _wire_addresses(sought.address, parts)
            if wire is None:
                conditions.append(f" AND (nat_ip = {own} OR eip = {own})")
            else:
                conditions.append(f" AND nat_ip IN ({', '.join(map(self._address, wire))})")
        return "".join(conditions)

    # ---- SQL ----

    def _types(self) -> bool:
        """Return whether the table has IPv4 and DateTime64 columns, and not UInt32 and Int64."""
        if self._has_types is None:
            described = {row[0]: row[1] for row in self._select(f"DESCRIBE TABLE {self._table}")}
            if "end_time" not in described:
                raise Error(f"{self._url}: {self.name} is no table of a ClickHouseSink")
            self._has_types = described["end_time"].startswith("DateTime64")
        return self._has_types

    def _micros(self, column: str) -> str:
        return f"toUnixTimestamp64Micro({column})" if self._types() else column

    def _output(self, column: str) -> str:
        if column in TIMES:
            return self._micros(column)
        if column == "kind":
            return "CAST(kind, 'Int8')"
        return f"CAST({column}, 'UInt32')" if column in ADDRESSES else column

    def _within(self, start: int, end: int) -> str:
        first, last = max(0, start), min(end, 1 << 52)  # the year 2112
        if not self._types():
            return f"end_time >= {first} AND end_time <= {last}"
        moments = [f"fromUnixTimestamp64Micro(CAST({each}, 'Int64'), 'UTC')" for each in (first, last)]
        return f"end_time >= {moments[0]} AND end_time <= {moments[1]}"

    def _address(self, text: str) -> str:
        return f"toIPv4('{text}')" if self._types() else str(int(parse_ipv4(text, "address")))

    def _select(self, query: str) -> list[list[Any]]:
        url = f"{self._url}/?{urlencode(_SETTINGS)}"
        try:
            answer = post(url, query.encode(), self._login, seconds=self._timeout, tls=self._tls)
        except OSError as error:
            raise Error(f"{self._url}: {error}") from error
        if answer.status != 200:
            text = answer.body.decode(errors="replace").strip()[:500]
            raise Error(f"{self._url}: {text or f'HTTP status {answer.status}'}")
        try:
            told = json.loads(answer.body)
            rows: list[list[Any]] = told["data"]
            if len(rows) != int(told["rows"]):
                raise ValueError("rows are missing")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Error(f"{self._url}: the answer is not ClickHouse's: {answer.body[:200]!r}") from error
        return rows


def _lacks(covers: Sequence[Cover], start: int, end: int, ranges: Sequence[Numbers]) -> bool:
    """Return whether a number is missing between the cover rows around the time that is asked for."""
    near = [each.number for each in covers if start - HOUR <= each.made <= end + HOUR]
    return bool(near) and bool(missing_numbers([(min(near), max(near) - 1)] if min(near) < max(near) else [], ranges))


def _wire_addresses(address: str, parts: Sequence[Part]) -> list[str] | None:
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


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

"""The session log in ClickHouse, for queries: a `Source` over the table of a ClickHouseSink, by HTTP."""

from __future__ import annotations

import json
import re
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlencode, urlsplit

from natcore.dtypes import BLOCK_ALLOCATED, BLOCK_RELEASED, EVENT_COVER, FIELDS, REFUSAL
from natcore.errors import ConfigurationError, Error
from natcore.internal.http_request import post
from natcore.internal.redaction import show
from natcore.internal.validation import check_number, check_optional_text, check_url, parse_ipv4
from natcore.sinks.base import ADDRESSES, TIMES
from natcore.who.source import REDACTED, Part, Sought
from natcore.who.table_source import (
    CHUNK,
    COLUMNS,
    EVENT_COLUMNS,
    FOREVER,
    NUMBER_OF,
    Counted,
    Key,
    TableSource,
    wire_addresses,
)

_SESSION_KINDS = "('window', 'create', 'end')"
_BLOCK_KINDS = f"({BLOCK_ALLOCATED:d}, {BLOCK_RELEASED:d})"  # numbers: a table of before has no words for them
_FACT_KINDS = "('gap', 'cover', 'entry', 'setting', 'clock')"
_OF_BLOCKS = f"CAST(kind, 'Int8') IN {_BLOCK_KINDS}"
_OF_EVENTS = f"CAST(kind, 'Int8') BETWEEN {REFUSAL:d} AND {EVENT_COVER:d}"
_SETTINGS = {  # an exception has a status of its own, and no part of an answer is taken for the whole
    "wait_end_of_query": "1", "default_format": "JSONCompact", "output_format_json_quote_64bit_integers": "1",
    "result_overflow_mode": "throw", "read_overflow_mode": "throw", "timeout_overflow_mode": "throw",
    "skip_unavailable_shards": "0",
}  # fmt: skip


class ClickHouseSource(TableSource):
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
        check_optional_text("user", user)
        check_optional_text("password", password)
        super().__init__(f"{database}.{table}", fresh, clock)
        self._table, self._timeout = f"`{database}`.`{table}`", timeout
        named = {"X-ClickHouse-User": user, "X-ClickHouse-Key": password}
        self._login = {name: value for name, value in named.items() if value is not None}
        self._tls = ssl.create_default_context() if urlsplit(url).scheme == "https" else None
        self._described: dict[str, str] = {}  # the types of its columns

    def __repr__(self) -> str:
        return f"<ClickHouseSource {self._url} {self.name}>"

    # ---- what the table is asked ----

    def fact_rows(self, start: int, end: int) -> list[list[Any]]:
        """Return the rows that are no session's."""
        columns = ", ".join(map(self._output, FIELDS))
        return self._select(
            f"SELECT instance, vpc_id, run, {columns} FROM {self._table} WHERE kind IN {_FACT_KINDS} "
            f"AND (kind != 'cover' OR flags != 0 OR ({self._within(start, end)}))"
        )

    def chunks(self, counted: Counted, start: int, end: int) -> list[list[Any]]:
        """Return the chunks of numbers."""
        column = NUMBER_OF[counted]
        length = f"if(kind = 'window', {self._micros('end_time')} - {self._micros('start_time')}, 0)"
        return self._select(
            f"SELECT instance, vpc_id, run, intDiv({column}, {CHUNK}) * {CHUNK} AS chunk, min({column}), max({column}), "
            f"uniqExact({column}), max({length}) FROM {self._table} WHERE {self._counted(counted, start, end)} "
            "GROUP BY instance, vpc_id, run, chunk"
        )

    def values(self, counted: Counted, key: Key, firsts: Sequence[int], start: int, end: int) -> list[int]:
        """Return the numbers of a run's chunks."""
        column = NUMBER_OF[counted]
        here = f"instance = {_quoted(key[0])} AND vpc_id = {_quoted(key[1])} AND run = {_quoted(key[2])}"
        inside = f"intDiv({column}, {CHUNK}) * {CHUNK} IN ({', '.join(map(str, firsts))})"
        told = self._select(
            f"SELECT DISTINCT {column} FROM {self._table} WHERE {here} AND {inside} AND {self._counted(counted, start, end)}"
        )
        return [int(value) for (value,) in told]

    def _counted(self, counted: Counted, start: int, end: int) -> str:
        if counted == "sessions":
            return f"kind IN {_SESSION_KINDS} AND {self._within(start, end)}"
        if counted == "events":
            return f"{_OF_EVENTS} AND {self._within(start, end)}"
        return _OF_BLOCKS if counted == "blocks" else "kind IN ('cover', 'entry', 'setting', 'clock')"

    def session_rows(self, sought: Sought, parts: Sequence[Part], start: int, end: int) -> list[list[Any]]:
        """Return the sessions' rows."""
        return self._select(
            f"SELECT instance, vpc_id, run, {', '.join(map(self._output, COLUMNS))}{self._label()} FROM {self._table} "
            f"WHERE kind IN {_SESSION_KINDS} AND {self._within(start, end)}{self._conditions(sought, parts)}"
        )

    def block_rows(self, sought: Sought, parts: Sequence[Part], start: int, end: int) -> list[list[Any]]:
        """Return the rows of port blocks."""
        columns = ", ".join(self._output("pkts_from_vpc" if name == "number" else name) for name in COLUMNS)
        within = "" if sought.port is None else f" AND nat_port <= {sought.port} AND pub_port >= {sought.port}"
        of_host = self._conditions(Sought(sought.address, inside=sought.inside), parts)
        return self._select(
            f"SELECT instance, vpc_id, run, {columns}{self._label()} FROM {self._table} "
            f"WHERE {_OF_BLOCKS} AND {self._within(start, end)}{within}{of_host}"
        )

    def event_rows(self, start: int, end: int, inside: str | None) -> list[list[Any]]:
        """Return the rows of refusals and events."""
        several = f"({self._address('0.0.0.0')}, {self._address(inside)})" if inside is not None else ""
        of_inside = f" AND (CAST(kind, 'Int8') != {REFUSAL:d} OR pri_ip IN {several})" if several else ""
        return self._select(
            f"SELECT instance, vpc_id, run, {', '.join(map(self._output, EVENT_COLUMNS))} FROM {self._table} "
            f"WHERE {_OF_EVENTS} AND {self._within(start, end)}{of_inside}"
        )

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
            wire = wire_addresses(sought.address, parts)
            if wire is None:
                conditions.append(f" AND (nat_ip = {own} OR eip = {own})")
            else:
                conditions.append(f" AND nat_ip IN ({', '.join(map(self._address, wire))})")
        return "".join(conditions)

    # ---- SQL ----

    def _types(self) -> bool:
        """Return whether the table has IPv4 and DateTime64 columns, and not UInt32 and Int64."""
        return self._columns()["end_time"].startswith("DateTime64")

    def _label(self) -> str:
        """Return what selects the label, where the table has one: one of before has none."""
        return ", label" if "label" in self._columns() else ""

    def _columns(self) -> dict[str, str]:
        if not self._described:
            described = {row[0]: row[1] for row in self._select(f"DESCRIBE TABLE {self._table}")}
            if "end_time" not in described:
                raise Error(f"{self._url}: {self.name} is no table of a ClickHouseSink")
            self._described = described
        return self._described

    def _micros(self, column: str) -> str:
        return f"toUnixTimestamp64Micro({column})" if self._types() else column

    def _output(self, column: str) -> str:
        if column in TIMES:
            return self._micros(column)
        if column == "kind":
            return "CAST(kind, 'Int8')"
        return f"CAST({column}, 'UInt32')" if column in ADDRESSES else column

    def _within(self, start: int, end: int) -> str:
        first, last = max(0, start), min(end, FOREVER)
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


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

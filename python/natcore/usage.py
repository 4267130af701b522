"""The session log as figures: who uses most, how many ports are in use, and rows for other programs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from .config import Address, check_choice, check_integer, check_number, parse_ipv4
from .durable import replaced
from .errors import ConfigurationError
from .question import LONGEST_IDLE
from .store import Store

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ISO = "TIMESTAMPFORMAT '%Y-%m-%dT%H:%M:%S.%fZ'"
FORMATS = {
    ".csv": f"FORMAT csv, HEADER, {_ISO}",
    ".jsonl": f"FORMAT json, {_ISO}",
    ".parquet": "FORMAT parquet, COMPRESSION zstd",
}
_MOST_STEPS = 100_000
_LONGEST_WINDOW = 14_400_000_000  # microseconds, of a gateway
_IN_RANGE = "end_time >= make_timestamptz($from) AND end_time < make_timestamptz($until)"

Default = TypeVar("Default", int, None)
By = Literal["bytes", "sessions", "ports"]


@dataclass(frozen=True, slots=True)
class Talker:
    """A subscriber's part: bytes and packets both ways, sessions, and outside ports that it used at some time."""

    instance: str
    pri_ip: IPv4Address
    bytes_from_vpc: int
    bytes_from_pub: int
    packets: int
    sessions: int
    ports: int

    @property
    def bytes(self) -> int:
        return self.bytes_from_vpc + self.bytes_from_pub


class Range(NamedTuple):
    """Microseconds since 1970; a row belongs to where it ended, so that ranges side by side count each row once."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class PortUsage:
    """Ports of an outside address in use, the most at a time in each step; peaks[n] from start + n * step on."""

    address: IPv4Address
    protocol: int
    start: datetime
    step: timedelta
    peaks: tuple[int, ...]

    @property
    def times(self) -> list[datetime]:
        return [self.start + n * self.step for n in range(len(self.peaks))]


def range_of(start: datetime | None, end: datetime | None) -> Range:
    """None: without a bound. Raises ConfigurationError: a time without a zone, an end that is not after the start."""
    chosen = Range(_micros("start", start, 0), _micros("end", end, 1 << 61))
    if chosen.end <= chosen.start:
        raise ConfigurationError(f"end={end!r}: allowed is a time after start={start!r}")
    return chosen


def top(
    store: Store, *, by: By = "bytes", start: datetime | None = None, end: datetime | None = None, limit: int = 10
) -> list[Talker]:
    """The subscribers with most bytes, sessions or ports, of the rows that ended from start until end."""
    check_choice("by", by, ("bytes", "sessions", "ports"))
    check_integer("limit", limit, 1, 1_000_000)
    rows = _select(
        store,
        range_of(start, end),
        f"""
        SELECT instance, pri_ip, sum(bytes_from_vpc)::BIGINT AS from_vpc, sum(bytes_from_pub)::BIGINT AS from_pub,
               sum(pkts_from_vpc + pkts_from_pub)::BIGINT AS packets, count(DISTINCT (run, session)) AS sessions,
               count(DISTINCT (nat_ip, protocol, nat_port)) AS ports
        FROM read_parquet($files) WHERE kind = 'window' AND {_IN_RANGE}
        GROUP BY instance, pri_ip ORDER BY {"from_vpc + from_pub" if by == "bytes" else by} DESC, pri_ip LIMIT $limit
        """,
        limit=limit,
    )
    return [Talker(instance, IPv4Address(pri_ip), *counts) for instance, pri_ip, *counts in rows]


# A session holds its port from its first row's start to its end; one whose end is not told, as far as its run's rows go.
# Sessions of one port that overlap are one use of it (island); each use is one more at its start and one less at its end.
_USAGE = """
    WITH seen AS (
        SELECT run, session, nat_ip, protocol, nat_port, min(start_time) AS began,
               max(end_time) FILTER (kind = 'end') AS ended
        FROM read_parquet($files) WHERE kind <> 'gap' GROUP BY ALL
    ), runs AS (
        SELECT run, max(end_time) AS known FROM read_parquet($files) GROUP BY run
    ), held AS (
        SELECT nat_ip, protocol, nat_port, began, coalesce(ended, known) AS ended FROM seen JOIN runs USING (run)
    ), marked AS (
        SELECT *, began > max(ended) OVER (PARTITION BY nat_ip, protocol, nat_port ORDER BY began
                                           ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS is_new FROM held
    ), numbered AS (
        SELECT *, count(*) FILTER (is_new) OVER (PARTITION BY nat_ip, protocol, nat_port ORDER BY began
                                                 ROWS UNBOUNDED PRECEDING) AS island FROM marked
    ), islands AS (
        SELECT nat_ip, protocol, min(began) AS began, max(ended) AS ended FROM numbered
        GROUP BY nat_ip, protocol, nat_port, island
    ), changes AS (
        SELECT nat_ip, protocol, began AS time, 1 AS change FROM islands
        UNION ALL SELECT nat_ip, protocol, ended, -1 FROM islands
    ), counted AS (
        SELECT nat_ip, protocol, time, change, sum(change) OVER (PARTITION BY nat_ip, protocol ORDER BY time, change DESC
                                                         ROWS UNBOUNDED PRECEDING) AS used FROM changes
    )
    SELECT nat_ip, protocol, (epoch_us(time) - $from) // $step AS step, max(used)::BIGINT,
           arg_max(used, (time, -change))::BIGINT
    FROM counted WHERE time < make_timestamptz($until) GROUP BY ALL ORDER BY ALL
"""


def port_usage(
    store: Store,
    *,
    step: float = 300.0,
    start: datetime | None = None,
    end: datetime | None = None,
    address: Address | None = None,
    longest_idle: float = LONGEST_IDLE,
) -> list[PortUsage]:
    """For each outside address (as on the wire) and protocol the ports in use, the most at a time in each `step` seconds.

    start, end: None: the first and the last row's time. address: this one only. longest_idle: as in `query.who`.
    """
    check_number("step", step, 1, 86_400 * 366, unit="seconds")
    asked = None if address is None else str(parse_ipv4(address, "address"))
    width = round(step * 1e6)
    before = round(longest_idle * 1e6) + _LONGEST_WINDOW  # a session that is alive at the start has a row since then
    files = store.files(None if start is None else _micros("start", start, 0) - before, _micros("end", end, None))
    bounds = [time for file in files for time in (file.footer.first_time, file.footer.last_time)]
    first, last = (min(bounds), max(bounds)) if bounds else (0, 0)
    chosen = Range(_micros("start", start, first) // width * width, _micros("end", end, last + 1))
    files = [each for each in files if each.footer.last_time >= chosen.start - before]
    files = [each for each in files if each.footer.first_time <= chosen.end]
    steps = -(-(chosen.end - chosen.start) // width)
    if not 0 < steps <= _MOST_STEPS:
        raise ConfigurationError(f"step={step!r}: makes {steps} steps; allowed are 1 to {_MOST_STEPS}")
    values = {"files": [file.path for file in files], "from": chosen.start, "until": chosen.end, "step": width}
    found: dict[tuple[str, int], list[tuple[int, int, int]]] = {}
    for nat_ip, protocol, *counts in store.sql(_USAGE, values) if files else ():
        if asked in (None, nat_ip):
            found.setdefault((nat_ip, protocol), []).append((counts[0], counts[1], counts[2]))
    begin, length = _EPOCH + timedelta(microseconds=chosen.start), timedelta(microseconds=width)
    return [
        PortUsage(IPv4Address(nat_ip), protocol, begin, length, tuple(_filled(counts, steps)))
        for (nat_ip, protocol), counts in sorted(found.items(), key=lambda item: (IPv4Address(item[0][0]), item[0][1]))
    ]


def export(
    store: Store, target: str | os.PathLike[str], *, start: datetime | None = None, end: datetime | None = None
) -> int:
    """Write the rows that ended from start until end into a file, .csv, .jsonl or .parquet; -> how many.

    In the order of their runs and numbers, all kinds of rows. The file is private (0600), and whole or not there.
    """
    path = Path(target)
    form = FORMATS.get(path.suffix)
    if form is None:
        raise ConfigurationError(f"target={str(target)!r}: allowed are files that end in {', '.join(FORMATS)}")
    chosen = range_of(start, end)
    draft = path.with_name(f".{path.name}.export")
    rows = f"SELECT * FROM read_parquet($files) WHERE {_IN_RANGE} ORDER BY run, number"
    quoted = str(draft).replace("'", "''")
    with replaced(draft) as empty:  # private from its first byte
        empty.write(b"")
    try:
        found = _select(store, chosen, f"COPY ({rows}) TO '{quoted}' ({form}, USE_TMP_FILE false)")
        if not found:
            raise ConfigurationError(f"store={str(store.folder)!r}: it has no files of that time")
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)
    return int(found[0][0])


def _select(store: Store, chosen: Range, statement: str, **values: Any) -> list[Any]:
    """Over the files that may have rows which ended in the range."""
    files = store.files(chosen.start, chosen.end)
    near = [
        file.path for file in files if file.footer.first_time < chosen.end and file.footer.last_time >= chosen.start
    ]
    return store.sql(statement, {**values, "files": near, "from": chosen.start, "until": chosen.end})


def _filled(counts: Iterable[tuple[int, int, int]], steps: int) -> Iterator[int]:
    """The peak of each step, from (step, most, last) of those in which something changed; those before 0 give the start."""
    changed = {step: (most, last) for step, most, last in counts}
    before = [step for step in changed if step < 0]
    used = changed[max(before)][1] if before else 0
    for step in range(steps):
        most, last = changed.get(step, (used, used))
        yield max(most, used)
        used = last


def _micros(name: str, time: datetime | None, default: Default) -> int | Default:
    if time is None:
        return default
    if not isinstance(time, datetime) or time.tzinfo is None:
        raise ConfigurationError(f"{name}={time!r}: allowed is a datetime with its time zone")
    return (time - _EPOCH) // timedelta(microseconds=1)

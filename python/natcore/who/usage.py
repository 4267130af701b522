"""Figures of the session log: top subscribers, ports in use, and export for other programs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import wraps
from ipaddress import IPv4Address
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args

import numpy as np
from numpy.typing import NDArray

from natcore.config import Address, check_choice, check_integer, check_number, parse_ipv4
from natcore.errors import ConfigurationError
from natcore.internal.files import replaced
from natcore.internal.redaction import show
from natcore.internal.validation import either
from natcore.who.question import LONGEST_IDLE
from natcore.who.source import DamagedPart, Part
from natcore.who.store import Store

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ISO = "TIMESTAMPFORMAT '%Y-%m-%dT%H:%M:%S.%fZ'"
FORMATS = {
    ".csv": f"FORMAT csv, HEADER, {_ISO}",
    ".jsonl": f"FORMAT json, {_ISO}",
    ".parquet": "FORMAT parquet, COMPRESSION zstd",
}
_MOST_STEPS = 100_000
_LONGEST_WINDOW = 14_400_000_000  # microseconds, of a gateway
_KINDS = "kind IN ('window', 'create', 'end', 'gap')"  # not those about the log itself
_IN_RANGE = "end_time >= make_timestamptz($from) AND end_time < make_timestamptz($until)"

Default = TypeVar("Default", int, None)
Numbers = NDArray[np.int64]
By = Literal["bytes", "sessions", "ports"]


@dataclass(frozen=True, slots=True)
class Talker:
    """A subscriber's part of the traffic.

    Attributes
    ----------
    instance
        The gateway's.
    pri_ip
        The inside address.
    bytes_from_vpc, bytes_from_pub, packets
        Bytes of each direction, packets of both.
    sessions, ports
        Sessions, and outside ports that it used at some time.
    """

    instance: str
    pri_ip: IPv4Address
    bytes_from_vpc: int
    bytes_from_pub: int
    packets: int
    sessions: int
    ports: int

    @property
    def bytes(self) -> int:
        """Bytes both ways."""
        return self.bytes_from_vpc + self.bytes_from_pub


class Range(NamedTuple):
    """A range in microseconds since 1970. A row belongs to the time of its end, so adjacent ranges count it once."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class PortUsage:
    """Ports of an outside address and protocol in use, the most at a time in each step.

    Attributes
    ----------
    address, protocol
        The outside address as on the wire, and the IANA number.
    start, step
        When the first step begins, and how long each is.
    peaks
        peaks[n] is the most ports at a time from start + n * step on.
    """

    address: IPv4Address
    protocol: int
    start: datetime
    step: timedelta
    peaks: tuple[int, ...]

    @property
    def times(self) -> list[datetime]:
        """The begin of each step."""
        return [self.start + n * self.step for n in range(len(self.peaks))]


Call = TypeVar("Call", bound=Callable[..., Any])


def _retried(read: Call) -> Call:
    """Call the function again if files have moved meanwhile."""

    @wraps(read)
    def again(store: Store, *args: Any, **more: Any) -> Any:
        return store.retried(lambda: read(store, *args, **more))

    return cast(Call, again)


def range_of(start: datetime | None, end: datetime | None) -> Range:
    """Return the range; None: no bound. Raises ConfigurationError: a time without a zone, an end not after the start."""
    chosen = Range(_micros("start", start, 0), _micros("end", end, 1 << 61))
    if chosen.end <= chosen.start:
        raise ConfigurationError(f"end must be after start ({show(start)}), got {show(end)}")
    return chosen


@_retried
def top(
    store: Store, *, by: By = "bytes", start: datetime | None = None, end: datetime | None = None, limit: int = 10
) -> list[Talker]:
    """The subscribers with most bytes, sessions or ports.

    Parameters
    ----------
    store
        The folder, as a `Store`.
    by
        "bytes", "sessions" or "ports".
    start, end
        Rows that ended from start until end, with a time zone; None: all.
    limit
        Subscribers at most, 1 to 1,000,000.

    Returns
    -------
    list of Talker
        The most first.
    """
    check_choice("by", by, get_args(By))
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


# key: an address's place in the list, protocol and port in one number.
_HELD = """
    SELECT session::BIGINT AS session, kind = 'end' AS is_end, epoch_us(start_time) AS began, epoch_us(end_time) AS ended,
           list_position($addresses, nat_ip)::BIGINT * 16777216 + protocol::BIGINT * 65536 + nat_port AS key
    FROM read_parquet($files) WHERE kind IN ('window', 'create', 'end') AND list_contains($addresses, nat_ip)
"""
_FILES_AT_ONCE = 16  # about two million rows
_TIME_BITS = 47  # with a port's 16 bits they fit into a number; microseconds of four years, of more years coarser


@_retried
def port_usage(
    store: Store,
    *,
    step: float = 300.0,
    start: datetime | None = None,
    end: datetime | None = None,
    address: Address | None = None,
    longest_idle: float = LONGEST_IDLE,
) -> list[PortUsage]:
    """Ports in use over time, for each outside address and protocol.

    Parameters
    ----------
    store
        The folder, as a `Store`.
    step
        Seconds of a step, 1 to a year.
    start, end
        Times with a time zone; None: the first and the last row's.
    address
        This outside address only, as on the wire; None: all.
    longest_idle
        Seconds that a session may have been idle.

    Returns
    -------
    list of PortUsage
        By address and protocol.
    """
    check_number("step", step, 1, 86_400 * 366, unit="seconds")
    width = round(step * 1e6)
    before = round(longest_idle * 1e6) + _LONGEST_WINDOW  # a session that is alive at the start has a row since then
    files = _whole(store, None if start is None else _micros("start", start, 0) - before, _micros("end", end, None))
    bounds = [time for file in files for time in (file.footer.first_time, file.footer.last_time)]
    first, last = (min(bounds), max(bounds)) if bounds else (0, 0)
    chosen = Range(_micros("start", start, first) // width * width, _micros("end", end, last + 1))
    files = [each for each in files if each.footer.last_time >= chosen.start - before]
    files = [each for each in files if each.footer.first_time <= chosen.end]
    steps = -(-(chosen.end - chosen.start) // width)
    if not 0 < steps <= _MOST_STEPS:
        raise ConfigurationError(
            f"step must make between 1 and {_MOST_STEPS} steps, got {show(step)}, which makes {steps}"
        )
    addresses = _addresses(store, files) if address is None else [str(parse_ipv4(address, "address"))]
    begin, length = _EPOCH + timedelta(microseconds=chosen.start), timedelta(microseconds=width)
    edges = chosen.start + width * np.arange(steps + 1)
    edges[-1] = min(edges[-1], chosen.end)
    found = []
    for key, uses in _by_address(_held(store, files, addresses)):
        if (peaks := _peaks(uses, edges)) is not None:
            found.append(PortUsage(IPv4Address(addresses[(key >> 8) - 1]), key & 0xFF, begin, length, peaks))
    return sorted(found, key=lambda usage: (usage.address, usage.protocol))


def _addresses(store: Store, files: Sequence[Part]) -> list[str]:
    """Return every outside address (as on the wire) in the files."""
    found = {pair.nat_ip for file in files for pair in file.footer.addresses or ()}
    untold = [file.name for file in files if file.footer.addresses is None]
    found |= {row[0] for row in store.sql("SELECT DISTINCT nat_ip FROM read_parquet($files)", {"files": untold})}
    return sorted(found)


class Uses(NamedTuple):
    """The uses of ports, int64 (n,) each: key (see _HELD), begin and end in microseconds since 1970."""

    key: Numbers
    began: Numbers
    ended: Numbers


def _held(store: Store, files: Sequence[Part], addresses: Sequence[str]) -> Uses:
    """Return the use of each session: by its end row; without one it holds its port as far as its run's rows go."""
    found = []
    for _, group in groupby(files, key=attrgetter("run")):  # files come in the order of their rows
        of_run = list(group)
        alive = dict.fromkeys(("session", "key", "began"), np.empty(0, np.int64))
        for first in range(0, len(of_run), _FILES_AT_ONCE):
            paths = [file.name for file in of_run[first : first + _FILES_AT_ONCE]]
            rows = store.columns(_HELD, {"files": paths, "addresses": addresses})
            if not rows:
                continue
            is_end = rows["is_end"]
            found.append(Uses(*(rows[name][is_end] for name in Uses._fields)))
            alive = {name: np.concatenate([alive[name], rows[name][~is_end]]) for name in alive}
            goes_on = np.flatnonzero(~np.isin(alive["session"], rows["session"][is_end]))
            firsts = goes_on[np.unique(alive["session"][goes_on], return_index=True)[1]]
            alive = {name: alive[name][firsts] for name in alive}
        known = max(file.footer.last_time for file in of_run)
        found.append(Uses(alive["key"], alive["began"], np.full(len(alive["key"]), known)))
    return Uses(*map(np.concatenate, zip(*found, strict=True))) if found else Uses(*(np.empty(0, np.int64),) * 3)


def _by_address(held: Uses) -> Iterator[tuple[int, Uses]]:
    """Yield (address and protocol, the uses of its ports)."""
    places, counts = np.unique(held.key >> 16, return_counts=True)
    which = np.searchsorted(places, held.key >> 16).astype(np.min_scalar_type(len(places)))
    order = np.argsort(which, kind="stable")  # of narrow numbers: no comparisons
    last = 0
    for place, count in zip(places.tolist(), counts.tolist(), strict=True):
        some = order[last : last + count]
        last += count
        yield place, Uses(*(column[some] for column in held))


def _peaks(uses: Uses, edges: Numbers) -> tuple[int, ...] | None:
    """Return the most ports in use at a time from each edge to the next; None: none is used before the last edge.

    Uses of a port that overlap are one use of it: in the order of port and begin, one that begins after the latest end so
    far of its port is another. At a moment begins come before ends.
    """
    origin = uses.began.min()
    coarser = max(0, int(uses.ended.max() - origin).bit_length() - _TIME_BITS)
    port = (uses.key & 0xFFFF) << _TIME_BITS
    begins, ends = port | (uses.began - origin) >> coarser, port | (uses.ended - origin) >> coarser
    order = np.argsort(begins)
    begins, latest = begins[order], np.maximum.accumulate(ends[order])
    is_new = np.append(True, begins[1:] > latest[:-1])
    lasts = np.append(np.flatnonzero(is_new)[1:] - 1, len(latest) - 1)
    mask = (1 << _TIME_BITS) - 1
    begins, ends = (np.sort(((times & mask) << coarser) + origin) for times in (begins[is_new], latest[lasts]))
    if begins[0] >= edges[-1]:
        return None
    used = np.arange(1, len(begins) + 1) - np.searchsorted(ends, begins, "left")  # with each begin
    at = np.searchsorted(begins, edges, "left")
    peaks = at[:-1] - np.searchsorted(ends, edges[:-1], "left")  # what goes on at the edge
    for step in np.flatnonzero(at[1:] > at[:-1]):
        peaks[step] = max(peaks[step], used[at[step] : at[step + 1]].max())
    return tuple(peaks.tolist())


# Columns of text that a user chose: a spreadsheet must not take it for a formula.
_HARMLESS = "CASE WHEN regexp_matches({0}, '^[-=+@\t\r\n]') THEN chr(39) || {0} ELSE {0} END AS {0}"
_TEXTS = ("instance", "vpc_id", "run")


@_retried
def export(
    store: Store, target: str | os.PathLike[str], *, start: datetime | None = None, end: datetime | None = None
) -> int:
    """Write rows into a file for other programs.

    All kinds of rows but those about the log itself, in the order of their runs and numbers. The file is private
    (0600), and whole or not there.

    Parameters
    ----------
    store
        The folder, as a `Store`.
    target
        A name that ends in .csv, .jsonl or .parquet.
    start, end
        Rows that ended from start until end, with a time zone; None: all.

    Returns
    -------
    int
        How many rows.
    """
    path = Path(target)
    form = FORMATS.get(path.suffix)
    if form is None:
        raise ConfigurationError(f"target must end in {either(FORMATS)}, got {show(str(target))}")
    chosen = range_of(start, end)
    texts = [*_TEXTS, "label"] if any(part.footer.has_labels for part in store.parts()) else _TEXTS
    columns = f"* REPLACE ({', '.join(map(_HARMLESS.format, texts))})" if path.suffix == ".csv" else "*"
    found_in = "read_parquet($files, union_by_name = true)"  # files of before have no labels
    rows = f"SELECT {columns} FROM {found_in} WHERE {_KINDS} AND {_IN_RANGE} ORDER BY run, number"
    with replaced(path, private=False) as file:  # written by its descriptor: its name may be in another user's folder
        target = f"/proc/self/fd/{file.fileno()}"
        found = _select(store, chosen, f"COPY ({rows}) TO '{target}' ({form}, USE_TMP_FILE false)")
        if not found:
            raise ConfigurationError(f"store={show(store.name)}: it has no files of that time")
    return int(found[0][0])


def _whole(store: Store, start: int | None, end: int | None) -> list[Part]:
    """Return the files that may have rows of the range. Raises DamagedPart: a figure would leave one out."""
    files = store.parts(start, end)
    if store.damaged:
        raise DamagedPart(f"{', '.join(store.damaged)}: damaged; natcore log verify tells more")
    return files


def _select(store: Store, chosen: Range, statement: str, **values: Any) -> list[Any]:
    """Run the statement over the files that may have rows of the range."""
    files = _whole(store, chosen.start, chosen.end)
    near = [
        file.name for file in files if file.footer.first_time < chosen.end and file.footer.last_time >= chosen.start
    ]
    return store.sql(statement, {**values, "files": near, "from": chosen.start, "until": chosen.end})


def _micros(name: str, time: datetime | None, default: Default) -> int | Default:
    if time is None:
        return default
    if not isinstance(time, datetime) or time.tzinfo is None:
        raise ConfigurationError(f"{name} must be a datetime with its time zone, got {show(time)}")
    return (time - _EPOCH) // timedelta(microseconds=1)

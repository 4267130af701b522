"""The session log's Parquet files, for queries: an index of the files by their metadata, and DuckDB.

Footers are read once and kept; a file that is written again or removed is noticed at the next question.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from operator import attrgetter
from time import gmtime, strftime
from typing import Any, NamedTuple, TypeVar

import numpy as np

from natcore.errors import Error, UntrustedFileError
from natcore.internal.extras import extra
from natcore.internal.redaction import show
from natcore.sessionlog.file_metadata import Footer, Group
from natcore.sinks._parquet_folder import COMPACTED, REMOVED, SEAL, Removal, Seal
from natcore.who.conclude import FOREVER, Gap, Row
from natcore.who.files import Files, Listing, Piece, Stamp, Wanted, files_at
from natcore.who.source import (
    REDACTED,
    DamagedPart,
    EventRow,
    FoundEvents,
    FoundRow,
    LostRun,
    Part,
    PartsMoved,
    Sought,
    Source,
    without_redacted_copies,
)

with extra("query"):
    import duckdb

DAY = 86_400_000_000  # microseconds
_LATE = 600_000_000  # by which a row without a session may come behind a cover row: refusals are counted by the minute
_SLACKS = (_LATE, DAY)  # around a question's time, tried in turn
_COLUMNS = (  # as _row takes them
    "filename, number, kind, protocol, pri_ip, pri_port, pub_ip, pub_port, nat_ip, nat_port, eip, epoch_us(start_time), "
    "epoch_us(end_time), session"
)
_SESSION_KINDS = ("window", "create", "end")
_NAME = re.compile(r"\d{8}T\d{6}Z-(?P<run>[^-]+)-\d+(-\d+)?\.parquet")

_log = logging.getLogger(__name__)
Value = TypeVar("Value")


class _Hash(NamedTuple):
    """The SHA-256 of a file that is as it was written. pieces: of a sorted file, those that were looked at, which are as they
    were written; None: all of it was."""

    stamp: Stamp
    sha256: str
    pieces: set[Piece] | None


class _Manifest(NamedTuple):
    """The compacted files of a folder, by path: the SHA-256, and the piece that tells of the row groups of each that has them.
    head: of the last line that the seal names."""

    stamp: Stamp
    head: str
    hashes: dict[str, str]
    tails: dict[str, Piece]


class _Search(NamedTuple):
    """Conditions with their values, and the files where they are to be met; of a sorted one, in which row groups at most."""

    where: str
    values: dict[str, Any]
    parts: list[Part]
    groups: dict[str, list[int]]


class _Look(NamedTuple):
    """What a look into the folder found: the files as they were written, in order; the footers that were read, by path; and
    the paths that these parts are of: those that may matter, and those that are named and not there."""

    parts: list[Part]
    footers: dict[str, Footer]
    asked: set[str]


class _Removed(NamedTuple):
    """What retention removed from a folder. ends: of each run, the first and the last path by name, with their removals."""

    stamp: Stamp
    removals: list[Removal]
    ends: dict[str, dict[str, Removal]]


def _first_and_last(folder: str, removals: Iterable[Removal]) -> dict[str, dict[str, Removal]]:
    by_run: dict[str, dict[str, Removal]] = defaultdict(dict)
    for removal in removals:
        match = _NAME.fullmatch(removal.file)
        if match is not None:
            by_run[match["run"]][f"{folder}/{removal.file}"] = removal
    return {run: {path: paths[path] for path in (min(paths), max(paths))} for run, paths in by_run.items()}


class _Stretch(NamedTuple):
    """Files of one run that follow one another; whether they are its first ones, and its last; the path of the very last."""

    paths: list[str]
    is_first: bool
    is_last: bool
    newest: str


class _Names:
    """The names of all files, sorted, so that those of a time are found without a look at each. folders: their paths by folder,
    sorted."""

    def __init__(self, folders: Mapping[str, list[str]]) -> None:
        self.folders = folders
        self.paths = frozenset(path for paths in folders.values() for path in paths)
        self.by_folder = {
            folder: frozenset(path.rpartition("/")[2] for path in paths) for folder, paths in folders.items()
        }
        self._series: dict[tuple[str, str], list[tuple[str, str]]] = {}
        self._others: list[str] = []
        self._places = {path: at for paths in folders.values() for at, path in enumerate(paths)}
        for folder, paths in folders.items():
            for path in paths:
                name = path.rpartition("/")[2]
                match = _NAME.fullmatch(name)
                if match is None:
                    self._others.append(path)
                else:
                    self._series.setdefault((folder, match["run"]), []).append((name, path))
        for series in self._series.values():
            series.sort()

    def near(self, start: int | None, end: int | None, slack: int) -> tuple[list[str], list[_Stretch]]:
        """Return the names that may matter from `start` to `end`, and which of them follow one another.

        A name tells when the first of the file's rows ended; rows come in the order of their ends but for `slack`, so that a
        file ends where the next of its run begins.
        """
        earliest, latest = _label(start, -slack), _label(end, slack)
        near = list(self._others)
        stretches = []
        for series in self._series.values():
            # not if the second one behind it begins too early, nor if the one before it begins too late
            first = 0 if earliest is None else max(0, bisect_left(series, (earliest, "")) - 2)
            last = len(series) - 1 if latest is None else min(len(series) - 1, bisect_right(series, (latest, "")))
            positions = {0, len(series) - 1, *range(first, last + 1)}
            near += [series[position][1] for position in sorted(positions)]
            paths = [path for _, path in series[first : last + 1]]
            stretches.append(_Stretch(paths, first == 0, last == len(series) - 1, series[-1][1]))
        return near, stretches

    def witnesses(self, near: Sequence[str]) -> list[str]:
        """Return the names behind these, which verify them."""
        chosen = set(near)
        witnesses: dict[str, None] = {}
        for path in near:
            beside, at = self.folders[path.rpartition("/")[0]], self._places[path]
            witnesses.update(dict.fromkeys(each for each in beside[at + 1 : at + 3] if each not in chosen))
        return list(witnesses)


class Store(Source):
    """The Parquet files in a folder and the folders below it. Thread-safe; give the same one to many questions.

    Parameters
    ----------
    where
        The folder; "s3://BUCKET/PREFIX"; or a `natcore.who.bucket.Bucket`, which has more arguments.

    Raises
    ------
    ConfigurationError
        There is no such folder.
    Error
        The bucket does not answer.

    Notes
    -----
    A file that is not the session log's is passed over, one that is damaged is named in `damaged`.
    """

    at_once = os.cpu_count() or 1

    def __init__(self, where: Files | str | os.PathLike[str]) -> None:
        self._files = files_at("store", where)
        self.name = self._files.name
        self._lock = threading.Lock()
        self._footers: dict[str, tuple[Stamp, Footer | None]] = {}
        self._damaged: dict[str, Stamp] = {}  # left out; what their footers say of other files' hashes still counts
        self._hashes: dict[str, _Hash] = {}
        self._seals: dict[str, tuple[Stamp, Seal | None]] = {}
        self._listings: dict[str, Listing] = {}
        self._names: _Names | None = None
        self._told_removals: dict[str, _Removed] = {}
        self._manifests: dict[str, _Manifest] = {}
        self._database = duckdb.connect()
        self._database.execute("SET GLOBAL TimeZone = 'UTC'; SET GLOBAL parquet_metadata_cache = true")

    def parts(self, start: int | None = None, end: int | None = None) -> list[Part]:
        """Return the files that may have rows which ended from `start` to `end` (microseconds), and their neighbours.

        In the order of their numbers within a run. Names tell when a file began, so that few footers of many are read.
        """
        with self._lock:
            return self._look(start, end).parts

    @property
    def damaged(self) -> list[str]:
        """Return the files that could not be read so far."""
        with self._lock:
            unreadable = (path for path, (_, footer) in self._footers.items() if footer is None)
            return sorted({*unreadable, *self._damaged})

    def removals(self) -> list[Removal]:
        """Return what retention removed, of all folders, and is not there any more."""
        with self._lock:
            names, _ = self._scan()
            return [
                removal for folder, told in self._removals() for removal in told.removals
                if f"{folder}/{removal.file}" not in names.paths
            ]  # fmt: skip

    def _removals(self) -> Iterator[tuple[str, _Removed]]:
        """Yield the removals of each folder; a file of them is read again only if it was written again."""
        for folder in self._listings:
            stamp = self._files.stamp(f"{folder}/{REMOVED}")
            if stamp is None:
                continue
            known = self._told_removals.get(folder)
            if known is None or known.stamp != stamp:
                found = [removal for removal, _ in self._files.removals(folder)]
                known = self._told_removals[folder] = _Removed(stamp, found, _first_and_last(folder, found))
            yield folder, known

    def removed(self) -> dict[str, list[Gap]]:
        """Return what retention removed, by the gateway's instance."""
        found: dict[str, list[Gap]] = defaultdict(list)
        for removal in self.removals():
            text = f"{removal.file} was removed by {removal.reason}"
            found[removal.instance].append(Gap(removal.first_time, removal.last_time, text))
        return found

    def find(self, sought: Sought, parts: Sequence[Part], start: int, end: int) -> list[FoundRow]:
        """Return the sessions' rows in the files that ended from start to end."""
        near = [part for part in parts if part.footer.first_time <= end and part.footer.last_time >= start]
        footers = {part.name: part.footer for part in near}
        found = []
        for search in self._searches(sought, near):
            for path, *fields in self._with_labels(_COLUMNS, search):
                row = _row(footers[path], *fields)
                if row.kind in _SESSION_KINDS and start <= row.end <= end and sought.fits(row):
                    found.append(FoundRow(path, row))
        return without_redacted_copies(sought, near, found)

    def find_blocks(self, sought: Sought, parts: Sequence[Part], start: int, end: int) -> list[FoundRow]:
        """Return the rows of the port blocks with the sought address, port and inside address that ended from start to end."""
        holding = [
            part for part in parts
            if part.footer.blocks and part.footer.first_time <= end and part.footer.last_time >= start
            and (
                sought.address is None or part.footer.addresses is None
                or any(sought.address in pair for pair in part.footer.addresses)
            )
        ]  # fmt: skip
        footers = {part.name: part.footer for part in holding}
        where = "kind IN ('block-allocated', 'block-released') AND epoch_us(end_time) BETWEEN $start AND $end"
        values: dict[str, Any] = {"start": start, "end": end}
        for name, value, condition in (
            ("address", sought.address, "(nat_ip = $address OR eip = $address)"),
            ("port", sought.port, "nat_port <= $port AND pub_port >= $port"),
            ("inside", sought.inside, "pri_ip = $inside"),
        ):
            if value is not None:
                where, values[name] = f"{where} AND {condition}", value
        columns = _COLUMNS.replace("number", "pkts_from_vpc", 1)
        return [
            FoundRow(path, _row(footers[path], *fields))
            for path, *fields in self._with_labels(columns, _Search(where, values, holding, {}))
        ]

    def find_events(self, start: int, end: int, inside: str | None) -> FoundEvents:
        """Return the rows of refusals and events that ended from start to end."""
        holding = [
            part for part in self.parts(start, end)
            if part.footer.events and part.footer.first_time <= end and part.footer.last_time >= start
        ]  # fmt: skip
        footers = {part.name: part.footer for part in holding}
        sequences: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
        for part in holding:
            sequences[part.run] += part.footer.events
        where = "kind IN ('refusal', 'event', 'event-cover') AND epoch_us(end_time) BETWEEN $start AND $end"
        values: dict[str, Any] = {"start": start, "end": end}
        if inside is not None:
            where += " AND (kind != 'refusal' OR pri_ip IN ($inside, '0.0.0.0'))"
            values["inside"] = inside
        columns = (
            "filename, pkts_from_vpc, kind, flags, protocol, pri_ip, pub_ip, pub_port, nat_ip, session, epoch_us(start_time), "
            "epoch_us(end_time)"
        )
        rows = [
            EventRow(footers[path].instance, footers[path].vpc_id, footers[path].run, *fields)
            for path, *fields in self.rows(columns, where, values, holding)
        ]
        return FoundEvents(rows, sequences)

    @staticmethod
    def _searches(sought: Sought, near: Sequence[Part]) -> Iterator[_Search]:
        """Yield what is to be searched.

        An equality is pushed down to the file's dictionaries, other conditions are not: they are for the few that are found.
        """
        values = {
            name: value for name, value in (("nat_port", sought.port), ("protocol", sought.protocol), ("pri_ip", sought.inside))
            if value is not None
        }  # fmt: skip
        key = "".join(f" AND {name} = ${name}" for name in values)
        for remote in (None,) if sought.remote is None else (sought.remote, REDACTED):
            more: dict[str, Any] = values if remote is None else {**values, "pub_ip": remote}
            also = key if remote is None else f"{key} AND pub_ip = $pub_ip"
            if sought.address is None:
                yield _Search(f"true{also}", more, list(near), {})
                continue
            named = [part for part in near if any(sought.address in pair for pair in part.footer.addresses or ())]
            for nat_ip in sorted(
                {pair.nat_ip for part in named for pair in part.footer.addresses or () if sought.address in pair}
            ):
                holding = [part for part in named if any(pair.nat_ip == nat_ip for pair in part.footer.addresses or ())]
                yield _search("nat_ip = $address", also, {**more, "address": nat_ip}, holding)
            unnamed = [part for part in near if part.footer.addresses is None]
            yield _search("nat_ip = $address", also, {**more, "address": sought.address}, unnamed)
            yield _search(
                "eip = $address", f" AND nat_ip != $address{also}", {**more, "address": sought.address}, unnamed
            )

    def _with_labels(self, columns: str, search: _Search) -> Iterator[Any]:
        """Yield the columns, and the label, of the files' rows; files of before have no such column."""
        for has_labels, label in ((True, ", label"), (False, ", NULL")):
            files = [file for file in search.parts if file.footer.has_labels == has_labels]
            yield from self.rows(columns + label, search.where, search.values, files, search.groups)

    def rows(
        self, columns: str, where: str, values: Mapping[str, Any], files: Iterable[Part],
        groups: Mapping[str, Sequence[int]] | None = None,
    ) -> list[Any]:  # fmt: skip
        """SELECT columns, the first of which is filename, from the files' rows; `where` has $names of values.

        groups: of a sorted file by path, the row groups that may have such rows, which alone are believed then; None: all."""
        parts = {file.name: file for file in files}
        table = "read_parquet($files, filename = true, file_row_number = true)"
        statement = f"SELECT {columns}, file_row_number FROM {table} WHERE {where}"
        chosen = {path: groups[path] for path in parts if groups and path in groups}
        spans = {path: _spans(parts[path].footer.groups, which) for path, which in chosen.items()}

        def named(found: duckdb.DuckDBPyConnection, opened: Mapping[str, str]) -> list[Any]:
            names = {file: path for path, file in opened.items()}
            return [
                (path, *rest) for file, *rest, row in found.fetchall()
                if (spans_of := spans.get(path := names[file])) is None or any(row in span for span in spans_of)
            ]  # fmt: skip

        return self._execute(statement, {**values, "files": list(parts)}, named, chosen) or []

    def sql(self, statement: str, values: Mapping[str, Any]) -> list[Any]:
        """Return the rows of a statement over read_parquet($files); files that were removed meanwhile are left out."""
        return self._execute(statement, values, lambda found, _: found.fetchall()) or []

    def columns(self, statement: str, values: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """As `sql`, as numpy arrays by name; empty if no file is left."""
        return self._execute(statement, values, lambda found, _: found.fetchnumpy()) or {}

    def _execute(
        self,
        statement: str,
        values: Mapping[str, Any],
        taken: Callable[[duckdb.DuckDBPyConnection, Mapping[str, str]], Value],
        groups: Mapping[str, Sequence[int]] | None = None,
    ) -> Value | None:
        """Return what `taken` takes of the statement's result and the files that were read, by path; None: no file is left.

        groups: as of `rows`. Raises PartsMoved, DamagedPart."""
        paths: list[str] = values["files"]
        if not paths:
            return None
        self._check_unmoved(paths)
        wanted = {path: self._wanted(path, (groups or {}).get(path)) for path in paths}
        self._check_pieces(wanted, groups or {})
        with self._files.opened(wanted) as opened:
            try:
                given = {**values, "files": [opened[path] for path in paths]}
                return taken(self._database.cursor().execute(statement, given), opened)
            except duckdb.Error as error:
                self._check_unmoved(paths)
                self._check_pieces({path: self._wanted(path, None) for path in paths}, {})
                self._leave_out_damaged([path for path in paths if wanted[path].pieces is None], opened, error)
                raise Error(f"{self.name}: {error}") from error

    def _wanted(self, path: str, groups: Sequence[int] | None) -> Wanted:
        """Return what is read of a file: of a sorted one these row groups, None: all, and its tail."""
        known, (_, footer), tail = (
            self._hashes.get(path),
            self._footers.get(path, (None, None)),
            self._tails(path).get(path),
        )
        if known is None or known.pieces is None or footer is None or tail is None:
            return Wanted("" if known is None else known.sha256)
        pieces = _pieces(footer.groups)
        return Wanted(known.sha256, [tail, *(pieces if groups is None else [pieces[group] for group in groups])])

    def _check_pieces(self, wanted: Mapping[str, Wanted], groups: Mapping[str, Sequence[int]]) -> None:
        """Raise DamagedPart where a piece is not as it was written; each is looked at once. A file of which all row groups are
        wanted is left out from now on."""
        new: dict[str, Wanted] = {}
        known: dict[str, set[Piece]] = {}
        for path, each in wanted.items():
            found = self._hashes.get(path)
            known[path] = set() if found is None or found.pieces is None else found.pieces
            if pieces := [piece for piece in each.pieces or () if piece not in known[path]]:
                new[path] = each._replace(pieces=pieces)

        def read(path: str) -> bool:
            try:
                known[path] |= self._files.fetch_pieces(path, new[path])
            except (OSError, UntrustedFileError):
                return False
            return known[path].issuperset(new[path].pieces or ())

        damaged = [path for path, is_there in zip(new, self._files.map(read, new), strict=True) if not is_there]
        if damaged:
            self._check_unmoved(damaged)
            self._leave_out(path for path in damaged if path not in groups)
            raise DamagedPart(
                f"{', '.join(damaged)}: not as it was written; natcore log verify tells more",
                [path for path in damaged if path in groups],
            )

    def _leave_out(self, paths: Iterable[str]) -> None:
        with self._lock:
            for path in paths:
                if path in self._footers:
                    self._damaged[path] = self._footers[path][0]

    def _check_unmoved(self, paths: Iterable[str]) -> None:
        """Raise PartsMoved where a file is not the one that was looked at. DuckDB opens it by its name, and follows a link."""
        for path in paths:
            known = self._footers.get(path)
            if known is None or known[0] != self._files.stamp(path):
                raise PartsMoved(f"{self.name}: files were put together or removed meanwhile; ask again")

    def _leave_out_damaged(self, paths: Iterable[str], opened: Mapping[str, str], error: duckdb.Error) -> None:
        """Find the files with unreadable rows; DamagedPart names them."""
        damaged = [path for path in paths if not self._is_readable(opened[path])]
        self._leave_out(damaged)
        if damaged:
            raise DamagedPart(f"{', '.join(damaged)}: damaged; natcore log verify tells more") from error

    def _is_readable(self, file: str) -> bool:
        try:
            self._database.cursor().execute(
                "SELECT count(COLUMNS(*)) FROM read_parquet($path)", {"path": file}
            ).fetchall()
        except duckdb.Error:
            return False
        return True

    def _look(self, start: int | None, end: int | None) -> _Look:
        names, sealed = self._scan()
        for gone in self._footers.keys() - names.paths:
            del self._footers[gone]
            self._damaged.pop(gone, None)
            self._hashes.pop(gone, None)
        stamps: dict[str, Stamp] = {}
        for slack in _SLACKS:
            near, stretches = names.near(start, end, slack)
            new = [path for path in near if path not in stamps]
            stamps.update((path, stamp) for path in new if (stamp := self._files.stamp(path)) is not None)
            self._read_footers(stamps)
            if all(self._is_whole(stretch, stamps, start, end) for stretch in stretches):
                break
        new = [path for path in names.witnesses(near) if path not in stamps]
        stamps.update((path, stamp) for path in new if (stamp := self._files.stamp(path)) is not None)
        self._read_footers(stamps)
        footers = {path: footer for path, stamp in stamps.items() if (footer := self._footer(path, stamp)) is not None}
        expected = dict(sealed)
        for path, footer in footers.items():
            if footer.previous:
                expected[_beside(path, footer.previous)] = footer.previous_sha256
            for name, sha256 in footer.earlier:
                expected.setdefault(_beside(path, name), sha256)
        there = {
            path: parts for path, footer in footers.items()
            if (parts := [_beside(path, name) for name, _ in footer.replaces if name in names.by_folder[_folder(path)]])
        }  # fmt: skip
        self._read_hashes(there, stamps, expected)
        merged: set[str] = set()
        for path, parts in there.items():
            if self._is_as_written(path, stamps[path], expected):  # else a crash left it unfinished
                merged.update(parts)
        self._read_hashes((path for path in near if path in footers and path not in merged), stamps, expected)
        found = [
            Part(path, footers[path], self._hashes[path].sha256) for path in near
            if path in footers and path not in merged and self._is_as_written(path, stamps[path], expected)
        ]  # fmt: skip
        asked = {*near, *(path for path in expected if path not in names.paths)}
        return _Look(sorted(found, key=attrgetter("order")), footers, asked)

    def lost(self, start: int | None = None, end: int | None = None) -> list[LostRun]:
        """Return the runs of which no file is left as it was written, though another file, the seal or the manifest names
        one, or it lies there changed, or retention removed them all."""
        with self._lock:
            look = self._look(start, end)
            told = {part.footer.run for part in look.parts}
            replaced = {_beside(path, name) for path, footer in look.footers.items() for name, _ in footer.replaces}
            runs: dict[tuple[str, str], set[str]] = defaultdict(set)
            removals: dict[str, Removal] = {}
            for root, removed in self._removals():
                for run, paths in removed.ends.items():
                    if run not in told:
                        runs[root, run].update(paths)
                        removals.update(paths)
            for path in look.asked - replaced:
                folder, name = os.path.split(path)
                match = _NAME.fullmatch(name)
                if match is not None and match["run"] not in told:
                    runs[folder, match["run"]].add(path)
            return [
                LostRun(run, _lost(sorted(paths), run, removals, look.parts))
                for (_, run), paths in sorted(runs.items())
            ]

    def _read_footers(self, stamps: Mapping[str, Stamp]) -> None:
        """Read the footers that are not known; one that cannot be read is not known after it: a gap."""

        def read(path: str) -> Footer | OSError | None:
            try:
                return self._files.footer(path)
            except OSError as error:  # it is gone, or cannot be read
                return error

        unread = [
            path for path, stamp in stamps.items() if path not in self._footers or self._footers[path][0] != stamp
        ]
        for path, footer in zip(unread, self._files.map(read, unread), strict=True):
            if not isinstance(footer, OSError):
                self._footers[path] = (stamps[path], footer)

    def _is_whole(self, stretch: _Stretch, stamps: Mapping[str, Stamp], start: int | None, end: int | None) -> bool:
        """Return whether cover rows in these files tell that no other file of the run has rows which ended from start to end.

        Where the clock was set about then, they do not: their times are not those of the rows around them."""
        there = [footer for path in stretch.paths if path in stamps and (footer := self._footer(path, stamps[path]))]
        newest = self._footer(stretch.newest, stamps[stretch.newest]) if stretch.newest in stamps else None
        earliest, latest = start or 0, FOREVER if end is None else end
        for footer in (*there, newest):
            for clock in footer.facts.clocks if footer is not None else ():
                if min(clock.before, clock.after) - DAY <= latest and earliest <= max(clock.before, clock.after) + DAY:
                    return False
        covers = [cover for footer in there for cover in footer.covers]
        return (stretch.is_first or any(cover.since < earliest - _LATE for cover in covers)) and (
            stretch.is_last or any(cover.swept > latest + _LATE for cover in covers)
        )

    def _footer(self, path: str, stamp: Stamp) -> Footer | None:
        known = self._footers.get(path)
        return known[1] if known is not None and known[0] == stamp else None

    def _read_hashes(self, paths: Iterable[str], stamps: Mapping[str, Stamp], expected: Mapping[str, str]) -> None:
        """Read the hashes that are not known, of files of which another one tells the hash."""
        unread = [
            path for path in paths
            if path in expected and self._damaged.get(path) != stamps[path]
            and (path not in self._hashes or self._hashes[path].stamp != stamps[path])
        ]  # fmt: skip

        def read(path: str) -> _Hash | None:
            return self._hashed(path, stamps[path], expected[path])

        for path, found in zip(unread, self._files.map(read, unread), strict=True):
            if found is not None:
                self._hashes[path] = found

    def _hashed(self, path: str, stamp: Stamp, expected: str) -> _Hash | None:
        """Return the file's SHA-256, of a sorted file if its tail is as it was written; None: it cannot be read."""
        tail = self._tails(path).get(path)
        try:
            if tail is None or self._manifests[_folder(path)].hashes[path] != expected:
                return _Hash(stamp, self._files.fetch(path), None)
            is_there = stamp[1] == tail.end and self._files.fetch_pieces(path, Wanted(expected, [tail]))
            return _Hash(stamp, expected if is_there else "", {tail})
        except (OSError, UntrustedFileError):
            return None

    def _tails(self, path: str) -> Mapping[str, Piece]:
        """Return the tails of the sorted files in the file's folder."""
        manifest = self._manifests.get(_folder(path))
        return {} if manifest is None else manifest.tails

    def _scan(self) -> tuple[_Names, dict[str, str]]:
        """Every Parquet file below the folder; and the SHA-256 of the newest of each folder, and of those that were compacted,
        by its seal, which is read before the files are looked for: whatever it names is there, or is gone for good."""
        sealed, is_whole = self._scanned()
        if not is_whole:  # a folder that does not tell when it changed, or a file that is gone
            self._listings.clear()
            self._files.refresh()
            sealed, _ = self._scanned()
        folders = {folder: listing.files for folder, listing in self._listings.items()}
        known = self._names.folders if self._names is not None else {}
        if (
            self._names is None
            or known.keys() != folders.keys()
            or any(known[each] is not folders[each] for each in known)
        ):
            self._names = _Names(folders)
        return self._names, sealed

    def _scanned(self) -> tuple[dict[str, str], bool]:
        """List the folders; -> the seals' hashes, and whether the newest file of each seal is there."""
        sealed: dict[str, str] = {}
        is_whole = True
        waiting = [self._files.top]
        seen: set[str] = set()
        while waiting:
            here = waiting.pop()
            seal = self._seal(here)
            if seal is not None:
                sealed[f"{here}/{seal.file}"] = seal.sha256
                if seal.compactions:
                    sealed.update(self._compacted(here, seal.compactions))
            known = self._listings.get(here)
            listing = self._files.listing(here, known)
            if listing is None:  # the folder went meanwhile, and all in it
                if here == self._files.top:
                    raise Error(f"store={show(self.name)}: the folder is not there any more") from None
                continue
            if known is not None and known.files == listing.files:
                listing = listing._replace(files=known.files)
            self._listings[here] = listing
            seen.add(here)
            waiting += listing.folders
            if seal is not None:
                at = bisect_left(listing.files, f"{here}/{seal.file}")
                is_whole = is_whole and listing.files[at : at + 1] == [f"{here}/{seal.file}"]
        for gone in self._listings.keys() - seen:
            del self._listings[gone]
        return sealed, is_whole

    def _compacted(self, folder: str, head: str) -> dict[str, str]:
        """Return the SHA-256 by path of the compacted files, up to the line that the seal names: the folder's manifest."""
        stamp = self._files.stamp(f"{folder}/{COMPACTED}")
        if stamp is None:
            return {}
        known = self._manifests.get(folder)
        if known is None or (known.stamp, known.head) != (stamp, head):
            known = _Manifest(stamp, head, {}, {})
            before = ""
            for line, sha256 in self._files.compactions(folder):
                if line.before != before or before == head:
                    break
                before, path = sha256, f"{folder}/{line.file}"
                known.hashes[path] = line.sha256
                if line.tail_bytes:
                    known.tails[path] = Piece(line.size_bytes - line.tail_bytes, line.size_bytes, line.tail_sha256)
            if before != head:
                known.hashes.clear()
                known.tails.clear()
            self._manifests[folder] = known
        return known.hashes

    def _seal(self, folder: str) -> Seal | None:
        """Read the file again only if it was written again."""
        stamp = self._files.stamp(f"{folder}/{SEAL}")
        if stamp is None:
            return None
        known = self._seals.get(folder)
        if known is None or known[0] != stamp:
            known = self._seals[folder] = (stamp, self._files.seal(folder))
        return known[1]

    def _is_as_written(self, path: str, stamp: Stamp, expected: Mapping[str, str]) -> bool:
        """The file has the SHA-256 that the next one, or the seal of the newest, names: looked at once."""
        if self._damaged.get(path) == stamp:
            return False
        wanted = expected.get(path)
        if wanted is None:  # the newest, and newer than the seal was
            folder, _, name = path.rpartition("/")
            seal = self._files.seal(folder)
            wanted = seal.sha256 if seal is not None and seal.file == name else None
        if wanted is None:
            return False
        known = self._hashes.get(path)
        if known is None or known.stamp != stamp:
            known = self._hashed(path, stamp, wanted)
            if known is None:
                return False
            self._hashes[path] = known
        if known.sha256 == wanted:
            return True
        _log.error("%s: it is not as it was written; natcore log verify tells more", path)
        self._damaged[path] = stamp
        return False


def _row(
    footer: Footer, number: int, kind: str, protocol: int, pri_ip: str, pri_port: int, pub_ip: str, pub_port: int,
    nat_ip: str, nat_port: int, eip: str | None, start: int, end: int, session: int, label: str | None,
) -> Row:  # fmt: skip
    """Return a row; what is the same in all rows of a file, its footer says."""
    remote = None if pub_ip == REDACTED else pub_ip
    return Row(
        footer.instance, footer.vpc_id, footer.run, number, kind, protocol, pri_ip, pri_port, remote, pub_port, nat_ip,
        nat_port, eip, start, end, session, label=label,
    )  # fmt: skip


def _search(condition: str, also: str, values: dict[str, Any], parts: list[Part]) -> _Search:
    """Return the search for a key in these files, without sorted ones that have it in no row group."""

    def may_have(group: Group) -> bool:
        addresses = group.addresses if condition.startswith("nat_ip") else group.eips
        return (
            addresses is not None and addresses[0] <= values["address"] <= addresses[1]
            and group.protocols[0] <= values.get("protocol", group.protocols[0]) <= group.protocols[1]
            and group.ports[0] <= values.get("nat_port", group.ports[0]) <= group.ports[1]
        )  # fmt: skip

    groups = {
        part.name: [at for at, group in enumerate(part.footer.groups) if may_have(group)]
        for part in parts if part.footer.groups
    }  # fmt: skip
    holding = [part for part in parts if part.name not in groups or groups[part.name]]
    return _Search(f"{condition}{also}", values, holding, groups)


def _pieces(groups: Sequence[Group]) -> list[Piece]:
    """Return the bytes of each row group."""
    return [
        Piece(before, group.end, group.sha256)
        for before, group in zip((0, *(group.end for group in groups)), groups, strict=False)
    ]


def _spans(groups: Sequence[Group], chosen: Sequence[int]) -> list[range]:
    """Return the places in the file of the rows of the chosen row groups."""
    ends = list(accumulate(group.rows for group in groups))
    return [range(ends[at] - groups[at].rows, ends[at]) for at in chosen]


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _beside(path: str, name: str) -> str:
    """Return the path of another file in a file's folder."""
    return f"{_folder(path)}/{name}"


def _lost(paths: Sequence[str], run: str, removals: Mapping[str, Removal], parts: Sequence[Part]) -> Gap:
    """Return when a run of a folder may have been, by the names of its files, none of which is as it was written."""
    first, removal = paths[0], removals.get(paths[0])
    start = _around(first, parts)[0] if removal is None else removal.first_time
    why = "is missing, or not as it was written" if removal is None else f"was removed by {removal.reason}"
    return Gap(start, _around(paths[-1], parts)[1], f"{first.rpartition('/')[2]} {why}: nothing is left of run {run}")


def _around(path: str, parts: Sequence[Part]) -> tuple[int, int | None]:
    """Return when the file before it in its folder ended, and the one after it began: by their names, which begin with a
    time. 0, None: there is none. A folder is one gateway's, which has one run at a time."""
    folder, name = os.path.split(path)
    before, after = 0, None
    for part in parts:
        where, other = os.path.split(part.name)
        if where == folder and other[:16] < name[:16]:
            before = max(before, part.footer.last_time)
        elif where == folder and other[:16] > name[:16]:
            after = part.footer.first_time if after is None else min(after, part.footer.first_time)
    return before, after


def _label(microseconds: int | None, slack: int) -> str | None:
    """Return the time in the form in which file names begin with it."""
    if microseconds is None:
        return None
    return strftime("%Y%m%dT%H%M%SZ", gmtime(max(0, microseconds + slack) / 1e6))

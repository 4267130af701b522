"""A folder of the session log's Parquet files, to be asked: which file holds what, where numbers are missing, and DuckDB.

Footers are read once and kept; a file that is written again or removed is noticed at the next question.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from time import gmtime, strftime
from typing import Any

import duckdb
import numpy as np

from .errors import ConfigurationError, Error
from .footer import Footer, missing_between
from .redaction import show
from .sinks._parquet_folder import Removal, read_footer, read_removals

DAY = 86_400_000_000  # microseconds
_NAME = re.compile(r"\d{8}T\d{6}Z-(?P<run>[^-]+)-\d+(-\d+)?\.parquet")
_TRIES = 3  # at a question whose files retention removes meanwhile

Stamp = tuple[int, int, int]  # what changes when a file is written again: inode, bytes, nanoseconds


@dataclass(frozen=True, slots=True)
class StoredFile:
    path: str  # "": rows that are in no file yet
    footer: Footer

    @property
    def run(self) -> tuple[str, str]:
        """Whose rows they are: the gateway's instance and its run."""
        return self.footer.instance, self.footer.run

    @property
    def order(self) -> tuple[str, str, int]:
        """Neighbours in their run are neighbours in this order."""
        return *self.run, self.footer.first_number


@dataclass(frozen=True, slots=True)
class Gap:
    """What the log does not know. Microseconds since 1970; end None: until now. reason: why, in words."""

    start: int
    end: int | None
    reason: str

    def overlaps(self, start: int, end: int) -> bool:
        return self.start <= end and (self.end is None or self.end >= start)


class DamagedFile(Error):
    """A file's footer is good, and its rows cannot be read. From now on the store leaves it out: its numbers are missing."""


class Store:
    """The Parquet files in `folder` and the folders below it. Thread-safe; give the same one to many questions.

    Raises ConfigurationError where there is no such folder. A file that is not the session log's is passed over,
    one that is damaged is named in `damaged`.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ConfigurationError(f"store={show(str(folder))}: allowed is a folder of a ParquetSink's files")
        self._lock = threading.Lock()
        self._footers: dict[str, tuple[Stamp, Footer | None]] = {}
        self._database = duckdb.connect()
        self._database.execute("SET GLOBAL TimeZone = 'UTC'; SET GLOBAL parquet_metadata_cache = true")

    def files(self, start: int | None = None, end: int | None = None) -> list[StoredFile]:
        """The files that may have rows which ended from `start` to `end` (microseconds), and their neighbours in each run.

        In the order of their numbers within a run. Names tell when a file began, so that few footers of many are read.
        """
        with self._lock:
            return list(self._files(start, end))

    @property
    def damaged(self) -> list[str]:
        """Files, of those that were looked at so far, that cannot be read."""
        with self._lock:
            return sorted(path for path, (_, footer) in self._footers.items() if footer is None)

    def removals(self) -> list[Removal]:
        """What retention removed, of all folders."""
        found = (read_removals(Path(root)) for root, _, _ in os.walk(self.folder))
        return [removal for removals in found for removal in removals]

    def rows(self, columns: str, where: str, values: Mapping[str, Any], files: Iterable[StoredFile]) -> list[Any]:
        """SELECT columns, or filename, of the files' rows; `where` has $names of values."""
        paths = [file.path for file in files]
        return self.sql(
            f"SELECT {columns} FROM read_parquet($files, filename = true) WHERE {where}", {**values, "files": paths}
        )

    def sql(self, statement: str, values: Mapping[str, Any]) -> list[Any]:
        """The rows of a statement over read_parquet($files); files that were removed meanwhile are left out."""
        found = self._execute(statement, values)
        return [] if found is None else found.fetchall()

    def columns(self, statement: str, values: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """The same as numpy arrays by name; without a file that is there: empty."""
        found = self._execute(statement, values)
        return {} if found is None else found.fetchnumpy()

    def _execute(self, statement: str, values: Mapping[str, Any]) -> duckdb.DuckDBPyConnection | None:
        """None: no file is there."""
        values = dict(values)
        for attempt in range(_TRIES):
            if not values["files"]:
                return None
            try:
                return self._database.cursor().execute(statement, values)
            except duckdb.IOException:
                left = [path for path in values["files"] if Path(path).exists()]
                if attempt == _TRIES - 1 or left == values["files"]:
                    raise
                values["files"] = left
            except duckdb.Error as error:
                self._leave_out_damaged(values["files"], error)
                raise
        return None

    def _leave_out_damaged(self, paths: Iterable[str], error: duckdb.Error) -> None:
        """Find the files whose rows cannot be read; DamagedFile names them."""
        damaged = [path for path in paths if not self._is_readable(path)]
        with self._lock:
            for path in damaged:
                if path in self._footers:
                    self._footers[path] = (self._footers[path][0], None)
        if damaged:
            raise DamagedFile(f"{', '.join(damaged)}: damaged; natcore log verify tells more") from error

    def _is_readable(self, path: str) -> bool:
        try:
            self._database.cursor().execute(
                "SELECT count(COLUMNS(*)) FROM read_parquet($path)", {"path": path}
            ).fetchall()
        except duckdb.Error:
            return False
        return True

    def _files(self, start: int | None, end: int | None) -> Iterator[StoredFile]:
        names = _scan(self.folder)
        for gone in self._footers.keys() - names.keys():
            del self._footers[gone]
        found = []
        for path in _near(names, start, end):
            known = self._footers.get(path)
            if known is None or known[0] != names[path]:
                try:
                    known = (names[path], read_footer(Path(path)))
                except FileNotFoundError:
                    continue
                self._footers[path] = known
            if known[1] is not None:
                found.append(StoredFile(path, known[1]))
        yield from sorted(found, key=attrgetter("order"))


def _scan(folder: Path) -> dict[str, Stamp]:
    """Every Parquet file below the folder, with its stamp."""
    found: dict[str, Stamp] = {}
    waiting = [os.fspath(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.name.endswith(".parquet"):
                    try:
                        stat = entry.stat()
                    except FileNotFoundError:
                        continue
                    found[entry.path] = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    return found


def _near(names: Mapping[str, Stamp], start: int | None, end: int | None) -> Iterator[str]:
    """The names that may matter from `start` to `end`.

    A name tells when the first of the file's rows ended; rows come in the order of their ends but for seconds (in
    memory, where nothing sweeps, but for more: a day of slack), so that a file ends where the next of its run begins.
    """
    earliest, latest = _label(start, -DAY), _label(end, DAY)
    series: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for path in names:
        folder, name = os.path.split(path)
        match = _NAME.fullmatch(name)
        if match is None:
            yield path
        else:
            series.setdefault((folder, match["run"]), []).append((name, path))
    for files in series.values():
        files.sort()
        for position, (_, path) in enumerate(files):
            is_late = latest is not None and position > 0 and files[position - 1][0] > latest
            is_early = earliest is not None and position + 2 < len(files) and files[position + 2][0] < earliest
            if not (is_late or is_early) or position in (0, len(files) - 1):
                yield path


def _label(microseconds: int | None, slack: int) -> str | None:
    """The time as names of files begin with it."""
    if microseconds is None:
        return None
    return strftime("%Y%m%dT%H%M%SZ", gmtime(max(0, microseconds + slack) / 1e6))


def missing_numbers(files: Iterable[StoredFile], longest_window: int) -> Iterator[Gap]:
    """Where numbers are missing within and between files (in their order); what the lost rows may have told of."""
    before: StoredFile | None = None
    for file in files:
        holes = list(file.footer.missing)
        if before is not None and before.run == file.run:
            between = missing_between(before.footer, file.footer)
            holes += [between] if between else []
            if file.footer.last_number < before.footer.last_number:
                continue  # rows that came twice
        for hole in holes:
            text = f"rows {hole.first} to {hole.last} of run {file.footer.run} are missing"
            yield Gap(hole.start - longest_window, hole.end, text)
        before = file

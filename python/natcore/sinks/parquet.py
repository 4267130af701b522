"""ParquetSink: the embedded store, zstd Parquet files that DuckDB reads while they are written.

A Parquet file is readable only when it is whole, so an open file must not be where a reader looks, and a file that
is merged into another and removed would fail a reader that has seen its name. So there is one current file, and
each delivery writes it whole under a draft's name (the rows it had, and the new ones), syncs it, renames it over
the old one and syncs the folder: a reader finds complete files only, each row once, no name ever vanishes but by
retention, and what was delivered survives a crash. The file is left for a new one when it has reached `roll_bytes` or
`roll_seconds`, or has taken a full batch: under load each row is written once, and what few rows cost to write again
is bounded by `roll_bytes`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..checks import check_batch, check_integer, check_number, check_path
from ..durable import replaced
from ..footer import Footer
from ..records import GAP
from ._parquet_folder import Folder, Removal
from ._parquet_table import SCHEMA, to_table, write_table
from .base import Batch, Receipt, Sink, file_stem

__all__ = ["SCHEMA", "ParquetSink", "Removal"]
_log = logging.getLogger("natcore.sinks")


class ParquetSink(Sink):
    """Writes `folder`/<time>-<run>-<number>.parquet: `SELECT … FROM 'folder/*.parquet'` in DuckDB, at any time.

    Columns: the 15 fields of the contract (addresses dotted text, times timestamp[us, UTC]), then eip (null: the
    address has none), session, number, kind ("window", "create", "end", "gap"), flags, run. The footer's metadata says
    what the file holds, and names the file before it with its SHA-256 (natcore.footer).
    roll_bytes, roll_seconds: the size or age at which the next batch begins a new file.
    keep_days, keep_bytes: whole files are removed, the oldest first, when their last row ended so many days ago, or
    all files together have more bytes; None: never. Each removal is a line in `folder`/removed.jsonl.
    batch_rows, batch_seconds: a batch waits for so many rows, or so long; a full one ends its file as well.
    clock: seconds, any origin; wall: Unix seconds.
    """

    delivery_type = "parquet"
    events = True
    gaps = True

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        roll_bytes: int = 4 << 20,
        roll_seconds: float = 3600.0,
        keep_days: float | None = None,
        keep_bytes: int | None = None,
        batch_rows: int | None = 131_072,
        batch_seconds: float | None = 15.0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        check_integer("ParquetSink.roll_bytes", roll_bytes, 1, 1 << 50)
        check_number("ParquetSink.roll_seconds", roll_seconds, 1, 1e9, unit="seconds")
        if keep_days is not None:
            check_number("ParquetSink.keep_days", keep_days, 0, 36_500, unit="days")
        if keep_bytes is not None:
            check_integer("ParquetSink.keep_bytes", keep_bytes, 0, 1 << 60)
        self.folder = Path(check_path("folder", folder))
        self.batch_rows, self.batch_seconds = check_batch(batch_rows, batch_seconds)
        self._roll_bytes = roll_bytes
        self._roll_seconds = roll_seconds
        self._keep = (keep_days, keep_bytes)
        self._clock, self._wall = clock, wall
        self._files: Folder | None = None
        self._current: _CurrentFile | None = None

    @property
    def destination(self) -> Mapping[str, str]:
        return {"folder": str(self.folder.absolute())}

    def open(self) -> None:
        self._files = Folder(self.folder, *self._keep)

    def deliver(self, batch: Batch) -> Receipt:
        if self._files is None:
            self.open()
        assert self._files is not None
        received = batch.records.nbytes
        rest = self._without_known(batch, self._files.last_number(batch.run))
        if rest is None:
            return Receipt(received, 0)
        if self._current is None or self._is_left(self._current) or not self._current.fits(rest):
            self._begin(rest, self._files)
        assert self._current is not None
        written = self._current.add(rest)
        self._current.is_full = self.batch_rows is not None and len(batch) >= self.batch_rows
        self._retain(self._files, written)
        return Receipt(received, written)

    def _retain(self, files: Folder, current_bytes: int) -> None:
        """The batch is durable already: what fails here is tried again with the next one."""
        try:
            files.retain(self._wall(), current_bytes)
        except OSError as error:
            _log.error("%s: retention failed: %s", self.folder, error)

    def close(self) -> None:
        self._current = self._files = None

    @staticmethod
    def _without_known(batch: Batch, known: int) -> Batch | None:
        """The batch's rows that are not here: one that was delivered by a process that died before it knew comes again."""
        if batch.first_number > known:
            return batch
        rows = batch.records
        rows = rows[(rows["number"] > known) | (rows["kind"] == GAP)]
        return replace(batch, records=rows) if len(rows) else None

    def _begin(self, batch: Batch, files: Folder) -> None:
        if self._current is not None and self._current.size_bytes:
            files.add(self._current.path, self._current.footer, self._current.size_bytes)
            self._current = None
        previous = files.previous()
        self._current = _CurrentFile(files.free_path(file_stem(batch)), batch, previous, self._clock())

    def _is_left(self, file: _CurrentFile) -> bool:
        is_old = self._clock() - file.opened_at >= self._roll_seconds
        return bool(file.size_bytes) and (file.is_full or file.size_bytes >= self._roll_bytes or is_old)


class _CurrentFile:
    """The file that deliveries still grow, and its rows."""

    def __init__(self, path: Path, first: Batch, previous: tuple[str, str], opened_at: float) -> None:
        self.path = path
        self.opened_at = opened_at
        self.size_bytes = 0
        self.is_full = False
        self._identity = (first.instance, first.vpc_id, first.run)
        self._previous = previous
        self._tables: list[Any] = []
        self._footer: Footer | None = None

    @property
    def footer(self) -> Footer:
        assert self._footer is not None
        return self._footer

    def fits(self, batch: Batch) -> bool:
        """A file holds one run of one gateway."""
        return self._identity == (batch.instance, batch.vpc_id, batch.run)

    def add(self, batch: Batch) -> int:
        """Write the file again with the batch's rows behind it; -> its size in bytes. If it raises, nothing changed."""
        tables = [*self._tables, to_table(batch)]
        footer = Footer.of(batch)
        if self._footer is None:
            footer = replace(footer, previous=self._previous[0], previous_sha256=self._previous[1])
        else:
            footer = self._footer.joined(footer)
        with replaced(self.path) as file:
            write_table(pa.concat_tables(tables), file, footer.encode())
            size_bytes = file.tell()
        self._tables, self._footer, self.size_bytes = tables, footer, size_bytes
        return size_bytes

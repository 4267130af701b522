"""ParquetSink: the embedded store, zstd Parquet files that DuckDB reads while they are written.

A file is written whole under a draft's name, synced, and then named; it never changes, and its name is never given to
another. So a reader finds complete files only. Deliveries of few rows make small files: when `roll_bytes` or `roll_seconds`
are reached they are written once more, together, under a new name, and removed; a file that takes others' place names
them in its footer. Under load, with full batches, each row is written once; else twice.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from natcore.dtypes import GAP
from natcore.internal import arrow
from natcore.internal.change_lock import after_fork
from natcore.internal.extras import extra
from natcore.internal.read_only import ReadOnly
from natcore.internal.validation import check_choice, check_integer, check_number, check_path
from natcore.sessionlog.file_metadata import Footer
from natcore.sinks._parquet_folder import Folder, Kept, Lock, Removal
from natcore.sinks._parquet_table import SCHEMA, to_table
from natcore.sinks.base import Batch, BatchedSink, Receipt, file_stem

with extra("parquet"):
    import pyarrow as pa

__all__ = ["SCHEMA", "ParquetSink", "Removal"]
_log = logging.getLogger("natcore.sinks")
arrow.octet_texts()  # the first delivery does not wait for imports, nor a stop for that delivery


class ParquetSink(BatchedSink):
    """Writes Parquet files that DuckDB and others read while more are written.

    A file is `folder`/<time>-<run>-<number>.parquet. Columns are the 15 fields of the contract (addresses as dotted
    text, times as timestamp[us, UTC]), then eip (null: the address has none), session, number, kind, flags, run and label
    (null: it has none).
    The footer says what the file holds, and names the file before it with its SHA-256. The folder is this log's alone;
    any number of readers may read it.

    Parameters
    ----------
    folder
        Made 0700 where it is missing.
    roll_bytes
        Bytes, 1 to 2^50, at which files of small batches are put together.
    roll_seconds
        Seconds, 1 to 10^9, after which they are.
    keep_days
        Whole files are removed, the oldest first, when their last row ended so many days ago, 0 to 36,500; None:
        never.
    compact
        Put the files of each hour that is over into files of at most 4 million rows, sorted by outside endpoint and time.
    keep_bytes
        Whole files are removed, the oldest first, while all together have more bytes; None: never.
    batch_rows
        Rows of a batch at most; None: `DeliveryPolicy.batch`.
    batch_seconds
        Seconds that a batch may wait to fill; None: `DeliveryPolicy.linger`.
    clock, wall
        Seconds of any origin, and Unix seconds; for tests.

    Notes
    -----
    Each removal is a line in `folder`/removed.jsonl, which `natcore log verify` reads.
    """

    delivery_type = "parquet"
    events = True
    gaps = True
    blocks = True
    refusals = True
    facts = True
    labels = True

    folder = ReadOnly[Path]("The folder of its files.")

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        roll_bytes: int = 4 << 20,
        roll_seconds: float = 3600.0,
        keep_days: float | None = None,
        keep_bytes: int | None = None,
        compact: bool = False,
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
        self._folder = Path(check_path("folder", folder))
        super().__init__(batch_rows, batch_seconds)
        self._roll_bytes = roll_bytes
        self._roll_seconds = roll_seconds
        self._keep = (keep_days, keep_bytes)
        self._compact = check_choice("ParquetSink.compact", compact, (True, False))
        self._clock, self._wall = clock, wall
        self._files: Folder | None = None
        self._series: _Series | None = None
        self._lock: Lock | None = None
        after_fork(self, ParquetSink.close)  # file and folder are the parent's

    @property
    def destination(self) -> Mapping[str, str]:
        """What identifies the destination, without secrets."""
        return {"folder": str(self.folder.absolute())}

    def open(self) -> None:
        """Called in the delivering thread before the first delivery; it may raise as `deliver` does."""
        self.claim("a ParquetSink")
        self._files = Folder(self.folder, *self._keep)

    def claim(self, owner: str) -> None:
        """Take the folder: it is one log's. Raises ConfigurationError where another has it."""
        if self._lock is None:
            self._lock = Lock(self.folder, owner, self._roll_seconds)

    def deliver(self, batch: Batch) -> Receipt:
        """Return when the batch is durable; raise `DeliveryError` if it is not."""
        if self._files is None:
            self.open()
        assert self._files is not None
        received = batch.records.nbytes
        rest = self._without_known(batch, self._files.last_number(batch.run))
        if rest is None:
            return Receipt(received, 0)
        written = 0
        if self._series is not None and (self._is_over(self._series) or not self._series.fits(rest)):
            written += self._series.merge(self._files)
            self._series = None
        if self._series is None:
            self._series = _Series(rest, self._clock())
        written += self._series.add(rest, self._files)
        self._series.is_full = self.batch_rows is not None and len(batch) >= self.batch_rows
        self._retain(self._files)
        return Receipt(received, written)

    def _retain(self, files: Folder) -> None:
        """Maintain the folder after a durable batch: a failure here is retried with the next one."""
        try:
            files.retain(self._wall())
        except OSError as error:
            _log.error("%s: retention failed: %s", self.folder, error)
        if self._compact:
            busy = self._series.names if self._series is not None else ()
            try:
                files.compact(self._wall(), busy)
            except (OSError, pa.ArrowException) as error:
                _log.error("%s: compaction failed: %s", self.folder, error)

    def close(self) -> None:
        """Called once in the delivering thread, after the last delivery."""
        self._series = self._files = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @staticmethod
    def _without_known(batch: Batch, known: int) -> Batch | None:
        """Return the batch's rows that are not in the folder: after a crash a delivered batch comes again."""
        if batch.first_number > known:
            return batch
        rows = batch.records
        return batch.select((rows["number"] > known) | (rows["kind"] >= GAP))

    def _is_over(self, series: _Series) -> bool:
        is_old = self._clock() - series.opened_at >= self._roll_seconds
        return series.is_full or series.size_bytes >= self._roll_bytes or is_old


class _Series:
    """Consecutive files of one run, to be merged when they are large enough together."""

    def __init__(self, first: Batch, opened_at: float) -> None:
        self.opened_at = opened_at
        self.size_bytes = 0
        self.is_full = False
        self._identity = (first.instance, first.vpc_id, first.run)
        self._stem = file_stem(first)
        self._last_number = first.first_number
        self._tables: list[Any] = []
        self._parts: list[Kept] = []

    @property
    def names(self) -> list[str]:
        """The names of its files."""
        return [part.path.name for part in self._parts]

    def fits(self, batch: Batch) -> bool:
        """Return whether the batch belongs into the series: one run, in order; it may go on behind the gap row of a crash."""
        is_of_run = self._identity == (batch.instance, batch.vpc_id, batch.run)
        return is_of_run and batch.first_number >= self._last_number

    def add(self, batch: Batch, files: Folder) -> int:
        """Write a file with the batch's rows; -> its size in bytes. If it raises, nothing changed."""
        table = to_table(batch)
        name, sha256 = files.previous()
        footer = Footer.of(batch, files.facts_of(batch.instance, batch.run))
        footer = replace(
            footer,
            previous=name,
            previous_sha256=sha256,
            earlier=files.earlier(),
            removals=files.removals,
            compactions=files.compactions,
        )
        kept = files.write(file_stem(batch), table, footer)
        self._last_number = batch.last_number
        self._tables.append(table)
        self._parts.append(kept)
        self.size_bytes += kept.size_bytes
        return kept.size_bytes

    def merge(self, files: Folder) -> int:
        """Merge several files into one; -> its size in bytes. A failure leaves them as they are."""
        parts = [part for part in self._parts if part in files]  # retention may have taken some
        if len(parts) < 2 or len(parts) < len(self._parts):
            return 0
        footer = parts[0].footer
        for part in parts[1:]:
            footer = footer.joined(part.footer)
        footer = replace(footer, replaces=tuple((part.path.name, part.sha256) for part in parts))
        try:
            return files.merge(self._stem, pa.concat_tables(self._tables), footer, parts)
        except OSError as error:
            _log.error("%s: small files stay as they are: %s", files.path, error)
            return 0

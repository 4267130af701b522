"""ParquetSink: the embedded store, zstd Parquet files that DuckDB reads while they are written.

A Parquet file is readable only when it is whole, so an open file must not be where a reader looks, and a file that
is merged into another and removed would fail a reader that has seen its name. So there is one current file, and
each delivery writes it whole under a draft's name (the rows it had, and the new ones), syncs it, renames it over
the old one and syncs the folder: a reader finds complete files only, each row once, no name ever vanishes, and what
was delivered survives a crash. The file is left for a new one when it has reached `roll_bytes` or `roll_seconds`, or
when a full batch comes: under load each row is written once, and what few rows cost to write again is bounded by
`roll_bytes`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..config import check_integer, check_number
from ..durable import make_private, remove_drafts, replaced
from ..records import RECORD
from .base import ADDRESSES, KINDS, TIMES, Batch, Receipt, Records, Sink, file_stem

FORMAT = "1"  # of the columns and the footer's metadata
_TEXT = pa.dictionary(pa.int32(), pa.string())
_OCTETS = pa.array([str(octet) for octet in range(256)])


def _schema() -> Any:
    """instance, vpc_id, the record's fields in its order (addresses as text, times in UTC), run."""
    fields = [("instance", _TEXT), ("vpc_id", _TEXT)]
    for name in RECORD.names or ():
        if name in ADDRESSES or name == "kind":
            fields.append((name, _TEXT))
        elif name in TIMES:
            fields.append((name, pa.timestamp("us", tz="UTC")))
        else:
            fields.append((name, pa.from_numpy_dtype(RECORD[name])))
    return pa.schema([*fields, ("run", _TEXT)])


SCHEMA = _schema()


class ParquetSink(Sink):
    """Writes `folder`/<time>-<run>-<number>.parquet: `SELECT … FROM 'folder/*.parquet'` in DuckDB, at any time.

    Columns: the 15 fields of the contract (addresses dotted text, times timestamp[us, UTC]), then eip (null: the
    address has none), session, number, kind ("window", "create", "end", "gap"), flags, run. The footer's metadata has
    natcore_format, instance, vpc_id, run, first_number and last_number.
    roll_bytes, roll_seconds: the size or age at which the next batch begins a new file.
    batch_rows, batch_seconds: a batch waits for so many rows, or so long; a full one begins a new file as well.
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
        batch_rows: int | None = 131_072,
        batch_seconds: float | None = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_integer("ParquetSink.roll_bytes", roll_bytes, 1, 1 << 50)
        check_number("ParquetSink.roll_seconds", roll_seconds, 1, 1e9, unit="seconds")
        self.folder = Path(folder)
        self.batch_rows = batch_rows
        self.batch_seconds = batch_seconds
        self._roll_bytes = roll_bytes
        self._roll_seconds = roll_seconds
        self._clock = clock
        self._current: _CurrentFile | None = None

    @property
    def destination(self) -> Mapping[str, str]:
        return {"folder": str(self.folder.absolute())}

    def open(self) -> None:
        make_private(self.folder)
        remove_drafts(self.folder)

    def deliver(self, batch: Batch) -> Receipt:
        is_full = self.batch_rows is not None and len(batch) >= self.batch_rows
        if self._current is None or is_full or self._is_left(self._current) or not self._current.fits(batch):
            self._current = _CurrentFile(self.folder / f"{file_stem(batch)}.parquet", batch, self._clock())
        written = self._current.add(batch)
        return Receipt(batch.records.nbytes, written)

    def close(self) -> None:
        self._current = None

    def _is_left(self, file: _CurrentFile) -> bool:
        return file.size_bytes >= self._roll_bytes or self._clock() - file.opened_at >= self._roll_seconds


class _CurrentFile:
    """The file that deliveries still grow, and its rows."""

    def __init__(self, path: Path, first: Batch, opened_at: float) -> None:
        self.path = path
        self.opened_at = opened_at
        self.size_bytes = 0
        self._identity = (first.instance, first.vpc_id, first.run)
        self._first_number = first.first_number
        self._tables: list[Any] = []

    def fits(self, batch: Batch) -> bool:
        """A file holds one run of one gateway."""
        return self._identity == (batch.instance, batch.vpc_id, batch.run)

    def add(self, batch: Batch) -> int:
        """Write the file again with the batch's rows behind it; -> its size in bytes. If it raises, nothing changed."""
        tables = [*self._tables, to_table(batch)]
        instance, vpc_id, run = self._identity
        footer = {
            "natcore_format": FORMAT, "instance": instance, "vpc_id": vpc_id, "run": run,
            "first_number": str(self._first_number), "last_number": str(batch.last_number),
        }  # fmt: skip
        table = pa.concat_tables(tables).replace_schema_metadata(footer)
        with replaced(self.path) as file:
            pq.write_table(table, file, compression="zstd", use_dictionary=_DICTIONARIES, column_encoding=_DELTAS)
            self.size_bytes = file.tell()
        self._tables = tables
        return self.size_bytes


# Columns whose values repeat; and 64-bit numbers, which differ little: half the bytes and the time of plain ones.
_DICTIONARIES = [field.name for field in SCHEMA if field.type == _TEXT] + ["protocol", "pub_port", "flags"]
_DELTAS = {field.name: "DELTA_BINARY_PACKED" for field in SCHEMA if field.type.bit_width == 64}


def to_table(batch: Batch) -> Any:
    """A pyarrow.Table of SCHEMA with the batch's rows."""
    columns = [_arrow_column(batch.records, name) for name in RECORD.names or ()]
    constant = [_repeat(value, len(batch)) for value in (batch.instance, batch.vpc_id, batch.run)]
    return pa.Table.from_arrays([*constant[:2], *columns, constant[2]], schema=SCHEMA)


def _arrow_column(records: Records, name: str) -> Any:
    values = pa.array(records[name])
    if name in TIMES:
        return values.cast(pa.timestamp("us", tz="UTC"))
    if name in ADDRESSES:
        if name == "eip":
            values = pc.if_else(pc.equal(values, 0), None, values)
        encoded = values.dictionary_encode()
        return pa.DictionaryArray.from_arrays(encoded.indices, _dotted(encoded.dictionary))
    if name == "kind":
        words = pa.array([KINDS[kind] for kind in sorted(KINDS)])
        return pa.DictionaryArray.from_arrays(values.cast(pa.int32()), words)
    return values


def _dotted(addresses: Any) -> Any:
    """Dotted quads of uint32 addresses in host order."""
    octets = [_OCTETS.take(pc.bit_wise_and(pc.shift_right(addresses, shift), 255)) for shift in (24, 16, 8, 0)]
    return pc.binary_join_element_wise(*octets, ".")


def _repeat(value: str, count: int) -> Any:
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), count), pa.array([value]))

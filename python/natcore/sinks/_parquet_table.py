"""Rows as an Arrow table, and the encoding of its columns in a Parquet file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any, BinaryIO, NamedTuple

from natcore.dtypes import FIELDS, RECORD
from natcore.internal import arrow
from natcore.internal.extras import extra
from natcore.sessionlog.file_metadata import GROUPS, Group
from natcore.sinks.base import ADDRESSES, KINDS, TIMES, Batch, LabelTexts, Records

with extra("parquet"):
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq


def _schema() -> Any:
    """Return the schema: instance, vpc_id, the record's fields in order (addresses as text, times in UTC), run, label."""
    fields = [("instance", arrow.TEXT), ("vpc_id", arrow.TEXT)]
    for name in FIELDS:
        if name in ADDRESSES or name == "kind":
            fields.append((name, arrow.TEXT))
        elif name in TIMES:
            fields.append((name, arrow.TIME))
        else:
            fields.append((name, pa.from_numpy_dtype(RECORD[name])))
    return pa.schema([*fields, ("run", arrow.TEXT), ("label", arrow.TEXT)])


SCHEMA = _schema()

# Columns with repeating values; and 64-bit numbers, which differ little: half the bytes and the time of plain ones.
_DICTIONARIES = [field.name for field in SCHEMA if field.type == arrow.TEXT] + ["protocol", "pub_port", "flags"]
_DELTAS = {field.name: "DELTA_BINARY_PACKED" for field in SCHEMA if field.type.bit_width == 64}

# The columns by which files and row groups are found; statistics of the texts would cost more than they save.
_STATISTICS = ["protocol", "nat_ip", "nat_port", "start_time", "end_time", "session", "number"]

_PAGE_BYTES = 1 << 13  # a reader of few rows decodes their pages alone
_PLAIN = ("pri_ip", "pub_ip")  # in sorted files: a dictionary of theirs would be decoded whole for these rows


class Tail(NamedTuple):
    """The bytes of a sorted file behind its row groups, which tell the SHA-256 of each of these; 0: the whole file is read."""

    size_bytes: int
    sha256: str


def write_table(table: Any, file: BinaryIO, footer: dict[str, str]) -> None:
    """Write the table, for readers of all its rows. footer: the file's key-value metadata."""
    with _writer(table.schema, file, footer, _STATISTICS, _DICTIONARIES) as writer:
        writer.write_table(table)


def write_groups(tables: Iterable[Any], file: BinaryIO, footer: dict[str, str]) -> Tail:
    """Write sorted rows, for readers of few: each table as a row group, with its SHA-256 in the footer (as `GROUPS`)."""
    hashed = _Hashed(file)
    groups = []
    dictionaries = [name for name in _DICTIONARIES if name not in _PLAIN]
    with _writer(
        SCHEMA, hashed, footer, [*_STATISTICS, "eip"], dictionaries, data_page_size=_PAGE_BYTES, write_page_index=True
    ) as writer:  # fmt: skip
        for table in tables:
            writer.write_table(table, len(table))
            _, sha256 = hashed.taken()
            groups.append(_group(table, file.tell(), sha256))
        if not hasattr(writer, "add_key_value_metadata"):  # an older pyarrow
            groups.clear()
        else:
            writer.add_key_value_metadata({GROUPS: json.dumps(groups)})
    return Tail(*hashed.taken()) if groups else Tail(0, "")


def _writer(
    schema: Any, file: Any, footer: dict[str, str], statistics: list[str], dictionaries: list[str], **more: Any
) -> Any:
    return pq.ParquetWriter(
        file, schema.with_metadata(footer), compression="zstd", use_dictionary=dictionaries, column_encoding=_DELTAS,
        write_statistics=statistics, write_page_checksum=True, **more,
    )  # fmt: skip


class _Hashed:
    """A file to write to, and the SHA-256 of what was written to it."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest, self._size = hashlib.sha256(), 0
        self.tell, self.flush = file.tell, file.flush

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        self._size += len(data)
        return self._file.write(data)

    def close(self) -> None:
        """Leave it open: it is its maker's."""

    def taken(self) -> tuple[int, str]:
        """Return the number of bytes since the last call, and their SHA-256."""
        found = self._size, self._digest.hexdigest()
        self._digest, self._size = hashlib.sha256(), 0
        return found


def _group(table: Any, end: int, sha256: str) -> Group:
    protocols, ports = (
        tuple(pc.min_max(table[name]).as_py()[which] for which in ("min", "max")) for name in ("protocol", "nat_port")
    )
    addresses, eips = (
        sorted(
            value
            for chunk in table[name].chunks
            for value in chunk.unique().dictionary_decode().to_pylist()
            if value is not None
        )
        for name in ("nat_ip", "eip")
    )
    return Group(
        end, len(table), sha256, (addresses[0], addresses[-1]), protocols, ports, (eips[0], eips[-1]) if eips else None
    )


def to_table(batch: Batch) -> Any:
    """Return a pyarrow.Table of SCHEMA with the batch's rows."""
    columns = [_arrow_column(batch.records, name) for name in FIELDS]
    constant = [_repeat(value, len(batch)) for value in (batch.instance, batch.vpc_id, batch.run)]
    labels = pa.nulls(len(batch), arrow.TEXT) if batch.labels is None else _texts(batch.labels)
    return pa.Table.from_arrays([*constant[:2], *columns, constant[2], labels], schema=SCHEMA)


def _arrow_column(records: Records, name: str) -> Any:
    if name == "kind":
        words = pa.array([KINDS[kind] for kind in sorted(KINDS)])
        return pa.DictionaryArray.from_arrays(pa.array(records[name]).cast(pa.int32()), words)
    return arrow.column(records[name], name, is_address=name in ADDRESSES, is_time=name in TIMES)


def _texts(labels: LabelTexts) -> Any:
    return pa.array(labels, pa.string()).dictionary_encode()


def _repeat(value: str, count: int) -> Any:
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), count), pa.array([value]))

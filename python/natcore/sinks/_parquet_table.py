"""Rows as an Arrow table, and the encoding of its columns in a Parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO

from natcore.dtypes import FIELDS, RECORD
from natcore.internal import arrow
from natcore.internal.extras import extra
from natcore.sinks.base import ADDRESSES, KINDS, TIMES, Batch, LabelTexts, Records

with extra("parquet"):
    import pyarrow as pa
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


_PAGE_BYTES = 1 << 14  # a reader of few rows decodes their pages alone


def write_table(table: Any, file: BinaryIO, footer: dict[str, str], groups: Sequence[int] | None = None) -> None:
    """Write the table. footer: the file's key-value metadata. groups: rows of each row group, for readers of few rows; None:
    for those of all rows."""
    table = table.replace_schema_metadata(footer)
    paged: dict[str, Any] = {} if groups is None else {"data_page_size": _PAGE_BYTES, "write_page_index": True}
    with pq.ParquetWriter(
        file, table.schema, compression="zstd", use_dictionary=_DICTIONARIES, column_encoding=_DELTAS,
        write_statistics=_STATISTICS, write_page_checksum=True, **paged,
    ) as writer:  # fmt: skip
        if groups is None:
            writer.write_table(table)
            return
        first = 0
        for rows in groups:
            writer.write_table(table.slice(first, rows), rows)
            first += rows


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

"""Compaction: the files of an hour that is over become one file, sorted by outside endpoint and time.

A question of an endpoint then reads one row group of a file, found by the statistics of its row groups, and not each file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from natcore.internal.extras import extra
from natcore.sessionlog.file_metadata import Footer
from natcore.sinks._parquet_table import SCHEMA

if TYPE_CHECKING:
    from natcore.sinks._parquet_folder import Kept

with extra("parquet"):
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

ORDER = "nat_ip, protocol, nat_port, end_time"
GROUP_ROWS = 1 << 17  # of a row group at most: each has dictionaries of its own
MOST_ROWS = 1 << 22  # of a file: sorting needs about 100 bytes of memory a row
_HOUR = 3_600_000_000  # microseconds
_CLOSED_SECONDS = 900.0  # after its end: rows that ended in the hour are written by then


def chosen_parts(files: Sequence[Kept], now: float) -> list[Kept]:
    """Return files of one run that follow one another and ended in one hour that is over; empty: there are none.

    now: Unix seconds.
    """
    plain = [kept for kept in files if not kept.footer.order]
    plain.sort(
        key=lambda kept: (kept.footer.instance, kept.footer.run, kept.footer.first_number, kept.footer.last_time)
    )
    for (_, _, hour), group in groupby(plain, key=_hour):
        found = list(group)
        if (hour + 1) * _HOUR / 1e6 + _CLOSED_SECONDS > now:
            continue
        chosen: list[Kept] = []
        rows = 0
        for kept in found:
            if chosen and (not _follows(chosen[-1], kept) or rows + kept.footer.rows > MOST_ROWS):
                if len(chosen) > 1:
                    break
                chosen, rows = [], 0
            chosen.append(kept)
            rows += kept.footer.rows
        if len(chosen) > 1:
            return chosen
    return []


def _hour(kept: Kept) -> tuple[str, str, int]:
    return kept.footer.instance, kept.footer.run, kept.footer.last_time // _HOUR


def _follows(before: Kept, after: Kept) -> bool:
    """Return whether a file was written right after another one, or after one that the other holds the rows of."""
    return after.footer.previous in (before.path.name, *(name for name, _ in before.footer.replaces))


def joined_footer(footers: Sequence[Footer]) -> Footer:
    """Return the footer of a file with all their rows."""
    joined = footers[0]
    for footer in footers[1:]:
        joined = joined.joined(footer)
    return joined


class SortedRows:
    """The rows of files, sorted by ORDER.

    Columns stay in memory as they were written, in numbers as narrow as their values: a row group's rows are put together when
    it is wanted. paths: of the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [pq.ParquetFile(path) for path in paths]
        addresses, protocols = self._column("nat_ip"), self._column("protocol")
        self._order, self._groups = _order(addresses, protocols, self._column("nat_port"), self._column("end_time"))
        self._columns = {}
        for field in SCHEMA:
            self._columns[field.name] = self._column(field.name)
            pa.default_memory_pool().release_unused()  # what reading took
        self._files.clear()

    def __len__(self) -> int:
        return len(self._order)

    @property
    def numbers(self) -> int:
        """The sum of the rows' numbers."""
        return int(pc.sum(self._columns["number"]).as_py())

    def tables(self) -> Iterator[Any]:
        """Yield the rows of one row group after the other."""
        first = 0
        for rows in self._groups:
            order = self._order.slice(first, rows)
            first += rows
            columns = [_widened(self._columns[field.name].take(order), field.type) for field in SCHEMA]
            yield pa.Table.from_arrays(columns, schema=SCHEMA)

    def _column(self, name: str) -> Any:
        kind = SCHEMA.field(name).type
        chunks = [
            chunk.cast(kind) for file in self._files for chunk in _read(file, name, kind).chunks
        ]  # fmt: skip
        whole = pa.chunked_array(chunks, kind)
        return _narrowed((whole.unify_dictionaries() if pa.types.is_dictionary(kind) else whole).combine_chunks())


def _read(file: Any, name: str, kind: Any) -> Any:
    if name in file.schema_arrow.names:
        return file.read(columns=[name], use_threads=False)[name]
    return pa.chunked_array([pa.nulls(file.metadata.num_rows, kind)])  # from before it had labels


def _narrowed(column: Any) -> Any:
    """Return the column in the narrowest unsigned numbers that have its values; a dictionary's indices likewise."""
    if pa.types.is_dictionary(column.type):
        kind = pa.from_numpy_dtype(np.min_scalar_type(max(0, len(column.dictionary) - 1)))
        return pa.DictionaryArray.from_arrays(column.indices.cast(kind), column.dictionary)
    if column.type == pa.uint64():
        return column.cast(pa.from_numpy_dtype(np.min_scalar_type(pc.max(column).as_py() or 0)))
    return column


def _widened(column: Any, kind: Any) -> Any:
    """Return the column in its type; a dictionary of the values that are in it alone: a reader decodes all of them."""
    if not pa.types.is_dictionary(kind):
        return column.cast(kind)
    used = column.indices.dictionary_encode()
    return pa.DictionaryArray.from_arrays(used.indices, column.dictionary.take(used.dictionary))


def _order(addresses: Any, protocols: Any, ports: Any, ended: Any) -> tuple[Any, list[int]]:
    """Return the places of the rows, sorted by ORDER, and how many rows each row group has."""
    texts = np.array(addresses.dictionary.to_pylist(), object)
    rank = np.empty(len(texts), np.int64)
    rank[np.argsort(texts)] = np.arange(len(texts))
    key = rank[np.asarray(addresses.indices)] << 24
    key |= np.asarray(protocols).astype(np.int64) << 16
    key |= np.asarray(ports)
    order = np.lexsort((np.asarray(ended.cast(pa.int64())), key))
    groups = row_groups(key[order] >> 16)
    return pa.array(order.astype(np.uint32)), groups


def row_groups(keys: np.ndarray[Any, Any]) -> list[int]:
    """Return the rows of each row group. keys: of each row, a number of its nat_ip and protocol, sorted.

    A group ends where the nat_ip or the protocol changes, unless their rows are more than a group: by its statistics one with
    the end of an address and the beginning of another may have any endpoint of both.
    """
    changed = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1], True][: len(keys) + 1])
    groups, waiting = [], 0
    for rows in np.diff(changed).tolist():
        if waiting and waiting + rows > GROUP_ROWS:
            groups.append(waiting)
            waiting = 0
        waiting += rows
        if waiting > GROUP_ROWS:
            pieces = -(-waiting // GROUP_ROWS)
            groups += [waiting * (piece + 1) // pieces - waiting * piece // pieces for piece in range(pieces)]
            waiting = 0
    return [*groups, waiting] if waiting else groups


def has_rows(path: Path, rows: SortedRows) -> bool:
    """Return whether the file has as many rows, with the same numbers."""
    file = pq.ParquetFile(path)
    told: int = sum(pc.sum(batch["number"]).as_py() for batch in file.iter_batches(GROUP_ROWS, columns=["number"]))
    return file.metadata.num_rows == len(rows) and told == rows.numbers

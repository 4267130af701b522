"""Compaction: the files of an hour that is over become one file, sorted by outside endpoint and time.

A question of an endpoint then reads one row group of a file, found by the statistics of its row groups, and not each file.
"""

from __future__ import annotations

from collections.abc import Sequence
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
MOST_ROWS = 1 << 22  # of a file: sorting needs about 150 bytes of memory a row
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


def sorted_table(paths: Sequence[Path]) -> Any:
    """Return the rows of the files, sorted by ORDER. One column after the other is read and sorted."""
    files = [pq.ParquetFile(path) for path in paths]

    def read(file: Any, name: str) -> Any:
        if name in file.schema_arrow.names:
            return file.read(columns=[name])[name]
        return pa.chunked_array(
            [pa.nulls(file.metadata.num_rows, SCHEMA.field(name).type)]
        )  # from before it had labels

    def column(name: str) -> Any:
        parts = [read(file, name) for file in files]
        chunks = [chunk.cast(SCHEMA.field(name).type) for part in parts for chunk in part.chunks]
        whole = pa.chunked_array(chunks, SCHEMA.field(name).type)
        return (
            whole.unify_dictionaries().combine_chunks()
            if pa.types.is_dictionary(whole.type)
            else whole.combine_chunks()
        )

    order = _order(column("nat_ip"), column("protocol"), column("nat_port"), column("end_time"))
    return pa.Table.from_arrays([column(field.name).take(order) for field in SCHEMA], schema=SCHEMA)


def _order(addresses: Any, protocols: Any, ports: Any, ended: Any) -> Any:
    """Return the places of the rows, sorted by ORDER."""
    texts = np.array(addresses.dictionary.to_pylist(), object)
    rank = np.empty(len(texts), np.int64)
    rank[np.argsort(texts)] = np.arange(len(texts))
    key = rank[np.asarray(addresses.indices)] << 24 | np.asarray(protocols).astype(np.int64) << 16 | np.asarray(ports)
    return pa.array(np.lexsort((np.asarray(ended.cast(pa.int64())), key)))


def row_groups(table: Any) -> list[int]:
    """Return the rows of each row group of the sorted table.

    A group ends where the nat_ip or the protocol changes, unless their rows are more than a group: by its statistics one with
    the end of an address and the beginning of another may have any endpoint of both.
    """
    changed = np.zeros(len(table), bool)
    addresses = table["nat_ip"].combine_chunks()
    for values in (np.asarray(addresses.indices), np.asarray(table["protocol"])):
        changed[1:] |= values[1:] != values[:-1]
    groups, waiting = [], 0
    for rows in np.diff(np.flatnonzero(np.r_[True, changed[1:], True])).tolist():
        if waiting and waiting + rows > GROUP_ROWS:
            groups.append(waiting)
            waiting = 0
        waiting += rows
        if waiting > GROUP_ROWS:
            pieces = -(-waiting // GROUP_ROWS)
            groups += [waiting * (piece + 1) // pieces - waiting * piece // pieces for piece in range(pieces)]
            waiting = 0
    return [*groups, waiting] if waiting else groups


def has_rows(path: Path, table: Any) -> bool:
    """Return whether the file has as many rows as the table, with the same numbers."""
    numbers = pq.ParquetFile(path).read(columns=["number"])["number"]
    return len(numbers) == len(table) and pc.sum(numbers).as_py() == pc.sum(table["number"]).as_py()

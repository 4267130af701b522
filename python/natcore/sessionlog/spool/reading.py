"""Reads the waiting rows of a running or dead gateway's spool, without a lock and without a change."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from natcore.errors import ConfigurationError
from natcore.internal.files import read_regular
from natcore.internal.redaction import show
from natcore.sessionlog.heartbeat import Beat
from natcore.sessionlog.spool.format import (
    MARK_BYTES,
    ROWS,
    Identity,
    Mark,
    decode_marks,
    decode_segment_header,
)
from natcore.sessionlog.spool.recovery import SEGMENT_SUFFIX, scan, segment_number
from natcore.sessionlog.spool.run import read_run
from natcore.sinks.base import Batch


def waiting_rows(folder: str | os.PathLike[str]) -> Iterator[Batch]:
    """Yield every frame with unacknowledged rows of the folder's log, or of all logs below the folder.

    A frame that is torn or damaged is passed over: its numbers are missing then. Raises ConfigurationError where there
    is no such folder.
    """
    for log in _logs(folder):
        yield from _waiting_rows(log)


def signs_of_life(folder: str | os.PathLike[str]) -> Iterator[tuple[Identity, Beat]]:
    """Return the last heartbeat of each log's last run: all rows before `next_number` were written by `now`."""
    for log in _logs(folder):
        found = read_run(log)
        if found is not None:
            yield found


def _logs(folder: str | os.PathLike[str]) -> list[Path]:
    path = Path(folder)
    if not path.is_dir():
        raise ConfigurationError(f"spool must be a spool's folder, got {show(str(folder))}")
    return [path, *sorted(each for each in path.iterdir() if each.is_dir())]


def _waiting_rows(folder: Path) -> Iterator[Batch]:
    mark = decode_marks(_content(folder / "mark")[: 2 * MARK_BYTES])
    for path in sorted(folder.glob(f"*{SEGMENT_SUFFIX}")):
        number = segment_number(path)
        if number is None:
            continue  # not ours
        if mark is None or number >= mark.segment:
            yield from _rows_of(_content(path), mark if mark and number == mark.segment else None)


def _rows_of(data: bytes, mark: Mark | None) -> Iterator[Batch]:
    decoded = decode_segment_header(data)
    if decoded is None:
        return
    identity, start = decoded
    offset, done = (mark.offset, mark.rows) if mark else (start, 0)
    for _, header, records, _ in scan(data, offset):
        if header is None or records is None or header.type != ROWS:
            continue
        if len(records) > done:
            yield Batch(identity.instance, identity.vpc_id, identity.run, records[done:])
        done = 0


def _content(path: Path) -> bytes:
    """Return the file's content; empty if the file is gone: its rows are delivered."""
    try:
        return read_regular(path)
    except FileNotFoundError:
        return b""

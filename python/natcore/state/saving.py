"""Copies a gateway's state and writes it."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from natcore.api.state import State
from natcore.dtypes import RECORD
from natcore.errors import ConfigurationError
from natcore.internal import files
from natcore.internal.redaction import show
from natcore.internal.validation import check_path
from natcore.state.file_format import SETTINGS, Bytes, Key, written
from natcore.state.rows import GATEWAY_STATE, OF_WORKER, SECTIONS, WHOLE_ROW, WORKER_STATE
from natcore.state.settings import SavedEntries, encode
from natcore.verdict import Verdict

if TYPE_CHECKING:
    from natcore.api.gateway import Core
    from natcore.sessionlog.collector import Account

PAGE = 4096
SLACK = 65_536  # bytes of rows that a section may get while memory for it is made


def collect(
    core: Core,
    arguments: Mapping[str, Any],
    entries: SavedEntries,
    *,
    seeded: bool,
    log_rows: bool,
    account: Account | None = None,
) -> dict[Key, Bytes]:
    """Return the sections of a state, copied at one moment. seeded: with the random numbers; log_rows: with waiting rows;
    account: of session logs that another process goes on with."""
    state = State(core.log_rows)
    sizes = State.row_bytes()
    counts = state.expected()
    while True:
        # what was written once is there: no packet waits for memory
        buffers = [
            [_touched((count + count // 64) * sizes[number] + SLACK) for number, count in enumerate(own)]
            for own in counts
        ]
        counts = state.copy(buffers, seeded, log_rows)
        if all(
            count * sizes[number] <= len(buffers[worker][number])
            for worker, own in enumerate(counts)
            for number, count in enumerate(own)
        ):
            break
    sections: dict[Key, Bytes] = {(SETTINGS, 0): settings_of(arguments, entries, account)}
    for worker, own in enumerate(counts):
        for number, count in enumerate(own):
            name = SECTIONS[number][0]
            if worker == 0 or name in OF_WORKER:
                sections[name, worker] = buffers[worker][number][: count * sizes[number]]
    rows = sections["rows", 0]
    order = np.argsort(rows.view(RECORD)["number"], kind="stable")
    sections["rows", 0] = rows.view(WHOLE_ROW)[order].view(np.uint8)
    return sections


_KEPT = frozenset({"worker", "gateway", "addresses", "host-ports", "identifications", "budgets"})


def base(core: Core, arguments: Mapping[str, Any], entries: SavedEntries, *, seeded: bool) -> dict[Key, Bytes]:
    """Return the sections of a gateway's state without what it has of sessions: for a standby, which gets these one by
    one. It has no ports in use or held down, no port blocks, no datagrams, and nothing that waits to be taken."""
    state = State(core.log_rows)
    sizes = State.row_bytes()
    counts = state.expected(tables=False)
    while True:
        buffers = [
            [np.empty(count * sizes[number] + PAGE, np.uint8) for number, count in enumerate(own)] for own in counts
        ]
        counts = state.copy(buffers, seeded, log_rows=False, tables=False)
        if all(
            count * sizes[number] <= len(buffers[worker][number])
            for worker, own in enumerate(counts)
            for number, count in enumerate(own)
        ):
            break
    sections: dict[Key, Bytes] = {(SETTINGS, 0): np.frombuffer(encode(arguments, entries, None), np.uint8)}
    live = 0
    for worker, own in enumerate(counts):
        for number, count in enumerate(own):
            name = SECTIONS[number][0]
            if worker == 0 or name in OF_WORKER:
                kept = count if name in _KEPT else 0
                sections[name, worker] = buffers[worker][number][: kept * sizes[number]]
        row = sections["worker", worker].view(WORKER_STATE)
        live += int(row["created"][0] - row["ended"][0])
        row["created"], row["created_of"] = row["ended"], row["ended_of"]  # a session is counted when it is told
        for counters in (
            row["counters"],
            row["from_outside"],
        ):  # fragments that are held are lost with a gateway that dies
            counters[:, Verdict.DROP_FRAGMENT] += counters[:, Verdict.HELD]
            counters[:, Verdict.HELD] = 0
    gateway = sections["gateway", 0].view(GATEWAY_STATE)
    gateway["created"] -= live
    gateway["blocks_taken"] = gateway["blocks_released"]
    return sections


def _touched(size: int) -> Bytes:
    """Return uint8 (size,), of which each page is in memory."""
    made = np.empty(size, np.uint8)
    made[::PAGE] = 0
    return made


def settings_of(arguments: Mapping[str, Any], entries: SavedEntries, account: Account | None) -> Bytes:
    """Return the rows of the section of settings."""
    return np.frombuffer(encode(arguments, entries, account), np.uint8)


def write_handed_over(
    file: str | os.PathLike[str] | BinaryIO,
    core: Core,
    arguments: Mapping[str, Any],
    entries: SavedEntries,
    *,
    seeded: bool,
    account: Account | None,
) -> int:
    """Write a state for another process to go on with; return how many bytes it has. account: of the session logs."""
    sections = collect(core, arguments, entries, seeded=seeded, log_rows=account is None, account=account)
    if account is None:
        return write(file, sections)
    return write(
        file,
        sections,
        sign=lambda inode, born: settings_of(arguments, entries, account._replace(inode=inode, born=born)),
    )


@cache
def _own_version() -> str:
    return version("natcore")  # parses a file


def write(
    file: str | os.PathLike[str] | BinaryIO,
    sections: Mapping[Key, Bytes],
    *,
    sign: Callable[[int, int], Bytes] | None = None,
) -> int:
    """Write sections into a file; return how many bytes it has. sign: makes the settings of a file's identity, given a path."""
    parts = written(sections, _own_version())
    if callable(getattr(file, "write", None)):
        if isinstance(file, io.TextIOBase):
            raise ConfigurationError(f"file must be opened for bytes, got {show(file)}")
        return _write_all(parts, lambda part: _write_whole(file, part))  # type: ignore[arg-type]
    with files.replaced(Path(check_path("file", file)), private=False) as opened:
        if sign is not None:
            parts = written({**sections, (SETTINGS, 0): sign(*files.identity(opened.fileno()))}, _own_version())
        return _write_all(parts, lambda part: files.write_all(opened.fileno(), part))


def _write_whole(file: BinaryIO, part: memoryview) -> None:
    """Write all of a part; an unbuffered file may take less at a time. Raises OSError."""
    left = part.cast("B")
    while left:
        count = file.write(left)
        if count is None:
            raise BlockingIOError(errno.EAGAIN, "the file takes no more without blocking")
        left = left[count:]


def _write_all(parts: Iterator[memoryview], put: Callable[[memoryview], object]) -> int:
    total = 0
    for part in parts:
        put(part)
        total += len(part)
    return total

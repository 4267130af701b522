"""A folder of Parquet files as a chain: each file names the one before it with its SHA-256; what is too old is removed.

Every removal is told in `removed.jsonl` beside the files (synced before the file goes) and to the logger natcore.sinks:
a chain that begins with a file whose predecessor is told there is whole, and so is the account of what is missing.
"""

from __future__ import annotations

import hashlib
import logging
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from ..durable import (
    make_private,
    open_private,
    open_regular,
    read_regular,
    remove,
    remove_drafts,
    sync_folder,
    write_all,
)  # fmt: skip
from ..errors import UntrustedFileError
from ..footer import Footer, decode

_log = logging.getLogger("natcore.sinks")
REMOVED = "removed.jsonl"
_DAY_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class Removal:
    """A file that retention removed. Times in microseconds since 1970; removed_at in seconds; reason: the keep_… that asked."""

    file: str
    sha256: str
    instance: str
    run: str
    first_number: int
    last_number: int
    first_time: int
    last_time: int
    size_bytes: int
    removed_at: float
    reason: str


@dataclass(frozen=True, slots=True)
class _Kept:
    path: Path
    footer: Footer
    size_bytes: int


def sha256_of(path: Path) -> str:
    with os.fdopen(open_regular(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_footer(path: Path) -> Footer | None:
    """None: not a session log's file, or damaged."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            metadata = pq.read_metadata(file).metadata
    except (pa.ArrowException, UntrustedFileError):
        return None
    except OSError as error:
        if error.errno is not None:  # the system's; what Arrow cannot parse has none
            raise
        return None
    return decode(metadata) if metadata else None


def read_removals(folder: Path) -> list[Removal]:
    """What retention removed, in its order; a line that a crash left unfinished is no removal."""
    try:
        lines = read_regular(folder / REMOVED).split(b"\n")
    except FileNotFoundError:
        return []
    removals = []
    for line in lines[:-1]:
        with suppress(msgspec.DecodeError):
            removal = msgspec.json.decode(line, type=Removal)
            if Path(removal.file).name == removal.file and removal.file.endswith(".parquet"):  # a name in this folder
                removals.append(removal)
    return removals


class Folder:
    """The files that are complete, of all runs; `begin` says what the next one continues.

    keep_days, keep_bytes: None: for ever. The newest complete file always stays, so that the chain goes on from it.
    """

    def __init__(self, path: Path, keep_days: float | None, keep_bytes: int | None) -> None:
        self.path = path
        self._keep_days = keep_days
        self._keep_bytes = keep_bytes
        make_private(path)
        remove_drafts(path)
        for removal in read_removals(path):  # told, and then the process died
            remove(path / removal.file)
        found = ((each, read_footer(each), each.lstat()) for each in path.glob("*.parquet"))
        ours = [(stat.st_mtime_ns, _Kept(each, footer, stat.st_size)) for each, footer, stat in found if footer]
        named = {kept.footer.previous for _, kept in ours}
        # The tip, which no other file names, is the last: the newest one, where several gateways write here.
        ours.sort(key=lambda item: (item[1].path.name not in named, item[0], item[1].path.name))
        self._files = [kept for _, kept in ours]
        self._held: dict[str, int] = {}
        for kept in self._files:
            self._held[kept.footer.run] = max(kept.footer.last_number, self._held.get(kept.footer.run, -1))

    def last_number(self, run: str) -> int:
        """The highest number of the run that was here when the folder was opened, -1: none."""
        return self._held.get(run, -1)

    def previous(self) -> tuple[str, str]:
        """The name and SHA-256 of the file that the next one continues; empty: it is the first."""
        if not self._files:
            return "", ""
        return self._files[-1].path.name, sha256_of(self._files[-1].path)

    def free_path(self, stem: str) -> Path:
        """The stem as a file that is not there yet."""
        path = self.path / f"{stem}.parquet"
        copies = 2
        while path.exists():
            path = self.path / f"{stem}-{copies}.parquet"
            copies += 1
        return path

    def add(self, path: Path, footer: Footer, size_bytes: int) -> None:
        """The file is complete and will not change any more."""
        self._files.append(_Kept(path, footer, size_bytes))

    def retain(self, now: float, current_bytes: int) -> list[Removal]:
        """Remove what is older, or more, than is to be kept; -> what was removed. now: Unix seconds."""
        removed = []
        total = current_bytes + sum(kept.size_bytes for kept in self._files)
        for kept in sorted(self._files[:-1], key=lambda kept: kept.footer.last_time):
            if self._keep_days is not None and kept.footer.last_time / 1e6 < now - self._keep_days * _DAY_SECONDS:
                reason = "keep_days"
            elif self._keep_bytes is not None and total > self._keep_bytes:
                reason = "keep_bytes"
            else:
                break
            removed.append(self._remove(kept, now, reason))
            total -= kept.size_bytes
        return removed

    def _remove(self, kept: _Kept, now: float, reason: str) -> Removal:
        footer = kept.footer
        removal = Removal(
            kept.path.name, sha256_of(kept.path), footer.instance, footer.run, footer.first_number, footer.last_number,
            footer.first_time, footer.last_time, kept.size_bytes, now, reason,
        )  # fmt: skip
        _append(self.path / REMOVED, msgspec.json.encode(asdict(removal)) + b"\n")
        remove(kept.path)
        self._files.remove(kept)
        _log.info(
            "%s removed: its %d bytes are more than %s allows", kept.path, kept.size_bytes, reason,
            extra={"removal": removal},
        )  # fmt: skip
        return removal


def _append(path: Path, line: bytes) -> None:
    is_new = not path.exists()
    descriptor = open_private(path, os.O_RDWR | os.O_APPEND)
    try:
        end = os.fstat(descriptor).st_size
        if end and os.pread(descriptor, 1, end - 1) != b"\n":  # a crash cut the last line
            line = b"\n" + line
        write_all(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if is_new:
        sync_folder(path.parent)

"""Where the files of a log lie: a folder of this machine, or a bucket (natcore.who.bucket).

Paths are texts; that of a file begins with its folder's and a slash. Whoever reads decides what to believe: here nothing is.
"""

from __future__ import annotations

import hashlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

from natcore.errors import ConfigurationError, UntrustedFileError
from natcore.internal.files import open_regular, read_regular
from natcore.internal.redaction import show
from natcore.sessionlog.file_metadata import Footer
from natcore.sinks._parquet_folder import (
    COMPACTED,
    REMOVED,
    SEAL,
    Compaction,
    Line,
    Removal,
    Seal,
    lines_of,
    read_footer,
    seal_of,
    sha256_of,
)

Stamp = tuple[int, int, int]  # what changes when a file is written again: inode, bytes, nanoseconds
Item = TypeVar("Item")
Value = TypeVar("Value")
_LARGE_FOLDER = 256  # files, from which on a listing is kept
_LISTED_NS = 60_000_000_000  # for so long at most
_SETTLED_NS = 2_000_000_000  # that a folder's change lies back: a later one has another time, however coarse


class Listing(NamedTuple):
    """What is in a folder: looked, changed: nanoseconds since 1970; its folders and Parquet files, these sorted."""

    looked: int
    changed: int
    folders: list[str]
    files: list[str]


class Piece(NamedTuple):
    """The bytes of a file from `start` until `end`, and the SHA-256 that they were written with."""

    start: int
    end: int
    sha256: str


class Wanted(NamedTuple):
    """What is read of a file: its SHA-256 as a whole, and its pieces; None: all of it."""

    sha256: str
    pieces: Sequence[Piece] | None = None


class Files(ABC):
    """A folder of a log's files, and the folders in it. Thread-safe.

    Raises Error, which names the place, where that does not answer. FileNotFoundError: a file is not there; another OSError: it
    is there and cannot be read.
    """

    name: str  # in messages
    top: str  # the folder's path
    at_once: int  # files that are read at once

    @abstractmethod
    def is_there(self) -> bool:
        """Return whether there is such a folder."""

    @abstractmethod
    def listing(self, folder: str, known: Listing | None = None) -> Listing | None:
        """Return what is in a folder; None: it is not there. known: what was returned before."""

    def refresh(self) -> None:  # noqa: B027 - most keep nothing
        """Forget what is kept of listings."""

    @abstractmethod
    def stamp(self, path: str) -> Stamp | None:
        """Return what changes when the file is written again; None: it is not there."""

    @abstractmethod
    def read(self, path: str) -> bytes:
        """Return a small file."""

    @abstractmethod
    def footer(self, path: str) -> Footer | None:
        """Return a Parquet file's metadata; None: not a session log's file, or damaged."""

    @abstractmethod
    def sha256(self, path: str) -> str:
        """Return the file's SHA-256."""

    def fetch(self, path: str) -> str:
        """As `sha256`; what was read is kept for `opened`, if reading it again is dear."""
        return self.sha256(path)

    @abstractmethod
    def fetch_pieces(self, path: str, wanted: Wanted) -> set[Piece]:
        """Return those pieces of the file that have their SHA-256; kept as by `fetch`."""

    @contextmanager
    def opened(self, paths: Mapping[str, Wanted]) -> Iterator[dict[str, str]]:
        """Yield the files that DuckDB reads, by path. paths: what was fetched of each. Raises PartsMoved."""
        yield {path: path for path in paths}

    def map(self, function: Callable[[Item], Value], items: Iterable[Item]) -> list[Value]:
        """Return what the function, which reads files, returns of each item; several are under way at once."""
        some = list(items)
        if len(some) < 2:
            return [function(item) for item in some]
        with ThreadPoolExecutor(min(self.at_once, len(some)), "nat-files") as threads:
            return list(threads.map(function, some))

    def seal(self, folder: str) -> Seal | None:
        """Return the folder's seal; None: there is none, or a crash tore it."""
        try:
            return seal_of(self.read(f"{folder}/{SEAL}"))
        except (FileNotFoundError, UntrustedFileError):
            return None

    def removals(self, folder: str) -> list[tuple[Removal, str]]:
        """Return what retention removed, in order, each with the SHA-256 of its line."""
        return self._lines(f"{folder}/{REMOVED}", Removal)

    def compactions(self, folder: str) -> list[tuple[Compaction, str]]:
        """Return what was put together, in order, each with the SHA-256 of its line."""
        return self._lines(f"{folder}/{COMPACTED}", Compaction)

    def _lines(self, path: str, kind: type[Line]) -> list[tuple[Line, str]]:
        try:
            return lines_of(self.read(path), kind)
        except FileNotFoundError:
            return []


class LocalFiles(Files):
    """A folder of this machine."""

    at_once = os.cpu_count() or 1

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.top = self.name = os.fspath(Path(folder))

    def is_there(self) -> bool:
        """Return whether it is a folder."""
        return Path(self.top).is_dir()

    def listing(self, folder: str, known: Listing | None = None) -> Listing | None:
        """Return what is in a folder. A large one is listed again when it has changed, or after a while: not every file system
        tells of changes."""
        now = time.time_ns()
        try:
            changed = Path(folder).stat().st_mtime_ns
            if (
                known is not None and len(known.files) >= _LARGE_FOLDER and known.changed == changed
                and known.looked - changed > _SETTLED_NS and 0 <= now - known.looked < _LISTED_NS
            ):  # fmt: skip
                return known
            folders, files = [], []
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.name.endswith(".parquet"):
                        files.append(entry.path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        files.sort()
        return Listing(now, changed, folders, files)

    def stamp(self, path: str) -> Stamp | None:
        """Return inode, bytes and time of the name, which may be a link."""
        try:
            stat = os.lstat(path)
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_size, stat.st_mtime_ns

    def read(self, path: str) -> bytes:
        """Return a small file, which must be a regular one."""
        return read_regular(Path(path))

    def footer(self, path: str) -> Footer | None:
        """Return a Parquet file's metadata."""
        return read_footer(Path(path))

    def sha256(self, path: str) -> str:
        """Return the SHA-256 of the file, which must be a regular one."""
        return sha256_of(Path(path))

    def fetch_pieces(self, path: str, wanted: Wanted) -> set[Piece]:
        """Return those pieces of the file, which must be a regular one, that have their SHA-256."""
        with os.fdopen(open_regular(Path(path)), "rb") as file:
            return {piece for piece in wanted.pieces or () if has_hash(piece, _bytes_of(file, piece))}


def _bytes_of(file: BinaryIO, piece: Piece) -> bytes:
    file.seek(piece.start)
    return file.read(piece.end - piece.start)


def has_hash(piece: Piece, data: bytes) -> bool:
    """Return whether these are the piece's bytes."""
    return hashlib.sha256(data).hexdigest() == piece.sha256


def files_at(name: str, where: Files | str | os.PathLike[str]) -> Files:
    """Return the files of a folder, or of s3://BUCKET/PREFIX. Raises ConfigurationError: they are not there. name: of the
    argument."""
    if isinstance(where, str) and where.startswith("s3://"):
        from natcore.who.bucket import Bucket

        where = Bucket(where)
    files = where if isinstance(where, Files) else LocalFiles(where)
    if not files.is_there():
        raise ConfigurationError(f"{name} must be a ParquetSink's folder, got {show(files.name)}")
    return files

"""Copy of a log's Parquet files into a bucket: those that are closed, and last a seal that names the newest of them.

A file that a log may yet put together with others stays for later, and so do those behind it: a bucket has the beginning of a
chain. Nothing there is deleted.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

from natcore.errors import ConfigurationError, Error, UntrustedFileError
from natcore.internal.files import open_regular
from natcore.internal.redaction import show
from natcore.internal.validation import check_number
from natcore.sessionlog.file_metadata import Footer
from natcore.sinks._parquet_folder import (
    COMPACTED,
    REMOVED,
    SEAL,
    Compaction,
    Removal,
    Seal,
    encode_line,
    lines_of,
    roll_seconds_of,
)
from natcore.who.bucket import Bucket
from natcore.who.files import Files, LocalFiles, files_at
from natcore.who.verify import newest_of

_TRIES = 10  # while the folder changes


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What was copied.

    Attributes
    ----------
    files, bytes
        Copied now.
    there
        Files that were there already, by name and length.
    later
        Files that may yet be put together with others: for a later time.
    damaged
        Files that are not as they were written, which are not copied.
    """

    files: int
    bytes: int
    there: int
    later: int
    damaged: tuple[str, ...]


@dataclass(slots=True)
class _Counts:
    files: int = 0
    bytes: int = 0
    there: int = 0
    later: int = 0


def upload(
    folder: str | os.PathLike[str], target: Bucket | str, *, settled: float = 4500.0, now: float | None = None
) -> Uploaded:
    """Copy the files of a ParquetSink's folder, and of the folders in it, into a bucket. A gateway may write there meanwhile.

    Do it again for what has come since, or after an interruption: what is there with its name and length is not copied again.

    Parameters
    ----------
    folder
        The folder.
    target
        "s3://BUCKET/PREFIX", or a `Bucket`. The prefix is of this folder alone.
    settled
        Seconds without a change after which a file that was not put together stays as it is, 0 to 1e9: more than the sink's
        `roll_seconds`. It counts only where a log writes into the folder.
    now
        Unix seconds; None: by this machine's clock.

    Returns
    -------
    Uploaded
        How much it was.

    Raises
    ------
    ConfigurationError
        There is no such folder, the prefix is of another one, or the log that writes into the folder has a longer roll_seconds.
    Error
        The bucket does not answer. What was copied before stays.
    """
    check_number("settled", settled, 0, 1e9, unit="seconds")
    source = LocalFiles(folder)
    files_at("folder", source)
    bucket = target if isinstance(target, Bucket) else Bucket(target)
    counts, damaged = _Counts(), list[str]()
    limit = (time.time() if now is None else now) - settled
    for each in _folders(source):
        for attempt in range(_TRIES):
            bucket.refresh()
            try:
                damaged += _upload(source, each, bucket, settled, limit, counts)
                break
            except FileNotFoundError:  # files were put together or removed meanwhile
                if attempt == _TRIES - 1:
                    raise
    return Uploaded(counts.files, counts.bytes, counts.there, counts.later, tuple(damaged))


def _folders(source: Files) -> Iterator[str]:
    waiting = [source.top]
    while waiting:
        folder = waiting.pop()
        listing = source.listing(folder)
        if listing is not None:
            waiting += listing.folders
            if source.stamp(f"{folder}/{SEAL}") is not None:
                yield folder


def _upload(
    source: LocalFiles, folder: str, bucket: Bucket, settled: float, limit: float, counts: _Counts
) -> list[str]:  # fmt: skip
    """Copy one folder; -> the paths of its damaged files. Raises FileNotFoundError where it changed meanwhile."""
    seal, listing = source.seal(folder), source.listing(folder)
    if seal is None or listing is None:
        raise Error(f"{folder}: the seal of its newest file is damaged; natcore log verify tells more")
    manifests = {name: _read(source, f"{folder}/{name}") for name in (REMOVED, COMPACTED)}
    removals, compactions = lines_of(manifests[REMOVED], Removal), lines_of(manifests[COMPACTED], Compaction)
    if source.seal(folder) != seal:  # a file came, or went: the listing may be older, or younger
        raise FileNotFoundError(f"{folder}: it changes")
    footers = {_name(path): source.footer(path) for path in listing.files}
    expected = _expected(footers, compactions, seal)
    target = f"{bucket.top}{folder.removeprefix(source.top)}"
    gone = {removal.file for removal, _ in removals} | {
        name for line, _ in compactions for name in (line.file, *line.replaces)
    }
    sealed = _seal_of(bucket, target, gone.union(footers))
    merged = {
        name
        for file, footer in footers.items()
        if footer is not None and file in expected
        for name, _ in footer.replaces
    }
    is_written, waits = _is_written(folder, settled), False
    there: dict[str, Footer] = {}
    damaged = []
    for path in listing.files:
        name = _name(path)
        footer, stamp = footers[name], source.stamp(path)
        copy = bucket.stamp(f"{target}/{name}")
        if stamp is None:
            raise FileNotFoundError(path)
        if footer is None:
            damaged.append(path)
        elif name in merged or (footer.replaces and name not in expected):
            continue  # a crash left it
        elif copy is not None and copy[1] == stamp[1]:
            counts.there += 1
            there[name] = footer
        else:
            may_change = is_written and not footer.replaces and stamp[2] > limit * 1e9
            waits = waits or (not footer.order and (may_change or name not in expected))
            if waits and not footer.order:
                counts.later += 1
            elif _copied(source, path, bucket, f"{target}/{name}", expected[name]):
                counts.files += 1
                counts.bytes += stamp[1]
                there[name] = footer
            else:
                damaged.append(path)
    newest = newest_of(there)
    if newest is not None and newest in expected and not _is_older(newest, sealed, footers.keys() - there.keys()):
        for name, data in manifests.items():
            if data:
                _write(bucket, f"{target}/{name}", data)
        heads = [lines[-1][1] if lines else "" for lines in (removals, compactions)]
        _write(bucket, f"{target}/{SEAL}", encode_line(Seal(newest, expected[newest], *heads)))
    bucket.refresh()
    return damaged


def _is_older(newest: str, sealed: Seal | None, elsewhere: Set[str]) -> bool:
    """Return whether the bucket's seal names a later file, which is damaged here."""
    return sealed is not None and sealed.file in elsewhere and newest < sealed.file


def _read(source: Files, path: str) -> bytes:
    """Return a manifest; b"": there is none."""
    return b"" if source.stamp(path) is None else source.read(path)


def _copied(source: LocalFiles, path: str, bucket: Bucket, target: str, expected: str) -> bool:
    """Copy the file; False: it is not as it was written."""
    try:
        if source.sha256(path) != expected:
            return False
        with os.fdopen(open_regular(Path(path)), "rb") as file:
            bucket.write(target, file)
    except UntrustedFileError:
        return False
    return True


def _write(bucket: Bucket, path: str, data: bytes) -> None:
    if bucket.stamp(path) is None or bucket.read(path) != data:
        bucket.write(path, io.BytesIO(data))


def _seal_of(bucket: Bucket, target: str, names: Set[str]) -> Seal | None:
    """Return the seal that is there. Raises ConfigurationError where it is of a file that this folder never had."""
    seal = None if bucket.stamp(f"{target}/{SEAL}") is None else bucket.seal(target)
    if seal is not None and seal.file not in names:
        raise ConfigurationError(
            f"target must be of this folder alone, got {show(target)}: the newest file there is {seal.file}, "
            "which this folder never had"
        )
    return seal


def _expected(
    footers: dict[str, Footer | None], compactions: list[tuple[Compaction, str]], seal: Seal
) -> dict[str, str]:
    """Return the SHA-256 that files had when they were written, by name, as others tell."""
    found: dict[str, str] = {}
    for footer in footers.values():
        if footer is not None:
            for name, sha256 in footer.earlier:
                found.setdefault(name, sha256)
    found.update(
        (each.previous, each.previous_sha256) for each in footers.values() if each is not None and each.previous
    )
    found.update((line.file, line.sha256) for line, _ in compactions)
    found[seal.file] = seal.sha256
    return found


def _is_written(folder: str, settled: float) -> bool:
    """Return whether a log writes into the folder. Raises ConfigurationError where it may change files that are `settled`."""
    rolls = roll_seconds_of(folder)
    if rolls is not None and settled <= rolls:
        raise ConfigurationError(
            f"settled must be more than the {rolls:g} s after which the log that writes into {show(folder)} puts "
            f"small files together (its roll_seconds), got {settled:g}"
        )
    return rolls is not None


def _name(path: str) -> str:
    return path.rpartition("/")[2]

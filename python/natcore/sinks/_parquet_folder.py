"""A folder of Parquet files as a chain: each file has the SHA-256 of the one before; old files are removed.

Every removal is recorded in `removed.jsonl` beside the files (synced before the file goes) and to the logger natcore.sinks:
a chain is complete if its first file's predecessor is stated there, and so is the account of what is missing.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from natcore.errors import ConfigurationError, UntrustedFileError
from natcore.internal.extras import extra
from natcore.internal.file_lock import FileLock
from natcore.internal.files import (
    make_private,
    open_private,
    open_regular,
    read_regular,
    remove,
    remove_drafts,
    replaced,
    sync_folder,
    write_all,
)  # fmt: skip
from natcore.internal.json_fields import compact, read_fields
from natcore.internal.redaction import show, show_text
from natcore.sessionlog.facts import NO_FACTS, InForce
from natcore.sessionlog.file_metadata import Footer, decode
from natcore.sinks._parquet_compaction import ORDER, SortedRows, chosen_parts, has_rows, joined_footer
from natcore.sinks._parquet_table import Tail, write_groups, write_table

with extra("parquet"):
    import pyarrow as pa
    import pyarrow.parquet as pq

_log = logging.getLogger("natcore.sinks")
REMOVED = "removed.jsonl"
COMPACTED = "compacted.jsonl"
SEAL = "newest.json"
OWNER = "owner"
_ROLL = "\nroll_seconds "  # in OWNER, behind the log and its process
_LOOKS, _LOOK_SECONDS = 5, 0.02  # at a folder that a reader looks at
_DAY_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class Removal:
    """A file that retention removed. Times in microseconds since 1970; removed_at in seconds; reason: the keep_… setting."""

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
    before: str = ""  # SHA-256 of the line before, so that none is put in


@dataclass(frozen=True, slots=True)
class Compaction:
    """A file of sorted rows that took the place of others. Times as of a Removal; at in seconds; parts: NAME=SHA-256 of
    each, with spaces between them. tail_bytes, tail_sha256: of the file's end, which tells the SHA-256 of each row group; 0: it
    does not, and the file is believed as a whole."""

    file: str
    sha256: str
    instance: str
    run: str
    first_number: int
    last_number: int
    first_time: int
    last_time: int
    rows: int
    size_bytes: int
    parts: str
    at: float
    before: str = ""  # SHA-256 of the line before
    tail_bytes: int = 0
    tail_sha256: str = ""

    @property
    def replaces(self) -> dict[str, str]:
        """The SHA-256 of each file that it replaces, by name."""
        return {name: sha256 for name, _, sha256 in (each.partition("=") for each in self.parts.split())}


@dataclass(frozen=True, slots=True)
class Kept:
    """A file of the folder. sha256: as it was written; empty: no other file tells."""

    path: Path
    footer: Footer
    size_bytes: int
    sha256: str = ""


def sha256_of(path: Path) -> str:
    with os.fdopen(open_regular(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_footer(path: Path) -> Footer | None:
    """Read a file's metadata; None: not a session log's file, or damaged."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            return footer_in(file)
    except UntrustedFileError:
        return None


def footer_in(file: BinaryIO) -> Footer | None:
    """As `read_footer`, of an open file."""
    try:
        metadata = pq.read_metadata(file).metadata
    except pa.ArrowException:
        return None
    except OSError as error:
        if error.errno is not None:  # the system's; what Arrow cannot parse has none
            raise
        return None
    except ValueError:  # a name of a column that is no text
        return None
    return decode(metadata) if metadata else None


def removal_lines(folder: Path) -> list[tuple[Removal, str]]:
    """Return the removals, each with the SHA-256 of its line."""
    return _lines(folder / REMOVED, Removal)


def compaction_lines(folder: Path) -> list[tuple[Compaction, str]]:
    """Return the compactions, each with the SHA-256 of its line."""
    return _lines(folder / COMPACTED, Compaction)


Line = TypeVar("Line", Removal, Compaction)


def _lines(path: Path, kind: type[Line]) -> list[tuple[Line, str]]:
    try:
        return lines_of(read_regular(path), kind)
    except FileNotFoundError:
        return []


def lines_of(data: bytes, kind: type[Line]) -> list[tuple[Line, str]]:
    """Return the lines of such a file, each with its SHA-256; one that a crash tore is none."""
    found = []
    for line in data.split(b"\n")[:-1]:
        told = read_fields(line, kind)
        if told and Path(told.file).name == told.file and told.file.endswith(".parquet"):  # in this folder
            found.append((told, hashlib.sha256(line).hexdigest()))
    return found


@dataclass(frozen=True, slots=True)
class Seal:
    """The hashes of a folder's newest file, and of the last lines of removed.jsonl and compacted.jsonl ("": none)."""

    file: str
    sha256: str
    removals: str
    compactions: str = ""


def read_seal(folder: Path) -> Seal | None:
    """Read the seal; None: there is none, or a crash tore it."""
    try:
        return seal_of(read_regular(folder / SEAL))
    except (FileNotFoundError, UntrustedFileError):
        return None


def seal_of(data: bytes) -> Seal | None:
    """Return the seal; None: a crash tore it."""
    return read_fields(data, Seal)


def encode_line(value: Removal | Compaction | Seal) -> bytes:
    """Return a line of these files, without its end."""
    return compact(asdict(value)).encode()


class Lock:
    """Lock a folder for one log until it is released or the process ends. Raises ConfigurationError, OSError.

    roll_seconds: after which its files stay as they are; None: they do at once.
    """

    def __init__(self, folder: Path, owner: str, roll_seconds: float | None = None) -> None:
        make_private(folder)
        descriptor = open_private(folder / OWNER, os.O_RDWR)
        try:
            lock = _locked(descriptor)
        except BlockingIOError:
            told = os.pread(descriptor, 200, 0).decode(errors="replace").partition("\n")[0]
            who = told.strip() or "another log"
            os.close(descriptor)
            raise ConfigurationError(
                f"folder must be of one log alone, got {show(str(folder))}: {show_text(who)} writes into it"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        self._lock = lock
        self.release = lock.release
        try:
            os.ftruncate(descriptor, 0)
            rolls = "" if roll_seconds is None else f"{_ROLL}{roll_seconds}"
            os.pwrite(descriptor, f"{owner}, process {os.getpid()}{rolls}\n".encode(), 0)
        except BaseException:
            self.release()
            raise


def _locked(descriptor: int) -> FileLock:
    """Lock the file; a reader that looks whether it is locked has it for a moment."""
    for _ in range(_LOOKS):
        with suppress(BlockingIOError):
            return FileLock(descriptor)
        time.sleep(_LOOK_SECONDS)
    return FileLock(descriptor)


def roll_seconds_of(folder: str | os.PathLike[str]) -> float | None:
    """Return the roll_seconds of the log that writes into the folder, 0: it does not say; None: none writes there."""
    try:
        descriptor = open_regular(Path(folder) / OWNER)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 200, 0).decode(errors="replace").partition(_ROLL)[2]
        try:
            return float(text.partition("\n")[0] or 0)
        except ValueError:
            return 0.0
    finally:
        os.close(descriptor)
    return None


class Folder:
    """The complete files of all runs; `begin` says which file the next one continues.

    keep_days, keep_bytes: None: for ever. The newest complete file always stays, so that the chain goes on from it.
    """

    def __init__(self, path: Path, keep_days: float | None, keep_bytes: int | None) -> None:
        self.path = path
        self._keep_days = keep_days
        self._keep_bytes = keep_bytes
        make_private(path)
        remove_drafts(path)
        told = removal_lines(path)
        for removal, _ in told:  # told, and then the process died
            remove(path / removal.file)
        self.removals = told[-1][1] if told else ""
        compacted = compaction_lines(path)
        self.compactions = compacted[-1][1] if compacted else ""
        complete = {line.file for line, _ in compacted}
        found = ((each, read_footer(each), each.lstat()) for each in path.glob("*.parquet"))
        ours = [(stat.st_mtime_ns, Kept(each, footer, stat.st_size)) for each, footer, stat in found if footer]
        for _, kept in ours:
            if kept.footer.order and kept.path.name not in complete:  # the process died before it was recorded
                remove(kept.path)
        ours = [each for each in ours if not each[1].footer.order or each[1].path.name in complete]
        merged = {part for _, kept in ours for part in kept.footer.replaces}
        names = {name for name, _ in merged}
        done = {
            kept.path for _, kept in ours
            if kept.path.name in names and (kept.path.name, sha256_of(kept.path)) in merged
        }  # fmt: skip
        for path in done:  # they were put together, and then the process died
            remove(path)
        ours = [each for each in ours if each[1].path not in done]
        # A name that once was a file's is no other one's: what tells of it would be believed of both.
        self._gone = names.union((removal.file for removal, _ in told), *(line.replaces for line, _ in compacted))
        named = {kept.footer.previous for _, kept in ours}
        named |= {kept.path.name for _, kept in ours if kept.footer.order}  # the tip is never compacted
        # The tip, which no other file names, is the last.
        ours.sort(key=lambda item: (item[1].path.name not in named, item[0], item[1].path.name))
        seal = read_seal(path)
        written = _written([kept.footer for _, kept in ours], [line for line, _ in compacted], seal)
        self._files = [replace(kept, sha256=written.get(kept.path.name, "")) for _, kept in ours]
        self._changed: set[str] = set()
        self._held: dict[str, int] = {}
        self._facts: dict[tuple[str, str], InForce] = {}
        for kept in self._files:
            if kept.footer.ranges:  # a gap row's number says nothing of the rows before it
                self._held[kept.footer.run] = max(kept.footer.ranges[-1][1], self._held.get(kept.footer.run, -1))
            self._note_facts(kept.footer)
        last = self._files[-1] if self._files else None
        # The newest by its seal is what the next file continues, though it was changed or removed meanwhile.
        self._tip = ("", "") if seal is None else (seal.file, seal.sha256)
        sealed = None if seal is None else (seal.file, seal.sha256)
        if last is not None and (
            seal is None or last.footer.previous == seal.file or sealed in last.footer.replaces
        ):  # the process died before it sealed
            self._tip = last.path.name, sha256_of(last.path)
            self._files[-1] = replace(last, sha256=self._tip[1])
            self._seal()
        elif seal is not None and (
            (told and told[-1][0].before == seal.removals)  # likewise, after it removed a file, or compacted some
            or (compacted and compacted[-1][0].before == seal.compactions)
        ):
            self._seal()

    def __contains__(self, kept: Kept) -> bool:
        return kept in self._files

    def last_number(self, run: str) -> int:
        """Return the run's highest row number when the folder was opened; -1: none."""
        return self._held.get(run, -1)

    def facts_of(self, instance: str, run: str) -> InForce:
        """Keep the facts of the run's files for its next one."""
        return self._facts.get((instance, run), NO_FACTS)

    def _note_facts(self, footer: Footer) -> None:
        key = footer.instance, footer.run
        if footer.facts.sequence >= self._facts.get(key, NO_FACTS).sequence:
            self._facts[key] = footer.facts.carried()

    def previous(self) -> tuple[str, str]:
        """Return the name and SHA-256 of the file that the next one continues; empty: it is the first."""
        return self._tip

    def earlier(self) -> tuple[tuple[str, str], ...]:
        """Return name and SHA-256 of the files before that one, so that a lost file leaves the others verifiable."""
        return tuple((kept.path.name, kept.sha256) for kept in self._files[-3:-1] if kept.sha256)

    def write(self, stem: str, table: Any, footer: Footer) -> Kept:
        """Add a new durable file as the last one."""
        kept = self._write(stem, footer, lambda file: write_table(table, file, footer.encode()))
        self._files.append(kept)
        self._tip = kept.path.name, kept.sha256
        self._seal()
        return kept

    def merge(self, stem: str, table: Any, footer: Footer, parts: Sequence[Kept]) -> int:
        """Put a file in the place of the last ones; -> its size in bytes."""
        kept = self._write(stem, footer, lambda file: write_table(table, file, footer.encode()))
        self._files = [*(each for each in self._files if each not in parts), kept]
        self._tip = kept.path.name, kept.sha256
        self._seal()
        self._discard(parts)
        return kept.size_bytes

    def compact(self, now: float, busy: Collection[str] = ()) -> Kept | None:
        """Put the files of one closed hour in a run's life into one file of sorted rows; None: there are none to put together.

        now: Unix seconds. busy: names of files that are still to be put together otherwise. A file that is not as it was
        written stays what it is, and its rows are missing: with a hash of its own they would be believed.
        """
        while True:
            names = {*busy, *self._changed}
            parts = chosen_parts([kept for kept in self._files[:-1] if kept.path.name not in names], now)
            if not parts:
                return None
            changed = [part for part in parts if not _is_as_written(part)]
            if not changed:
                break
            for part in changed:
                _log.error("%s: it is not as it was written, and stays out of compaction", part.path)
                self._changed.add(part.path.name)
        footer = joined_footer([part.footer for part in parts])
        footer = replace(
            footer, replaces=tuple((part.path.name, part.sha256) for part in parts), order=ORDER,
            removals=self.removals, compactions=self.compactions,
        )  # fmt: skip
        rows, tails = SortedRows([part.path for part in parts]), list[Tail]()
        stem = f"{parts[0].path.name.partition('-')[0]}-{footer.run}-{footer.first_number:012d}"
        kept = self._write(stem, footer, lambda file: tails.append(write_groups(rows.tables(), file, footer.encode())))
        if not has_rows(kept.path, rows):
            remove(kept.path)
            raise OSError(f"{kept.path}: what was written is not what was read")
        line = encode_line(Compaction(
            kept.path.name, kept.sha256, footer.instance, footer.run, footer.first_number, footer.last_number,
            footer.first_time, footer.last_time, len(rows), kept.size_bytes,
            " ".join(f"{name}={sha256}" for name, sha256 in footer.replaces), now, self.compactions, *tails[0],
        ))  # fmt: skip
        _append(self.path / COMPACTED, line + b"\n")
        self.compactions = hashlib.sha256(line).hexdigest()
        names = {part.path.name for part in parts}
        at = next(at for at, each in enumerate(self._files) if each.path.name in names)
        rest = [each for each in self._files if each.path.name not in names]
        self._files = [*rest[:at], kept, *rest[at:]]
        if self._seal():  # else readers believe the parts, which the next start removes
            self._discard(parts)
        return kept

    def _discard(self, parts: Sequence[Kept]) -> None:
        """Remove files that were put together."""
        for part in parts:
            self._gone.add(part.path.name)
            remove(part.path)

    def _write(self, stem: str, footer: Footer, fill: Callable[[BinaryIO], None]) -> Kept:
        path = self.free_path(stem)
        with replaced(path) as file:
            fill(file)
            size_bytes = file.tell()
            file.flush()
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # it has readinto
        self._note_facts(footer)
        return Kept(path, footer, size_bytes, sha256)

    def _seal(self) -> bool:
        """Write the seal; False: it could not be written."""
        name, sha256 = self._tip
        try:
            with replaced(self.path / SEAL) as file:
                file.write(encode_line(Seal(name, sha256, self.removals, self.compactions)))
        except OSError as error:  # the file itself is durable, and the next one names it
            _log.error("%s: %s; until the next file readers do not trust the newest", self.path / SEAL, error)
            return False
        return True

    def free_path(self, stem: str) -> Path:
        """Return a file name with the stem that no file has, or had."""
        path = self.path / f"{stem}.parquet"
        copies = 2
        while path.exists() or path.name in self._gone:
            path = self.path / f"{stem}-{copies}.parquet"
            copies += 1
        return path

    def retain(self, now: float) -> list[Removal]:
        """Remove what is older, or more, than is to be kept; -> what was removed. now: Unix seconds."""
        removed = []
        total = sum(kept.size_bytes for kept in self._files)
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

    def _remove(self, kept: Kept, now: float, reason: str) -> Removal:
        footer = kept.footer
        removal = Removal(
            kept.path.name, sha256_of(kept.path), footer.instance, footer.run, footer.first_number, footer.last_number,
            footer.first_time, footer.last_time, kept.size_bytes, now, reason,
            self.removals,
        )  # fmt: skip
        line = encode_line(removal)
        _append(self.path / REMOVED, line + b"\n")
        self.removals = hashlib.sha256(line).hexdigest()
        self._seal()
        self._discard([kept])
        self._files.remove(kept)
        _log.info(
            "%s removed: its %d bytes are more than %s allows", kept.path, kept.size_bytes, reason,
            extra={"removal": removal},
        )  # fmt: skip
        return removal


def _written(footers: Sequence[Footer], compactions: Sequence[Compaction], seal: Seal | None) -> dict[str, str]:
    """Return the SHA-256 by name that files had when they were written, as the next file, the manifest or the seal tells."""
    found: dict[str, str] = {}
    for footer in footers:
        found.update(footer.earlier)
    found.update((footer.previous, footer.previous_sha256) for footer in footers if footer.previous)
    found.update((line.file, line.sha256) for line in compactions)
    if seal is not None:
        found[seal.file] = seal.sha256
    return found


def _is_as_written(kept: Kept) -> bool:
    try:
        return sha256_of(kept.path) == kept.sha256
    except (FileNotFoundError, UntrustedFileError):
        return False


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

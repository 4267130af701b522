"""JsonLinesSink: one JSON object a row, in files rolled by time and size."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from natcore.errors import DeliveryError
from natcore.internal.change_lock import after_fork
from natcore.internal.file_lock import FileLock
from natcore.internal.files import make_private, open_folder, open_private, sync_folder, write_all
from natcore.internal.json_fields import read_fields
from natcore.internal.read_only import ReadOnly
from natcore.internal.validation import check_integer, check_number, check_path
from natcore.sinks._json_rows import json_rows
from natcore.sinks.base import Batch, BatchedSink, Receipt, file_stem, row_column

Identity = tuple[int, str, int]  # of a row within its run
_EVENTS = ("refusal", "event", "event-cover")


def identity(number: int, kind: str, sequence: int) -> Identity:
    """Return what tells a row from others of its run: a session's has a number of its own; a gap row has that of the last
    missing row; a port block's is numbered apart, and so are those of refusals and events."""
    if kind == "gap":
        return number, kind, 0
    if kind.startswith("block"):
        return number, kind, sequence
    return (0, "event", sequence) if kind in _EVENTS else (number, "", 0)


@dataclass(frozen=True, slots=True)
class _Line:
    """The identity of a row."""

    run: str
    number: int
    kind: str
    pkts_from_vpc: int

    @property
    def key(self) -> Identity:
        return identity(self.number, self.kind, self.pkts_from_vpc)


def _locked(folder: Path) -> FileLock | None:
    """Lock a folder for one sink; None: its file system has no locks."""
    descriptor = open_folder(folder)
    try:
        return FileLock(descriptor)
    except BlockingIOError as error:
        os.close(descriptor)
        raise DeliveryError("FolderInUse", f"{folder}: another session log writes there") from error
    except OSError:
        os.close(descriptor)
        return None


class JsonLinesSink(BatchedSink):
    """Appends one JSON object a row to files; a batch is synced before it counts as delivered.

    A file is `folder`/<time>-<run>-<number>.jsonl. Addresses are dotted, times microseconds since 1970. A batch that
    could not be written whole is cut off again; rows that come twice are written once. One log writes to a folder: a
    second one is refused.

    Parameters
    ----------
    folder
        Made 0700 where it is missing.
    roll_bytes
        Bytes, 1 to 2^50, at which a new file begins.
    roll_seconds
        Seconds, 1 to 10^9, after which one does.
    batch_rows
        Rows of a batch at most; None: `DeliveryPolicy.batch`.
    batch_seconds
        Seconds that a batch may wait to fill; None: `DeliveryPolicy.linger`.
    clock
        Seconds of any origin; for tests.
    """

    delivery_type = "jsonlines"
    events = True
    gaps = True
    blocks = True
    refusals = True
    labels = True

    folder = ReadOnly[Path]("The folder of its files.")

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        roll_bytes: int = 64 << 20,
        roll_seconds: float = 3600.0,
        batch_rows: int | None = 16_384,
        batch_seconds: float | None = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_integer("JsonLinesSink.roll_bytes", roll_bytes, 1, 1 << 50)
        check_number("JsonLinesSink.roll_seconds", roll_seconds, 1, 1e9, unit="seconds")
        self._folder = Path(check_path("folder", folder))
        super().__init__(batch_rows, batch_seconds)
        self._roll_bytes = roll_bytes
        self._roll_seconds = roll_seconds
        self._clock = clock
        self._descriptor: int | None = None
        self._path: Path | None = None
        self._size = 0
        self._opened_at = 0.0
        self._lock: FileLock | None = None
        self._is_open = False
        self._known: dict[str, set[Identity]] = {}  # of each run: rows that may come again
        after_fork(self, JsonLinesSink.close)  # file and folder are the parent's

    @property
    def destination(self) -> Mapping[str, str]:
        """What identifies the destination, without secrets."""
        return {"folder": str(self.folder.absolute())}

    def open(self) -> None:
        """Called in the delivering thread before the first delivery; it may raise as `deliver` does."""
        make_private(self.folder)
        if not self._is_open:
            self._lock = _locked(self.folder)
            self._is_open = True

    def deliver(self, batch: Batch) -> Receipt:
        """Return when the batch is durable; raise `DeliveryError` if it is not."""
        if not self._is_open:
            self.open()
        rest = self._without_known(batch)
        if rest is None:
            return Receipt(0, 0)
        data = "".join(f"{row}\n" for row in json_rows(rest)).encode()
        if self._descriptor is None or self._is_full() or self._is_gone():
            self._begin(rest)
        assert self._descriptor is not None
        try:
            write_all(self._descriptor, data)
            os.fsync(self._descriptor)
            if self._is_gone():
                raise DeliveryError("FileRemoved", f"{self._path}: it was removed while it was written")
        except BaseException:
            self._cut()
            raise
        self._size += len(data)
        return Receipt(len(data), len(data))

    def close(self) -> None:
        """Called once in the delivering thread, after the last delivery."""
        self._leave()
        self._is_open = False
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _leave(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _without_known(self, batch: Batch) -> Batch | None:
        """Return the batch's rows that are not in the folder; None: all are."""
        known = self._known_of(batch)
        if not known:
            return batch
        columns = (row_column(batch.records, name, local=True) for name in ("number", "kind", "pkts_from_vpc"))
        return batch.select(np.array([identity(*key) not in known for key in zip(*columns, strict=True)]))

    def _known_of(self, batch: Batch) -> set[Identity]:
        """Return the rows of the batch's run that the folder had at first, from the batch's first on."""
        if batch.run not in self._known:
            self._known[batch.run] = self._read(batch.run, batch.first_number)
        elif self._known[batch.run] and batch.first_number > max(number for number, *_ in self._known[batch.run]):
            self._known[batch.run] = set()
        return self._known[batch.run]

    def _read(self, run: str, first_number: int) -> set[Identity]:
        """Cut unfinished lines off the run's files; -> their rows from first_number on."""
        found = set()
        for path in self.folder.glob(f"*-{run}-*.jsonl"):
            with os.fdopen(open_private(path, os.O_RDWR), "r+b") as file:
                whole = 0
                for line in file:
                    if not line.endswith(b"\n"):
                        file.truncate(whole)
                        os.fsync(file.fileno())
                        break
                    whole += len(line)
                    row = read_fields(line, _Line)  # None: damaged
                    if row is not None and row.run == run and row.number >= first_number:
                        found.add(row.key)
        return found

    def _is_full(self) -> bool:
        return self._size >= self._roll_bytes or self._clock() - self._opened_at >= self._roll_seconds

    def _is_gone(self) -> bool:
        """The file was removed: what is written to it is lost."""
        assert self._descriptor is not None
        return os.fstat(self._descriptor).st_nlink == 0

    def _begin(self, batch: Batch) -> None:
        """Begin a new file beside the present ones."""
        self._leave()
        stem, copy = file_stem(batch), 1
        while self._descriptor is None:
            name = stem if copy == 1 else f"{stem}-{copy}"
            self._path = self.folder / f"{name}.jsonl"
            with suppress(FileExistsError):
                self._descriptor = open_private(self._path, os.O_WRONLY | os.O_APPEND | os.O_EXCL)
            copy += 1
        sync_folder(self.folder)
        self._size = 0
        self._opened_at = self._clock()

    def _cut(self) -> None:
        """Clean up after a failed write or sync: nothing of the batch may stay, and the file is not used again."""
        assert self._descriptor is not None
        self._known.clear()  # what could not be cut is found when the batch comes again
        try:
            os.ftruncate(self._descriptor, self._size)
        finally:
            self._leave()

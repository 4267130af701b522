"""JsonLinesSink: one JSON object a row, in files rolled by time and size."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from ..config import check_integer, check_number
from ..durable import make_private, open_private, sync_folder, write_all
from .base import Batch, Receipt, Sink, file_stem


class JsonLinesSink(Sink):
    """Appends to `folder`/<time>-<run>-<number>.jsonl; a batch is synced to the disk before it counts as delivered.

    roll_bytes, roll_seconds: a file that is as large or as old is left, and the next batch begins a new one.
    A batch that could not be written whole is cut off again. A process that dies while it writes may leave an
    unfinished last line; its next run begins a new file.
    Addresses are dotted, times microseconds since 1970 (`Batch.rows(local=True)`).
    """

    delivery_type = "jsonlines"
    events = True
    gaps = True

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
        self.folder = Path(folder)
        self.batch_rows = batch_rows
        self.batch_seconds = batch_seconds
        self._roll_bytes = roll_bytes
        self._roll_seconds = roll_seconds
        self._clock = clock
        self._encoder = msgspec.json.Encoder()
        self._descriptor: int | None = None
        self._size = 0
        self._opened_at = 0.0

    @property
    def destination(self) -> Mapping[str, str]:
        return {"folder": str(self.folder.absolute())}

    def open(self) -> None:
        make_private(self.folder)

    def deliver(self, batch: Batch) -> Receipt:
        data = self._encoder.encode_lines(list(batch.rows(local=True)))
        if self._descriptor is None or self._is_full():
            self._begin(batch)
        assert self._descriptor is not None
        try:
            write_all(self._descriptor, data)
            os.fsync(self._descriptor)
        except OSError:
            self._cut()
            raise
        self._size += len(data)
        return Receipt(len(data), len(data))

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _is_full(self) -> bool:
        return self._size >= self._roll_bytes or self._clock() - self._opened_at >= self._roll_seconds

    def _begin(self, batch: Batch) -> None:
        """A new file. The same batch may have begun one before (a failure, a crash), which is written over."""
        self.close()
        path = self.folder / f"{file_stem(batch)}.jsonl"
        self._descriptor = open_private(path, os.O_WRONLY | os.O_APPEND | os.O_TRUNC)
        sync_folder(self.folder)
        self._size = 0
        self._opened_at = self._clock()

    def _cut(self) -> None:
        """After a failed write or sync: nothing of the batch may stay, and the file is not trusted again."""
        assert self._descriptor is not None
        try:
            os.ftruncate(self._descriptor, self._size)
        finally:
            self.close()

"""Rows that wait in memory: bounded, the oldest dropped first, a gap row in their place."""

from __future__ import annotations

import threading
from collections import deque
from typing import Protocol

from natcore.dtypes import GAP, GAP_LOST
from natcore.sessionlog.gaps import PendingGap
from natcore.sessionlog.ledger import Ledger
from natcore.sinks.base import Batch, Records, join


class Store(Protocol):
    """The waiting rows of a log, in order; a delivery holds one batch at a time."""

    @property
    def rows(self) -> int:
        """The number of waiting rows, without a held batch."""
        ...

    def take(self, limit: int) -> Batch | None:
        """Hold the oldest rows, `limit` at most, all of one run; None: none wait. One batch is held at a time."""
        ...

    def acknowledge(self) -> None:
        """Drop the held rows; the caller moves them in the ledger."""
        ...

    def put_back(self) -> None:
        """Put the held rows back in front."""
        ...


class Buffer:
    """A Store in memory. Its rows are `queued` in the ledger; those that do not fit are lost as `queue_full`."""

    def __init__(self, instance: str, vpc_id: str, run: str, capacity: int, ledger: Ledger) -> None:
        self._identity = (instance, vpc_id, run)
        self._capacity = capacity
        self._ledger = ledger
        self._chunks: deque[Records] = deque()
        self._held: Records | None = None
        self._rows = 0  # that wait, the gap row among them
        self._pending_gap = PendingGap()
        self._lock = threading.Lock()

    @property
    def rows(self) -> int:
        return self._rows

    @property
    def is_held(self) -> bool:
        """Return whether a batch is held."""
        return self._held is not None

    def append(self, records: Records) -> None:
        """Add RECORD (n,), which the ledger has accepted; the array is kept and must not be changed."""
        with self._lock:
            self._chunks.append(records)
            self._rows += len(records)
            self._drop_surplus()

    def take(self, limit: int) -> Batch | None:
        """As `Store.take`; None as well while a batch is held."""
        with self._lock:
            if self._held is not None:
                return None
            taken: list[Records] = []
            if self._pending_gap and limit > 0:
                taken.append(self._pending_gap.take())
                limit -= 1
            while self._chunks and limit > 0:
                chunk = self._chunks.popleft()
                if len(chunk) > limit:
                    self._chunks.appendleft(chunk[limit:])
                    chunk = chunk[:limit]
                taken.append(chunk)
                limit -= len(chunk)
            if not taken:
                return None
            self._held = join(taken)
            self._rows -= len(self._held)
            return Batch(*self._identity, self._held)

    def acknowledge(self) -> None:
        with self._lock:
            self._held = None

    def put_back(self) -> None:
        with self._lock:
            if self._held is not None:
                self._chunks.appendleft(self._held)
                self._rows += len(self._held)
                self._held = None
                self._drop_surplus()

    def peek(self) -> list[Records]:
        """Return the waiting rows with a held batch, in order; they stay."""
        with self._lock:
            return [*([] if self._held is None else [self._held]), *self._chunks]

    def clear(self) -> int:
        """Drop every row; -> how many, for the ledger."""
        with self._lock:
            if self._pending_gap:
                self._pending_gap.take()
                self._ledger.drop_gaps(1, "queued")
                self._rows -= 1
            rows, self._rows = self._rows, 0
            self._chunks.clear()
            return rows

    def _drop_surplus(self) -> None:
        surplus = self._rows - bool(self._pending_gap) - self._capacity
        while surplus > 0:
            chunk = self._chunks.popleft()
            if len(chunk) > surplus:
                self._chunks.appendleft(chunk[surplus:])
                chunk = chunk[:surplus]
            surplus -= len(chunk)
            self._give_up(chunk)

    def _give_up(self, records: Records) -> None:
        gaps = int((records["kind"] == GAP).sum())
        if not self._pending_gap:
            self._rows += 1
            self._ledger.add_gap("queued", GAP_LOST)
        self._pending_gap.add_records(records)
        self._rows -= len(records)
        self._ledger.drop_gaps(gaps, "queued")
        self._ledger.lose(len(records) - gaps, "queued", "queue_full")

"""MemorySink: the rows in this process, for tests and embedders."""

from __future__ import annotations

import threading
from typing import Any

from natcore.internal.validation import check_integer
from natcore.sinks.base import Batch, BatchedSink, Receipt, Records, join


class MemorySink(BatchedSink):
    """Keeps rows in this process, for tests and for programs that look themselves.

    Parameters
    ----------
    capacity
        The newest so many rows are kept at least, in whole batches, 1 to 2^40; None: all.
    batch_rows
        Rows of a batch at most; None: `DeliveryPolicy.batch`.
    batch_seconds
        Seconds that a batch may wait to fill; None: `DeliveryPolicy.linger`.
    """

    delivery_type = "memory"
    events = True
    gaps = True
    blocks = True
    refusals = True
    labels = True

    def __init__(
        self, *, capacity: int | None = None, batch_rows: int | None = None, batch_seconds: float | None = 0.0
    ) -> None:
        if capacity is not None:
            check_integer("MemorySink.capacity", capacity, 1, 1 << 40)
        super().__init__(batch_rows, batch_seconds)
        self._capacity = capacity
        self._batches: list[Batch] = []
        self._lock = threading.Lock()

    def open(self) -> None:
        """Called in the delivering thread before the first delivery; it may raise as `deliver` does."""

    def deliver(self, batch: Batch) -> Receipt:
        """Return when the batch is durable; raise `DeliveryError` if it is not."""
        with self._lock:
            self._batches.append(batch)
            if self._capacity is not None:
                while sum(map(len, self._batches[1:])) >= self._capacity:
                    del self._batches[0]
        return Receipt(batch.records.nbytes, batch.records.nbytes)

    @property
    def batches(self) -> list[Batch]:
        """A copy of the list, oldest first."""
        with self._lock:
            return list(self._batches)

    @property
    def records(self) -> Records:
        """RECORD (n,): every row that is kept, in the order of delivery."""
        return join([batch.records for batch in self.batches])

    def rows(self, *, local: bool = False) -> list[dict[str, Any]]:
        """The rows as dicts: see `Batch.rows`."""
        return [row for batch in self.batches for row in batch.rows(local=local)]

    def clear(self) -> None:
        """Drop every row."""
        with self._lock:
            self._batches.clear()

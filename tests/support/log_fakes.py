"""Stand-ins for the session log's tests: rows, a core, clocks that tests move, sinks that fail as they are told."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from natcore.dtypes import CREATE, END, RECORD, WINDOW
from natcore.sinks import BaseSink, Batch, Receipt

Records = Any


def make_records(count: int, first: int = 0, kind: int = WINDOW) -> Records:
    """Rows with their number in every field."""
    rows = np.zeros(count, RECORD)
    numbers = np.arange(first, first + count)
    rows["number"] = numbers
    rows["protocol"] = 17
    rows["pri_ip"] = 0x0A000000 + numbers % 65_536
    rows["pub_ip"] = 0xC6336400 + numbers % 251
    rows["nat_ip"] = 0xCB007101
    rows["eip"] = np.where(numbers % 3 == 0, 0, 0xCB007163)
    rows["pri_port"] = 1024 + numbers % 60_000
    rows["pub_port"] = 53
    rows["nat_port"] = 2048 + numbers % 60_000
    rows["bytes_from_vpc"] = 100 + numbers
    rows["pkts_from_vpc"] = 1 + numbers
    rows["bytes_from_pub"] = 200 + numbers
    rows["pkts_from_pub"] = 2 + numbers
    rows["start_time"] = 1_700_000_000_000_000 + numbers * 1000
    rows["end_time"] = rows["start_time"] + 600_000_000
    rows["session"] = numbers // 3
    rows["kind"] = kind
    return rows


class FakeCore:
    """A ring of a size, written by the test; open windows that close into rows."""

    def __init__(self, capacity: int = 65_536) -> None:
        self.capacity = capacity
        self.is_read = False
        self.journal_lost = self.blocks_lost = 0
        self.block_count: int | None = None  # no port blocks
        self.now_ns = self.epoch_ns = 0
        self.open_windows = 0
        self._ring: list[Records] = []
        self._number = 0
        self._next_row = 0
        self.oldest_ns: int | None = None  # when the oldest open window began

    @property
    def next_number(self) -> int:
        return self._number

    def skip_numbers(self, count: int) -> int:
        self._number += count
        return self._number - count

    def oldest_window(self, part: int) -> tuple[int, int]:
        return self.now_ns if self.oldest_ns is None else self.oldest_ns, 1

    def copy_windows(self, records: Records, part: int) -> tuple[int, int]:
        records[: self.open_windows] = make_records(self.open_windows, self._next_row)
        return self.open_windows, 1

    def copy_blocks(self, records: Records) -> int:
        return 0

    def label(self, at_ns: int) -> int:
        return (self.epoch_ns + at_ns) // 1000

    def set_epoch(self, epoch_ns: int) -> None:
        self.epoch_ns = epoch_ns

    @property
    def complete_ns(self) -> int:
        return self.now_ns

    @property
    def journal_waiting(self) -> int:
        return self.waiting

    @property
    def journal_filling(self) -> bool:
        return 8 * self.waiting >= self.capacity

    @property
    def waiting(self) -> int:
        return sum(map(len, self._ring))

    def produce(self, count: int, kinds: Iterable[int] = (WINDOW,)) -> None:
        rows = make_records(count, self._next_row)
        rows["kind"] = np.resize(np.array(list(kinds)), count)
        self._next_row += count
        space = self.capacity - self.waiting
        self.journal_lost += max(0, count - space)
        if space > 0:
            self._ring.append(rows[:space])

    def produce_sessions(self, count: int) -> None:
        """A create, a window and an end row for each."""
        self.produce(3 * count, (CREATE, WINDOW, END))

    def drain(self, records: Records) -> int:
        rows = np.concatenate(self._ring) if self._ring else np.empty(0, RECORD)
        taken, rest = rows[: len(records)], rows[len(records) :]
        self._ring = [rest] if len(rest) else []
        records[: len(taken)] = taken
        records["number"][: len(taken)] = np.arange(self._number, self._number + len(taken))
        self._number += len(taken)
        return len(taken)

    def close_windows(self, now_ns: int) -> int:
        count = min(self.open_windows, self.capacity - self.waiting)
        self.open_windows -= count
        if count:
            self.produce(count)
        return self.open_windows


class FakeClock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class ScriptedSink(BaseSink):
    """Asks `answer(batch, attempt)` what to do: it may raise; keeps what it took, and when each try came."""

    delivery_type = "scripted"

    def __init__(
        self,
        answer: Callable[[Batch, int], None] = lambda batch, attempt: None,
        *,
        clock: Callable[[], float] = lambda: 0.0,
        events: bool = False,
        region: str | None = None,
        target: str = "",
        batch_rows: int | None = None,
        batch_seconds: float | None = 0.0,
    ) -> None:
        self.answer = answer
        self.clock = clock
        self.events = events
        self.region = region
        self.target = target
        self.batch_rows = batch_rows
        self.batch_seconds = batch_seconds
        self.taken: list[Batch] = []
        self.tries: list[tuple[float, int]] = []
        self.opened = self.closed = 0

    @property
    def destination(self) -> dict[str, str]:
        return {"target": self.target} if self.target else {}

    def open(self) -> None:
        self.opened += 1

    def deliver(self, batch: Batch) -> Receipt:
        self.tries.append((self.clock(), len(batch)))
        self.answer(batch, len(self.tries))
        self.taken.append(batch)
        return Receipt(batch.records.nbytes, batch.records.nbytes // 2)

    def close(self) -> None:
        self.closed += 1

    @property
    def numbers(self) -> list[int]:
        return [int(number) for batch in self.taken for number in batch.records["number"]]


def assert_adds_up(counters: dict[str, int]) -> None:
    """The identities of a log's account."""
    places = ("delivered", "queued", "spooled", "dead_letter", "lost")
    assert counters["accepted"] == sum(counters[place] for place in places), counters
    assert counters["lost"] == sum(rows for name, rows in counters.items() if name.startswith("lost_")), counters
    assert min(counters.values()) >= 0, counters

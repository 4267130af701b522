"""Days of a gateway's life as rows of its session log, and what every question about them must be answered with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from natcore import Policy, SnatEntry, Timeouts
from natcore.dtypes import CREATE, END, RECORD, WINDOW
from natcore.sessionlog.facts import ALONE, EMPTY, STARTED, cover_row, entry_rows, setting_rows
from natcore.sinks import Batch
from natcore.sinks.base import join

DAY = 86_400_000_000  # microseconds
WINDOW_LENGTH = 600_000_000
BORDER = 7_300_000_000  # of the log, where it does not know whether a port was held
MIDNIGHT = 1_790_000_000_000_000 // DAY * DAY
ADDRESSES = 8
FIRST_ADDRESS = 0xCB007101  # 203.0.113.1
PORTS = 64_512
PROTOCOLS = np.array([6, 17], np.uint8)
KEYS = ADDRESSES * PORTS * len(PROTOCOLS)
HOSTS = 20_000
BATCH = 131_072


class End(NamedTuple):
    """The midnight that follows, in microseconds since 1970; the numbers of the next row, session and fact."""

    midnight: int
    number: int
    session: int
    fact: int


class Day:
    """About `rows` rows: sessions on 8 addresses over 24 hours, an outside port never with two of them at once.

    Each has a first window of its first minutes; one in ten lives on without traffic for up to two hours, and half of
    these have traffic again in their last minutes. Times in microseconds since 1970; a key is an address, a protocol
    and a port in one number. after: `end` of the day that it follows in the same run.
    """

    def __init__(self, rows: int, seed: int = 1, after: End | None = None) -> None:
        self.midnight, self._first_number, self._first_session, self._told = after or End(MIDNIGHT, 0, 1, 0)
        random = np.random.default_rng(seed)
        count = round(rows / 3.05)
        turns = -(-count // KEYS)  # how often a port is used
        turn = DAY // turns
        self.keys = np.concatenate([random.permutation(KEYS) for _ in range(turns)])[:count].astype(np.uint32)
        begin = np.arange(count) // KEYS * turn
        lively = np.minimum(random.exponential(120e6, count), WINDOW_LENGTH - 1).astype(np.int64) + 1_000_000
        is_long = random.random(count) < 0.1
        lives = np.where(is_long, random.integers(WINDOW_LENGTH, 7_200_000_000, count), lively)
        lives = np.minimum(lives, turn * 3 // 4)
        self.starts = self.midnight + begin + (random.random(count) * (turn - lives - 1_000_000)).astype(np.int64)
        self.ends = self.starts + lives
        self.firsts = np.minimum(self.starts + WINDOW_LENGTH, self.ends)  # the end of the first window
        returns = is_long & (random.random(count) < 0.5) & (lives > 2 * WINDOW_LENGTH)
        self.seconds = np.where(returns, self.ends - WINDOW_LENGTH // 2, 0)  # the start of another window; 0: none
        self.hosts = random.integers(0, HOSTS, count).astype(np.uint32)
        self.remotes = (random.zipf(1.3, count) % 200_000).astype(np.uint32)
        self.counts = random.geometric(0.05, (count, 2)).astype(np.uint32)
        self._random = random

    @property
    def end(self) -> End:
        """What the next day begins with, once all rows of this one were taken."""
        rows = 3 * len(self.starts) + int(np.count_nonzero(self.seconds))
        return End(self.midnight + DAY, self._first_number + rows, self._first_session + len(self.starts), self._told)

    def batches(self) -> Iterator[Batch]:
        """The rows in the order in which a gateway writes them, BATCH a batch."""
        count, more = len(self.starts), np.flatnonzero(self.seconds)
        sessions = np.concatenate([*(np.arange(count, dtype=np.uint32),) * 3, more.astype(np.uint32)])
        kinds = np.repeat(np.array([CREATE, WINDOW, END, WINDOW], np.uint8), [count, count, count, len(more)])
        times = np.concatenate([self.starts, self.firsts, self.ends, self.ends[more]])
        begins = np.concatenate([self.starts, self.starts, self.starts, self.seconds[more]])
        order = np.argsort(times, kind="stable")
        for first in range(0, len(order), BATCH):
            at, number = order[first : first + BATCH], self._first_number + first
            batch = self._batch(number, sessions[at], kinds[at], begins[at], times[at])
            yield replace(batch, records=join([*self._facts(number, int(times[at][0])), batch.records,
                                               *self._cover(number + len(at), int(times[at][-1]))]))  # fmt: skip

    def _facts(self, number: int, time: int) -> list[NDArray]:
        """What a log begins with."""
        if number:
            return []
        pool = [(FIRST_ADDRESS + n, FIRST_ADDRESS + n) for n in range(ADDRESSES)]
        entries = entry_rows(1, SnatEntry("10.0.0.0/8", pool="203.0.113.1-203.0.113.8"), pool)
        rows = [cover_row(time, time, time, STARTED | EMPTY | ALONE), *entries]
        return [self._fact(row, 0) for row in [*rows, *setting_rows(Timeouts(), 600.0, Policy()).values()]]

    def _cover(self, number: int, time: int) -> list[NDArray]:
        return [self._fact(cover_row(time - 1, time - 1, time), number)]

    def _fact(self, row: NDArray, number: int) -> NDArray:
        row["number"], row["pkts_from_vpc"] = number, self._told
        self._told += 1
        return row

    def _batch(self, first: int, sessions: NDArray, kinds: NDArray, begins: NDArray, times: NDArray) -> Batch:
        rows = np.zeros(len(sessions), RECORD)
        keys = self.keys[sessions]
        rows["number"] = np.arange(first, first + len(rows))
        rows["session"] = sessions + np.uint64(self._first_session)
        rows["kind"], rows["start_time"], rows["end_time"] = kinds, begins, times
        rows["nat_ip"], rows["protocol"], rows["nat_port"] = self._endpoint(keys)
        rows["eip"] = rows["nat_ip"]
        rows["pri_ip"] = 0x0A000000 + self.hosts[sessions]
        rows["pri_port"] = 1024 + sessions % 60_000
        rows["pub_ip"] = 0xC6336400 + self.remotes[sessions]
        rows["pub_port"] = np.where(self.remotes[sessions] % 3, 443, 53)
        for way, name in enumerate(("vpc", "pub")):
            packets = np.where(kinds == CREATE, 0, self.counts[sessions, way])
            rows[f"pkts_from_{name}"] = packets
            rows[f"bytes_from_{name}"] = packets * np.uint64(40 + 1400 * way)
        return Batch("ngw-day", "vpc-1", "0123456789abcdef", rows)

    @staticmethod
    def _endpoint(keys: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        return FIRST_ADDRESS + keys % ADDRESSES, PROTOCOLS[keys // ADDRESSES % 2], 1024 + keys // (ADDRESSES * 2)

    def questions(self) -> Iterator[tuple[dict[str, Any], str, int | None]]:
        """(arguments of who, status, inside address) at random, without end: where there was traffic, where there
        was none, and where no host had the port."""
        edge = 2_500_000
        while True:
            session = int(self._random.integers(len(self.starts)))
            at = int(self._random.integers(self.starts[session] - 2 * edge, self.ends[session] + 2 * edge))
            key = self.keys[session]
            same = np.flatnonzero(self.keys == key)
            start, end = self.starts[same], self.ends[same]
            edges = np.concatenate([start, end, self.firsts[same], self.seconds[same]])
            if np.abs(edges - at).min() < edge or not self.midnight + BORDER < at < self.midnight + DAY - BORDER:
                continue  # within the tolerance of an edge both answers are right
            holders = same[(start <= at) & (at <= end)]
            status, host = "unused", None
            if len(holders):
                holder = holders[0]
                has_traffic = at <= self.firsts[holder] or at >= self.seconds[holder] > 0
                status, host = "exact" if has_traffic else "held-idle", 0x0A000000 + int(self.hosts[holder])
            address, protocol, port = (int(part[0]) for part in self._endpoint(np.array([key])))
            asked = {"address": address, "port": port, "protocol": protocol,
                     "at": datetime.fromtimestamp(at / 1e6, UTC)}  # fmt: skip
            yield asked, status, host

"""A session log's rows of refusals and events: what was refused to which subscriber, and what an administrator should know.

refusal      Packets that would have opened a session were refused. session: how many; start_time: of the first, end_time: when
             they were counted; a row is of one minute's first ones, of one subscriber (pri_ip; 0: of several, which found no
             place in a list), reason and limit (flags: natcore.events.code_of). protocol, pub_ip, pub_port: where the first
             one was going.
event        Likewise of what concerns no one subscriber: a threshold, rows that were lost, an address that came or went, the
             clock. nat_ip: the outside address, with protocol.
event-cover  Every refusal and event up to end_time has a row before this one, and every one from start_time on one behind it.
             flags: STARTED, nothing before is told.

They are no rows of sessions: `number` is that of the session's row that comes next, and `pkts_from_vpc` numbers these three
kinds in a run, without a gap. Times are labels of the gateway's clock, microseconds since 1970.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from natcore.dtypes import EVENT, EVENT_COVER, RECORD, REFUSAL
from natcore.events import Event, code_of
from natcore.internal.event_feeds import EventFeed

MINUTE = 60_000_000  # microseconds
STARTED = 1  # flag of an event-cover row
_MOST_ROWS = 65_536  # of a minute; beyond them a reason has one row for all

Records = NDArray[np.void]
_Key = tuple[int, int, int, int, int]  # minute, code, subscriber, outside address, protocol


class Tally(EventFeed):
    """Counts a gateway's events into rows, until they are taken. Thread-safe.

    pull: has the events of now put here. label: a time of the gateway's clock (ns) as a label. now_ns: that clock.
    """

    def __init__(self, pull: Callable[[], None], label: Callable[[int], int], now_ns: Callable[[], int]) -> None:
        super().__init__(pull)
        self._label, self._now_ns = label, now_ns
        self._turn = threading.Lock()
        self._rows: dict[_Key, dict[str, int]] = {}

    def pull(self) -> None:
        """Count what has come until now. It waits for packets that are being translated: no lock of the log may be held."""
        self._pull()

    def put(self, events: Iterable[Event]) -> None:
        """Count events."""
        counted = self._label(self._now_ns())
        with self._turn:
            for event in events:
                self._add(event, counted)

    def _add(self, event: Event, counted: int) -> None:
        at, code = self._label(round(event.time * 1e9)), code_of(event)
        is_refusal = code & 0xFF >= 128  # a drop
        subscriber, outside = int(event.subscriber or 0), int(event.outside or 0)
        key = (at // MINUTE, code, subscriber, outside, event.protocol if outside else 0)
        row = self._rows.get(key)
        if row is None and subscriber and len(self._rows) >= _MOST_ROWS:
            subscriber, key = 0, (at // MINUTE, code, 0, 0, 0)
            row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = {
                "kind": REFUSAL if is_refusal else EVENT, "flags": code, "start_time": at, "end_time": at, "session": 0,
                "pri_ip": subscriber, "nat_ip": outside, "protocol": event.protocol if subscriber or outside else 0,
                "pub_ip": int(event.destination or 0) if subscriber else 0, "pub_port": event.port if subscriber else 0,
            }  # fmt: skip
        row["session"] += event.count
        row["start_time"] = min(row["start_time"], at)
        row["end_time"] = max(row["end_time"], counted)

    def take_rows(self, minute: int | None = None) -> Records:
        """Return RECORD (n,) of what began before this minute, in the order of their begin; None: of all."""
        with self._turn:
            keys = sorted(
                (key for key in self._rows if minute is None or key[0] < minute),
                key=lambda key: (self._rows[key]["start_time"], key),
            )
            found = [self._rows.pop(key) for key in keys]
        rows = np.zeros(len(found), RECORD)
        for at, each in enumerate(found):
            for name, value in each.items():
                rows[name][at] = value
        return rows


def event_cover_row(until: int, since: int, flags: int = 0) -> Records:
    """Return RECORD (1,): refusals and events up to `until` have rows before it, those since `since` behind it, in
    microseconds since 1970."""
    row = np.zeros(1, RECORD)
    row["kind"], row["flags"], row["start_time"], row["end_time"] = EVENT_COVER, flags, since, until
    return row

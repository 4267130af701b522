"""A gateway's events for several takers: each gets every event, and none holds up the others."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace

from natcore.events import Event, of_all, subject
from natcore.internal.closing import Closing

MOST_EVENTS = 4096  # that wait for one taker


class EventFeed(Closing):
    """Events of a gateway from its making until `close`; `Gateway.watch_events` makes it."""

    def __init__(self, pull: Callable[[], None]) -> None:
        self._pull = pull
        self._waiting: list[Event] = []
        self._closed = False
        self._lost = 0

    @property
    def lost(self) -> int:
        """Events that found too many waiting, so far."""
        return self._lost

    def put(self, events: Iterable[Event]) -> None:
        """Have events wait; for the gateway."""
        for event in events if not self._closed else ():
            if len(self._waiting) < MOST_EVENTS:
                self._waiting.append(event)
            else:
                self._lost += 1

    def take(self) -> list[Event]:
        """Take the events since the last call, oldest first."""
        if not self._closed:
            self._pull()
        taken, self._waiting = self._waiting, []
        return taken

    def close(self) -> None:
        """Get nothing more. Idempotent."""
        self._closed = True


class EventFeeds:
    """All takers of a gateway's events: `Gateway.take_events`, and feeds.

    take: takes the events from where they arise. notify: makes the gateway's descriptor readable.
    """

    def __init__(self, take: Callable[[], list[Event]], notify: Callable[[], None]) -> None:
        self._take, self._notify = take, notify
        self._lock = threading.Lock()
        self._waiting: list[Event] = []  # for `take`
        self._feeds: weakref.WeakSet[EventFeed] = weakref.WeakSet()

    def open(self) -> EventFeed:
        """Return a new feed."""
        feed = EventFeed(self.distribute)
        self.add(feed)
        return feed

    def add(self, feed: EventFeed) -> None:
        """Give a feed the events from now on."""
        self.distribute()
        with self._lock:
            self._feeds.add(feed)

    def take(self) -> list[Event]:
        """Return the events for the gateway's own caller."""
        with self._lock:
            events = self._take()
            for feed in self._feeds:
                feed.put(events)
            if not self._waiting:
                return events
            taken, self._waiting = self._waiting, []
        return [*taken, *events]

    def distribute(self) -> None:
        """Take events on behalf of a feed; those for `take` wait, similar ones summed up."""
        with self._lock:
            events = self._take()
            for feed in self._feeds:
                feed.put(events)
            if events:
                self._waiting = merge([*self._waiting, *events], MOST_EVENTS)
            if self._waiting:
                self._notify()


def merge(events: Iterable[Event], most: int) -> list[Event]:
    """Sum up events about one subscriber and reason; beyond `most` of these a reason has one event for all."""
    sums: dict[object, Event] = {}
    for event in events:
        key = subject(event)
        if key not in sums and len(sums) >= most:
            event, key = of_all(event), event.reason
        sums[key] = replace(sums[key], count=sums[key].count + event.count) if key in sums else event
    return list(sums.values())

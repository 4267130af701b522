"""What a gateway says besides verdicts: frames of its own, and events for its administrator."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable
from typing import TYPE_CHECKING

from natcore.verdict import Side, Verdict

if not TYPE_CHECKING:
    from natcore.internal.values import dataclass
else:
    from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Generated:
    """A frame that leaves besides those that were given: of the gateway's own, or a fragment.

    Parameters
    ----------
    frame
        Its bytes, with the link header that its packet came with, or that answers the frame which caused it.
    send_to
        The side that it leaves by.
    cause
        LOCAL or a drop: an echo reply or an ICMP error. HELD: a fragment that waited for its first one, translated.
        OUTBOUND, INBOUND, HAIRPIN, UNTRANSLATED: a fragment of a packet that was too long for its next link (RFC 4787
        REQ-13a).
    """

    frame: bytes
    send_to: Side
    cause: Verdict


# What an event says was reached, by Limit of workers/limits.pxd: arguments of Policy and Gateway; "pool": no port or block
# of the pool's addresses is free; "opened-outside": the sessions that may be opened from outside.
LIMITS = (
    "", "sessions_per_subscriber", "ports_per_subscriber", "blocks", "new_sessions_per_second",
    "gateway_new_sessions_per_second", "max_sessions", "max_mappings", "pool", "opened-outside", "max_subscribers",
)  # fmt: skip
THRESHOLDS = {
    1: "ports-threshold",
    2: "sessions-threshold",
    3: "records-lost",
    4: "address-added",
    5: "address-removed",
}  # reasons beside the drops, by number in natcore/log/events.pxd
OF_AN_ADDRESS = (1, 4, 5)


@dataclass(frozen=True, slots=True)
class Event:
    """What an administrator should know: which limit was reached by which subscriber, first when, and how often.

    Parameters
    ----------
    time
        Of the first one, seconds on the gateway's clock.
    reason
        docs/reference/events.md has them.
    subscriber
        The inside address. None: it concerns no one host, or stands for all those that found no place in the list
        (1,024).
    destination, port
        Where the first refused packet was going.
    protocol
        IANA number; with "ports-threshold" 0 stands for port blocks.
    count
        How often since events were last taken.
    limit
        What was reached, the first time: an argument of `Policy` or `Gateway`, "pool", or "opened-outside".
    outside
        With "ports-threshold", "address-added" and "address-removed" the outside address.
    """

    time: float  # seconds of the gateway's clock
    reason: str
    subscriber: ipaddress.IPv4Address | None
    destination: ipaddress.IPv4Address | None
    port: int
    protocol: int
    count: int
    limit: str = ""
    outside: ipaddress.IPv4Address | None = None


@functools.cache
def reasons() -> dict[int, str]:
    """Return all reasons by number: drops by Verdict; 6 and 7 are not the core's, and have rows only."""
    drops = {int(verdict): verdict.reason for verdict in Verdict if verdict.is_drop}
    return {**THRESHOLDS, 6: "clock-set", 7: "machine-slept", **drops}


@functools.cache
def _numbers() -> dict[str, int]:
    return {reason: number for number, reason in reasons().items()}


def code_of(event: Event) -> int:
    """Return reason and limit as `flags` of a row has them: the reason's number, and from bit 8 on the limit's."""
    return _numbers()[event.reason] | LIMITS.index(event.limit) << 8


def words_of(code: int) -> tuple[str, str]:
    """Return reason and limit of such a number; a number that is none is in the reason."""
    number, limit = code & 0xFF, code >> 8
    return reasons().get(number, f"reason {number}"), LIMITS[limit] if limit < len(LIMITS) else f"limit {limit}"


def subject(event: Event) -> object:
    """What similar events have in common: the reason, and the subscriber or the outside address and protocol."""
    return event.reason, event.subscriber, event.outside, event.protocol if event.outside else 0


def of_all(event: Event) -> Event:
    """Return an event that stands for all of its reason, where too many differ."""
    from dataclasses import replace

    return replace(event, subscriber=None, destination=None, port=0, outside=None)


class Digest:
    """Of many events about one subscriber and reason one each minute, with the sum of all that came meanwhile.

    every: seconds. most: subscribers and reasons with events of their own; beyond them a reason has one event for all.
    """

    def __init__(self, every: float = 60.0, most: int = 4096) -> None:
        self._every, self._most = every, most
        self._due: dict[object, float] = {}  # of what was told: when it may be told again
        self._held: dict[object, Event] = {}  # what has come since

    def add(self, events: Iterable[Event], now: float) -> list[Event]:
        """The events that are due. now: seconds, any origin."""
        from dataclasses import replace

        told = []
        for event in events:
            key = subject(event)
            if key not in self._due and len(self._due) >= self._most:
                event, key = of_all(event), event.reason
            if key not in self._due:
                self._due[key] = now + self._every
                told.append(event)
            elif key in self._held:
                self._held[key] = replace(self._held[key], count=self._held[key].count + event.count)
            else:
                self._held[key] = event
        for key in [key for key, due in self._due.items() if due <= now]:
            if key in self._held:
                told.append(self._held.pop(key))
                self._due[key] = now + self._every
            else:
                del self._due[key]
        return told

    def rest(self) -> list[Event]:
        """Return the events that are still held back, at the end."""
        held, self._held = list(self._held.values()), {}
        return held


def event_of(row: tuple[int, int, int, int, int, int, int, int]) -> Event:
    """An event as the core has it: (ns, reason, subscriber, destination, port, protocol, count, Limit)."""
    at_ns, reason, who, destination, port, protocol, count, limit = row
    if reason in THRESHOLDS:
        outside = ipaddress.IPv4Address(who) if reason in OF_AN_ADDRESS else None
        return Event(at_ns / 1e9, THRESHOLDS[reason], None, None, 0, protocol, count, LIMITS[limit], outside)
    return Event(
        at_ns / 1e9,
        Verdict(reason).reason,
        ipaddress.IPv4Address(who) if who else None,
        ipaddress.IPv4Address(destination) if who else None,
        port,
        protocol,
        count,
        LIMITS[limit],
    )

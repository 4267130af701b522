"""What a gateway says besides verdicts: frames of its own, and events for its administrator."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from .verdict import Side, Verdict


@dataclass(frozen=True, slots=True)
class Generated:
    """A frame of the gateway's own: an ICMP error or an echo reply.

    frame: with the link header that answers the frame which caused it. send_to: the side it leaves by.
    """

    frame: bytes
    send_to: Side
    cause: Verdict


@dataclass(frozen=True, slots=True)
class Event:
    """Who ran out of what, first when, towards which destination, and how often since events() was last read."""

    time: float  # seconds of the gateway's clock
    reason: str
    subscriber: ipaddress.IPv4Address
    destination: ipaddress.IPv4Address
    port: int
    protocol: int
    count: int


def event_of(row: tuple[int, int, int, int, int, int, int]) -> Event:
    """An event as the core has it: (ns, verdict, subscriber, destination, port, protocol, count)."""
    at_ns, verdict, subscriber, destination, port, protocol, count = row
    return Event(
        at_ns / 1e9,
        Verdict(verdict).reason,
        ipaddress.IPv4Address(subscriber),
        ipaddress.IPv4Address(destination),
        port,
        protocol,
        count,
    )

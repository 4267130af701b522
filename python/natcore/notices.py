"""What a gateway says besides verdicts: frames of its own, and events for its administrator."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from .verdict import Side, Verdict


@dataclass(frozen=True, slots=True)
class Generated:
    """A frame that leaves besides those that were given: of the gateway's own, or a fragment.

    cause LOCAL or a drop: an echo reply or an ICMP error; its link header answers the frame which caused it.
    cause HELD: a fragment that waited for its first one, translated. OUTBOUND, INBOUND, HAIRPIN, UNTRANSLATED: a
    fragment of a packet that was too long for its next link (RFC 4787 REQ-13a). Both have the link header that their
    packet came with. send_to: the side that the frame leaves by.
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

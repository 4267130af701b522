"""Which side a frame of a capture came from: by the interface that captured it, by the gateway's MAC address, or by prefix."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network

from natcore.capture.reader import OUTGOING
from natcore.errors import ConfigurationError
from natcore.internal.redaction import show
from natcore.internal.validation import parse_network
from natcore.verdict import Side

NOT_NAMED = "of an interface that was not named"
LEAVES_OUTSIDE = "leaves by an outside interface"
NOT_GATEWAYS = "neither from nor to the gateway's MAC address"
BETWEEN_INSIDE = "between inside hosts"
OTHER_HOSTS = "of other hosts"
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


@dataclass(frozen=True, slots=True)
class Sides:
    """How to tell which side a frame came from.

    By interface, if any is named; else by MAC address, if any is named; else by prefix.

    Attributes
    ----------
    inside
        Prefixes: their addresses are inside.
    gateway_macs
        A frame to one of these came from inside, one from it came from outside. As numbers.
    from_inside, from_outside
        Names of interfaces, or their numbers as text, such as the two ports of a tap. A frame that the capture calls outgoing
        went the other way.
    """

    inside: tuple[IPv4Network, ...] = ()
    gateway_macs: frozenset[int] = frozenset()
    from_inside: frozenset[str] = frozenset()
    from_outside: frozenset[str] = frozenset()

    @property
    def by_interface(self) -> bool:
        """Whether interfaces decide."""
        return bool(self.from_inside or self.from_outside)

    def is_inside(self, address: int) -> bool:
        """Whether an address, in host order, is an inside one."""
        return any(address & int(n.netmask) == int(n.network_address) for n in self.inside)

    def of_interface(self, name: str, direction: int) -> Side | str:
        """Return the side by interface, or why there is none."""
        if name in self.from_inside:
            return Side.OUTSIDE if direction == OUTGOING else Side.INSIDE
        if name not in self.from_outside:
            return NOT_NAMED
        return LEAVES_OUTSIDE if direction == OUTGOING else Side.OUTSIDE

    def of_addresses(self, source: int, destination: int) -> Side | str:
        """Return the side by prefix, or why there is none. Addresses in host order."""
        from_inside, to_inside = self.is_inside(source), self.is_inside(destination)
        if from_inside != to_inside:
            return Side.INSIDE if from_inside else Side.OUTSIDE
        return BETWEEN_INSIDE if from_inside else OTHER_HOSTS

    def of_frame(self, interface: str, direction: int, frame: bytes, source: int, destination: int) -> Side | str:
        """Return the side that an Ethernet frame came from, or why there is none."""
        if self.by_interface:
            return self.of_interface(interface, direction)
        if self.gateway_macs:
            if int.from_bytes(frame[:6], "big") in self.gateway_macs:
                return Side.INSIDE
            return Side.OUTSIDE if int.from_bytes(frame[6:12], "big") in self.gateway_macs else NOT_GATEWAYS
        return self.of_addresses(source, destination)


def make_sides(
    inside: Iterable[str | IPv4Network],
    gateway_macs: Iterable[str] = (),
    from_inside: Iterable[str] = (),
    from_outside: Iterable[str] = (),
) -> Sides:
    """Return checked Sides.

    Parameters
    ----------
    inside
        Prefixes: their addresses are inside.
    gateway_macs
        "02:00:00:00:00:01": the gateway's on the inside link.
    from_inside, from_outside
        Names of the capture's interfaces, or their numbers as text.

    Returns
    -------
    Sides
        What Replay and what_if take.

    Raises
    ------
    ConfigurationError
        A prefix or an address that is none, or both MAC addresses and interfaces.
    """
    macs = set()
    for text in gateway_macs:
        if not _MAC.fullmatch(text.lower()):
            raise ConfigurationError(f"gateway_macs must be like '02:00:00:00:00:01', got {show(text)}")
        macs.add(int(text.replace(":", ""), 16))
    inner, outer = frozenset(from_inside), frozenset(from_outside)
    if macs and (inner or outer):
        raise ConfigurationError("sides: give MAC addresses of the gateway or interfaces, not both")
    if both := inner & outer:
        raise ConfigurationError(
            f"from_outside must name other interfaces than from_inside, both have {show(min(both))}"
        )
    return Sides(tuple(parse_network(prefix, "inside") for prefix in inside), frozenset(macs), inner, outer)

"""This machine's interfaces, and which of them are inside and outside where it is the commonest router."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import IPv4Interface, IPv4Network
from typing import Any, NamedTuple

from natcore.errors import ConfigurationError
from natcore.internal.extras import extra

with extra("plane"):
    from pyroute2 import IPRoute

UP, ETHERNET = 0x1, 1  # IFF_UP, ARPHRD_ETHER
_PRIVATE = [IPv4Network(prefix) for prefix in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")]


class Interface(NamedTuple):
    """An Ethernet interface that is up, its addresses, and whether the default route leads over it."""

    name: str
    addresses: tuple[IPv4Interface, ...]
    default: bool


def interfaces() -> list[Interface]:
    """Return the Ethernet interfaces of this machine that are up."""
    with IPRoute() as kernel:
        over = {
            index
            for route in kernel.get_routes(family=socket.AF_INET, table=254)
            if route["dst_len"] == 0
            for index in [route.get_attr("RTA_OIF"), *(hop["oif"] for hop in route.get_attr("RTA_MULTIPATH") or ())]
        }
        found = addresses(kernel)
        return [
            Interface(link.get_attr("IFLA_IFNAME"), tuple(found.get(link["index"], ())), link["index"] in over)
            for link in kernel.get_links()
            if link["ifi_type"] == ETHERNET and link["flags"] & UP
        ]


def addresses(kernel: Any) -> dict[int, list[IPv4Interface]]:
    """Return the IPv4 addresses of this machine with their prefixes, by their interface's index. kernel: an IPRoute."""
    found: dict[int, list[IPv4Interface]] = {}
    for message in kernel.get_addr(family=socket.AF_INET):
        address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        found.setdefault(message["index"], []).append(IPv4Interface(f"{address}/{message['prefixlen']}"))
    return found


class Sides(NamedTuple):
    """Which interfaces are inside and outside, and the inside networks; none lies in another one."""

    inside: tuple[str, ...]
    outside: str
    networks: tuple[IPv4Network, ...]


def sides(there: Sequence[Interface]) -> Sides:
    """Return the sides of a machine: outside is the default route's interface, inside are others with private addresses.

    Raises ConfigurationError, which says what there is: no interface, or more than one, has the default route, or none has a
    private address besides.
    """
    shown = "; ".join(f"{each.name} {', '.join(map(str, each.addresses)) or 'without an address'}" for each in there)
    outside = [each for each in there if each.default]
    if len(outside) != 1:
        raise ConfigurationError(
            f"outside must be the one interface of the default route, got {len(outside)} of: {shown}"
        )
    inside = [each for each in there if not each.default and any(map(_is_private, each.addresses))]
    if not inside:
        raise ConfigurationError(f"inside must be an interface with a private address that is up, got none of: {shown}")
    networks = sorted({address.network for each in inside for address in each.addresses if _is_private(address)})
    widest = [each for each in networks if not any(each != other and each.subnet_of(other) for other in networks)]
    return Sides(tuple(each.name for each in inside), outside[0].name, tuple(widest))


def _is_private(address: IPv4Interface) -> bool:
    return any(address.ip in network for network in _PRIVATE)

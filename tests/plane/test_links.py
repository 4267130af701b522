"""Routes as ranges, and the kernel's stack kept off an interface."""

from __future__ import annotations

import socket
from ipaddress import IPv4Network

import pytest

from natcore import InterfaceError
from natcore.demo.namespaces import Network
from natcore.plane import kernel_bypass, links
from natcore.plane.links import NO_ROUTE, ON_LINK, Range, ranges_of
from support.links import pair as pair
from support.netns import at, needs_root, ping, ping_once


def ip(text: str) -> int:
    return int.from_bytes(socket.inet_aton(text))


class Message(dict):  # type: ignore[type-arg]
    """A message like pyroute2's: fields by index, attributes by get_attr."""

    def __init__(self, attributes: dict[str, object], **fields: object) -> None:
        super().__init__(fields)
        self.attributes = attributes

    def get_attr(self, name: str) -> object:
        return self.attributes.get(name)


def route(
    prefix: str, *, over: int = 3, via: str | None = None, metric: int = 0, kind: int = 1, **more: object
) -> Message:
    network = IPv4Network(prefix)
    attributes: dict[str, object] = {"RTA_OIF": over, "RTA_GATEWAY": via, "RTA_PRIORITY": metric, **more}
    if network.prefixlen:
        attributes["RTA_DST"] = str(network.network_address)
    return Message(attributes, type=kind, flags=0, dst_len=network.prefixlen)


def look(ranges: list[Range], address: str) -> int:
    return next((via for start, via, _ in reversed(ranges) if start <= ip(address)), NO_ROUTE)


def port_to(ranges: list[Range], address: str) -> int:
    return next(port for start, _, port in reversed(ranges) if start <= ip(address))


def test_the_longest_prefix_decides() -> None:
    default, link = route("0.0.0.0/0", via="10.0.0.254"), route("10.0.0.0/24")
    ranges = ranges_of([default, link, route("10.0.0.128/25", via="10.0.0.3")], {3: 0})
    assert look(ranges, "8.8.8.8") == ip("10.0.0.254")
    assert look(ranges, "10.0.0.5") == ON_LINK
    assert look(ranges, "10.0.0.200") == ip("10.0.0.3")
    assert look(ranges, "255.255.255.255") == ip("10.0.0.254")


def test_the_lowest_metric_decides_and_other_interfaces_do_not_count() -> None:
    routes = [
        route("0.0.0.0/0", via="10.0.0.1", metric=200),
        route("0.0.0.0/0", via="10.0.0.2", metric=100),
        route("0.0.0.0/0", via="10.0.0.3", metric=1, over=4),
    ]
    assert look(ranges_of(routes, {3: 0}), "8.8.8.8") == ip("10.0.0.2")
    assert ranges_of([route("10.0.0.0/8", over=4)], {3: 0}) == []


def test_over_several_interfaces_a_range_says_which() -> None:
    routes = [
        route("10.0.0.0/8", via="10.1.0.9", over=4),
        route("10.0.0.0/24", over=3),
        route("10.1.0.0/24", over=4),
        route("10.2.0.0/24", over=4, metric=5),
        route("10.2.0.0/24", over=3, metric=1),
        route("0.0.0.0/0", over=9, via="192.0.2.1"),
    ]
    ranges = ranges_of(routes, {3: 0, 4: 1})
    seen = {where: (look(ranges, where), port_to(ranges, where)) for where in ("10.0.0.1", "10.1.0.1", "10.2.0.1")}
    assert seen == {"10.0.0.1": (ON_LINK, 0), "10.1.0.1": (ON_LINK, 1), "10.2.0.1": (ON_LINK, 0)}
    assert (look(ranges, "10.9.9.9"), port_to(ranges, "10.9.9.9")) == (ip("10.1.0.9"), 1)
    assert look(ranges, "8.8.8.8") == NO_ROUTE


def test_refusing_routes_and_several_next_hops() -> None:
    several = [Message({"RTA_GATEWAY": "10.0.0.7"}, oif=9), Message({"RTA_GATEWAY": "10.0.0.8"}, oif=3)]
    routes = [
        route("0.0.0.0/0", over=0, RTA_MULTIPATH=several),
        route("192.0.2.0/24", kind=6, over=0),
    ]
    ranges = ranges_of(routes, {3: 0})
    assert look(ranges, "192.0.2.9") == NO_ROUTE
    assert look(ranges, "192.0.3.9") == ip("10.0.0.8")


@needs_root
def test_the_block_spares_what_it_is_told_to_and_is_changed_in_one_step(pair: Network) -> None:
    assert ping(pair, "b", "10.1.0.1")
    with at(pair, "a"):
        kernel_bypass.install("one", {ip("10.1.0.3")})
        assert links.installed() == ["one"]
    assert not ping_once(pair, "b", "10.1.0.1")
    assert ping(pair, "b", "10.1.0.3")
    with at(pair, "a"):
        kernel_bypass.install("one", {ip("10.1.0.1"), ip("10.1.0.3")})
    assert ping(pair, "b", "10.1.0.1")
    with at(pair, "a"):
        kernel_bypass.remove("one")
        kernel_bypass.remove("one")
        assert links.installed() == []


@needs_root
def test_clean_takes_away_what_the_dead_left_and_leaves_the_living_alone(pair: Network) -> None:
    with at(pair, "a"):
        claim = kernel_bypass.Claim("one")
        kernel_bypass.install("one", set())
        assert links.clean() == []
        with pytest.raises(InterfaceError, match="another plane"):
            kernel_bypass.Claim("one")
        claim.close()
        assert links.clean() == ["one"]
        assert links.installed() == []

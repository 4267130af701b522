"""Addresses that an entry cannot have, since packets from or to them are not forwarded."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from natcore.config import AnyEntry, DnatEntry, Policy, SnatEntry
from natcore.errors import ConfigurationError

# RFC 6890, RFC 1812 section 5.3.7. A policy may permit the last two for inside hosts and remotes.
RESERVED = {
    ipaddress.IPv4Network("0.0.0.0/8"): "this network",
    ipaddress.IPv4Network("127.0.0.0/8"): "loopback",
    ipaddress.IPv4Network("224.0.0.0/4"): "multicast",
    ipaddress.IPv4Network("255.255.255.255/32"): "broadcast",
    ipaddress.IPv4Network("169.254.0.0/16"): "link-local, Policy.link_local=False",
    ipaddress.IPv4Network("240.0.0.0/4"): "class E, Policy.class_e=False",
}
_SPANS = [(int(net.network_address), int(net.broadcast_address), net, what) for net, what in RESERVED.items()]
Span = tuple[int, int]  # the first address and the last


def check_reserved(entry: AnyEntry, policy: Policy) -> None:
    """Raise ConfigurationError if an address of an entry, or a whole prefix, is not forwarded."""
    if isinstance(entry, DnatEntry):
        if not entry.follows_interface:
            _refuse("DnatEntry.external_ip", entry.external_ip, _span(entry.external_ip), policy, outside=True)
        for target, _ in entry.internal_ip:
            _refuse("DnatEntry.internal_ip", target, _span(target), policy)
        return
    if isinstance(entry, SnatEntry):
        _refuse("SnatEntry.source", entry.source, _span(entry.source), policy)
        for eip in entry.eips:
            for address in (eip.address, eip.private_ip):
                if address is not None:
                    _refuse("SnatEntry.pool", address, _span(address), policy, outside=True)
        return
    _refuse("NoNatEntry.source", entry.source, _span(entry.source), policy)
    _refuse("NoNatEntry.destination", entry.destination, _span(entry.destination), policy)


def refused_by(policy: Policy) -> Callable[[int], bool]:
    """Return a function that says whether an address (host order) can be no outside address."""

    def refused(address: int) -> bool:
        try:
            _refuse("SnatEntry.pool", ipaddress.IPv4Address(address), (address, address), policy, outside=True)
        except ConfigurationError:
            return True
        return False

    return refused


def _span(value: object) -> Span:
    if isinstance(value, ipaddress.IPv4Network):
        return int(value.network_address), int(value.broadcast_address)
    return int(value), int(value)  # type: ignore[call-overload]


def _refuse(name: str, value: object, span: Span, policy: Policy, *, outside: bool = False) -> None:
    """outside: an outside address, which may never be of class E."""
    for first, last, network, what in _SPANS:
        if what.startswith("link-local") and policy.link_local:
            continue
        if what.startswith("class E") and policy.class_e and not outside:
            continue
        if first <= span[0] and span[1] <= last:
            raise ConfigurationError(
                f"{name} must be a forwarded unicast address, got {str(value)!r}: {network} ({what}) is not forwarded"
            )

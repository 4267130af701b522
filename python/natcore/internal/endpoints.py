"""Criteria for rows of a table: an address, a prefix, a port."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from natcore.entries.table import Entry
from natcore.errors import ConfigurationError
from natcore.internal.protocols import protocol_number
from natcore.internal.read_only import UNSET, Unset
from natcore.internal.redaction import show
from natcore.internal.validation import Address, check_integer, digits, parse_ipv4

Endpoint = Address | ipaddress.IPv4Network
"""An address, a prefix, or either as text with a port: "198.18.0.1:443", "10.0.0.0/24", "0.0.0.0/0:443"."""


class Criteria(NamedTuple):
    """What a search takes; by role: inside, remote, outside, in host order."""

    addresses: tuple[int, int, int]
    masks: tuple[int, int, int]
    ports: tuple[int, int, int]  # -1: any
    protocol: int  # -1: any
    entry: int  # 0: any


def parse_endpoint(name: str, value: object) -> tuple[int, int, int]:
    """Return (address, mask, port or -1). Raises ConfigurationError."""
    if isinstance(value, ipaddress.IPv4Network):
        return int(value.network_address), int(value.netmask), -1
    if not isinstance(value, str):
        return int(parse_ipv4(value, name)), 0xFFFFFFFF, -1  # type: ignore[arg-type]
    text, colon, port = value.partition(":")
    try:
        network = ipaddress.IPv4Network(text)
        number = digits(port) if colon else -1
        if number is None or number > 0xFFFF:
            raise ValueError
    except ValueError:
        raise ConfigurationError(
            f"{name} must be an address or a prefix, with a port or without, such as '10.0.0.0/24' or '198.18.0.1:443', "
            f"got {show(value, name)}"
        ) from None
    return int(network.network_address), int(network.netmask), number


def criteria(
    subscriber: Endpoint | Unset, remote: Endpoint | Unset, outside: Endpoint | Unset, protocol: object, entry: object
) -> Criteria:
    """Return what was asked for, checked. None is refused: such as a look-up that found nothing."""
    asked = {"subscriber": subscriber, "remote": remote, "outside": outside}
    found = [(0, 0, -1) if value is UNSET else parse_endpoint(name, value) for name, value in asked.items()]
    addresses, masks, ports = zip(*found, strict=True)
    number = -1 if protocol is UNSET else protocol_number(protocol)
    if isinstance(entry, Entry):
        entry = entry.id
    return Criteria(
        addresses, masks, ports, number, 0 if entry is UNSET else check_integer("entry", entry, 1, 0xFFFFFFFE)
    )

"""Entries as a gateway holds them: which addresses they put on the wire, and how they compile for look-up."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from ._gateway import Core
from ._rules import RuleSet
from .config import Eip, SnatEntry
from .errors import ConfigurationError, Error

Value = TypeVar("Value")


@dataclass(slots=True, eq=False)
class Entry:
    """An entry of a gateway: its number and what was asked for."""

    id: int
    entry: SnatEntry
    addresses: list[int] = field(default_factory=list, repr=False)  # numbers of its outside addresses in the core

    def describe(self) -> str:
        name = f" {self.entry.name!r}" if self.entry.name else ""
        return f"entry {self.id}{name} ({self.entry.source})"


def wire_addresses(pool: Iterable[Eip], kind: str, eip_bind_mode: str) -> list[tuple[int, int]]:
    """(address on the wire, EIP or 0) of each pool element (contract, field 8)."""
    result = []
    for eip in pool:
        address = int(eip.address)
        if kind == "vpc":
            if eip.private_ip is not None:
                raise ConfigurationError(
                    f"SnatEntry.pool={eip!r}: a VPC gateway has NAT IPs; allowed is an address without private_ip"
                )
            result.append((address, 0))
        elif eip_bind_mode == "NAT" and eip.private_ip is not None:
            result.append((int(eip.private_ip), address))
        else:
            result.append((address, address))
    return result


def take_addresses(core: Core, row: Entry, kind: str, eip_bind_mode: str) -> None:
    """Numbers for the outside addresses of an entry; all of them, or with an error none."""
    taken: list[int] = []
    try:
        for wire, eip in wire_addresses(row.entry.pool, kind, eip_bind_mode):
            taken.append(core.add_address(wire, eip))
    except Error:
        for number in taken:
            core.drop_address(number)
        raise
    row.addresses = taken


def check_pools(entries: Iterable[Entry], kind: str, eip_bind_mode: str) -> None:
    """Every wire address stands for one EIP (two EIPs may not share a private_ip)."""
    known: dict[int, tuple[int, Entry]] = {}
    for entry in entries:
        for wire, eip in wire_addresses(entry.entry.pool, kind, eip_bind_mode):
            other_eip, other = known.setdefault(wire, (eip, entry))
            if other_eip != eip:
                raise ConfigurationError(
                    f"SnatEntry.pool: {ipaddress.IPv4Address(wire)} would stand for {ipaddress.IPv4Address(eip)} in "
                    f"{entry.describe()} and for {ipaddress.IPv4Address(other_eip)} in {other.describe()}; "
                    "allowed is one EIP for each private_ip"
                )


def flatten(prefixes: Iterable[tuple[int, int, Value]]) -> list[tuple[int, Value | None]]:
    """Disjoint ranges of nested prefixes: [(start, value of the longest prefix that covers it, or None), …].

    prefixes: (first address, last address, value); two of them nest or are disjoint.

    >>> flatten([(0, 255, "wide"), (16, 31, "narrow")])
    [(0, 'wide'), (16, 'narrow'), (32, 'wide'), (256, None)]
    """
    ranges: list[tuple[int, Value | None]] = []
    around: list[tuple[int, Value]] = []  # the prefixes that are open, the longest last

    def begin(start: int, value: Value | None) -> None:
        if ranges and ranges[-1][0] == start:
            ranges.pop()
        if start <= 0xFFFFFFFF:
            ranges.append((start, value))

    def leave(before: int) -> None:
        while around and around[-1][0] < before:
            last, _ = around.pop()
            begin(last + 1, around[-1][1] if around else None)

    for first, last, value in sorted(prefixes, key=lambda p: (p[0], -p[1])):
        leave(first)
        begin(first, value)
        around.append((last, value))
    leave(1 << 32)
    return ranges


def compile_rules(entries: Iterable[Entry]) -> RuleSet:
    """The rule set of the entries: the longest prefix that covers an inside source decides."""
    rows = list(entries)
    networks = [ipaddress.IPv4Network(row.entry.source) for row in rows]
    prefixes = [(int(n.network_address), int(n.broadcast_address), index) for index, n in enumerate(networks)]
    return RuleSet([(row.id, row.addresses) for row in rows], flatten(prefixes))

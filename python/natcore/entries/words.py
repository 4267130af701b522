"""Entries in words, for reports."""

from __future__ import annotations

from typing import Any

from natcore.config import AnyEntry, DnatEntry, Eip, NoNatEntry, OutsideInterface, SnatEntry
from natcore.internal.redaction import show
from natcore.internal.validation import listed

_MOST_SHOWN = 8  # addresses of a pool, targets


def kind_of(entry: AnyEntry) -> str:
    """Return the table of gateway.toml that an entry belongs to: "snat", "dnat" or "no_nat"."""
    return {SnatEntry: "snat", DnatEntry: "dnat", NoNatEntry: "no_nat"}[type(entry)]


def name_of(entry: AnyEntry) -> str:
    """Return an entry's kind and name, as the file has them."""
    kind = kind_of(entry)
    return kind if entry.name is None else f"{kind} {label(entry)}"


def label(entry: AnyEntry) -> str:
    """Return an entry's name, quoted."""
    return "unnamed" if entry.name is None else show(entry.name)


def in_words(entry: AnyEntry) -> str:
    """Return what an entry translates."""
    if isinstance(entry, NoNatEntry):
        return f"{entry.source} to {entry.destination}"
    if isinstance(entry, SnatEntry):
        return f"{entry.source} by {listed([_pool_element(each) for each in entry.pool], _MOST_SHOWN)}"
    weighted = len(entry.internal_ip) > 1
    targets = [f"{address} ({weight})" if weighted else str(address) for address, weight in entry.internal_ip]
    outside, inside = (_ports(port) for port in (entry.external_port, entry.internal_port))
    return f"{entry.protocol} {entry.external_ip}:{outside} to {listed(targets, _MOST_SHOWN)}:{inside}"


def _pool_element(element: Eip | OutsideInterface) -> str:
    if isinstance(element, OutsideInterface):
        return str(element)
    return f"{element.address}/{element.private_ip}" if element.private_ip else str(element.address)


def _ports(port: Any) -> str:
    return "-".join(map(str, port)) if isinstance(port, tuple) else str(port)

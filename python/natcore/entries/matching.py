"""Matches entries in force with those that are wanted.

Equal ones first, then by name, then by all but the name, then by what one entry alone can have: an SNAT entry's source; a DNAT
entry's outside address, ports and protocol; both prefixes of a no-NAT entry.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from natcore.config import AnyEntry, DnatEntry, NoNatEntry, SnatEntry
from natcore.entries.table import Entry, unnamed


def match(
    rows: Sequence[Entry], wanted: Sequence[AnyEntry]
) -> tuple[list[tuple[Entry, AnyEntry | None]], list[AnyEntry]]:
    """Return each entry in force with what it becomes (None: it goes), and the entries that come."""
    becoming: dict[int, AnyEntry] = {}
    left_rows, left = list(rows), list(wanted)
    same: list[Callable[[AnyEntry], Hashable]] = [lambda entry: entry, _named, unnamed, _identity]
    for key in same:
        waiting: dict[Hashable, list[AnyEntry]] = {}
        for entry in left:
            if (found := key(entry)) is not None:
                waiting.setdefault(found, []).append(entry)
        taken: set[int] = set()
        for row in left_rows:
            if candidates := waiting.get(key(row.entry)):
                becoming[row.id] = candidates.pop(0)
                taken.add(id(becoming[row.id]))
        left_rows = [row for row in left_rows if row.id not in becoming]
        left = [entry for entry in left if id(entry) not in taken]
    return [(row, becoming.get(row.id)) for row in rows], left


def _named(entry: AnyEntry) -> Hashable:
    return None if entry.name is None else (type(entry), entry.name)


def _identity(entry: AnyEntry) -> Hashable:
    """Return what at most one entry of a gateway has."""
    if isinstance(entry, SnatEntry):
        return SnatEntry, entry.source
    if isinstance(entry, NoNatEntry):
        return NoNatEntry, entry.source, entry.destination
    return DnatEntry, entry.external_ip, entry.ports[:2], entry.protocol

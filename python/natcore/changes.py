"""Changing the entries of a running gateway: planned beforehand, carried out in one moment, or not at all."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ._gateway import Core
from .config import AnyEntry, DnatEntry, NoNatEntry, Policy, SnatEntry
from .entries import Entry, Rulebook, spaces
from .errors import ConfigurationError, Error

NOTHING = (1, 0, set[int]())  # an empty range of inside addresses: no session may stay


@dataclass(frozen=True, slots=True)
class Add:
    """An entry to put into force."""

    entry: AnyEntry


@dataclass(frozen=True, slots=True)
class Remove:
    """An entry to take out of force. drain: its sessions end by themselves."""

    entry: Entry
    drain: bool = False


@dataclass(frozen=True, slots=True)
class Replace:
    """An entry to change; its handle and number stay."""

    entry: Entry
    by: AnyEntry


Change = Add | Remove | Replace


@dataclass(frozen=True, slots=True)
class Plan:
    """What changes would do to the sessions that are there: kept, drained, ended are counts of sessions."""

    changes: tuple[Change, ...]
    kept: int
    drained: int
    ended: int
    generation: int = field(repr=False)

    def __str__(self) -> str:
        return f"{len(self.changes)} changes: {self.kept} sessions kept, {self.drained} drained, {self.ended} ended"


@dataclass(frozen=True, slots=True)
class Applied:
    """What a plan did: the handles of added entries in order, and the sessions that ended."""

    added: list[Entry]
    ended: int


class EntryTable:
    """The entries in force, and those that drain."""

    def __init__(self, core: Core, kind: str, eip_bind_mode: str, policy: Policy) -> None:
        self._core = core
        self._book = Rulebook(kind, eip_bind_mode, policy)
        self._last_id = 0
        self._generation = 0
        self.rows: list[Entry] = []
        self._draining: list[Entry] = []

    @property
    def address_count(self) -> int:
        """Outside addresses, those of several entries counted as often."""
        return sum(len(row.addresses) for row in [*self.rows, *self._draining])

    def plan(self, changes: Sequence[Change]) -> Plan:
        """Checks the changes together, and counts what they would do."""
        self._reap()
        self._book.check(self._after(changes)[0])
        kept = drained = ended = 0
        for row in self.rows:
            change = _change_of(row, changes)
            if change is None:
                kept += self._core.count(row.id, *NOTHING)[0]
            elif isinstance(change, Remove):
                count = self._core.count(row.id, *NOTHING)[0]
                drained, ended = (drained + count, ended) if change.drain else (drained, ended + count)
            else:
                count, stay = self._core.count(row.id, *self._staying(row, change.by))
                kept, ended = kept + stay, ended + count - stay
        return Plan(tuple(changes), kept, drained, ended, self._generation)

    def apply(self, plan: Plan, now_ns: int) -> Applied:
        """Everything that can fail comes first; then one swap."""
        if plan.generation != self._generation:
            raise Error("the entries have changed since the plan was made; make it again")
        self._reap()
        rows, added = self._after(plan.changes)
        self._book.check(rows)
        fresh = [row for row in rows if row not in self.rows]
        gone = [row for row in self.rows if row not in rows]
        replaced = [row for row in gone if isinstance(_change_of(row, plan.changes), Replace)]
        for row in replaced:
            self._unreserve(row)  # its successor may want the same ports
        try:
            self._take(fresh, rows, now_ns)
        except Error:
            for row in replaced:
                self._reserve(row, now_ns)
            raise
        drain = [c.entry for c in plan.changes if isinstance(c, Remove) and c.drain]
        leaving = []
        for row in gone:
            change = _change_of(row, plan.changes)
            if isinstance(change, Replace):
                leaving.append((row.id, *self._staying(row, change.by)))
            elif row not in drain:
                leaving.append((row.id, *NOTHING))
        ended = self._core.swap(self._book.compile(rows), leaving, now_ns)
        for row in gone:
            if row in drain:
                self._draining.append(row)
            else:
                self._release(row, reserved=row not in replaced)
        self.rows = [self._settle(row, plan.changes) for row in rows]
        self._generation += 1
        return Applied(added, ended)

    def rebind(self, eip_bind_mode: str, now_ns: int) -> None:
        """Another bind mode: sessions over an address that changes on the wire end, their rows written."""
        before, book = self._book, Rulebook(self._book.kind, eip_bind_mode, self._book.policy)
        book.check(self.rows)
        moved = [
            row for row in self.rows
            if before.outside_addresses(row, self.rows) != book.outside_addresses(row, self.rows)
        ]  # fmt: skip
        fresh = {row.id: replace(row, addresses=[]) for row in moved}
        self._book = book
        try:
            self._take(list(fresh.values()), self.rows, now_ns)
        except Error:
            self._book = before
            raise
        rows = [fresh.get(row.id, row) for row in self.rows]
        leaving = [(row.id, 0, 0xFFFFFFFF, set(row.addresses) & set(fresh[row.id].addresses)) for row in moved]
        self._core.swap(book.compile(rows), leaving, now_ns)
        for row in moved:
            self._release(row)
            row.addresses = fresh[row.id].addresses
        self._generation += 1

    # ---- what a change comes to -------------------------------------------------------------------------------------

    def _after(self, changes: Sequence[Change]) -> tuple[list[Entry], list[Entry]]:
        """The entries as they would be, and those of them that are added. A replaced one is a new row with its number."""
        rows, added, last = list(self.rows), [], self._last_id
        seen: list[Entry] = []
        for change in changes:
            if isinstance(change, Add):
                last += 1
                added.append(Entry(last, _check_entry(change.entry)))
                continue
            if not isinstance(change, Remove | Replace):
                raise ConfigurationError(f"changes: {change!r}: allowed are Add, Remove and Replace")
            if change.entry not in self.rows:
                raise ConfigurationError(
                    f"entry={change.entry!r}: not an entry of this gateway; allowed is one in force"
                )
            if change.entry in seen:
                raise ConfigurationError(f"changes: {change!r}: allowed is one change of an entry")
            seen.append(change.entry)
            at = rows.index(change.entry)
            rows[at : at + 1] = [Entry(change.entry.id, _check_entry(change.by))] if isinstance(change, Replace) else []
        return rows + added, added

    def _staying(self, row: Entry, by: AnyEntry) -> tuple[int, int, set[int]]:
        """Inside addresses and outside address numbers with which a session stays when row becomes by."""
        if row.entry == by:
            return 0, 0xFFFFFFFF, {*row.addresses, 0xFFFFFFFF}
        if not isinstance(row.entry, SnatEntry) or not isinstance(by, SnatEntry):
            return NOTHING
        if self._book.policy.ports == "deterministic" and (row.entry.source, row.entry.pool) != (by.source, by.pool):
            return NOTHING  # another prefix or pool gives every host another block
        wanted = {wire for wire, _ in self._book.wire_addresses(by.pool)}
        wires = [wire for wire, _ in self._book.wire_addresses(row.entry.pool)]
        source = ipaddress.IPv4Network(by.source)
        numbers = {number for wire, number in zip(wires, row.addresses, strict=True) if wire in wanted}
        return int(source.network_address), int(source.broadcast_address), numbers

    def _settle(self, row: Entry, changes: Sequence[Change]) -> Entry:
        """The handle that the caller knows, for a row that is in force now."""
        self._last_id = max(self._last_id, row.id)
        for change in changes:
            if isinstance(change, Replace) and change.entry.id == row.id:
                change.entry.entry, change.entry.addresses = row.entry, row.addresses
                return change.entry
        return row

    # ---- addresses and ports ----------------------------------------------------------------------------------------

    def _take(self, fresh: list[Entry], rows: list[Entry], now_ns: int) -> None:
        """Numbers for the addresses of new rows, ports for their DNAT entries; all or none."""
        done: list[Entry] = []
        try:
            for row in fresh:
                for wire, eip in self._book.outside_addresses(row, rows):
                    row.addresses.append(self._core.add_address(wire, eip))
                self._reserve(row, now_ns)
                done.append(row)
        except Error:
            for row in fresh:
                self._release(row, reserved=row in done)
            raise

    def _reserve(self, row: Entry, now_ns: int) -> None:
        if not isinstance(row.entry, DnatEntry):
            return
        first, last, _ = row.entry.ports
        done: list[int] = []
        for space in spaces(row.entry):
            holder = self._core.reserve(row.addresses[0], space, first, last, now_ns)
            if holder is not None:
                for other in done:
                    self._core.unreserve(row.addresses[0], other, first, last)
                port, inside, inside_port = holder
                who = (
                    f"the mapping of {ipaddress.IPv4Address(inside)}:{inside_port}"
                    if inside
                    else "an entry that drains"
                )
                raise ConfigurationError(
                    f"DnatEntry.external_port={row.entry.external_port!r}: {row.describe()}: port {port} is held by "
                    f"{who}; allowed is one that is free"
                )
            done.append(space)

    def _unreserve(self, row: Entry) -> None:
        if isinstance(row.entry, DnatEntry):
            first, last, _ = row.entry.ports
            for space in spaces(row.entry):
                self._core.unreserve(row.addresses[0], space, first, last)

    def _release(self, row: Entry, *, reserved: bool = True) -> None:
        if reserved and row.addresses:
            self._unreserve(row)
        for number in row.addresses:
            self._core.drop_address(number)
        row.addresses = []

    def _reap(self) -> None:
        """Entries that have drained let their addresses go."""
        for row in list(self._draining):
            if self._core.count(row.id, *NOTHING)[0] == 0:
                self._draining.remove(row)
                self._release(row)


def _check_entry(entry: object) -> AnyEntry:
    if not isinstance(entry, SnatEntry | DnatEntry | NoNatEntry):
        raise ConfigurationError(f"entry={entry!r}: allowed are SnatEntry, DnatEntry and NoNatEntry")
    return entry


def _change_of(row: Entry, changes: Sequence[Change]) -> Remove | Replace | None:
    for change in changes:
        if not isinstance(change, Add) and change.entry is row:
            return change
    return None

"""A gateway's entries: their wire addresses, their conflicts, and their compilation for look-up."""

from __future__ import annotations

import ipaddress
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from natcore.config import AnyEntry, DnatEntry, Eip, NoNatEntry, OutsideInterface, Policy, SnatEntry
from natcore.errors import ConfigurationError
from natcore.internal.read_only import ReadOnly
from natcore.internal.redaction import show
from natcore.tables.entries import RuleSet

Value = TypeVar("Value")

SPACES = {"tcp": (0,), "udp": (1,), "any": (0, 1)}  # by PortSpace of natcore/tables/ports.pxd
WHOLE_SPACES = (0, 1, 2)
ANY_SPACE = 3  # of natcore/tables/entries.pxd: protocols without ports


if TYPE_CHECKING:
    import typing_extensions

    Asked = typing_extensions.TypeVar("Asked", bound=AnyEntry, default=AnyEntry, covariant=True)
else:
    Asked = TypeVar("Asked")


class Entry(Generic[Asked]):
    """The handle of a gateway's entry: its number and its configuration, an SnatEntry, a DnatEntry or a NoNatEntry."""

    __slots__ = ("_entry", "_id", "addresses")
    id = ReadOnly[int]("Its number, which stays when it is replaced.", "the gateway gives it")
    entry = ReadOnly[Asked]("What was asked for.", "Gateway.replace(…) changes it")

    def __init__(self, id: int, entry: Asked) -> None:
        self._id, self._entry = id, entry
        self.addresses: list[int] = []  # numbers of its outside addresses in the core

    def __repr__(self) -> str:
        return f"Entry(id={self._id}, entry={self._entry!r})"

    def become(self, other: Entry[Any]) -> None:
        """Make the caller's handle stand for the replacement of its entry."""
        self._entry, self.addresses = other._entry, other.addresses

    def describe(self) -> str:
        """Return the entry in words, for messages."""
        entry = self.entry
        name = f" {show(entry.name)}" if entry.name else ""
        if isinstance(entry, DnatEntry):
            return f"entry {self.id}{name} ({entry.protocol} {entry.external_ip}:{entry.external_port})"
        if isinstance(entry, NoNatEntry):
            return f"entry {self.id}{name} ({entry.source} to {entry.destination})"
        return f"entry {self.id}{name} ({entry.source})"


class EntryConflict(ConfigurationError):
    """An entry cannot be in force: `entry` conflicts with others, or with the machine's addresses."""

    def __init__(self, entry: Entry, message: str) -> None:
        super().__init__(message)
        self.entry = entry


class Wires:
    """The wire addresses of entries, found in constant time."""

    def __init__(self, book: Rulebook, rows: Iterable[Entry]) -> None:
        self._book = book
        self._pools: dict[Entry, list[tuple[int, int]]] = {}
        self._named: dict[
            int, tuple[int, int]
        ] = {}  # the wire address for an address or an EIP that a DNAT entry names
        for row in rows:
            if isinstance(row.entry, SnatEntry):
                try:
                    self._pools[row] = book.wire_addresses(row.entry.pool)
                except ConfigurationError as error:
                    raise EntryConflict(row, str(error)) from None
                for pair in self._pools[row]:
                    self._named.setdefault(pair[0], pair)
                    self._named.setdefault(pair[1] or pair[0], pair)

    def of(self, row: Entry) -> list[tuple[int, int]]:
        """Return (wire address, EIP or 0) for each address of an entry; a DNAT entry may name an EIP of a pool."""
        if row in self._pools:
            return self._pools[row]
        if not isinstance(row.entry, DnatEntry):
            return self._book.wire_addresses(row.entry.pool) if isinstance(row.entry, SnatEntry) else []
        if isinstance(row.entry.external_ip, OutsideInterface):
            return [
                self._named.get(wire) or (wire, eip)
                for wire, eip in self._book.wire_addresses([row.entry.external_ip])[:1]
            ]
        asked = int(row.entry.external_ip)
        return [self._named.get(asked) or (asked, 0 if self._book.kind == "vpc" else asked)]


class Rulebook:
    """Compiles entries by a gateway's kind and bind mode, and the addresses (host order) of its outside interface."""

    def __init__(
        self, kind: str, eip_bind_mode: str, policy: Policy | None = None, interface: Sequence[int] = ()
    ) -> None:
        self.interface = tuple(interface)
        self.kind = kind
        self.eip_bind_mode = eip_bind_mode
        self.policy = policy or Policy()

    # ---- wire addresses (contract, field 8) --------------------------------------------------------------------

    def wire_addresses(self, pool: Iterable[Eip | OutsideInterface]) -> list[tuple[int, int]]:
        """Return (wire address, EIP or 0) for each address of a pool. Of the interface's those that it has not besides."""
        result: list[tuple[int, int]] = []
        pool = sorted(pool, key=lambda each: isinstance(each, OutsideInterface))
        for eip in pool:
            if isinstance(eip, OutsideInterface):
                known = {wire for wire, _ in result}
                result += [
                    (address, 0 if self.kind == "vpc" else address)
                    for address in self._of_interface(eip)
                    if address not in known
                ]
                continue
            address = int(eip.address)
            if self.kind == "vpc":
                if eip.private_ip is not None:
                    raise ConfigurationError(
                        f"SnatEntry.pool must be addresses without private_ip on a VPC gateway, got {show(eip)}"
                    )
                result.append((address, 0))
            elif self.eip_bind_mode == "NAT" and eip.private_ip is not None:
                result.append((int(eip.private_ip), address))
            else:
                result.append((address, address))
        return result

    def _of_interface(self, item: OutsideInterface) -> list[int]:
        only = None if item.addresses is None else {int(address) for address in item.addresses}
        return [address for address in self.interface if only is None or address in only]

    def wires(self, rows: Iterable[Entry]) -> Wires:
        """Return the wire addresses of rows."""
        return Wires(self, rows)

    # ---- conflicts ---------------------------------------------------------------------------------------------

    def check(self, rows: list[Entry], wires: Wires) -> None:
        """Raise EntryConflict, which names the two conflicting entries; its `entry` is the later one. wires: of rows."""
        self._check_twice(rows)
        self._check_eips(rows, wires)
        self._check_dnat(rows, wires)
        if self.policy.ports == "deterministic":
            self._check_computed(rows, wires)

    def _check_twice(self, rows: list[Entry]) -> None:
        seen: dict[object, Entry] = {}
        for row in rows:
            entry = row.entry
            if isinstance(entry, SnatEntry):
                key: tuple[object, ...] = ("SnatEntry.source", entry.source)
            elif isinstance(entry, NoNatEntry):
                key = ("NoNatEntry.source", entry.source, entry.destination)
            elif entry.is_one_to_one:
                key = ("DnatEntry.internal_ip", entry.internal_ip[0][0])
            else:
                continue
            other = seen.setdefault(key, row)
            if other is not row:
                raise EntryConflict(
                    row,
                    f"{key[0]} must be in one entry, got {show(str(key[1]))} in {row.describe()} and in {other.describe()}",
                )

    def _check_eips(self, rows: list[Entry], wires: Wires) -> None:
        """Check that every wire address stands for one EIP."""
        known: dict[int, tuple[int, Entry]] = {}
        for row in rows:
            if not isinstance(row.entry, SnatEntry):
                continue
            for wire, eip in wires.of(row):
                other_eip, other = known.setdefault(wire, (eip, row))
                if other_eip != eip:
                    raise EntryConflict(
                        row,
                        f"SnatEntry.pool must have one EIP for each private_ip, got {ipaddress.IPv4Address(wire)} for "
                        f"{ipaddress.IPv4Address(eip)} in {row.describe()} and for {ipaddress.IPv4Address(other_eip)} "
                        f"in {other.describe()}",
                    )

    def _check_dnat(self, rows: list[Entry], wires: Wires) -> None:
        """Check that outside endpoints of DNAT entries are disjoint, and that a 1:1 entry's address is in no pool."""
        ranges = sorted(
            ((first, last, row) for row in rows for first, last in self._keys(row, wires)), key=lambda r: (r[0], r[1])
        )
        for (_, last, one), (first, _, other) in pairwise(ranges):
            if first <= last:
                one, other = sorted((one, other), key=lambda row: row.id)
                raise EntryConflict(
                    other,
                    "DnatEntry.external_port must not overlap another entry's, "
                    f"got {other.describe()} and {one.describe()}",
                )
        pools = {wire: row for row in rows if isinstance(row.entry, SnatEntry) for wire, _ in wires.of(row)}
        for row in rows:
            if isinstance(row.entry, DnatEntry) and row.entry.is_one_to_one:
                [(wire, _)] = wires.of(row)
                if wire in pools:
                    raise EntryConflict(
                        row,
                        f"DnatEntry.external_ip of a 1:1 entry must be in no pool, got {show(str(row.entry.external_ip))} "
                        f"in {row.describe()} and in the pool of {pools[wire].describe()}",
                    )

    def _check_computed(self, rows: list[Entry], wires: Wires) -> None:
        """Check deterministic ports: each inside address has its block, and entries share no outside address."""
        from natcore.deterministic import check_fit

        known: dict[int, Entry] = {}
        for row in rows:
            if not isinstance(row.entry, SnatEntry):
                continue
            try:
                check_fit(row.entry, self.policy)
            except ConfigurationError as error:
                raise EntryConflict(row, str(error)) from None
            for wire, _ in wires.of(row):
                other = known.setdefault(wire, row)
                if other is not row:
                    raise EntryConflict(
                        row,
                        "SnatEntry.pool must share no address with another entry with ports='deterministic', "
                        f"got {ipaddress.IPv4Address(wire)} in {row.describe()} and in {other.describe()}",
                    )

    def _keys(self, row: Entry, wires: Wires) -> Iterator[tuple[int, int]]:
        """Yield the first and last key (dnat_key of natcore/tables/entries.pxd) of each outside range of a DNAT entry."""
        if not isinstance(row.entry, DnatEntry):
            return
        if not wires.of(row):  # the outside interface has no address now
            return
        [(wire, _)] = wires.of(row)
        first, last, _ = row.entry.ports
        for space in spaces(row.entry):
            yield wire << 18 | space << 16 | first, wire << 18 | space << 16 | last
        if row.entry.is_one_to_one:
            yield wire << 18 | ANY_SPACE << 16, wire << 18 | ANY_SPACE << 16

    # ---- compilation ------------------------------------------------------------------------------------------------

    def compile(self, rows: list[Entry], wires: Wires) -> RuleSet:
        """Compile the rule set of the entries; addresses that are only planned have number 0."""
        snat = [row for row in rows if isinstance(row.entry, SnatEntry)]
        dnat = [row for row in rows if isinstance(row.entry, DnatEntry) and wires.of(row)]
        networks = [ipaddress.IPv4Network(row.entry.source) for row in snat]  # type: ignore[union-attr]
        prefixes: list[tuple[int, int, int | None]] = [
            (int(n.network_address), int(n.broadcast_address), index if wires.of(row) else None)
            for index, (row, n) in enumerate(zip(snat, networks, strict=True))
        ]  # None: the outside interface has no address now
        dnat_rows, whole = [], []
        for index, row in enumerate(dnat):
            entry = row.entry
            assert isinstance(entry, DnatEntry)
            [(wire, _)] = wires.of(row)
            first, _, inside_first = entry.ports
            targets = [(int(address), weight) for address, weight in entry.internal_ip]
            number = row.addresses[0] if row.addresses else 0  # 0: only planned yet
            dnat_rows.append((row.id, number, wire, first, inside_first, targets))
            if entry.is_one_to_one:
                whole.append((targets[0][0], index))
        ranges = flatten(prefixes)
        return RuleSet(
            [(row.id, int(n.network_address), row.addresses) for row, n in zip(snat, networks, strict=True)],
            ranges,
            dnat_rows,
            sorted((first, last, index) for index, row in enumerate(dnat) for first, last in self._keys(row, wires)),
            sorted(whole),
            [_plain(row.id, row.entry) for row in rows if isinstance(row.entry, NoNatEntry)],
            inside_ranges(row.entry for row in rows),
            in_turn(
                (
                    (key + inside_first, key + inside_first + last - first, index)
                    for index, row in enumerate(dnat)
                    for first, last, inside_first in [row.entry.ports]  # type: ignore[union-attr]
                    for address, _ in row.entry.internal_ip  # type: ignore[union-attr]
                    for key in (int(address) << 18 | space << 16 for space in spaces(row.entry))  # type: ignore[arg-type]
                ),
                {index for index, row in enumerate(dnat) if len(row.entry.internal_ip) == 1},  # type: ignore[union-attr]
            ),
            *by_source([row.entry for row in rows if isinstance(row.entry, NoNatEntry)]),
        )


def by_source(
    entries: list[NoNatEntry],
) -> tuple[list[tuple[int, int | None]], list[tuple[int | None, list[tuple[int, int, int]]]]]:
    """No-NAT entries by their source prefixes: ranges of sources with the index of their longest prefix, and for each prefix
    the index of the next one around it and its destinations, as disjoint ranges of the entry added first."""
    prefixes: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for rank, entry in enumerate(entries):
        source, to = ipaddress.IPv4Network(entry.source), ipaddress.IPv4Network(entry.destination)
        found = prefixes.setdefault((int(source.network_address), int(source.broadcast_address)), [])
        found.append((int(to.network_address), int(to.broadcast_address), rank))
    ordered = sorted(prefixes, key=lambda prefix: (prefix[0], -prefix[1]))
    sources: list[tuple[int | None, list[tuple[int, int, int]]]] = []
    around: list[int] = []  # the prefixes that are open, the longest last
    for index, (first, last) in enumerate(ordered):
        while around and ordered[around[-1]][1] < first:
            around.pop()
        sources.append((around[-1] if around else None, in_turn(prefixes[first, last], range(len(entries)))))
        around.append(index)
    return flatten((first, last, index) for index, (first, last) in enumerate(ordered)), sources


def in_turn(ranges: Iterable[tuple[int, int, int]], final: Container[int]) -> list[tuple[int, int, int]]:
    """Cut ranges (first, last, rank) that may overlap so that two are disjoint, or the same range of two ranks.

    They are ascending; of the same range the lowest rank comes last. Of the ranks in final no higher rank has the same range.

    >>> in_turn([(0, 9, 1), (5, 6, 0), (8, 20, 2)], final={0, 2})
    [(0, 4, 1), (5, 6, 0), (7, 7, 1), (8, 9, 2), (8, 9, 1), (10, 20, 2)]
    """
    begin, end = defaultdict[int, list[int]](list), defaultdict[int, list[int]](list)
    for first, last, rank in ranges:
        begin[first].append(rank)
        end[last + 1].append(rank)
    pieces: list[tuple[int, int, list[int]]] = []
    around: list[int] = []  # the ranks of those that have begun, ascending
    for point, after in pairwise(sorted({*begin, *end})):
        for rank in end[point]:
            del around[bisect_left(around, rank)]
        for rank in begin[point]:
            insort(around, rank)
        ranks = _until(around, final)
        if pieces and pieces[-1][1] == point - 1 and pieces[-1][2] == ranks:
            pieces[-1] = (pieces[-1][0], after - 1, ranks)
        elif ranks:
            pieces.append((point, after - 1, ranks))
    return [(first, last, rank) for first, last, ranks in pieces for rank in reversed(ranks)]


def _until(ranks: list[int], final: Container[int]) -> list[int]:
    """Return the ranks up to the first that is final, each once."""
    result: list[int] = []
    for rank in ranks:
        if rank not in result[-1:]:
            result.append(rank)
        if rank in final:
            break
    return result


def inside_ranges(entries: Iterable[AnyEntry]) -> list[tuple[int, int]]:
    """The addresses that entries say are inside: a prefix of length 0 says 'whatever comes from inside', and nothing about
    what is there."""
    return concerned(
        entry for entry in entries if isinstance(entry, DnatEntry) or ipaddress.IPv4Network(entry.source).prefixlen
    )


def concerned(entries: Iterable[AnyEntry]) -> list[tuple[int, int]]:
    """The inside addresses of entries, as (first, last), ascending and disjoint: prefixes of SNAT and no-NAT entries, targets
    of DNAT and 1:1 entries."""
    ranges: list[tuple[int, int]] = []
    for entry in entries:
        if isinstance(entry, DnatEntry):
            ranges += [(int(address), int(address)) for address, _ in entry.internal_ip]
        else:
            network = ipaddress.IPv4Network(entry.source)
            ranges.append((int(network.network_address), int(network.broadcast_address)))
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def unnamed(entry: AnyEntry) -> tuple[object, ...]:
    """Return what an entry is but for its name, to compare."""
    return (type(entry), *(getattr(entry, name) for name in type(entry).__annotations__ if name != "name"))


def spaces(entry: DnatEntry) -> tuple[int, ...]:
    """Return the port spaces of a DNAT entry's ports."""
    return WHOLE_SPACES if entry.is_one_to_one else SPACES[entry.protocol]


def _plain(number: int, entry: NoNatEntry) -> tuple[int, int, int, int, int]:
    source, destination = ipaddress.IPv4Network(entry.source), ipaddress.IPv4Network(entry.destination)
    return (
        number,
        int(source.network_address),
        int(source.netmask),
        int(destination.network_address),
        int(destination.netmask),
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

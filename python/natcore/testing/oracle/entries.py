"""The oracle's entries: what they have on the wire, which of them a packet is under, and which may stand together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from itertools import combinations
from typing import NamedTuple

from natcore.config import AnyEntry, DnatEntry, NoNatEntry, Policy, SnatEntry
from natcore.entries.changes import Add, Change, Modify, Remove, Replace
from natcore.testing.oracle.packets import ICMP, TCP, UDP, Endpoint
from natcore.testing.oracle.sessions import Session

PORTED = (ICMP, TCP, UDP)  # the protocols with a port, or an id, in their mappings
SPACES = {"tcp": (TCP,), "udp": (UDP,), "any": (TCP, UDP)}


KINDS = ("snat", "dnat", "dnat-range", "dnat-weighted", "1:1", "no-nat")  # of entries, as a histogram has them


@dataclass(eq=False)
class Row:
    """An entry of a gateway."""

    id: int
    entry: AnyEntry
    wires: dict[int, int] = field(
        default_factory=dict
    )  # its outside addresses on the wire, and the EIP of each (0: none)

    @property
    def whole(self) -> bool:
        """A 1:1 entry."""
        return isinstance(self.entry, DnatEntry) and self.entry.is_one_to_one

    @property
    def kind(self) -> str:
        """What a histogram calls it."""
        entry = self.entry
        if not isinstance(entry, DnatEntry):
            return "snat" if isinstance(entry, SnatEntry) else "no-nat"
        if entry.is_one_to_one:
            return "1:1"
        return (
            "dnat-weighted"
            if len(entry.internal_ip) > 1
            else "dnat"
            if entry.ports[0] == entry.ports[1]
            else "dnat-range"
        )

    def spaces(self) -> tuple[int, ...]:
        """The protocols in which a DNAT entry has ports."""
        if not isinstance(self.entry, DnatEntry):
            return ()
        return PORTED if self.whole else SPACES[self.entry.protocol]

    def has(self, protocol: int, outside: Endpoint) -> bool:
        """Whether an outside endpoint is a DNAT entry's. Protocols without ports are a 1:1 entry's alone."""
        if not isinstance(self.entry, DnatEntry) or outside[0] not in self.wires:
            return False
        if self.whole or protocol not in PORTED:
            return self.whole
        return protocol in self.spaces() and self.entry.ports[0] <= outside[1] <= self.entry.ports[1]


class Applied(NamedTuple):
    """Entries after a change: those in force, and what became of the ones that are there no more."""

    rows: list[Row]
    gone: list[tuple[Row, Row | None]]  # in their order; by what it is replaced
    drained: list[Row]


class Entries:
    """Those in force, in the order of their numbers' places, and those that drain."""

    def __init__(self, kind: str, eip_bind_mode: str, policy: Policy) -> None:
        self.policy = policy
        self.public = kind == "internet"
        self.private = self.public and eip_bind_mode == "NAT"
        self.rows: list[Row] = []
        self.draining: list[Row] = []
        self.last_id = 0
        self.addresses: dict[int, int] = {}  # on the wire: the EIP of each (0: none)

    def under(self, modify: Modify | None) -> Entries | None:
        """The same entries by other settings; None: a gateway that runs cannot have these."""
        result = copy(self)
        if modify is None:
            return result
        if modify.eip_bind_mode is not None and self.public:
            if self.private and modify.eip_bind_mode != "NAT":
                return None
            result.private = modify.eip_bind_mode == "NAT"
        elif modify.eip_bind_mode not in (None, "NAT"):
            return None
        result.policy = modify.policy or self.policy
        return result if may_become(self.policy, result.policy) else None

    def known(self) -> tuple[Row, ...]:
        return (*self.rows, *self.draining)

    # Which entry a packet is under

    def snat(self, source: int) -> Row | None:
        """That of the longest prefix."""
        found = [row for row in self.rows if isinstance(row.entry, SnatEntry) and within(source, row.entry.source)]
        return max(found, key=lambda row: row.entry.source.prefixlen, default=None)  # type: ignore[union-attr]

    def plain(self, source: int, destination: int) -> Row | None:
        """The first no-NAT entry of both ends (RFC 6888 REQ-6)."""
        for row in self.rows:
            entry = row.entry
            if (
                isinstance(entry, NoNatEntry)
                and within(source, entry.source)
                and within(destination, entry.destination)
            ):
                return row
        return None

    def inside(self, address: int) -> bool:
        """Whether an entry says that an address is an inside host's; of 0/0 that is not said of any."""
        for row in self.rows:
            if isinstance(row.entry, DnatEntry):
                if address in targets(row):
                    return True
            elif row.entry.source.prefixlen and within(address, row.entry.source):
                return True
        return False

    def whole(self, source: int) -> Row | None:
        """The 1:1 entry of an inside host."""
        return next((row for row in self.rows if row.whole and source in targets(row)), None)

    def forwarding(self, protocol: int, inside: Endpoint) -> Iterator[Row]:
        """The entries that have an inside endpoint among their targets, in the order in which they were added."""
        for row in self.rows:
            if isinstance(row.entry, DnatEntry) and protocol in row.spaces() and inside[0] in targets(row):
                first, last, inside_first = row.entry.ports
                if inside_first <= inside[1] <= inside_first + last - first:
                    yield row

    def comes_for(self, rows: Sequence[Row], fresh: set[int], session: Session) -> bool:
        """Whether of the rows a fresh one, that is no SNAT entry, has a session's inside endpoint: outside there is one
        endpoint for an inside one, and that entry says which (RFC 4787 REQ-1).

        A fresh entry of several targets has the endpoint of each; one in force has those that came by it. Who came by
        another entry of the endpoint's own stays.
        """
        mapping = session.mapping
        if (mapping.static and session.opened_outside) or mapping.entry in {row.id for row in self.draining}:
            return False
        then = Entries.__new__(Entries)
        then.rows = list(rows)
        plain = None if session.hairpinned else then.plain(mapping.inside[0], session.remote[0])
        found: Row | None = plain
        for row in then.forwarding(mapping.protocol, mapping.inside) if plain is None else ():
            if row.id in fresh or len(targets(row)) == 1 or row.id == mapping.entry:
                found = row
                break
        found = found or then.whole(mapping.inside[0])
        return found is not None and found.id in fresh and found.id != mapping.entry

    def dnat(self, protocol: int, outside: Endpoint) -> Row | None:
        return next((row for row in self.rows if row.has(protocol, outside)), None)

    def reserved(self, protocol: int, outside: Endpoint) -> bool:
        """Whether a DNAT entry, be it in force or draining, has the port: it is never drawn."""
        return any(row.has(protocol, outside) for row in self.known())

    def reserved_count(self, protocol: int, address: int, ranges: Sequence[tuple[int, int]]) -> int:
        """How many ports of the ranges DNAT entries have on an address."""
        count = 0
        for row in self.known():
            if address in row.wires and protocol in row.spaces():
                first, last, _ = row.entry.ports  # type: ignore[union-attr]
                count += sum(max(0, min(last, high) - max(first, low) + 1) for low, high in ranges)
        return count

    # Changing them

    def after(self, changes: Sequence[Change]) -> Applied:
        """What a sound list of changes would leave."""
        before = {row.id: row for row in self.rows}
        rows, drained, last = [replace(row) for row in self.rows], [], self.last_id
        gone: list[tuple[Row, Row | None]] = []
        replaced: set[int] = set()
        for change in changes:
            if isinstance(change, Modify):
                continue
            if isinstance(change, Add):
                last += 1
                rows.append(Row(last, change.entry))
                continue
            at = next(i for i, row in enumerate(rows) if row.id == change.entry.id)
            if isinstance(change, Replace):
                rows[at] = Row(change.entry.id, change.by)
                replaced.add(change.entry.id)
            else:
                del rows[at]
                if change.drain:
                    drained.append(before[change.entry.id])
        for row in rows:
            row.wires = self._wires(row.entry, rows)
        left = {row.id: row for row in rows}
        for row in self.rows:
            now = left.get(row.id)
            if now is None and row not in drained:
                gone.append((row, None))
            elif now is not None and (row.id in replaced or now.wires != row.wires):
                gone.append((row, now))
        return Applied(rows, gone, drained)

    def settle(self, after: Applied) -> None:
        self.rows = after.rows
        self.draining += after.drained
        self.last_id = max([self.last_id, *(row.id for row in self.rows)])
        known, self.addresses = self.addresses, {}
        for row in sorted(self.known(), key=lambda row: isinstance(row.entry, DnatEntry)):
            for wire, eip in row.wires.items():  # a DNAT entry by itself knows of no EIP
                self.addresses.setdefault(wire, known.get(wire, eip) if eip == wire else eip)

    def _wires(self, entry: AnyEntry, rows: Sequence[Row]) -> dict[int, int]:
        """The outside addresses of an entry; a DNAT entry may name an EIP that a pool has (contract, field 8)."""
        if isinstance(entry, NoNatEntry):
            return {}
        if isinstance(entry, SnatEntry):
            return {
                int((self.private and eip.private_ip) or eip.address): int(eip.address) if self.public else 0
                for eip in entry.eips
            }
        assert isinstance(entry.external_ip, IPv4Address)  # an address from an interface is not the oracle's business
        asked = int(entry.external_ip)
        for row in rows:
            if isinstance(row.entry, SnatEntry):
                for wire, eip in self._wires(row.entry, ()).items():
                    if asked in (wire, eip):
                        return {wire: eip}
        return {asked: asked if self.public else 0}

    def stays(self, row: Row, by: Row | None, inside: int, outside: int, rebound: bool) -> bool:
        """Whether a session lives on when its entry is replaced: the same entry, or prefix and pool that still have it.

        rebound: the bind mode changes, and with it what is on the wire."""
        if by is None:
            return False
        if row.entry == by.entry:
            return row.wires == by.wires or (rebound and outside in row.wires and outside in by.wires)
        if not isinstance(row.entry, SnatEntry) or not isinstance(by.entry, SnatEntry):
            return False
        if self.policy.ports == "deterministic" and (row.entry.source, row.entry.pool) != (
            by.entry.source,
            by.entry.pool,
        ):
            return False  # every host has another block
        return within(inside, by.entry.source) and outside in row.wires and outside in by.wires

    def _unfit(self, rows: Sequence[Row]) -> bool:
        """Whether an inside address would have no block of its own (RFC 7422)."""
        snat = [row for row in rows if isinstance(row.entry, SnatEntry)]
        wires = [wire for row in snat for wire in row.wires]
        blocks = block_count(self.policy)
        short = any(row.entry.source.num_addresses > blocks * len(row.wires) for row in snat)  # type: ignore[union-attr]
        return short or len(set(wires)) < len(wires)

    def clash(self, rows: Sequence[Row]) -> bool:
        """Whether two of the entries cannot both be."""
        sources = [row.entry.source for row in rows if isinstance(row.entry, SnatEntry)]
        plain = [(r.entry.source, r.entry.destination) for r in rows if isinstance(r.entry, NoNatEntry)]
        inside = [target for row in rows if row.whole for target in targets(row)]
        if any(len(set(keys)) < len(keys) for keys in (sources, plain, inside)):
            return True
        dnat = [row for row in rows if isinstance(row.entry, DnatEntry)]
        if any(overlap(one, other) for one, other in combinations(dnat, 2)):
            return True
        pools = {wire for row in rows if isinstance(row.entry, SnatEntry) for wire in row.wires}
        if any(row.whole and not pools.isdisjoint(row.wires) for row in dnat):
            return True
        if any(is_barred(address, self.policy) for row in rows for address in ends(row.entry)):
            return True
        return self.policy.ports == "deterministic" and self._unfit(rows)

    def held_by_draining(self, after: Applied) -> bool:
        """Whether a new one would take a port of an entry that drains: like one of a mapping, it may be free later."""
        standing = [row.id for row in self.rows if row.id not in {gone.id for gone, _ in after.gone}]
        fresh = [row for row in after.rows if isinstance(row.entry, DnatEntry) and row.id not in standing]
        return any(overlap(row, other) for row in fresh for other in (*self.draining, *after.drained))


def may_become(before: Policy, after: Policy) -> bool:
    """Whether a gateway that runs may have another policy: what its mappings, ports and filters were made by stays."""
    for protocol in ("tcp", "udp", "icmp"):
        one, other = before.behaviour(protocol), after.behaviour(protocol)
        filters = {one.filtering, other.filtering}
        if one.mapping != other.mapping or (len(filters) > 1 and "address-dependent" in filters and protocol != "icmp"):
            return False
    schemes = {before.ports, after.ports}
    if len(schemes) > 1 and schemes != {"random", "preserve"}:
        return False
    divided = before.ports in ("block", "deterministic")
    same = (before.port_ranges, before.host_ports) == (after.port_ranges, after.host_ports)
    return same and (before.block_size == after.block_size or not divided)


def ends(entry: AnyEntry) -> list[IPv4Network]:
    """The addresses and prefixes that an entry names, inside and remote."""
    if isinstance(entry, DnatEntry):
        return [IPv4Network(address) for address, _ in entry.internal_ip]
    return [entry.source] if isinstance(entry, SnatEntry) else [entry.source, entry.destination]


def is_barred(addresses: IPv4Network, policy: Policy) -> bool:
    """Whether no packet of theirs is forwarded by policy."""
    link_local, class_e = IPv4Network("169.254.0.0/16"), IPv4Network("240.0.0.0/4")
    return (not policy.link_local and addresses.subnet_of(link_local)) or (
        not policy.class_e and addresses.subnet_of(class_e)
    )


def block_count(policy: Policy) -> int:
    """How many blocks an outside address has."""
    return sum((last + 1 - first) // policy.block_size for first, last in policy.port_ranges)


def within(address: int, network: object) -> bool:
    return address & int(network.netmask) == int(network.network_address)  # type: ignore[attr-defined]


def targets(row: Row) -> dict[int, int]:
    """A DNAT entry's inside addresses, and their weights."""
    assert isinstance(row.entry, DnatEntry)
    return {int(address): weight for address, weight in row.entry.internal_ip}


def overlap(one: Row, other: Row) -> bool:
    """Whether two DNAT entries have an outside endpoint in common."""
    if set(one.wires).isdisjoint(other.wires) or set(one.spaces()).isdisjoint(other.spaces()):
        return False
    (first, last, _), (low, high, _) = one.entry.ports, other.entry.ports  # type: ignore[union-attr]
    return bool(first <= high and low <= last)


__all__ = ["Add", "Remove", "Replace"]

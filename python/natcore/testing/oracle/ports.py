"""The oracle's draw: which outside addresses and ports a new mapping could be given, and whether it was given one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice

from natcore.config import SnatEntry
from natcore.testing.oracle.entries import PORTED, Row, targets
from natcore.testing.oracle.packets import Endpoint, Packet
from natcore.testing.oracle.tables import Tables


class Draw(Tables):
    """Ports in blocks. Without a policy of blocks each port range is one, which is everybody's."""

    @cached_property
    def blocks(self) -> dict[int, int]:
        """First and last port of each block of an address, ascending."""
        policy = self.policy
        if policy.ports not in ("block", "deterministic"):
            return dict(policy.port_ranges)
        size = policy.block_size  # what is left at a range's end is not used
        return {
            at: at + size - 1
            for first, last in policy.port_ranges
            for at in range(first, last + 2 - size, size)
        }  # fmt: skip

    @cached_property
    def range_size(self) -> int:
        """Ports that may be drawn on an address."""
        return sum(last - first + 1 for first, last in self.blocks.items())

    @cached_property
    def firsts(self) -> list[int]:
        return list(self.blocks)

    def reserved(self, protocol: int, address: int) -> int:
        """How many of them DNAT entries or the host have."""
        return self._reserved_in(protocol, address, list(self.blocks.items()))

    def _reserved_in(self, protocol: int, address: int, ranges: Sequence[tuple[int, int]]) -> int:
        hosts = [port for port in self.ports_of_host(protocol, address) if any(a <= port <= b for a, b in ranges)]
        return self.entries.reserved_count(protocol, address, ranges) + len(hosts)

    def block_of(self, port: int) -> int | None:
        """The first port of the block that has a port."""
        at = bisect_right(self.firsts, port) - 1
        return self.firsts[at] if at >= 0 and port <= self.blocks[self.firsts[at]] else None

    def owners(self) -> dict[tuple[int, int], tuple[int, int]]:
        """By address and first port of a block: its subscriber, and how many ports are in use or held down."""
        taken = {(m.protocol, m.outside): m.inside[0] for m in self.mappings if not m.static and m.protocol in PORTED}
        taken.update({key: self.held[key][0] for key in self.resting()})
        result: dict[tuple[int, int], tuple[int, int]] = {}
        for (_, (address, port)), owner in taken.items():
            block = self.block_of(port)
            assert block is not None
            before, ports = result.get((address, block), (owner, 0))
            assert before == owner, f"the block {block} of {address} is {before}'s and {owner}'s"
            result[address, block] = owner, ports + 1
        return result

    def has_its_share(self, subscriber: int) -> bool:
        """Whether a subscriber has all the blocks that it may have."""
        if self.policy.ports == "block":
            return sum(owner == subscriber for owner, _ in self.owners().values()) >= self.policy.blocks
        return self.policy.ports == "deterministic"

    def taken(self, protocol: int, address: int) -> int:
        """How much of an address is not free: ports of a protocol or, under a policy of blocks, blocks."""
        if self.policy.ports == "block":
            return sum(at == address for at, _ in self.owners())
        alike = {m.outside for m in self.mappings if (m.protocol, m.outside[0]) == (protocol, address) and not m.static}
        resting = sum((at, endpoint[0]) == (protocol, address) for at, endpoint in self.resting())
        return len(alike) + resting + self.reserved(protocol, address)

    # What is computed (RFC 7422)

    def who(self, protocol: int, outside: Endpoint) -> int | None:
        """The inside address behind an outside endpoint, by a name of its address; 0: no host's. None: one of several."""
        named, port = outside
        there = [row for row in self.entries.rows if any(named in names for names in row.wires.items())]
        for row in there:
            if protocol in row.spaces() and row.has(protocol, (next(iter(row.wires)), port)):
                return None if len(targets(row)) > 1 else next(iter(targets(row)))
        block = self.block_of(port)
        for row in there:
            if block is not None and isinstance(row.entry, SnatEntry):
                number = next(n for n, names in enumerate(row.wires.items()) if named in names)
                host, source = number * len(self.firsts) + self.firsts.index(block), row.entry.source
                return int(source[host]) if host < source.num_addresses else 0
        return 0

    def ports_of(self, inside: int) -> tuple[int, int, int] | None:
        """The outside address, as its entry names it, and the ports of an inside address."""
        row = self.entries.snat(inside)
        if row is None:
            return None
        wire, first = self._computed(inside, row)
        return row.wires[wire] or wire, first, self.blocks[first]

    # What could be drawn

    def candidates(self, packet: Packet, row: Row) -> list[int]:
        """The outside addresses that could serve a new mapping, by the pooling (RFC 4787 REQ-2, RFC 7857 section 4)."""
        who = self.subscribers.get(packet.source[0])
        pool = list(row.wires)
        if self.policy.ports == "deterministic":
            pool = [self._computed(packet.source[0], row)[0]]
        serving = [address for address in pool if self.obtainable(packet, row, address)]
        if packet.protocol not in PORTED and self.policy.ports != "deterministic":
            paired = self.policy.pooling != "arbitrary" and who is not None and who.entry == row.id
            if paired and (self.policy.pooling == "paired" or self.unmet(packet, who.address)):  # type: ignore[union-attr]
                return [who.address]  # type: ignore[union-attr]
            return [address for address in serving if self.unmet(packet, address)]
        if (
            self.policy.pooling == "arbitrary"
            or self.policy.ports == "deterministic"
            or who is None
            or who.entry != row.id
        ):
            return serving
        own = [who.address] if self.obtainable(packet, row, who.address) else []
        return own if own or self.policy.pooling == "paired" else serving

    def unmet(self, packet: Packet, address: int) -> bool:
        """Whether no other host has an outside address towards a packet's remote, of a protocol without ports; these are the
        gateway's host's on an address that it has too."""
        return (
            address not in self.hosts
            and self.inbound_session(packet.protocol, (address, 0), packet.destination) is None
        )

    def _computed(self, subscriber: int, row: Row) -> tuple[int, int]:
        """RFC 7422: the outside address and the block of an inside address."""
        assert isinstance(row.entry, SnatEntry)
        number, block = divmod(subscriber - int(row.entry.source.network_address), len(self.firsts))
        return list(row.wires)[number], self.firsts[block]

    def obtainable(self, packet: Packet, row: Row, address: int) -> int:
        """How many ports of an address a packet's source could be given; without ports an address always does."""
        if packet.protocol not in PORTED:
            return 1
        return self._left(packet, address, self.share(packet, row, address))

    def share(self, packet: Packet, row: Row, address: int) -> set[int]:
        """The blocks of an address that a packet's source may draw from."""
        subscriber = packet.source[0]
        if self.policy.ports == "deterministic":
            return {self._computed(subscriber, row)[1]}
        if self.policy.ports != "block":
            return set(self.blocks)
        owners = self.owners()
        own = {block for (at, block), (owner, _) in owners.items() if at == address and owner == subscriber}
        kept = self._kept(subscriber, address, owners)
        if self._left(packet, address, own):
            return own | kept
        if self.has_its_share(subscriber):
            return set()
        return {block for block in self.blocks if (address, block) not in owners}

    def _kept(self, subscriber: int, address: int, owners: dict[tuple[int, int], tuple[int, int]]) -> set[int]:
        """Blocks that were a subscriber's until their ports had rested: natcore learns of that with the next sweep."""
        there = {
            self.block_of(port)
            for (_, (at, port)), (owner, _) in self.held.items()
            if (at, owner) == (address, subscriber)
        }
        return {block for block in there if block is not None and (address, block) not in owners}

    def _left(self, packet: Packet, address: int, share: set[int]) -> int:
        """The ports of some blocks that are not in use, no DNAT entry's, and held down for no other host."""
        protocol, subscriber = packet.protocol, packet.source[0]
        used = {m.outside[1] for m in self.mappings if self._stands_in_the_way(m.protocol, m.outside, m.remote, packet, address)
                and not m.static}  # fmt: skip
        for (held_protocol, endpoint), (owner, until) in self.held.items():
            if held_protocol == protocol and endpoint[0] == address and owner != subscriber and self.now < until:
                used.add(endpoint[1])
        ranges = [(first, self.blocks[first]) for first in share]
        size = sum(last - first + 1 for first, last in ranges)
        return size - self._reserved_in(protocol, address, ranges) - sum(self.block_of(p) in share for p in used)

    def _stands_in_the_way(
        self, protocol: int, outside: Endpoint, remote: Endpoint | None, packet: Packet, address: int
    ) -> bool:
        """Whether a mapping's port of an address is none for a packet's: overloaded ones only for the same remote."""
        if protocol != packet.protocol or outside[0] != address:
            return False
        return self.policy.ports != "overload" or remote == packet.destination

    def free(self, protocol: int, endpoint: Endpoint) -> bool:
        """Whether anybody could draw the port now."""
        return (
            self.block_of(endpoint[1]) is not None
            and not self.entries.reserved(protocol, endpoint)
            and not self.host_has(protocol, endpoint)
            and all((m.protocol, m.outside) != (protocol, endpoint) or m.static for m in self.mappings)
            and self.held.get((protocol, endpoint), (0, 0))[1] <= self.now
        )

    def resting(self) -> list[tuple[int, Endpoint]]:
        """Protocol and endpoint of the ports that are held down."""
        in_use = {(m.protocol, m.outside) for m in self.mappings if not m.static}
        return [key for key, (_, until) in self.held.items() if self.now < until and key not in in_use]

    # What was drawn

    def drawable(self, packet: Packet, row: Row, passed_over: int = 0) -> Endpoint:
        """An endpoint that could be drawn, passing over so many others: two of each address, the last of them for good."""
        found: list[Endpoint] = []
        for address in self.candidates(packet, row):
            ports = self._by_preference(packet, row, address) if packet.protocol in PORTED else (0,)
            found += islice((end for port in ports if self._is_right(end := (address, port), packet, row)), 2)
            if len(found) > passed_over:
                break
        return found[min(passed_over, len(found) - 1)]

    def _by_preference(self, packet: Packet, row: Row, address: int) -> Iterator[int]:
        """The inside port, then the others that a source may draw from, those of its parity first."""
        wish, blocks = packet.source[1], sorted(self.share(packet, row, address))
        yield wish
        for parity in (wish % 2, 1 - wish % 2):
            for first in blocks:
                yield from (p for p in range(first, self.blocks[first] + 1) if p % 2 == parity and p != wish)

    def _is_right(self, choice: Endpoint, packet: Packet, row: Row) -> bool:
        try:
            self.check(choice, packet, row)
        except AssertionError:
            return False
        return True

    def check(self, choice: Endpoint, packet: Packet, row: Row) -> None:
        """The drawn endpoint keeps every promise."""
        protocol, subscriber, candidates = packet.protocol, packet.source[0], self.candidates(packet, row)
        address, port = choice
        assert address in candidates, f"{choice} is on none of {candidates}: not in the pool, not the pair, or full"
        if protocol not in PORTED:
            return
        block = self.block_of(port)
        assert block is not None, f"{choice}: out of range"
        assert block in self.share(packet, row, address), f"{choice} is in another host's block"
        assert not self.entries.reserved(protocol, choice), f"{choice} is a DNAT entry's"
        assert not self.host_has(protocol, choice), f"{choice} is the host's"
        taken = (
            m.outside == choice
            and not m.static
            and self._stands_in_the_way(m.protocol, choice, m.remote, packet, address)
            for m in self.mappings
        )
        assert not any(taken), f"{choice} is taken"
        owner, until = self.held.get((protocol, choice), (subscriber, 0))
        assert owner == subscriber or until <= self.now, f"{choice} is held down for {owner} until {until}"
        self._check_preference(choice, block, protocol, packet.source)

    def _check_preference(self, choice: Endpoint, block: int, protocol: int, source: Endpoint) -> None:
        """The inside port is preserved where it is free, or rests for its subscriber; its parity is, where such a port is
        (RFC 4787 REQ-4)."""
        (address, port), (subscriber, wish) = choice, source
        key = protocol, (address, wish)
        if self.policy.ports == "preserve" and (
            self.free(*key) or (key in self.resting() and self.held[key][0] == subscriber)
        ):
            assert port == wish, f"{choice}: {wish} was free to be preserved"
            return
        if self.policy.parity and port % 2 != wish % 2:
            blocks = [block] if self.policy.ports in ("block", "deterministic") else list(self.blocks)
            alike = (p for first in blocks for p in range(first, self.blocks[first] + 1) if p % 2 == wish % 2)
            better = next((p for p in alike if self.free(protocol, (address, p))), None)
            assert better is None, f"{choice}: {better} was free, and has the parity of {wish}"

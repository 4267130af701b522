"""The oracle's tables: sessions, mappings and what time does to them. Every search is in full, for clarity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from natcore.config import AnyEntry, Link, Policy, Timeouts
from natcore.entries.changes import Add, Change, Modify
from natcore.testing.oracle.entries import PORTED, Applied, Entries
from natcore.testing.oracle.fragments import Fragments
from natcore.testing.oracle.packets import ICMP, TCP, UDP, Endpoint, Packet
from natcore.testing.oracle.sessions import MS, Mapping, Row, Session
from natcore.verdict import Side, Verdict

SECOND = 1_000_000_000  # ns
LONG_STEP = 14_400 * SECOND  # without a round of the sweep; one longer begins with a complete expiry
ROUND = 30 * SECOND  # from the end of a round to where packets begin the next
LINES = 16  # slots that a packet looks at, and sessions that it ends


class Choices(NamedTuple):
    """What a NAT is free to choose for a packet, as the one chose that is compared; the oracle asks only where it is.

    Without any the oracle chooses itself.

    Attributes
    ----------
    drawn
        The outside endpoint of a new mapping, be it that the packet is refused after all; None: it was not seen.
    target
        By the number of a DNAT entry with several targets and a remote address: the inside address; 0: it was not seen.
    sent
        The frame that left, of which the NAT may have chosen the identification; None: the sender's stays.
    passed_over
        Where the endpoint was not seen: how many that could have been drawn are not the one.
    """

    drawn: Callable[[], Endpoint | None] = lambda: None
    target: Callable[[int, int], int] = lambda entry, remote: 0
    sent: Callable[[], bytes | None] = lambda: None
    passed_over: int = 0


class Generated(NamedTuple):
    """A frame of the gateway's own, the side it leaves by, and the verdict on what caused it."""

    frame: bytes
    send_to: Side
    cause: Verdict


@dataclass
class Subscriber:
    """An inside address that has mappings with drawn endpoints."""

    mappings: int = 0
    entry: int = 0  # paired pooling: the entry, and the address of its pool; 0: not paired
    address: int = 0
    second: int = -1  # of the clock, and the sessions that it opened in it
    opened: int = 0


@dataclass
class Event:
    """An event. address: of the subscriber, or of the pool; 0: of no single one."""

    time: int  # ns
    limit: str
    destination: Endpoint = (0, 0)
    protocol: int = 0
    count: int = 0


class Plan(NamedTuple):
    """What a change does to the sessions that are there."""

    kept: int
    drained: int
    ended: int


def kind_of(session: Session) -> int:
    """Return its place in counters by protocol: TCP, UDP, ICMP, others."""
    return {6: 0, 17: 1, 1: 2}.get(session.mapping.protocol, 3)


def modification(changes: Sequence[Change]) -> Modify | None:
    """The settings that change, if some do."""
    return next((change for change in changes if isinstance(change, Modify)), None)


class Tables:
    """What a gateway keeps, and its configuration: arguments as of natcore.Gateway, and its first entries."""

    def __init__(
        self,
        entries: Sequence[AnyEntry],
        *,
        kind: str = "internet",
        eip_bind_mode: str = "NAT",
        max_sessions: int = 1_000_000,
        max_mappings: int | None = None,
        max_subscribers: int | None = None,
        window: float = 600.0,
        inside: Link | None = None,
        outside: Link | None = None,
        decrement_ttl: bool = True,
        framing: str = "ethernet",
        timeouts: Timeouts | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.policy, self.timeouts = policy or Policy(), timeouts or Timeouts()
        self.links = {Side.INSIDE: inside or Link(), Side.OUTSIDE: outside or Link()}
        self.framing, self.hop = framing, int(decrement_ttl)
        self.max_sessions, self.max_mappings = max_sessions, max_mappings or max_sessions
        self.max_subscribers = max_subscribers or max_sessions
        self.window, self.hold_down = round(window * SECOND), round(self.policy.hold_down * 1000) * MS
        self.fragments: Fragments | None = None
        self.entries = Entries(kind, eip_bind_mode, self.policy)
        self.now = 0  # ns
        self.sessions: list[Session] = []  # dead ones too, until they are released
        self.mappings: list[Mapping] = []
        self.subscribers: dict[int, Subscriber] = {}
        self.held: dict[tuple[int, Endpoint], tuple[int, int]] = {}  # freed ports: their last owner, until when (ns)
        self.free_slots: list[int] = []
        self.last_id, self.new_slots = 0, 0
        self.swept = 0  # ns: the end of the last round, or complete expiry
        self.sweep_at = 0  # the slot that the next packet looks at first
        self.counts: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()  # of the entries of all sessions
        self.rows: list[Row] = []
        self.generated: list[Generated] = []
        self.index_full = False  # no session more can be entered
        self.sessions_told = False  # that there are many
        self.ports_told: set[tuple[int, int]] = set()  # addresses, and protocols (0: blocks), of which it was told
        self.refusals: Counter[str] = Counter()  # packets by limit
        self.began = [0] * 4  # sessions by kind_of
        self.over = [0] * 4
        self.from_outside: Counter[Verdict] = Counter()  # frames from there
        self.events: dict[tuple[str, int, int], Event] = {}  # by reason, address and, of a threshold of ports, protocol
        self.hosts: dict[int, set[tuple[int, int]]] = {}  # protocols and ports, of those drawn, of shared addresses
        self.kept_from_host: set[tuple[int, Endpoint]] = set()  # in use when the host was to get them
        for entry in entries:
            assert self.apply([Add(entry)], 0) is not None

    @property
    def eips(self) -> dict[int, int]:
        """The outside addresses on the wire, and the EIP of each (0: none)."""
        return self.entries.addresses

    # An address that the host has too

    def share_with_host(self, hosts: dict[int, set[tuple[int, int]]], now: int) -> None:
        """The host has these ports of outside addresses, and all that are never drawn; those in use later."""
        self.advance(now)
        self._reap()
        self.hosts = hosts
        self._give_host(hosts)

    def _give_host(self, addresses: Iterable[int]) -> None:
        """It gets the ports that no mapping has; a hold-down ends."""
        addresses = set(addresses)
        used = {(m.protocol, m.outside) for m in self.mappings if not m.static and m.protocol in PORTED}
        self.kept_from_host = {
            key for key in self.kept_from_host if key[1][0] in self.hosts and key[1][0] not in addresses
        } | {
            (protocol, (address, port))
            for address in addresses & set(self.eips)
            for protocol, port in self.hosts[address]
            if (protocol, (address, port)) in used
        }
        for key in [key for key in self.held if self.host_has(*key)]:
            del self.held[key]

    def host_has(self, protocol: int, endpoint: Endpoint) -> bool:
        """Whether a TCP or UDP port of an outside address is the host's."""
        address, port = endpoint
        if protocol not in (TCP, UDP) or address not in self.hosts or address not in self.eips:
            return False
        if (protocol, endpoint) in self.kept_from_host or self.entries.reserved(protocol, endpoint):
            return False
        return not self.is_drawn(port) or (protocol, port) in self.hosts[address]

    def ports_of_host(self, protocol: int, address: int) -> list[int]:
        """Those of its ports that would be drawn otherwise."""
        wanted = self.hosts.get(address, set())
        return [port for of, port in wanted if of == protocol and self.host_has(protocol, (address, port))]

    def is_drawn(self, port: int) -> bool:
        """Whether the policy allocates a port."""
        return any(first <= port <= last for first, last in self.policy.drawn_ranges)

    def shared(self, address: int) -> bool:
        """Whether the host has an outside address too; it has nothing of a 1:1 entry's."""
        return address in self.hosts and address in self.eips and self.entries.dnat(ICMP, (address, 0)) is None

    def for_host(self, packet: Packet) -> bool:
        """Whether a packet to a shared address is the host's: to its ports, of a protocol without ports, ICMP of no session."""
        if packet.protocol in (TCP, UDP):
            return self.host_has(packet.protocol, packet.destination)
        return self.shared(packet.destination[0])

    def log(self, rows: Iterable[Row]) -> None:
        """Rows of the journal."""
        self.rows += [row._replace(eip=self.eips.get(row.nat[0], 0)) for row in rows]

    # Time, and what it ends

    def advance(self, now: int) -> None:
        """All that is due up to now (ns)."""
        self.counts["clock_backward"] += now < self.now
        self.now = max(self.now, now)
        self.settle()

    def settle(self) -> None:
        """All that is due: it is done before anything is shown."""
        self._give_up_fragments()
        self.sweep()

    def _give_up_fragments(self) -> None:
        if self.fragments and (lost := self.fragments.expire(self.now)):
            self.counts.update({"held": -lost, "dropped": lost, "dropped_fragment": lost})

    def end_matching(
        self, now: int, subscriber: int | None, remote: int | None, outside: int | None, protocol: int | None
    ) -> int:
        """End the sessions that match everything that is not None, as natcore.Gateway.end does; how many."""
        self.clock(now)
        self.sweep()
        return self._end_in_order(
            session
            for session in self.sessions
            if subscriber in (None, session.mapping.inside[0])
            and remote in (None, session.remote[0])
            and outside in (None, session.mapping.outside[0])
            and protocol in (None, session.protocol)
        )

    def _end_in_order(self, sessions: Iterable[Session]) -> int:
        """End sessions now, in the order of their slots; how many."""
        found = sorted(sessions, key=lambda s: s.slot)
        for session in found:
            self.end(session, self.now)
        return len(found)

    def clock(self, now: int) -> None:
        """Time never goes back; a long step first ends what it outlived."""
        self.counts["clock_backward"] += now < self.now
        self.now = max(self.now, now)
        self._give_up_fragments()
        if self.now - self.swept > LONG_STEP:
            self.sweep()

    def sweep_slice(self) -> None:
        """What a packet carries of the sweep where none came round for a while: the next slots, in their order."""
        if self.now - self.swept <= ROUND:
            return
        self.forget_subscribers()
        before = self.counts["ended"]
        for _ in range(LINES):
            if self.counts["ended"] - before >= LINES:
                return
            if self.sweep_at >= self.new_slots:
                self.sweep_at, self.swept = 0, self.now
                return
            for session in [s for s in self.sessions if s.slot == self.sweep_at]:
                if session.alive(self.now):
                    self.log(session.roll(self.now))
                else:
                    self.release_dead(session)
            self.sweep_at += 1

    def sweep(self) -> None:
        """Close every window that is over, release every session that is dead."""
        self.swept, self.sweep_at = self.now, 0
        for session in self.sessions:
            if session.alive(self.now):
                self.log(session.roll(self.now))
        self.release(s for s in self.sessions if not s.alive(self.now))
        self.forget_subscribers()

    def forget_subscribers(self) -> None:
        """Those without mappings are kept for the second in which they opened sessions."""
        for address, who in list(self.subscribers.items()):
            if who.mappings == 0 and who.second != self.now // SECOND:
                del self.subscribers[address]

    def release(self, dead: Iterable[Session]) -> None:
        """End dead sessions in order of their deadlines."""
        for session in sorted(dead, key=lambda s: (s.deadline, s.slot)):
            self.end(session, session.deadline)

    # Beginning and end of a session

    def open(
        self, mapping: Mapping, remote: Endpoint, *, outside: bool, hairpinned: bool = False, logged: bool = True
    ) -> Session:
        """A new session, and its mapping if that is new too. outside: the packet came from there."""
        if mapping not in self.mappings:
            self.mappings.append(mapping)
            if not mapping.static:
                self._subscribe(mapping)
        if not self.free_slots:
            self.free_slots.append(self.new_slots)
            self.new_slots += 1
        slot = self.free_slots.pop()
        self.last_id += 1
        logged = logged and not mapping.static  # contract R5
        session = Session(
            self.last_id, slot, mapping, remote, outside, logged, self.now, self.timeouts, self.window, hairpinned
        )
        self.sessions.append(session)
        mapping.sessions.append(session)
        self.counts["created"] += 1
        self.began[kind_of(session)] += 1
        self.kinds[next(row.kind for row in self.entries.known() if row.id == mapping.entry)] += 1
        return session

    def _subscribe(self, mapping: Mapping) -> None:
        """Its subscriber's, who is paired with the outside address if it was not (RFC 4787 REQ-2)."""
        who = self.subscribers.setdefault(mapping.inside[0], Subscriber())
        who.mappings += 1
        if who.entry != mapping.entry:
            who.entry, who.address = mapping.entry, mapping.outside[0]

    def announce(self, session: Session) -> Session:
        """Its create row, once it is sure that it stays."""
        self.log(session.created())
        return session

    def end(self, session: Session, end: int, keep_mapping: bool = False) -> None:
        """End a session; its mapping goes with the last one, and the port rests (RFC 6888 REQ-8)."""
        mapping = session.mapping
        self.log(session.ended(end))
        self.counts["ended"] += 1
        self.over[kind_of(session)] += 1
        key = mapping.protocol, mapping.outside
        if not keep_mapping:  # what it was promised is kept, though the policy be another one by now
            mapping.rests_until = max(
                mapping.rests_until, end // MS * MS + self.hold_down, self.held.get(key, (0, 0))[1]
            )
        gone = self._remove(session, keep_mapping)
        rests = self.policy.ports != "overload"  # RFC 6888 REQ-8 C: not where the filter is address- and port-dependent
        if gone and rests and mapping.protocol in PORTED and not mapping.static:
            self.held[key] = mapping.inside[0], mapping.rests_until

    def discard(self, session: Session) -> None:
        """Take back the session that was opened last, as if it had never been."""
        self.counts["created"] -= 1
        self.began[kind_of(session)] -= 1
        self.last_id -= 1
        self._remove(session)

    def _remove(self, session: Session, keep_mapping: bool = False) -> bool:
        """Take a session out of the tables; whether its mapping, and a subscriber with its last, went too."""
        mapping = session.mapping
        self.sessions.remove(session)
        mapping.sessions.remove(session)
        self.free_slots.append(session.slot)
        if mapping.sessions or keep_mapping:
            return False
        self.mappings.remove(mapping)
        if not mapping.static:
            who = self.subscribers[mapping.inside[0]]
            who.mappings -= 1
            if who.mappings == 0:  # what it opened in this second is not forgotten before the sweep after that
                who.entry = 0
                if who.second != self.now // SECOND:
                    del self.subscribers[mapping.inside[0]]
        return True

    # Looking up; what is found dead is released

    def outbound_session(self, protocol: int, inside: Endpoint, remote: Endpoint) -> Session | None:
        return self._living(
            s for s in self.sessions if (s.remote, s.mapping.inside, s.protocol) == (remote, inside, protocol)
        )

    def inbound_session(self, protocol: int, outside: Endpoint, remote: Endpoint) -> Session | None:
        return self._living(
            s for s in self.sessions if (s.remote, s.mapping.outside, s.protocol) == (remote, outside, protocol)
        )

    def _living(self, found: Iterable[Session]) -> Session | None:
        session = next(iter(found), None)
        if session is not None and not session.alive(self.now):
            self.release_dead(session)
            return None
        return session

    def release_dead(self, session: Session) -> None:
        """With its mapping, if nothing of that lives."""
        self.release([session] if session.mapping.alive(self.now) else session.mapping.sessions)

    def mapping_of(self, key: Mapping) -> Mapping | None:
        """The live mapping that is alike but for what is drawn."""

        def same(other: Mapping) -> bool:
            return (
                (other.protocol, other.inside, other.static) == (key.protocol, key.inside, key.static)
                and other.remote == key.remote
                and (not key.static or other.outside == key.outside)
                and not self.draining(other)
            )

        return self._alive(mapping for mapping in self.mappings if same(mapping))

    def mapping_at(self, protocol: int, outside: Endpoint) -> Mapping | None:
        """The live mapping that drew an outside endpoint."""
        return self._alive(
            m for m in self.mappings
            if (m.protocol, m.outside) == (protocol, outside) and not m.static and not self.draining(m)
        )  # fmt: skip

    def draining(self, mapping: Mapping) -> bool:
        """Whether a mapping's entry was removed and its sessions end by themselves: it takes no new ones."""
        return any(row.id == mapping.entry for row in self.entries.draining)

    def _alive(self, found: Iterable[Mapping]) -> Mapping | None:
        mapping = next(iter(found), None)
        if mapping is not None and not mapping.alive(self.now):
            self.release(mapping.sessions)
            return None
        return mapping

    # Changing entries

    def plan(self, changes: Sequence[Change]) -> Plan | None:
        """What changes would do; None: they are refused."""
        self.settle()
        self._reap()
        under = self.entries.under(modification(changes))
        if under is None:
            return None
        after, rebound = under.after(changes), under.private != self.entries.private
        if under.clash(after.rows):
            return None
        gone, drained = {row.id: by for row, by in after.gone}, {row.id for row in after.drained}
        rows = {row.id: row for row in self.entries.rows}
        result = Counter[str]()
        for session in self.sessions:
            entry, ends = session.mapping.entry, (session.mapping.inside[0], session.mapping.outside[0])
            if entry not in rows:  # of an entry that drains already
                continue
            kept = entry not in gone or under.stays(rows[entry], gone[entry], *ends, rebound)
            kept = kept and not self.entries.comes_for(after.rows, self._fresh(after), session)
            result["drained" if entry in drained else "kept" if kept else "ended"] += 1
        return Plan(result["kept"], result["drained"], result["ended"])

    def apply(self, changes: Sequence[Change], now: int) -> int | None:
        """Change entries and settings; how many sessions ended, since they may not stay. None: refused, and nothing changed
        but the time."""
        self.advance(now)
        self._reap()
        modify = modification(changes)
        under = self.entries.under(modify)
        if under is None:
            return None
        after, rebound = under.after(changes), under.private != self.entries.private
        fresh = self._fresh(after)
        if not under.clash(after.rows):
            known, wires = self.entries.addresses, {wire for row in after.rows if row.id in fresh for wire in row.wires}
            self.entries.addresses = {**dict.fromkeys(wires, 0), **known}
            self._give_host(wires & self.hosts.keys())
            self.entries.addresses = known
        taken = [m for m in self.mappings if not m.static and m.protocol in PORTED]  # without ports none is held
        if (
            under.clash(after.rows)
            or self.entries.held_by_draining(after)
            or any(row.id in fresh and row.has(m.protocol, m.outside) for row in after.rows for m in taken)
        ):
            return None
        if modify is not None:
            self._modify(modify)
        self.entries = under
        leaving, drained = {row.id: (row, by) for row, by in after.gone}, {row.id for row in after.drained}

        def stays(session: Session) -> bool:
            mapping = session.mapping
            if mapping.entry not in leaving:
                return True
            return under.stays(*leaving[mapping.entry], mapping.inside[0], mapping.outside[0], rebound)

        ended = self._end_in_order(
            s for s in self.sessions
            if not stays(s) or (s.mapping.entry not in drained and self.entries.comes_for(after.rows, fresh, s))
        )  # fmt: skip
        for row, by in after.gone:
            for who in self.subscribers.values():
                if who.entry == row.id and (by is None or who.address not in by.wires):
                    who.entry = 0
        self.entries.settle(after)
        self._let_go()
        return ended

    def _modify(self, modify: Modify) -> None:
        """Other settings from now on. A session dies when it would have died; or one new time-out from now, if that is
        sooner; the next packet that keeps it alive does so for the new time-out."""
        self.policy, self.timeouts = modify.policy or self.policy, modify.timeouts or self.timeouts
        self.hold_down = round(self.policy.hold_down * 1000) * MS
        if self.fragments is not None:
            self.fragments.timeout = round(self.timeouts.fragment * 1000)
        for session in self.sessions:
            left = session.deadline // MS - self.now // MS
            session.timeouts = self.timeouts
            session.last_seen = self.now // MS - session.timeout + min(left, session.timeout)

    def _fresh(self, after: Applied) -> set[int]:
        """The numbers of the entries that come, or become others."""
        return {row.id for row, by in after.gone if by} | {r.id for r in after.rows if r.id > self.entries.last_id}

    def _reap(self) -> None:
        """What has drained is gone."""
        entries = self.entries
        entries.draining = [r for r in entries.draining if any(m.entry == r.id for m in self.mappings)]
        entries.settle(entries.after([]))
        self._let_go()

    def _let_go(self) -> None:
        """Held ports are forgotten where a DNAT entry has them now, or where the address is in no pool any more."""
        for key in list(self.held):
            if key[1][0] not in self.eips or self.entries.reserved(*key):
                del self.held[key]
        self.kept_from_host = {
            key for key in self.kept_from_host if key[1][0] in self.eips and not self.entries.reserved(*key)
        }
        for who in self.subscribers.values():
            if who.address not in self.eips:
                who.entry = 0
        self.ports_told = {key for key in self.ports_told if key[0] in self.eips}

    def counters(self) -> dict[str, int]:
        """Return the counters by natcore's names, without those that are zero."""
        self.settle()
        used = {(m.protocol, m.outside) for m in self.mappings if m.protocol in PORTED and not m.static}
        gauges = {"sessions": len(self.sessions), "mappings": len(self.mappings), "ports_used": len(used)}
        return {name: value for name, value in {**self.counts, **gauges}.items() if value}

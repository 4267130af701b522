"""The oracle's tables: sessions, mappings, ports and what time does to them. Every search is in full, for clarity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Network
from itertools import count
from typing import NamedTuple

from model_fragments import Fragments
from model_packets import ICMP, TCP, UDP, Endpoint, Packet
from model_sessions import MS, Mapping, Row, Session
from natcore.config import Link, Policy, SnatEntry, Timeouts
from natcore.verdict import Side, Verdict

SECOND = 1_000_000_000  # ns
LONG_STEP = 4 * 3600 * SECOND  # without a complete expiry; one longer begins with it
SESSIONS_FROM_OUTSIDE = 1024  # alive at a mapping
PORTED = (ICMP, TCP, UDP)  # the protocols whose mappings have a port, or an id
UNTOLD = -1  # the port of a mapping that went again before it was seen
EXHAUSTION = {
    Verdict.DROP_PORTS_EXHAUSTED: "ports-exhausted",
    Verdict.DROP_SESSION_LIMIT: "session-limit",
    Verdict.DROP_OUTSIDE_LIMIT: "outside-limit",
}
Chosen = Callable[[], Endpoint | None]  # the outside endpoint that natcore drew; None: it sent nothing


class Generated(NamedTuple):
    """A frame of the gateway's own, the side it leaves by, and the verdict on what caused it."""

    frame: bytes
    send_to: Side
    cause: Verdict


class Tables:
    """What a gateway keeps, and its configuration: arguments as of natcore.Gateway, and its SNAT entries."""

    def __init__(
        self,
        entries: Sequence[SnatEntry],
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
        link: str = "ethernet",
        timeouts: Timeouts | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.policy, self.timeouts = policy or Policy(), timeouts or Timeouts()
        self.links = {Side.INSIDE: inside or Link(), Side.OUTSIDE: outside or Link()}
        self.framing, self.hop = link, int(decrement_ttl)
        self.max_sessions, self.max_mappings = max_sessions, max_mappings or max_sessions
        self.max_subscribers = max_subscribers or max_sessions
        self.window, self.hold_down = round(window * SECOND), round(self.policy.hold_down * 1000) * MS
        private = kind == "internet" and eip_bind_mode == "NAT"
        self.pools: dict[IPv4Network, list[int]] = {}  # by source prefix: the addresses on the wire
        self.eips: dict[int, int] = {}  # the public address of each of them; 0: none
        for entry in entries:
            wires = {int((private and eip.private_ip) or eip.address): int(eip.address) for eip in entry.pool}
            self.pools[IPv4Network(entry.source)] = list(wires)
            self.eips.update(wires if kind == "internet" else dict.fromkeys(wires, 0))

        self.fragments: Fragments
        self.now = 0  # ns
        self.sessions: list[Session] = []  # dead ones too, until they are released
        self.mappings: list[Mapping] = []
        self.addresses: dict[int, int] = {}  # a subscriber's outside address, as long as it has a mapping
        self.held: dict[tuple[int, Endpoint], tuple[int, int]] = {}  # freed ports: whose, until when (ns)
        self.free_slots: list[int] = []
        self.last_id, self.new_slots = 0, count()
        self.swept: int | None = None  # ns: the last complete expiry
        self.guessed = False  # from here on the oracle may be wrong
        self.counts: Counter[str] = Counter()
        self.rows: list[Row] = []
        self.generated: list[Generated] = []
        self.events: dict[tuple[str, int], list[int]] = {}  # by reason, subscriber: time, remote, port, protocol, count

    # Time, and what it ends

    def advance(self, now: int) -> None:
        """A complete expiry up to now (ns)."""
        self.clock(now)
        self.sweep()

    def end_matching(self, now: int, subscriber: int | None, remote: int | None, protocol: int | None) -> int:
        """End the sessions that match everything that is not None, as natcore.Gateway.end does; how many."""
        self.advance(now)
        found = [
            session
            for session in sorted(self.sessions, key=lambda s: s.slot)
            if subscriber in (None, session.mapping.inside[0])
            and remote in (None, session.remote[0])
            and protocol in (None, session.protocol)
        ]
        for session in found:
            self.end(session, self.now)
        return len(found)

    def clock(self, now: int) -> None:
        """Time never goes back; a long step first ends what it outlived."""
        self.counts["clock_backward"] += now < self.now
        self.now = max(self.now, now)
        lost = self.fragments.expire(self.now)
        self.counts.update({"held": -lost, "dropped": lost, "dropped_fragment": lost})
        if self.now - (self.swept or 0) > LONG_STEP:
            self.sweep()

    def sweep(self) -> None:
        """Close every window that is over, release every session that is dead."""
        self.swept = self.now
        for session in self.sessions:
            if session.alive(self.now):
                self.rows += session.roll(self.now)
        self.release(s for s in self.sessions if not s.alive(self.now))

    def release(self, dead: Iterable[Session]) -> None:
        """End dead sessions in order of their deadlines."""
        for session in sorted(dead, key=lambda s: (s.deadline, s.slot)):
            self.end(session, session.deadline)

    def end(self, session: Session, end: int, keep_mapping: bool = False) -> None:
        """End a session; its mapping goes with the last one, and the port rests (RFC 6888 REQ-8)."""
        mapping = session.mapping
        self.rows += session.ended(end)
        self.counts["ended"] += 1
        mapping.end = max(mapping.end, end)
        if self._remove(session, keep_mapping) and mapping.protocol in PORTED:
            self.held[mapping.protocol, mapping.outside] = (mapping.inside[0], mapping.end // MS * MS + self.hold_down)

    def discard(self, session: Session) -> None:
        """Take back the session that was opened last, as if it had never been."""
        self.counts["created"] -= 1
        self.last_id -= 1
        self._remove(session)

    def _remove(self, session: Session, keep_mapping: bool = False) -> bool:
        """Take a session out of the tables; whether its mapping, and a subscriber's address with the last, went too."""
        mapping = session.mapping
        self.sessions.remove(session)
        mapping.sessions.remove(session)
        self.free_slots.append(session.slot)
        if mapping.sessions or keep_mapping:
            return False
        self.mappings.remove(mapping)
        if all(other.inside[0] != mapping.inside[0] for other in self.mappings):
            del self.addresses[mapping.inside[0]]
        return True

    # Looking up; what is found dead is released

    def outbound_session(self, protocol: int, inside: Endpoint, remote: Endpoint) -> Session | None:
        return self._living(
            s for s in self.sessions if (s.protocol, s.mapping.inside, s.remote) == (protocol, inside, remote)
        )

    def inbound_session(self, protocol: int, outside: Endpoint, remote: Endpoint) -> Session | None:
        return self._living(
            s for s in self.sessions if (s.protocol, s.mapping.outside, s.remote) == (protocol, outside, remote)
        )

    def _living(self, found: Iterable[Session]) -> Session | None:
        session = next(iter(found), None)
        if session is not None and not session.alive(self.now):
            mapping = session.mapping
            self.release([session] if mapping.alive(self.now) else mapping.sessions)
            return None
        return session

    def mapping_of(self, protocol: int, inside: Endpoint) -> Mapping | None:
        return self._alive(m for m in self.mappings if (m.protocol, m.inside) == (protocol, inside))

    def mapping_at(self, protocol: int, outside: Endpoint) -> Mapping | None:
        return self._alive(m for m in self.mappings if (m.protocol, m.outside) == (protocol, outside))

    def _alive(self, found: Iterable[Mapping]) -> Mapping | None:
        mapping = next(iter(found), None)
        if mapping is not None and not mapping.alive(self.now):
            self.release(mapping.sessions)
            return None
        return mapping

    def pool(self, source: int) -> list[int] | None:
        """The pool of the longest prefix that holds an inside source."""
        matching = [n for n in self.pools if source & int(n.netmask) == int(n.network_address)]
        return self.pools[max(matching, key=lambda n: n.prefixlen)] if matching else None

    # Room for what is new

    def mapping_for(self, packet: Packet, chosen: Chosen) -> Mapping | Verdict:
        """The mapping of an inside source, made if need be, when there is room for a session besides."""
        whom = packet.source[0], packet.destination, packet.protocol
        if (lack := self.lacking(self._full, *whom)) is not None:
            return lack
        mapping = self.mapping_of(packet.protocol, packet.source)
        if mapping is not None:
            return mapping
        if (lack := self.lacking(lambda: self._lack(packet), *whom)) is not None:
            return lack
        choice = chosen()
        if choice is None:  # natcore drew, and then refused the packet for what it goes to
            choice = self._guess(packet), UNTOLD if packet.protocol in PORTED else 0
        else:
            self._check(choice, packet)
        return Mapping(packet.protocol, packet.source, choice)

    def _guess(self, packet: Packet) -> int:
        """The outside address of a draw that was undone: most likely to be refused by the hairpin's other end.

        If a dead session joins the two, natcore may have met and released it, or not: nobody can tell.
        """
        candidates = self._candidates(packet)
        if packet.protocol not in PORTED:  # refused for a conflict: on an address where there is one
            taken = {s.mapping.outside[0] for s in self.sessions if s.protocol == packet.protocol
                     and s.remote == packet.destination and s.alive(self.now)}  # fmt: skip
            return next((a for a in candidates if a in taken), candidates[0])
        there = [s for s in self.sessions if s.mapping.outside == packet.destination and s.remote[0] in candidates]
        self.guessed = self.guessed or any(not session.alive(self.now) for session in there)
        return min(candidates, key=[session.remote[0] for session in there].count)

    def lacking(
        self, lack: Callable[[], Verdict | None], subscriber: int, remote: Endpoint, protocol: int
    ) -> Verdict | None:
        """What is lacking, after a complete expiry if there was none in this second; it becomes an event."""
        if lack() is not None and (self.swept is None or self.swept // SECOND != self.now // SECOND):
            self.sweep()
        found = lack()
        if found is not None:  # one a reason and subscriber, counted, not a flood (RFC 6888 REQ-11)
            event = self.events.setdefault((EXHAUSTION[found], subscriber), [self.now, *remote, protocol, 0])
            event[-1] += 1
        return found

    def _full(self) -> Verdict | None:
        return Verdict.DROP_SESSION_LIMIT if len(self.sessions) >= self.max_sessions else None

    def _lack(self, packet: Packet) -> Verdict | None:
        stranger = packet.source[0] not in self.addresses
        if len(self.mappings) >= self.max_mappings or (stranger and len(self.addresses) >= self.max_subscribers):
            return Verdict.DROP_SESSION_LIMIT
        return None if self._candidates(packet) else Verdict.DROP_PORTS_EXHAUSTED

    def _candidates(self, packet: Packet) -> list[int]:
        """The outside addresses that could serve a new mapping: the subscriber's own (RFC 4787 REQ-2), or any."""
        subscriber = packet.source[0]
        paired = self.addresses.get(subscriber)
        pool = [paired] if paired is not None else self.pool(subscriber) or []
        return [address for address in pool if self._free(packet.protocol, address, subscriber)]

    def _free(self, protocol: int, address: int, subscriber: int) -> int:
        """How many ports of an address a subscriber could be given; without ports an address always does."""
        if protocol not in PORTED:
            return 1
        used = {m.outside for m in self.mappings if m.protocol == protocol and m.outside[0] == address}
        for (held_protocol, endpoint), (owner, until) in self.held.items():
            if held_protocol == protocol and endpoint[0] == address and owner != subscriber and self.now < until:
                used.add(endpoint)
        return sum(last - first + 1 for first, last in self.policy.port_ranges) - len(used)

    def resting(self) -> list[tuple[int, Endpoint]]:
        """Protocol and endpoint of the ports that are held down."""
        in_use = {(mapping.protocol, mapping.outside) for mapping in self.mappings}
        return [key for key, (_, until) in self.held.items() if self.now < until and key not in in_use]

    def _check(self, choice: Endpoint, packet: Packet) -> None:
        """The drawn endpoint keeps every promise."""
        protocol, subscriber, candidates = packet.protocol, packet.source[0], self._candidates(packet)
        assert choice[0] in candidates, f"{choice} is on none of {candidates}: not in the pool, not the pair, or full"
        if protocol not in PORTED:
            return
        assert any(first <= choice[1] <= last for first, last in self.policy.port_ranges), f"{choice}: out of range"
        assert all((m.protocol, m.outside) != (protocol, choice) for m in self.mappings), f"{choice} is taken"
        owner, until = self.held.get((protocol, choice), (subscriber, 0))
        assert owner == subscriber or until <= self.now, f"{choice} is held down for {owner} until {until}"

    def conflicts(self, mapping: Mapping, remote: Endpoint) -> bool:
        """Whether another host speaks to the remote over the same outside endpoint: without ports both look alike."""
        if mapping.protocol in PORTED:
            return False
        return self.inbound_session(mapping.protocol, mapping.outside, remote) is not None

    def crowded(self, mapping: Mapping) -> Verdict | None:
        """Sessions opened from outside have caps of their own: a stranger never takes the room of the inside."""
        strangers = [session for session in self.sessions if session.opened_outside]
        here = sum(session.mapping is mapping for session in strangers)
        if here >= SESSIONS_FROM_OUTSIDE or len(strangers) >= max(1, self.max_sessions // 4):
            return Verdict.DROP_OUTSIDE_LIMIT
        return self._full()

    def open(self, mapping: Mapping, remote: Endpoint, *, outside: bool, logged: bool = True) -> Session:
        """A new session, and its mapping if that is new too. outside: the packet came from there."""
        if mapping not in self.mappings:
            self.mappings.append(mapping)
            self.addresses[mapping.inside[0]] = mapping.outside[0]
        slot = self.free_slots.pop() if self.free_slots else next(self.new_slots)
        self.last_id += 1
        session = Session(self.last_id, slot, mapping, remote, outside, logged, self.now, self.timeouts, self.window)
        self.sessions.append(session)
        mapping.sessions.append(session)
        self.counts["created"] += 1
        return session

    def announce(self, session: Session) -> Session:
        """Its create row, once it is sure that it stays."""
        self.rows += session.created()
        return session

    def counters(self) -> dict[str, int]:
        """As natcore's, those that are zero left out."""
        self.sweep()
        used = sum(mapping.protocol in PORTED for mapping in self.mappings)
        gauges = {"sessions": len(self.sessions), "mappings": len(self.mappings), "ports_used": used}
        return {name: value for name, value in {**self.counts, **gauges}.items() if value}

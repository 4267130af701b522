"""The oracle's room for what is new: limits, quotas, and whether an endpoint that was drawn could be drawn."""

from __future__ import annotations

from collections.abc import Callable

from model_entries import PORTED, Row, targets
from model_packets import ICMP, TCP, UDP, Endpoint, Packet
from model_ports import Draw
from model_sessions import Mapping, Session
from model_tables import SECOND, Choices
from natcore.config import DnatEntry, NoNatEntry
from natcore.verdict import Verdict

NAMES = {TCP: "tcp", UDP: "udp", ICMP: "icmp"}
SESSIONS_FROM_OUTSIDE = 1024  # alive at a mapping
UNTOLD = -1  # the port of a mapping that went again before it was seen
Whom = tuple[int, Endpoint, int]  # a subscriber, a remote and a protocol: what an event tells
Lack = Callable[[], Verdict | None]


def limit(value: int | None) -> float:
    return float("inf") if value is None else value


class Admission(Draw):
    """What a new mapping and a new session need, in the order in which a packet may fail."""

    def __init__(self, *arguments: object, **options: object) -> None:
        self.target_of: dict[tuple[int, DnatEntry, int], int] = {}  # by entry and remote address: always the same
        super().__init__(*arguments, **options)  # type: ignore[arg-type]

    def lacking(self, lack: Lack, whom: Whom) -> Verdict | None:
        """What is lacking, after a complete expiry if there was none in this second; it becomes an event."""
        if lack() is not None and (self.swept is None or self.swept // SECOND != self.now // SECOND):
            self.sweep()
        found = lack()
        if found is not None:
            self.note(found, whom)
        return found

    def note(self, verdict: Verdict, whom: Whom) -> Verdict:
        """One event a reason and subscriber, counted, not a flood (RFC 6888 REQ-11)."""
        subscriber, remote, protocol = whom
        event = self.events.setdefault((verdict.reason, subscriber), [self.now, *remote, protocol, 0])
        event[-1] += 1
        return verdict

    # Limits

    def full(self) -> Verdict | None:
        return Verdict.DROP_SESSION_LIMIT if len(self.sessions) >= self.max_sessions else None

    def no_mapping_left(self) -> Verdict | None:
        return Verdict.DROP_SESSION_LIMIT if len(self.mappings) >= self.max_mappings else None

    def crowded(self, mapping: Mapping) -> Verdict | None:
        return self.capped(mapping) or self.full()

    def capped(self, mapping: Mapping) -> Verdict | None:
        """Sessions opened from outside have caps of their own: a stranger never takes the room of the inside."""
        strangers = [session for session in self.sessions if session.opened_outside]
        here = sum(session.mapping is mapping for session in strangers)
        if here >= SESSIONS_FROM_OUTSIDE or len(strangers) >= max(1, self.max_sessions // 4):
            return Verdict.DROP_OUTSIDE_LIMIT
        return None

    def _own_sessions(self, subscriber: int) -> int:
        """Those that count against its quota (RFC 6888 REQ-4): drawn for, and opened from inside."""
        return sum(
            s.mapping.inside[0] == subscriber and not s.mapping.static and not s.opened_outside for s in self.sessions
        )

    def _over_sessions(self, subscriber: int) -> Verdict | None:
        over = self._own_sessions(subscriber) >= limit(self.policy.sessions_per_subscriber)
        return Verdict.DROP_SUBSCRIBER_LIMIT if over else None

    def _over_ports(self, subscriber: int) -> Verdict | None:
        who = self.subscribers.get(subscriber)
        over = who is not None and who.mappings >= limit(self.policy.ports_per_subscriber)
        return Verdict.DROP_SUBSCRIBER_LIMIT if over else None

    def _too_fast(self, subscriber: int) -> bool:
        who = self.subscribers.get(subscriber)
        rate = limit(self.policy.new_sessions_per_second)
        return who is not None and who.second == self.now // SECOND and who.opened >= rate

    def count_rate(self, session: Session) -> None:
        """A new session that its subscriber opened in this second."""
        who = self.subscribers.get(session.mapping.inside[0])
        if self.policy.new_sessions_per_second is None:
            return
        if who is not None and not session.mapping.static and not session.opened_outside:
            second = self.now // SECOND
            who.second, who.opened = second, who.opened + 1 if who.second == second else 1

    # The mapping of a packet from inside

    def mapping_for(self, packet: Packet, row: Row, choices: Choices) -> Mapping | Verdict:
        """The mapping of an inside source under an entry, made if need be, when there is room for a session besides."""
        whom = packet.source[0], packet.destination, packet.protocol
        if (lack := self.lacking(self.full, whom)) is not None:
            return lack
        if isinstance(row.entry, NoNatEntry):
            return self.static(row, packet.protocol, packet.source, packet.source, whom)
        if isinstance(row.entry, DnatEntry):
            [wire] = row.wires
            return self.static(row, packet.protocol, packet.source, (wire, packet.source[1]), whom)
        return self._dynamic(packet, row, whom, choices)

    def static(self, row: Row, protocol: int, inside: Endpoint, outside: Endpoint, whom: Whom) -> Mapping | Verdict:
        """The mapping between an inside endpoint and the outside one that an entry gives it."""
        key = Mapping(protocol, inside, outside, row.id, static=True)
        return self.mapping_of(key) or self.lacking(self.no_mapping_left, whom) or key

    def _dynamic(self, packet: Packet, row: Row, whom: Whom, choices: Choices) -> Mapping | Verdict:
        subscriber = packet.source[0]
        if self._too_fast(subscriber):
            return self.note(Verdict.DROP_RATE_LIMIT, whom)
        if (lack := self.lacking(lambda: self._over_sessions(subscriber), whom)) is not None:
            return lack
        mapping = Mapping(packet.protocol, packet.source, (0, 0), row.id, remote=self._own_remote(packet))
        if (found := self.mapping_of(mapping)) is not None:
            return found
        for lack_of in (
            lambda: self._over_ports(subscriber),
            lambda: self._no_room(packet),
            lambda: self._dry(packet, row),
        ):
            if (lack := self.lacking(lack_of, whom)) is not None:
                return lack
        drawn = choices.drawn()
        if drawn is None:  # natcore drew, and then refused the packet for what it goes to
            mapping.outside = self._guess(packet, row), UNTOLD if packet.protocol in PORTED else 0
        else:
            self.check(drawn, packet, row)
            mapping.outside = drawn
        return mapping

    def _own_remote(self, packet: Packet) -> Endpoint | None:
        """The remote, where the mapping is for it alone (RFC 4787 section 4.1)."""
        name = NAMES.get(packet.protocol)
        if name is not None and self.policy.behaviour(name).mapping == "address-and-port-dependent":
            return packet.destination
        return None

    def _no_room(self, packet: Packet) -> Verdict | None:
        stranger = packet.source[0] not in self.subscribers
        if stranger and len(self.subscribers) >= self.max_subscribers:
            return Verdict.DROP_SESSION_LIMIT
        return self.no_mapping_left()

    def _dry(self, packet: Packet, row: Row) -> Verdict | None:
        if self.candidates(packet, row):
            return None
        return Verdict.DROP_SUBSCRIBER_LIMIT if self.has_its_share(packet.source[0]) else Verdict.DROP_PORTS_EXHAUSTED

    def _guess(self, packet: Packet, row: Row) -> int:
        """The outside address of a draw that was undone, since the hairpin's other end refused the packet.

        If a dead session joins the two, natcore may have met and released it, or not: nobody can tell. Nor whether the
        subscriber is paired with the new entry's address now, or which target that one has.
        """
        candidates = self.candidates(packet, row)
        who = self.subscribers.get(packet.source[0])
        other = self.entries.dnat(packet.protocol, packet.destination)  # of several targets that for the address
        unsure = (who is not None and who.entry != row.id) or (other is not None and len(targets(other)) > 1)
        self.guessed = self.guessed or (unsure and len(candidates) > 1)
        if packet.protocol == ICMP and other is not None:  # the echo's id goes on: has the other end that mapping?
            there = [
                m for m in self.mappings if (m.static, m.protocol, m.outside[0]) == (True, ICMP, packet.destination[0])
            ]
            dead = any(not mapping.alive(self.now) for mapping in there)
            full = len(self.mappings) + 1 >= self.max_mappings  # with the initiator's
            self.guessed = self.guessed or dead or bool(there and full)
        if packet.protocol not in PORTED:  # refused for a conflict: on an address where there is one
            taken = {s.mapping.outside[0] for s in self.sessions if s.protocol == packet.protocol
                     and s.remote == packet.destination and s.alive(self.now)}  # fmt: skip
            return next((a for a in candidates if a in taken), candidates[0])
        met = [s for s in self.sessions if s.remote[0] in candidates and s.protocol == packet.protocol]
        dead = any(not session.alive(self.now) for session in met)
        known = {session.remote[0] for session in met if session.mapping.outside == packet.destination}
        apart = 0 < len(known) < len(candidates)  # by an address-dependent filter
        left = any(self.free(packet.protocol, session.remote) for session in met)  # its port drawn again: a conflict
        self.guessed = self.guessed or dead or apart or left
        return candidates[0]

    # The target of a DNAT entry

    def target(self, row: Row, packet: Packet, remote: Endpoint, choices: Choices) -> Endpoint:
        """The inside endpoint: of several, one of them, always the same for a remote address."""
        assert isinstance(row.entry, DnatEntry)
        first, _, inside_first = row.entry.ports
        port = packet.destination[1] - first + inside_first if packet.protocol in PORTED else 0
        possible, key = targets(row), (row.id, row.entry, remote[0])
        chosen = next(iter(possible)) if len(possible) == 1 else choices.target(row.id, remote[0])
        assert chosen in possible, f"{chosen} is none of the targets"
        assert self.target_of.setdefault(key, chosen) == chosen, f"{chosen} is another target than before"
        return chosen, port

    # A session over a mapping

    def conflicts(self, mapping: Mapping, remote: Endpoint) -> bool:
        """Whether either end of a new session is another one's already; what is met dead is released."""
        inbound = self.inbound_session(mapping.protocol, mapping.outside, remote)
        return inbound is not None or self.outbound_session(mapping.protocol, mapping.inside, remote) is not None

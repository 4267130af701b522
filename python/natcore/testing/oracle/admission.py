"""The oracle's admission: limits, quotas, and whether an endpoint that was allocated could be allocated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import ceil

from natcore.choices import Protocol
from natcore.config import DnatEntry, NoNatEntry
from natcore.testing.oracle.entries import PORTED, Row, targets
from natcore.testing.oracle.packets import ICMP, TCP, UDP, Endpoint, Packet
from natcore.testing.oracle.ports import Draw
from natcore.testing.oracle.sessions import Mapping, Session
from natcore.testing.oracle.tables import SECOND, Choices, Event
from natcore.verdict import Verdict

NAMES: dict[int, Protocol] = {TCP: "tcp", UDP: "udp", ICMP: "icmp"}
SESSIONS_FROM_OUTSIDE = 1024  # alive at a mapping
Whom = tuple[int, Endpoint, int]  # a subscriber, a remote and a protocol: what an event tells
Lack = tuple[Verdict, str] | None  # why not, and what was reached


def limit(value: int | None) -> float:
    return float("inf") if value is None else value


class Admission(Draw):
    """What a new mapping and a new session need, in the order in which a packet may fail."""

    def __init__(self, *arguments: object, **options: object) -> None:
        self.opened = -1, 0  # a second of the clock, and the sessions that the inside opened in it
        self.target_of: dict[tuple[int, DnatEntry, int], int] = {}  # by entry and remote address: always the same
        super().__init__(*arguments, **options)  # type: ignore[arg-type]

    def lacking(
        self, lack: Callable[[], Lack], whom: Whom, of: Callable[[], Iterable[Session]] | None = None
    ) -> Verdict | None:
        """What is lacking, after the end of what is dead of these sessions, or of all; it becomes an event.

        natcore looks at a bounded number for each packet, which are all where there are as few as here.
        """
        if lack() is not None:
            self.release([session for session in (of() if of else self.sessions) if not session.alive(self.now)])
            if of is None:
                self.forget_subscribers()
        return self.refused(lack(), whom)

    def _sessions_of(self, subscriber: int) -> Callable[[], list[Session]]:
        """A subscriber's, over all its mappings that were drawn."""
        return lambda: [s for s in self.sessions if s.mapping.inside[0] == subscriber and not s.mapping.static]

    def refused(self, lack: Lack, whom: Whom) -> Verdict | None:
        """One event a reason and subscriber, counted, not a flood (RFC 6888 REQ-11)."""
        if lack is None:
            return None
        subscriber, remote, protocol = whom
        self._tell(lack[0].reason, lack[1], subscriber, remote, protocol)
        self.refusals[lack[1]] += 1
        return lack[0]

    def _tell(self, reason: str, limit: str, address: int = 0, remote: Endpoint = (0, 0), protocol: int = 0) -> None:
        key = reason, address, protocol if reason == "ports-threshold" else 0
        self.events.setdefault(key, Event(self.now, limit, remote, protocol)).count += 1

    # Limits

    def full(self) -> Lack:
        return (Verdict.DROP_SESSION_LIMIT, "max_sessions") if len(self.sessions) >= self.max_sessions else None

    def no_mapping_left(self) -> Lack:
        return (Verdict.DROP_SESSION_LIMIT, "max_mappings") if len(self.mappings) >= self.max_mappings else None

    def capped(self, mapping: Mapping, whom: Whom) -> Verdict | None:
        """Sessions opened from outside have caps of their own: a stranger never takes the space of the inside."""
        reached = Verdict.DROP_OUTSIDE_LIMIT, "opened-outside"

        def many_here() -> Lack:
            return reached if sum(s.opened_outside for s in mapping.sessions) >= SESSIONS_FROM_OUTSIDE else None

        def many() -> Lack:
            return reached if sum(s.opened_outside for s in self.sessions) >= max(1, self.max_sessions // 4) else None

        return self.lacking(many_here, whom, lambda: mapping.sessions) or self.lacking(many, whom)

    def _own_sessions(self, subscriber: int) -> int:
        """Those that count against its quota (RFC 6888 REQ-4): drawn for, and opened from inside."""
        return sum(
            s.mapping.inside[0] == subscriber and not s.mapping.static and not s.opened_outside for s in self.sessions
        )

    def _over_sessions(self, subscriber: int) -> Lack:
        over = self._own_sessions(subscriber) >= limit(self.policy.sessions_per_subscriber)
        return (Verdict.DROP_SUBSCRIBER_LIMIT, "sessions_per_subscriber") if over else None

    def _over_ports(self, subscriber: int) -> Lack:
        who = self.subscribers.get(subscriber)
        over = who is not None and who.mappings >= limit(self.policy.ports_per_subscriber)
        return (Verdict.DROP_SUBSCRIBER_LIMIT, "ports_per_subscriber") if over else None

    def _too_fast(self, subscriber: int) -> Lack:
        who = self.subscribers.get(subscriber)
        rate = limit(self.policy.new_sessions_per_second)
        over = who is not None and who.second == self.now // SECOND and who.opened >= rate
        return (Verdict.DROP_RATE_LIMIT, "new_sessions_per_second") if over else None

    def _all_too_fast(self) -> Lack:
        rate = limit(self.policy.gateway_new_sessions_per_second)
        over = self.opened[0] == self.now // SECOND and self.opened[1] >= rate
        return (Verdict.DROP_RATE_LIMIT, "gateway_new_sessions_per_second") if over else None

    def may_have_more(self, subscriber: int, whom: Whom) -> Verdict | None:
        """Why a subscriber may not open one more session, if it may not."""
        too_fast = self.refused(self._too_fast(subscriber), whom)
        return too_fast or self.lacking(lambda: self._over_sessions(subscriber), whom, self._sessions_of(subscriber))

    def may_not_reopen(self, session: Session, packet: Packet, *, outside: bool) -> Verdict | None:
        """Why a session may not begin anew, if that is what the packet does: it then is a new one, opened from its side."""
        mapping = session.mapping
        if not session.may_reopen(packet):
            return None
        if self.draining(mapping):
            return Verdict.DROP_NO_MAPPING
        whom = mapping.inside[0], session.remote, session.protocol
        if outside:
            return None if session.opened_outside else self.capped(mapping, whom)
        if (refusal := self.refused(self._all_too_fast(), whom)) is not None or mapping.static:
            return refusal
        if session.opened_outside:  # it counted against no quota
            return self.may_have_more(mapping.inside[0], whom)
        return self.refused(self._too_fast(mapping.inside[0]), whom)

    # What counts

    def count_rate(self, session: Session) -> None:
        """A new session, begun anew or not, that the inside opened in this second."""
        second = self.now // SECOND
        if self.policy.gateway_new_sessions_per_second is not None:
            self.opened = second, self.opened[1] + 1 if self.opened[0] == second else 1
        who = self.subscribers.get(session.mapping.inside[0])
        if who is not None and not session.mapping.static and self.policy.new_sessions_per_second is not None:
            who.second, who.opened = second, who.opened + 1 if who.second == second else 1

    def count_opened(self, session: Session) -> None:
        """A session that the inside opened, and that stays."""
        self.count_rate(session)
        self.watch_sessions()
        mapping = session.mapping
        if len(mapping.sessions) == 1 and not mapping.static and mapping.protocol in PORTED:
            self._watch_ports(mapping)

    def watch_sessions(self) -> None:
        """Many sessions are reported once, and again after there were few."""
        many, few = self._shares(self.max_sessions)
        self.sessions_told = self.sessions_told and len(self.sessions) > few
        if len(self.sessions) >= many and not self.sessions_told:
            self.sessions_told = True
            self._tell("sessions-threshold", "max_sessions")

    def _watch_ports(self, mapping: Mapping) -> None:
        """The same of the ports of an outside address and protocol or, under a policy of blocks, of its blocks."""
        blocks = self.policy.ports == "block"
        address, protocol = mapping.outside[0], 0 if blocks else mapping.protocol
        many, few = self._shares(len(self.blocks) if blocks else self.range_size)
        if many == float("inf"):
            return
        taken = self.taken(mapping.protocol, address)
        if taken <= few:
            self.ports_told.discard((address, protocol))
        if taken >= many and (address, protocol) not in self.ports_told:
            self.ports_told.add((address, protocol))
            self._tell("ports-threshold", "pool", address, protocol=protocol)

    def _shares(self, total: int) -> tuple[float, float]:
        """How many of a total are many, and how few are few again; of less than a hundred nothing is told."""
        if self.policy.warn_at is None or total < 100:
            return float("inf"), 0
        return ceil(self.policy.warn_at * total), ceil(self.policy.rearm_at * total)

    # The mapping of a packet from inside

    def mapping_for(self, packet: Packet, row: Row, choices: Choices) -> Mapping | Verdict:
        """The mapping of an inside source under an entry, made if need be, when a session fits besides."""
        whom = packet.source[0], packet.destination, packet.protocol
        lack = self.refused(self._all_too_fast(), whom) or self.lacking(self.full, whom)
        if lack is not None:
            return lack
        if isinstance(row.entry, NoNatEntry):
            return self.static(row, packet.protocol, packet.source, packet.source, whom)
        if isinstance(row.entry, DnatEntry):
            [wire] = row.wires
            first, _, inside_first = row.entry.ports
            port = packet.source[1] + (first - inside_first if packet.protocol in PORTED else 0)
            return self.static(row, packet.protocol, packet.source, (wire, port), whom)
        return self._dynamic(packet, row, whom, choices)

    def static(self, row: Row, protocol: int, inside: Endpoint, outside: Endpoint, whom: Whom) -> Mapping | Verdict:
        """The mapping between an inside endpoint and the outside one that an entry gives it."""
        key = Mapping(protocol, inside, outside, row.id, static=True)
        return self.mapping_of(key) or self.lacking(self.no_mapping_left, whom) or key

    def _dynamic(self, packet: Packet, row: Row, whom: Whom, choices: Choices) -> Mapping | Verdict:
        subscriber = packet.source[0]
        if (refusal := self.may_have_more(subscriber, whom)) is not None:
            return refusal
        mapping = Mapping(packet.protocol, packet.source, (0, 0), row.id, remote=self._own_remote(packet))
        found = self.mapping_of(mapping)
        if found is not None and not self._may_go_elsewhere(found, packet):
            return found
        if found is not None:  # for this remote alone
            mapping.remote = packet.destination
            if (found := self.mapping_of(mapping)) is not None:
                return found
        own = self._sessions_of(subscriber)
        for lack_of, of in ((lambda: self._over_ports(subscriber), own), (lambda: self._no_room(packet), None)):
            if (lack := self.lacking(lack_of, whom, of)) is not None:
                return lack
        if packet.protocol not in PORTED:  # a reclaim may have ended the pairing
            if not self.candidates(packet, row):
                return Verdict.DROP_CONFLICT
        else:
            for lack_of, of in (
                (lambda: self._out_of_blocks(packet, row), own),
                (lambda: self._dry(packet, row), None),
            ):
                if (lack := self.lacking(lack_of, whom, of)) is not None:
                    return lack
        mapping.outside = choices.drawn() or self.drawable(packet, row, choices.passed_over)
        self.check(mapping.outside, packet, row)
        return mapping

    def _may_go_elsewhere(self, mapping: Mapping, packet: Packet) -> bool:
        """Whether a host may have a second outside address, where its own is in use towards the remote."""
        if packet.protocol in PORTED or self.policy.ports == "deterministic" or self.policy.pooling == "paired":
            return False
        return not self.unmet(packet, mapping.outside[0])

    def _own_remote(self, packet: Packet) -> Endpoint | None:
        """The remote, where the mapping is for it alone (RFC 4787 section 4.1)."""
        name = NAMES.get(packet.protocol)
        if name is not None and self.policy.behaviour(name).mapping == "address-and-port-dependent":
            return packet.destination
        return None

    def _no_room(self, packet: Packet) -> Lack:
        if (full := self.no_mapping_left()) is not None:
            return full
        stranger = packet.source[0] not in self.subscribers
        many = len(self.subscribers) >= self.max_subscribers
        return (Verdict.DROP_SESSION_LIMIT, "max_subscribers") if stranger and many else None

    def _out_of_blocks(self, packet: Packet, row: Row) -> Lack:
        """Whether it is the subscriber's own share that is used up."""
        dry = self._dry(packet, row)
        return dry if dry is not None and dry[1] == "blocks" else None

    def _dry(self, packet: Packet, row: Row) -> Lack:
        if self.candidates(packet, row):
            return None
        if self.has_its_share(packet.source[0]):
            return Verdict.DROP_SUBSCRIBER_LIMIT, "blocks"
        return Verdict.DROP_PORTS_EXHAUSTED, "pool"

    # The target of a DNAT entry

    def target(self, row: Row, packet: Packet, remote: Endpoint, choices: Choices) -> Endpoint:
        """The inside endpoint: of several, one of them, always the same for a remote address."""
        assert isinstance(row.entry, DnatEntry)
        first, _, inside_first = row.entry.ports
        port = packet.destination[1] - first + inside_first if packet.protocol in PORTED else 0
        return self.chosen(row, remote, choices), port

    def chosen(self, row: Row, remote: Endpoint, choices: Choices) -> int:
        """The target that an entry has for a remote."""
        assert isinstance(row.entry, DnatEntry)
        possible, key = targets(row), (row.id, row.entry, remote[0])
        chosen = next(iter(possible))
        if len(possible) > 1:
            chosen = choices.target(row.id, remote[0]) or self.target_of.get(key, chosen)
        assert chosen in possible, f"{chosen} is none of the targets"
        assert self.target_of.setdefault(key, chosen) == chosen, f"{chosen} is another target than before"
        return chosen

    # A session over a mapping

    def no_place(self, mapping: Mapping, remote: Endpoint) -> Verdict | None:
        """Why a new session has none: either end is another one's already (what is met dead is released), or the index is
        full where it belongs."""
        if mapping.protocol not in PORTED and not mapping.static and mapping.outside[0] in self.hosts:
            return Verdict.DROP_CONFLICT  # the host has these protocols there
        inbound = self.inbound_session(mapping.protocol, mapping.outside, remote)
        if inbound is not None or self.outbound_session(mapping.protocol, mapping.inside, remote) is not None:
            return Verdict.DROP_CONFLICT
        return Verdict.DROP_PROBE_LIMIT if self.index_full else None

"""The oracle: a NAT in plain Python, written for a reader who wants to learn from it what natcore has to do.

It takes two things from the implementation and checks them: the outside endpoint that was drawn for a new mapping, and
the target that a DNAT entry with several chose. Verdicts, bytes, counters, rows, events and generated frames it predicts.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import replace

from natcore.config import SnatEntry
from natcore.testing.oracle import icmp_errors, packets
from natcore.testing.oracle.admission import NAMES
from natcore.testing.oracle.entries import PORTED, Row, targets
from natcore.testing.oracle.fragments import Fragments
from natcore.testing.oracle.later_fragments import Following, turned
from natcore.testing.oracle.packets import (
    ECHO_REPLY,
    ECHO_REQUEST,
    ICMP,
    REPLIES,
    REQUESTS,
    RST,
    SYN,
    TCP,
    TIME_EXCEEDED,
    UNREACHABLE,
    Endpoint,
    Packet,
)
from natcore.testing.oracle.sessions import MS, Mapping, Session
from natcore.testing.oracle.tables import SECOND, Choices, Generated
from natcore.testing.oracle.unsolicited_syn import Unanswered
from natcore.verdict import Side, Verdict

DUMMY_ADDRESS = 0xC0000008  # 192.0.0.8 (RFC 7600)
FULL = (Verdict.DROP_PORTS_EXHAUSTED, Verdict.DROP_SESSION_LIMIT, Verdict.DROP_CONFLICT)
REFUSED = (Verdict.DROP_NO_SNAT_ENTRY, Verdict.DROP_SUBSCRIBER_LIMIT, Verdict.DROP_RATE_LIMIT)
Outcome = tuple[Verdict, bytes | None]
FREE = Choices()


def is_no_host(address: int) -> bool:
    """No host's that could be told anything (RFC 1122 section 3.2.1.3)."""
    return address >> 24 in (0, 127) or address >> 28 == 14 or address == 0xFFFFFFFF


# Options of RFC 791 and after that RFC 7126 drops by default, source routes apart.
SOURCE_ROUTES, UNWANTED = {131, 137}, {7, 11, 12, 15, 68, 82, 136, 142, 145, 147, 149, 151, 152}


OF_SESSIONS = {"sessions", "mappings", "subscribers", "held", "free_slots", "rows", "generated", "events", "fragments",
               "unanswered", "choices", "counted_as"}  # fmt: skip


class Nat(Following):
    """The decisions, in the order of a packet's way. Arguments as of natcore.Gateway, and its first entries."""

    def __init__(self, *arguments: object, **options: object) -> None:
        self.budgets: dict[tuple[Side, bool], tuple[int, Counter[int]]] = {}  # a second, and the ICMP errors sent in it
        self.numbers: dict[tuple[int, bytes], deque[int]] = {}  # identifications sent, by protocol and addresses
        self.unanswered = Unanswered()
        super().__init__(*arguments, **options)
        self.choices: Choices
        self._forget_fragments()

    def _forget_fragments(self) -> None:
        self.fragments = Fragments(self.timeouts.fragment, self._judge, self._session_of, self._follow)

    def without_sessions(self) -> Nat:
        """A copy that has the settings, entries and counters, and nothing of sessions, nor what waits."""
        other = copy(self)
        kept = {name: value for name, value in vars(self).items() if name not in OF_SESSIONS}
        as_they_are = {id(self): other, id(self.hosts): self.hosts}  # hosts: never changed in place
        vars(other).update(deepcopy(kept, as_they_are))
        other.sessions, other.mappings, other.subscribers = [], [], {}
        other.held, other.free_slots, other.new_slots = {}, [], 0
        other.rows, other.generated, other.events = [], [], {}
        other.unanswered = Unanswered()
        other._forget_fragments()
        return other

    def settle(self) -> None:
        for packet, verdict in self.unanswered.due(self):
            self._error(packet, Side.OUTSIDE, verdict, UNREACHABLE, 3)  # RFC 5382 REQ-4
        super().settle()

    def resume(self, later: int, *, frozen: bool) -> None:
        """It was away for so many ns. frozen: what has a deadline got it so much later, in whole ms."""
        if frozen:
            ms = later // MS
            for session in self.sessions:
                session.last_seen += ms
            for mapping in self.mappings:
                mapping.rests_until += ms * MS if mapping.rests_until else 0
            self.held = {key: (owner, until + ms * MS) for key, (owner, until) in self.held.items()}
            for datagram in self.fragments.datagrams.values() if self.fragments else ():
                datagram.since += ms
            self.unanswered.waiting = [(at + later, packet, verdict) for at, packet, verdict in self.unanswered.waiting]
        if later:
            self.advance(self.now + later)

    def translate_one(self, frame: bytes, side: Side, now: int, choices: Choices = FREE) -> Outcome:
        """The verdict on a frame, and what is sent if it is forwarded. now: ns."""
        self.clock(now)
        self.sweep_slice()
        self.counted_as: list[tuple[Session, Packet, Side]] = []  # what the frame is counted as
        packet = packets.parse(frame, self.framing, side)
        self.for_the_host: int | None = None  # the protocol of a packet to an address that the host has too
        if isinstance(packet, Packet) and self.shared(packet.destination[0]):
            self.for_the_host = packet.protocol
        if isinstance(packet, Verdict):
            verdict, out = packet, None
        elif not self._optional(packet):
            verdict, out = Verdict.DROP_IP_OPTION, None
        else:
            self.choices = choices
            if packet.kind == "fragment":
                assert self.fragments is not None
                (verdict, out), lost = self.fragments.take(packet, side, self.now)
                self._counted(Verdict.DROP_FRAGMENT, lost)
            else:
                verdict, out = self._judge(packet, side)
            out = out and self._fitted(out, packet.link, side, verdict)
            self._release(side)
        group = "forwarded" if verdict.is_forwarded else "local" if verdict is Verdict.LOCAL else "dropped"
        self.counts["received"] += 1
        self.counts["held" if verdict is Verdict.HELD else group] += 1
        self.from_outside[verdict] += side
        if verdict.is_drop:
            self.counts["dropped_" + verdict.name.removeprefix("DROP_").lower()] += 1
        return verdict, out

    def undeliver(self, verdict: Verdict, sent: bytes, side: Side, forwarded: Verdict) -> None:
        """A frame that was forwarded reached no host: no row counts it. Fragments are counted apart."""
        packet = packets.parse(sent, self.framing, Side.INSIDE)  # as it left; what it says of ICMP is not asked
        if isinstance(packet, Packet) and packet.kind != "fragment":
            for session, counted, counted_side in self.counted_as:
                session.take_back(counted, counted_side)
        else:
            self.counts["undelivered_in_rows"] += 1
        self._counted(verdict, 1)
        self.counts.update({"held": 1, "forwarded": -1})
        self.from_outside.update({verdict: side, forwarded: -side})

    def bad(self, address: int) -> bool:
        """Never a host's: 0/8, 127/8, 224/4, broadcast (RFC 1812 section 5.3.7); by policy 169.254/16 and 240/4."""
        if address >> 16 == 0xA9FE:
            return not self.policy.link_local
        if address >> 28 == 15 and address != 0xFFFFFFFF:
            return not self.policy.class_e
        return address >> 24 in (0, 127) or address >> 29 == 7

    def _optional(self, packet: Packet) -> bool:
        """Whether a packet's IPv4 options are forwarded (RFC 7126)."""
        found = packets.options(packet.ip[20 : packet.header]) or set()
        if packet.header == 20 or found & SOURCE_ROUTES:
            return packet.header == 20
        allowed = self.policy.ip_options
        return allowed == "pass" or (allowed == "rfc7126" and not found & UNWANTED)

    def _judge(self, packet: Packet, side: Side) -> Outcome:
        """What becomes of a packet, or of the first fragment of one, which then holds for the others."""
        if packet.source[0] == packet.destination[0]:  # land
            return Verdict.DROP_SPOOFED, None
        fragment = packet.more
        if fragment and packet.kind == "error":
            to = packet.destination[0]
            verdict = Verdict.LOCAL if to == self._address(side) or self.shared(to) else Verdict.DROP_FRAGMENT
            return verdict, None
        verdict, out = self._dispatch(packet, side, self.choices)
        if not (fragment and verdict is Verdict.LOCAL):  # nothing is reassembled to answer it
            self._answer(packet, side, verdict)
        return verdict, out

    def _dispatch(self, packet: Packet, side: Side, choices: Choices) -> Outcome:
        to = packet.destination[0]
        kind = packet.ip[packet.header] if packet.protocol == ICMP else 0
        if self.policy.icmp_queries == "echo" and packet.kind != "error" and kind not in (ECHO_REQUEST, ECHO_REPLY):
            packet = replace(packet, kind="other")
        if packet.kind == "error":
            return self._error_through(packet, side)
        if to == self._address(side) and packet.kind != "session":
            return Verdict.LOCAL, None
        if self.shared(to) and (packet.kind == "other" or (packet.kind == "echo" and side is Side.OUTSIDE)):
            return Verdict.LOCAL, None
        if (echo := self._query_about(packet, side)) is not None:
            packet = echo
        elif packet.kind == "echo" and to in self.eips and not self._has_session(packet, side):
            if self.shared(to):
                return Verdict.LOCAL, None
            if side is Side.OUTSIDE or not (self.policy.hairpin and self.entries.dnat(ICMP, packet.destination)):
                return (Verdict.LOCAL if kind == ECHO_REQUEST else Verdict.DROP_UNSUPPORTED), None
        elif packet.kind == "other" or (packet.kind == "echo" and side is Side.OUTSIDE):
            return Verdict.DROP_UNSUPPORTED, None
        if side is Side.INSIDE:
            return self._outbound(packet, choices)
        verdict, out = self._inbound(packet, choices)
        self.unanswered.note(packet, verdict, self)
        return verdict, out

    def _query_about(self, packet: Packet, side: Side) -> Packet | None:
        """A query the other way round as a session has it: a request from outside or the inside's reply to one.

        It passes where an entry says the outside endpoint: to a 1:1 address always.
        """
        kind = packet.ip[packet.header] if packet.protocol == ICMP else None
        (source, _), (to, _), identifier = packet.source, packet.destination, packets.word(packet.ip, packet.header + 4)
        if self.policy.icmp_queries == "echo" and kind not in (ECHO_REQUEST, ECHO_REPLY):
            return None
        if side is Side.OUTSIDE and kind in REQUESTS:
            echo = replace(packet, source=(source, 0), destination=(to, identifier), kind="session")
            if self.entries.dnat(ICMP, echo.destination) is not None:
                return echo
            session = self.inbound_session(ICMP, echo.destination, echo.source)
        elif side is Side.INSIDE and kind in REPLIES:
            echo = replace(packet, source=(source, identifier), kind="session")
            session = self.outbound_session(ICMP, echo.source, echo.destination)
        else:
            return None
        return echo if session is not None and session.mapping.static else None

    def _has_session(self, packet: Packet, side: Side) -> bool:
        return side is Side.INSIDE and self.outbound_session(ICMP, packet.source, packet.destination) is not None

    def _address(self, side: Side) -> int | None:
        """The gateway's own on a side."""
        address = self.links[side].address
        return None if address is None else int(address)

    def _own(self, address: int) -> bool:
        """Whether it is the gateway's own: packets from there come by no wire."""
        return address in (self._address(Side.INSIDE), self._address(Side.OUTSIDE))

    def _too_far(self, packet: Packet, to: Side) -> Verdict | None:
        """What a router does not carry on (RFC 1812 sections 5.3.1 and 5.2.7.1)."""
        if self.hop and packet.ttl <= 1:
            return Verdict.DROP_TTL
        mtu = self.links[to].mtu  # what may be split is (RFC 4787 REQ-13a)
        return Verdict.DROP_MTU if packet.total > mtu and (packet.dont_fragment or mtu < packet.header + 8) else None

    def _take(self, session: Session, packet: Packet, side: Side, counted: bool = True) -> None:
        """Count a packet into its session (RFC 4787 REQ-6: outbound refreshes, inbound by policy)."""
        refreshing = side is Side.INSIDE or self.policy.inbound_refresh
        self.counted_as += [(session, packet, side)] * counted
        self.log(session.take(packet, side, self.now, refreshing, counted))

    def _rewrite(self, packet: Packet, source: Endpoint, destination: Endpoint) -> bytes:
        """What is sent of a packet: other ends, a hop less, and a SYN's MSS as the policy has it."""
        if packet.flags & SYN and self.policy.mss is not None:
            packet = packets.clamp_mss(packet, self.policy.mss)
        return packets.rewrite(packet, packet.ttl - self.hop, source, destination)

    # From inside

    def _outbound(self, packet: Packet, choices: Choices) -> Outcome:
        session = self.outbound_session(packet.protocol, packet.source, packet.destination)
        hairpin = packet.destination[0] in self.eips if session is None else session.hairpinned
        to, row = Side.INSIDE if hairpin else Side.OUTSIDE, None
        if session is None:
            row = self._way_out(packet, hairpin, choices)
            refusal = self._refuse_outbound(packet, row, to)
        else:
            refusal = self._too_far(packet, to) or self.may_not_reopen(session, packet, outside=False)
        if refusal is not None:
            return refusal, None
        if session is None:
            assert row is not None
            opening = self._open_outbound(packet, row, hairpin, choices)
            if isinstance(opening, Verdict):
                return opening, None
            if hairpin:
                return self._hairpin(packet, opening, True, choices)
            self.count_opened(opening)
            session = self.announce(opening)
        elif hairpin:
            return self._hairpin(packet, session, False, choices)
        else:
            session = self._reopened(session, packet)
        self._take(session, packet, Side.INSIDE)
        sent = self._rewrite(packet, session.mapping.outside, packet.destination)
        if session.untranslated:
            return Verdict.UNTRANSLATED, sent
        return Verdict.OUTBOUND, self._identified(packet, sent)

    def _identified(self, packet: Packet, sent: bytes) -> bytes:
        """What leaves is numbered as if the gateway had sent it (RFC 6864 section 5.3.1): no number twice for long.

        Where DF is set and it is no fragment, the number is not read.
        """
        frame, ip = self.choices.sent(), sent[packet.link :]
        atomic = packet.dont_fragment and not packet.more
        if self.policy.ip_id == "keep" or atomic or frame is None:
            return sent
        number = packets.word(frame, packet.link + 4)
        recent = self.numbers.setdefault((ip[9], ip[12:20]), deque(maxlen=4096))
        assert number not in recent, f"identification {number} again"
        recent.append(number)
        return packets.numbered(sent, packet.link, number)

    def _way_out(self, packet: Packet, hairpin: bool, choices: Choices) -> Row | None:
        """The entry that lets an inside packet out: no-NAT first, then 1:1, then the longest prefix."""
        source, destination = packet.source[0], packet.destination[0]
        plain = None if hairpin else self.entries.plain(source, destination)
        return plain or self._forwarding(packet, choices) or self.entries.whole(source) or self.entries.snat(source)

    def _forwarding(self, packet: Packet, choices: Choices) -> Row | None:
        """The first entry added that forwards to the source: who speaks first has its endpoint too (RFC 4787 REQ-1).

        One of several targets forwards to that which it has for the remote.
        """
        for row in self.entries.forwarding(packet.protocol, packet.source):
            if len(targets(row)) == 1 or self.chosen(row, packet.destination, choices) == packet.source[0]:
                return row
        return None

    def _refuse_outbound(self, packet: Packet, row: Row | None, to: Side) -> Verdict | None:
        """Why an inside packet may not open a session."""
        source, destination = packet.source[0], packet.destination[0]
        if destination == self._address(Side.INSIDE) or self.for_host(packet):
            return Verdict.LOCAL
        if self.bad(source) or self._own(source):
            return Verdict.DROP_SPOOFED
        if self.bad(destination):
            return Verdict.DROP_UNSUPPORTED
        if source in self.eips:
            return Verdict.DROP_SPOOFED
        if row is None:
            return Verdict.DROP_NO_SNAT_ENTRY
        if destination in self.eips and not (self.policy.hairpin and packet.protocol in PORTED):
            return Verdict.DROP_UNSUPPORTED  # without ports no host is meant
        if (refusal := self._too_far(packet, to)) is not None:
            return refusal
        if packet.flags & RST or (packet.protocol == TCP and not packet.flags & SYN and not self.policy.tcp_pickup):
            return Verdict.DROP_NO_MAPPING
        return None

    def _open_outbound(self, packet: Packet, row: Row, hairpin: bool, choices: Choices) -> Session | Verdict:
        mapping = self.mapping_for(packet, row, choices)
        if isinstance(mapping, Verdict):
            return self._untaken(mapping, packet, row)
        if (taken := self.no_place(mapping, packet.destination)) is not None:
            return self._untaken(taken, packet, row)
        return self.open(mapping, packet.destination, outside=False, hairpinned=hairpin)

    def _untaken(self, verdict: Verdict, packet: Packet, row: Row) -> Verdict:
        """A conflict is reported: without ports the pool is what was short."""
        if verdict is Verdict.DROP_CONFLICT:
            short = isinstance(row.entry, SnatEntry) and packet.protocol not in PORTED
            self.refused((verdict, "pool" if short else ""), (packet.source[0], packet.destination, packet.protocol))
        return verdict

    def _reopened(self, session: Session, packet: Packet, *, outside: bool = False) -> Session:
        """The session; after its end a SYN puts a new one into its place. A hairpin's responder is not logged (R5)."""
        if not session.may_reopen(packet):
            return session
        self.end(session, self.now, keep_mapping=True)
        kept = {"hairpinned": session.hairpinned, "logged": not (session.hairpinned and outside)}
        session = self.announce(self.open(session.mapping, session.remote, outside=outside, **kept))
        if not outside:
            self.count_rate(session)
        return session

    # From outside

    def _inbound(self, packet: Packet, choices: Choices) -> Outcome:
        session = self.inbound_session(packet.protocol, packet.destination, packet.source)
        if session is None:
            opening = self._open_inbound(packet, choices)
            if isinstance(opening, Verdict):
                return opening, None
            session = self.announce(opening)
        elif session.hairpinned:  # a hairpin's packets come from inside
            return Verdict.DROP_SPOOFED, None
        elif (refusal := self._too_far(packet, Side.INSIDE)) is not None:
            return refusal, None
        else:
            if (capped := self.may_not_reopen(session, packet, outside=True)) is not None:
                return capped, None
            session = self._reopened(session, packet, outside=True)
        self._take(session, packet, Side.OUTSIDE)
        sent = self._rewrite(packet, packet.source, session.mapping.inside)
        return Verdict.UNTRANSLATED if session.untranslated else Verdict.INBOUND, sent

    def _open_inbound(self, packet: Packet, choices: Choices) -> Session | Verdict:
        source, destination = packet.source[0], packet.destination[0]
        if destination == self._address(Side.OUTSIDE) and destination not in self.eips:
            return Verdict.LOCAL
        if self.bad(source) or self._own(source) or source in self.eips:
            return Verdict.DROP_SPOOFED
        if self.policy.reverse_path_filter and self.entries.inside(source):
            return Verdict.DROP_SPOOFED
        return self._open_over(packet, packet.source, choices)

    def _open_over(
        self, packet: Packet, remote: Endpoint, choices: Choices, *, hairpin: bool = False
    ) -> Session | Verdict:
        """A session for a remote over the mapping or the entry that the packet goes to, if that is open for it."""
        mapping = self._open_for(packet, remote, choices)
        if isinstance(mapping, Verdict):
            unknown = mapping in (Verdict.DROP_NO_MAPPING, Verdict.DROP_FILTERED)
            return Verdict.LOCAL if unknown and not hairpin and self.for_host(packet) else mapping
        picked = mapping.static and self.policy.tcp_pickup  # an entry's connections go on after a restart
        if packet.protocol == TCP and packet.flags & (SYN | RST) != SYN and not (picked and not packet.flags & RST):
            return Verdict.DROP_FILTERED  # else a first SYN alone opens
        if remote[0] == mapping.inside[0]:  # it would reach itself
            return Verdict.DROP_SPOOFED
        refusal = None if hairpin else self._too_far(packet, Side.INSIDE)
        whom = mapping.inside[0], remote, packet.protocol
        if (refusal := refusal or self.capped(mapping, whom) or self.lacking(self.full, whom)) is not None:
            return refusal
        if (taken := self.no_place(mapping, remote)) is not None:
            return taken
        session = self.open(mapping, remote, outside=True, hairpinned=hairpin, logged=not hairpin)
        self.watch_sessions()
        return session

    def _open_for(self, packet: Packet, remote: Endpoint, choices: Choices) -> Mapping | Verdict:
        """A DNAT entry is open for every remote, a mapping as its filter says, a protocol without ports for none."""
        protocol, outside = packet.protocol, packet.destination
        row = self.entries.dnat(protocol, outside)
        if row is not None:
            target = self.target(row, packet, remote, choices)
            return self.static(row, protocol, target, outside, (target[0], remote, protocol))
        told = protocol in PORTED and self.policy.ports != "overload"  # else it cannot be told who is meant
        mapping = self.mapping_at(protocol, outside) if told else None
        if mapping is None or not any(self._keeps_open(session) for session in mapping.sessions):
            return Verdict.DROP_NO_MAPPING
        return mapping if self._passes(packet, mapping, remote) else Verdict.DROP_FILTERED

    def _keeps_open(self, session: Session) -> bool:
        """Whether a session keeps its mapping open for remotes (RFC 4787 REQ-6): one that the outside opened and the inside has
        not answered does only where the outside may refresh."""
        return session.alive(self.now) and (session.answered or self.policy.inbound_refresh)

    def _passes(self, packet: Packet, mapping: Mapping, remote: Endpoint) -> bool:
        """Whether a remote without a session may open one (RFC 4787 REQ-8)."""
        filtering = self.policy.behaviour(NAMES[packet.protocol]).filtering
        if filtering == "address-dependent" and packet.protocol != ICMP:  # its addresses have one session at most
            return any(s.remote[0] == remote[0] and self._keeps_open(s) for s in mapping.sessions)
        return filtering == "endpoint-independent"

    # From inside to inside, by an outside endpoint

    def _hairpin(self, packet: Packet, initiator: Session, new: bool, choices: Choices) -> Outcome:
        """RFC 4787 REQ-9: the initiator's session and, not logged, the responder's, which sees the former's outside.

        A host that speaks to its own outside endpoint is both. A new initiator goes again if the responder is refused.
        """
        there, remote = turned(initiator)
        found = self.inbound_session(packet.protocol, there, remote)
        responder = found or self._open_over(replace(packet, destination=there), remote, choices, hairpin=True)
        if isinstance(responder, Verdict):
            if new:
                self.discard(initiator)
            return responder, None
        itself = responder is initiator
        capped = None if found is None or itself else self.may_not_reopen(found, packet, outside=True)
        if capped is not None:
            if new:
                self.discard(initiator)
            return capped, None
        if new:
            self.count_opened(initiator)
            self.announce(initiator)
        else:
            initiator = self._reopened(initiator, packet)
        if itself:
            responder = initiator
        elif found is not None:
            responder = self._reopened(responder, packet, outside=True)
        self._take(initiator, packet, Side.INSIDE)
        self._take(responder, packet, Side.OUTSIDE, counted=not itself)  # to its own endpoint: once, as what it sent
        return Verdict.HAIRPIN, self._identified(packet, self._rewrite(packet, remote, responder.mapping.inside))

    # Others' ICMP errors: through, without a trace in the session they are about (RFC 5508 REQ-6)

    def _error_through(self, packet: Packet, side: Side) -> Outcome:
        quote = icmp_errors.read(packet, side)
        if isinstance(quote, Verdict):
            return Verdict.LOCAL if self.shared(packet.destination[0]) else quote, None
        session = self._quoted(quote, side)
        if session is None and self.shared(packet.destination[0]):
            return Verdict.LOCAL, None  # about a packet of the host's
        if session is None and quote.reversed:
            return Verdict.DROP_UNSUPPORTED, None
        if session is None:
            own = packet.destination[0] == self._address(side) and packet.destination[0] not in self.eips
            return Verdict.LOCAL if own else Verdict.DROP_NO_MAPPING, None
        if self.bad(packet.source[0]) or packet.source[0] in self.eips:
            return Verdict.DROP_SPOOFED, None
        if packet.destination[0] != quote.source[0]:  # it goes to whoever sent what it quotes (RFC 1122 section 3.2.2)
            return Verdict.DROP_SPOOFED, None
        hairpin = session.hairpinned
        to = Side.INSIDE if hairpin or side is Side.OUTSIDE else Side.OUTSIDE
        if (refusal := self._too_far(packet, to)) is not None:
            return refusal, None
        inside, outside, ttl = session.mapping.inside, session.mapping.outside, packet.ttl - self.hop
        if side is Side.OUTSIDE:  # REQ-4
            addresses, ends = (packet.source[0], inside[0]), (inside, quote.destination)
            verdict = Verdict.UNTRANSLATED if session.untranslated else Verdict.INBOUND
            return verdict, icmp_errors.rewrite(packet, quote, ttl, addresses, ends)
        if not hairpin:  # REQ-5
            sender = packet.source[0] if session.untranslated else outside[0]
            verdict = Verdict.UNTRANSLATED if session.untranslated else Verdict.OUTBOUND
            sent = icmp_errors.rewrite(packet, quote, ttl, (sender, packet.destination[0]), (quote.source, outside))
            return verdict, sent if session.untranslated else self._identified(packet, sent)
        other = self._find(session.protocol, lambda s: (s.mapping.outside, s.remote) == turned(session))
        if other is None:
            return Verdict.DROP_NO_MAPPING, None
        back = other.mapping.inside  # REQ-7
        sent = icmp_errors.rewrite(packet, quote, ttl, (outside[0], back[0]), (back, turned(session)[1]))
        return Verdict.HAIRPIN, self._identified(packet, sent)

    def _quoted(self, quote: icmp_errors.Quote, side: Side) -> Session | None:
        """The live session that a quoted packet is of, if its TCP sequence may be in flight (RFC 5927)."""
        if side is Side.OUTSIDE:
            key = quote.source, quote.destination
            session = self._find(quote.protocol, lambda s: (s.mapping.outside, s.remote) == key)
            if session is not None and session.hairpinned:  # a hairpin's packets never were outside
                return None
        else:
            key = quote.destination, quote.source
            session = self._find(quote.protocol, lambda s: (s.mapping.inside, s.remote) == key)
        if session is not None and quote.reversed and not session.mapping.static:
            return None
        if session is not None and quote.protocol == TCP and not session.in_flight(quote.sequence, Side(1 - side)):
            return None
        return session

    def _find(self, protocol: int, fits: Callable[[Session], bool]) -> Session | None:
        """The live session that fits; looking releases nothing."""
        return next((s for s in self.sessions if s.protocol == protocol and fits(s) and s.alive(self.now)), None)

    # What the gateway says itself

    def _answer(self, packet: Packet, side: Side, verdict: Verdict) -> None:
        """The reply to an echo request for the gateway, or the ICMP error about a packet that was dropped."""
        back_inside = side is Side.OUTSIDE or packet.destination[0] in self.eips
        if verdict is Verdict.LOCAL and self.shared(packet.destination[0]):
            return  # the host answers
        if verdict is Verdict.LOCAL and packets.is_echo(packet) and not is_no_host(packet.source[0]):
            self._send(packets.echo_reply(packet), side, verdict)
        elif packet.kind == "error":
            return
        elif verdict is Verdict.DROP_TTL:
            self._error(packet, side, verdict, TIME_EXCEEDED, 0)
        elif verdict is Verdict.DROP_MTU and packet.dont_fragment:
            mtu = self.links[Side.INSIDE if back_inside else Side.OUTSIDE].mtu
            self._error(packet, side, verdict, UNREACHABLE, 4, mtu)  # RFC 1191
        elif verdict in FULL and side is Side.INSIDE and self.policy.icmp_unreachable:
            self._error(packet, side, verdict, UNREACHABLE, 1)  # RFC 6888 REQ-11
        elif verdict in REFUSED and side is Side.INSIDE and self.policy.icmp_unreachable:
            self._error(packet, side, verdict, UNREACHABLE, 13)  # RFC 5508 REQ-8

    def _error(self, packet: Packet, side: Side, verdict: Verdict, kind: int, code: int, mtu: int = 0) -> None:
        """Send an ICMP error back, below so many a second and side; path MTU discovery has as many of its own.

        To one address go a quarter of them at most.
        """
        key, second, to = (side, mtu > 0), self.now // SECOND, packet.source[0]
        if is_no_host(to):
            return
        if key not in self.budgets or self.budgets[key][0] != second:
            self.budgets[key] = second, Counter()
        sent, rate = self.budgets[key][1], self.policy.icmp_rate
        if sent.total() >= rate or sent[to] >= max(8, rate // 4):
            self.counts["generated_withheld"] += 1
            return
        sent[to] += 1
        source = self._address(side)
        source = DUMMY_ADDRESS if source is None else source
        self._send(packets.icmp_error(packet, source, kind, code, mtu), side, verdict)

    def _send(self, frame: bytes, side: Side, verdict: Verdict) -> None:
        self.counts["generated"] += 1
        self.generated.append(Generated(frame, side, verdict))

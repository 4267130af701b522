"""The oracle: a NAT in plain Python, written for a reader who wants to learn from it what natcore has to do.

It takes one thing from the implementation, the outside endpoint that was drawn for a new mapping, and checks it.
Verdicts, bytes, counters, rows, events and generated frames it predicts itself.
"""

from __future__ import annotations

import model_packets as packets
from model_packets import ICMP, RST, SYN, TCP, TIME_EXCEEDED, UDP, UNREACHABLE, Endpoint, Packet
from model_sessions import Mapping, Session
from model_tables import SECOND, Chosen, Generated, Tables
from natcore.verdict import FORWARDED, Side, Verdict

NAMES = {TCP: "tcp", UDP: "udp", ICMP: "icmp"}
DUMMY_ADDRESS = 0xC0000008  # 192.0.0.8 (RFC 7600)
FULL = (Verdict.DROP_PORTS_EXHAUSTED, Verdict.DROP_SESSION_LIMIT)
Outcome = tuple[Verdict, bytes | None]


def bad(address: int) -> bool:
    """Never a host's: 0/8, 127/8, 224/3 (RFC 1812 section 5.3.7)."""
    return address >> 24 in (0, 127) or address >> 29 == 7


class ModelGateway(Tables):
    """The decisions, in the order of a packet's way. Arguments as of natcore.Gateway, and its SNAT entries."""

    errors = (0, 0)  # a second of the clock, and the ICMP errors sent in it

    def translate_one(self, frame: bytes, side: Side, now: int, chosen: Chosen) -> Outcome:
        """The verdict on a frame, and what is sent if it is forwarded. now: ns."""
        self.clock(now)
        packet = packets.parse(frame, self.framing, side)
        if isinstance(packet, Verdict):
            verdict, out = packet, None
        else:
            verdict, out = self._dispatch(packet, side, chosen)
            self._answer(packet, side, verdict)
        group = "forwarded" if verdict in FORWARDED else "local" if verdict is Verdict.LOCAL else "dropped"
        self.counts.update(("received", group))
        if verdict.is_drop:
            self.counts["dropped_" + verdict.name.removeprefix("DROP_").lower()] += 1
        return verdict, out

    def _dispatch(self, packet: Packet, side: Side, chosen: Chosen) -> Outcome:
        to = packet.destination[0]
        own = to == self._address(side) or (packet.kind == "echo" and to in self.eips)
        if own and packet.kind != "session":
            return Verdict.LOCAL, None
        if packet.kind == "other" or (packet.kind == "echo" and side is Side.OUTSIDE):
            return Verdict.DROP_UNSUPPORTED, None
        return self._outbound(packet, chosen) if side is Side.INSIDE else self._inbound(packet)

    def _address(self, side: Side) -> int | None:
        """The gateway's own on a side."""
        address = self.links[side].address
        return None if address is None else int(address)

    def _too_far(self, packet: Packet, to: Side) -> Verdict | None:
        """What a router does not carry on (RFC 1812 sections 5.3.1 and 5.2.7.1)."""
        if self.hop and packet.ttl <= 1:
            return Verdict.DROP_TTL
        return Verdict.DROP_MTU if packet.total > self.links[to].mtu else None

    def _take(self, session: Session, packet: Packet, side: Side) -> None:
        """Count a packet into its session (RFC 4787 REQ-6: outbound refreshes, inbound by policy)."""
        refreshing = side is Side.INSIDE or self.policy.inbound_refresh
        self.rows += session.take(packet, side, self.now, refreshing)

    # From inside

    def _outbound(self, packet: Packet, chosen: Chosen) -> Outcome:
        session = self.outbound_session(packet.protocol, packet.source, packet.destination)
        hairpin = packet.destination[0] in self.eips
        to = Side.INSIDE if hairpin else Side.OUTSIDE
        refusal = self._too_far(packet, to) if session else self._refuse_outbound(packet, to)
        if refusal is not None:
            return refusal, None
        if hairpin:
            return self._hairpin(packet, session, chosen)
        if session is None:
            mapping = self.mapping_for(packet, 1, chosen)
            if isinstance(mapping, Verdict):
                return mapping, None
            session = self.open(mapping, packet.destination, outside=False)
        else:
            session = self._reopened(session, packet)
        self._take(session, packet, Side.INSIDE)
        sent = packets.rewrite(packet, packet.ttl - self.hop, session.mapping.outside, packet.destination)
        return Verdict.OUTBOUND, sent

    def _refuse_outbound(self, packet: Packet, to: Side) -> Verdict | None:
        """Why an inside packet may not open a session."""
        source, destination = packet.source[0], packet.destination[0]
        if destination == self._address(Side.INSIDE):
            return Verdict.LOCAL
        if bad(source) or source in self.eips:
            return Verdict.DROP_SPOOFED
        if bad(destination):
            return Verdict.DROP_UNSUPPORTED
        if self.pool(source) is None:
            return Verdict.DROP_NO_SNAT_ENTRY
        if (refusal := self._too_far(packet, to)) is not None:
            return refusal
        if packet.flags & RST or (packet.protocol == TCP and not packet.flags & SYN and not self.policy.tcp_pickup):
            return Verdict.DROP_NO_MAPPING
        if destination in self.eips and not self.policy.hairpin:
            return Verdict.DROP_UNSUPPORTED
        return None

    def _reopened(self, session: Session, packet: Packet, *, outside: bool = False, logged: bool = True) -> Session:
        """The session; after its end a SYN puts a new one into its place."""
        if not session.may_reopen(packet):
            return session
        self.end(session, self.now, keep_mapping=True)
        return self.open(session.mapping, session.remote, outside=outside, logged=logged)

    # From outside

    def _inbound(self, packet: Packet) -> Outcome:
        session = self.inbound_session(packet.protocol, packet.destination, packet.source)
        opening = self._open_inbound(packet) if session is None else self._again_inbound(session, packet)
        if isinstance(opening, Verdict):
            return opening, None
        self._take(opening, packet, Side.OUTSIDE)
        return Verdict.INBOUND, packets.rewrite(packet, packet.ttl - self.hop, packet.source, opening.mapping.inside)

    def _open_inbound(self, packet: Packet) -> Session | Verdict:
        source, destination = packet.source[0], packet.destination[0]
        if destination == self._address(Side.OUTSIDE) and destination not in self.eips:
            return Verdict.LOCAL
        if bad(source) or source in self.eips:
            return Verdict.DROP_SPOOFED
        mapping = self.mapping_at(packet.protocol, packet.destination)
        if mapping is None:
            return Verdict.DROP_NO_MAPPING
        refusal = self._refuse_inbound(packet, mapping, packet.source) or self._too_far(packet, Side.INSIDE)
        if refusal is not None:
            return refusal
        if (refusal := self._crowded(mapping, packet.source)) is not None:
            return refusal
        if (lack := self.retried(lambda: self.full(1))) is not None:
            self.event(lack, mapping.inside[0], packet.source, packet.protocol)
            return lack
        return self.open(mapping, packet.source, outside=True)

    def _again_inbound(self, session: Session, packet: Packet) -> Session | Verdict:
        """The packet's session, or a new one in its place."""
        refusal = self._too_far(packet, Side.INSIDE)
        if refusal is None and session.may_reopen(packet):
            refusal = self._crowded(session.mapping, session.remote, session)
        return self._reopened(session, packet, outside=True) if refusal is None else refusal

    def _refuse_inbound(self, packet: Packet, mapping: Mapping, remote: Endpoint) -> Verdict | None:
        """Why a remote may not open a session over a mapping: the filter (RFC 4787 REQ-8), or it is no SYN."""
        filtering = self.policy.behaviour(NAMES[packet.protocol]).filtering
        if filtering == "endpoint-independent":
            passes = True
        else:  # a known address and port has a session already, and so has a known address for ICMP
            known = (s.remote[0] for s in mapping.sessions if s.alive(self.now))
            passes = filtering == "address-dependent" and packet.protocol != ICMP and remote[0] in known
        if packet.protocol == TCP and packet.flags & (SYN | RST) != SYN:
            passes = False
        return None if passes else Verdict.DROP_FILTERED

    def _crowded(self, mapping: Mapping, remote: Endpoint, leaving: Session | None = None) -> Verdict | None:
        lack = self.crowd(mapping, leaving)
        if lack is not None:
            self.event(lack, mapping.inside[0], remote, mapping.protocol)
        return lack

    # From inside to inside, by an outside endpoint

    def _hairpin(self, packet: Packet, initiator: Session | None, chosen: Chosen) -> Outcome:
        """RFC 4787 REQ-9: two sessions, the initiator's and, not logged, the responder's; both are there or neither."""
        target = self.mapping_at(packet.protocol, packet.destination)
        if target is None:
            return Verdict.DROP_NO_MAPPING, None
        source = self.mapping_of(packet.protocol, packet.source)
        if source is target:  # to oneself: both sessions would have the same keys
            return Verdict.DROP_CONFLICT, None
        responder = self.inbound_session(packet.protocol, packet.destination, source.outside) if source else None
        if initiator is None or responder is None:
            opening = self.mapping_for(packet, (initiator is None) + (responder is None), chosen)
            if isinstance(opening, Verdict):
                return opening, None
            source = opening
        assert source is not None
        if (refusal := self._refuse_hairpin(packet, target, source, responder)) is not None:
            return refusal, None
        if initiator is None:
            initiator = self.open(source, packet.destination, outside=False)
        else:
            initiator = self._reopened(initiator, packet)
        if responder is None:
            responder = self.open(target, source.outside, outside=True, logged=False)
        else:
            responder = self._reopened(responder, packet, outside=True, logged=False)
        self._take(initiator, packet, Side.INSIDE)
        self._take(responder, packet, Side.OUTSIDE)
        return Verdict.HAIRPIN, packets.rewrite(packet, packet.ttl - self.hop, source.outside, target.inside)

    def _refuse_hairpin(
        self, packet: Packet, target: Mapping, source: Mapping, responder: Session | None
    ) -> Verdict | None:
        """Why the responder's session may not be opened, or opened again. The source is its remote."""
        if responder is None:
            refusal = self._refuse_inbound(packet, target, source.outside)
            return refusal or self._crowded(target, source.outside)
        return self._crowded(target, source.outside, responder) if responder.may_reopen(packet) else None

    # What the gateway says itself

    def _answer(self, packet: Packet, side: Side, verdict: Verdict) -> None:
        """The reply to an echo request for the gateway, or the ICMP error about a packet that was dropped."""
        back_inside = side is Side.OUTSIDE or packet.destination[0] in self.eips
        if verdict is Verdict.LOCAL and packet.kind == "echo":
            self._send(packets.echo_reply(packet), side, verdict)
        elif verdict is Verdict.DROP_TTL:
            self._error(packet, side, verdict, TIME_EXCEEDED, 0)
        elif verdict is Verdict.DROP_MTU and packet.dont_fragment:
            mtu = self.links[Side.INSIDE if back_inside else Side.OUTSIDE].mtu
            self._error(packet, side, verdict, UNREACHABLE, 4, mtu)  # RFC 1191
        elif verdict in FULL and side is Side.INSIDE and self.policy.icmp_unreachable:
            self._error(packet, side, verdict, UNREACHABLE, 1)  # RFC 6888 REQ-11

    def _error(self, packet: Packet, side: Side, verdict: Verdict, kind: int, code: int, mtu: int = 0) -> None:
        """Send an ICMP error back, below so many a second."""
        second = self.now // SECOND
        sent = self.errors[1] if self.errors[0] == second else 0
        if sent < self.policy.icmp_rate:
            self.errors = second, sent + 1
            source = self._address(side)
            source = DUMMY_ADDRESS if source is None else source
            self._send(packets.icmp_error(packet, source, kind, code, mtu), side, verdict)

    def _send(self, frame: bytes, side: Side, verdict: Verdict) -> None:
        self.counts["generated"] += 1
        self.generated.append(Generated(frame, side, verdict))

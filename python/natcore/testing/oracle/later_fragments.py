"""The oracle's later fragments: each goes as the first one of its datagram went, and leaves as its link allows."""

from __future__ import annotations

from natcore.testing.oracle import packets
from natcore.testing.oracle.admission import Admission
from natcore.testing.oracle.fragments import split
from natcore.testing.oracle.packets import ICMP, Endpoint, Packet
from natcore.testing.oracle.sessions import Session
from natcore.testing.oracle.tables import Generated
from natcore.verdict import Side, Verdict

Outcome = tuple[Verdict, bytes | None]


def turned(session: Session) -> tuple[Endpoint, Endpoint]:
    """Return, for a hairpinned session, where its packets come back in, and from whom.

    An echo's id stays what its sender's outside endpoint has, and is the responder's then (RFC 5508 REQ-7a).
    """
    (address, port), outside = session.remote, session.mapping.outside
    if session.protocol != ICMP:
        return (address, port), outside
    return (address, outside[1]), (outside[0], 0)


class Following(Admission):
    """What a gateway does with fragments, once it is known what became of the first one."""

    def _too_far(self, packet: Packet, to: Side) -> Verdict | None:
        raise NotImplementedError

    def _send(self, frame: bytes, side: Side, verdict: Verdict) -> None:
        raise NotImplementedError

    def _session_of(self, packet: Packet, side: Side) -> Session | None:
        if side is Side.INSIDE:
            return self.outbound_session(packet.protocol, packet.source, packet.destination)
        return self.inbound_session(packet.protocol, packet.destination, packet.source)

    def _follow(self, packet: Packet, side: Side, session: Session, end: int) -> Outcome:
        """A later fragment, through the session of its first one: only addresses change."""
        other, to = None, Side(1 - side)
        if session.hairpinned:
            other = self.inbound_session(packet.protocol, *turned(session))
            to = Side.INSIDE
            if other is None:
                return Verdict.DROP_NO_MAPPING, None
        if (refusal := self._too_far(packet, to)) is not None:
            return refusal, None
        source, destination = packet.source[0], packet.destination[0]
        refreshing = side is Side.INSIDE or self.policy.inbound_refresh
        self.log(session.take_later(packet, side, self.now, refreshing, end))
        if side is Side.OUTSIDE:
            destination, verdict = session.mapping.inside[0], Verdict.INBOUND
        else:
            source, verdict = session.mapping.outside[0], Verdict.OUTBOUND
        if other is not None:
            refreshing, counted = self.policy.inbound_refresh, other is not session
            self.log(other.take_later(packet, Side.OUTSIDE, self.now, refreshing, end, counted))
            destination, verdict = other.mapping.inside[0], Verdict.HAIRPIN
        elif session.untranslated:
            verdict = Verdict.UNTRANSLATED
        return verdict, packets.readdress(packet, packet.ttl - self.hop, source, destination)

    @staticmethod
    def egress(side: Side, verdict: Verdict) -> Side:
        """The side that a frame of this verdict leaves by. side: where it came from."""
        if verdict is Verdict.UNTRANSLATED:
            return Side(1 - side)
        return Side.OUTSIDE if verdict is Verdict.OUTBOUND else Side.INSIDE

    def _fitted(self, out: bytes, link: int, side: Side, verdict: Verdict) -> bytes:
        """The frame, or what of it fits the link; the other fragments are generated."""
        to = self.egress(side, verdict)
        first, *others = split(out, link, self.links[to].mtu)
        for other in others:
            self._send(other, to, verdict)
        return first

    def _release(self, side: Side) -> None:
        """What waited for the first fragment that has just come."""
        assert self.fragments is not None
        for verdict, out, link in self.fragments.released:
            self._counted(verdict, 1)
            if not verdict.is_forwarded:  # else it is counted by the side that it leaves by
                self.from_outside[verdict] += side
            if out is not None:
                place = len(self.generated)
                out = self._fitted(out, link, side, verdict)
                self.generated.insert(place, Generated(out, self.egress(side, verdict), Verdict.HELD))
        self.fragments.released.clear()

    def _counted(self, verdict: Verdict, count: int) -> None:
        """So many fragments wait no more."""
        group = "forwarded" if verdict.is_forwarded else "local" if verdict is Verdict.LOCAL else "dropped"
        self.counts.update({"held": -count, group: count})
        if verdict.is_drop:
            self.counts["dropped_" + verdict.name.removeprefix("DROP_").lower()] += count

"""The oracle's SYNs from outside that nothing let in: the policy may answer them, after six seconds (RFC 5382 REQ-4)."""

from __future__ import annotations

from natcore.testing.oracle.packets import ACK, FIN, RST, SYN, TCP, Packet
from natcore.testing.oracle.tables import SECOND, Tables
from natcore.verdict import Verdict

PATIENCE = 6 * SECOND  # ns
AT_ONCE = 1024  # that wait
SHARE = 256  # and of one source


class Unanswered:
    """SYNs that wait, in the order in which they came."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, Packet, Verdict]] = []  # due when (ns), and how each was dropped

    def note(self, packet: Packet, verdict: Verdict, tables: Tables) -> None:
        """A packet from outside that was dropped: a first SYN to an address of the gateway's waits."""
        if tables.policy.unsolicited_syn != "icmp" or verdict not in (Verdict.DROP_NO_MAPPING, Verdict.DROP_FILTERED):
            return
        if packet.protocol != TCP or packet.flags & (SYN | ACK | RST | FIN) != SYN:
            return
        if packet.destination[0] in tables.eips:
            same = sum(waiting.source[0] == packet.source[0] for _, waiting, _ in self.waiting)
            if len(self.waiting) < AT_ONCE and same < SHARE:
                self.waiting.append((tables.now + PATIENCE, packet, verdict))
            else:
                tables.counts["unsolicited_lost"] += 1

    def due(self, tables: Tables) -> list[tuple[Packet, Verdict]]:
        """Those that have waited long enough without the inside opening their connection."""
        due = [waiting for waiting in self.waiting if waiting[0] <= tables.now]
        del self.waiting[: len(due)]
        return [(packet, verdict) for at, packet, verdict in due if not self._open(packet, at, tables)]

    @staticmethod
    def _open(packet: Packet, at: int, tables: Tables) -> bool:
        """Whether a session of the same ends was alive at a moment, as far as it is still known."""
        ends = packet.protocol, packet.destination, packet.source
        found = [s for s in tables.sessions if (s.protocol, s.mapping.outside, s.remote) == ends]
        return any(session.born <= at < session.deadline for session in found)

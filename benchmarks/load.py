"""A gateway with a chosen number of sessions, after churn, and frames that hit them in random order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bulk import UDP, Frames, Lengths, answers, packets
from natcore import Gateway, Side, SnatEntry, Timeouts, Verdict

CHURN = 20  # how often every session was replaced before anything is timed
UDP_SECONDS = 300.0
PORTS_A_HOST = 16
VERDICT = {Side.INSIDE: Verdict.OUTBOUND, Side.OUTSIDE: Verdict.INBOUND}


def make_gateway(max_sessions: int) -> Gateway:
    """64 outside addresses, so that a million mappings use a quarter of the ports."""
    gateway = Gateway(
        instance="ngw-bench", vpc_id="vpc-bench", max_sessions=max_sessions, timeouts=Timeouts(udp=UDP_SECONDS), seed=1
    )
    gateway.add(SnatEntry("10.0.0.0/8", pool="203.0.113.0/26"))
    return gateway


def flows(first: int, count: int, protocol: int = UDP) -> tuple[Frames, Lengths]:
    """64-byte frames of new flows (TCP: their SYN), each with an inside endpoint of its own."""
    numbers = np.arange(first, first + count, dtype=np.uint64)
    hosts, ports = np.divmod(numbers, np.uint64(PORTS_A_HOST))
    remotes = 0x5DB80000 + (numbers * np.uint64(2654435761) >> np.uint64(8) & np.uint64(0xFFFF))
    return packets(protocol, 0x0A000000 + hosts, 20_000 + ports, remotes, 443)


class Load:
    """`sessions` live UDP sessions in a table that is full at that number, each replaced CHURN times before."""

    def __init__(self, sessions: int, churn: int = CHURN) -> None:
        self.sessions = sessions
        self.gateway = make_gateway(sessions)
        self.random = np.random.default_rng(1)
        generations = min(8, sessions)
        size = sessions // generations
        if size * generations != sessions:
            raise ValueError(f"sessions={sessions}: allowed is less than 8, or a multiple of 8")
        self.now = 0.0
        steps = generations * (churn + 1)
        for step in range(steps):  # each step one generation dies and another comes
            self.now = step * UDP_SECONDS / generations
            self.gateway.advance(self.now)
            frames, lengths = flows(step * size, size)
            order = self.random.permutation(size)
            self.expect(self.gateway.translate(frames[order], lengths, Side.INSIDE, now=self.now), Side.INSIDE)
        outbound, lengths = flows((steps - generations) * size, sessions)
        translated = outbound.copy()
        self.expect(self.gateway.translate(translated, lengths, Side.INSIDE, now=self.now), Side.INSIDE)
        if self.gateway.counters()["sessions"] != sessions:
            raise AssertionError(f"{self.gateway.counters()['sessions']} sessions, not {sessions}")
        self.pristine = {Side.INSIDE: outbound, Side.OUTSIDE: answers(translated, lengths)[0]}

    def frames(self, side: Side, count: int) -> tuple[Frames, Lengths]:
        """count frames of random sessions, fresh (translate rewrites them in place)."""
        rows = self.random.integers(0, self.sessions, count)
        return self.pristine[side][rows], np.full(count, self.pristine[side].shape[1], np.uint32)

    @staticmethod
    def expect(verdicts: NDArray[np.uint8], side: Side) -> None:
        """Every frame was translated: what was timed is the path that it says."""
        if not (verdicts == VERDICT[side]).all():
            found = dict(zip(*np.unique(verdicts, return_counts=True), strict=True))
            raise AssertionError(f"not all {VERDICT[side].name}: {found}")

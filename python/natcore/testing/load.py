"""Load: a gateway with a chosen number of sessions, frames that hit them in random order, and what must come out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from natcore import Gateway, Side, SnatEntry, Timeouts, Verdict
from natcore.testing.bulk import (
    ACK,
    SYN,
    TCP,
    UDP,
    Frames,
    Lengths,
    answers,
    endpoints,
    headers_right,
    layer4_sums,
    packets,
)

CHURN = 20  # how often every session was replaced before anything is timed
UDP_SECONDS = 300.0
PORTS_A_HOST = 16
GENERATIONS = 8
FRAME_BYTES = 64
VERDICT = {Side.INSIDE: Verdict.OUTBOUND, Side.OUTSIDE: Verdict.INBOUND}

Sides = NDArray[np.uint8]
Rows = NDArray[np.int64]


def make_gateway(max_sessions: int) -> Gateway:
    """Make a gateway with an outside address for 16,384 sessions, so that a quarter of the ports is in use; 64 at least."""
    addresses = max(64, max_sessions // 16_384)
    gateway = Gateway(
        instance="ngw-bench", vpc_id="vpc-bench", max_sessions=max_sessions, timeouts=Timeouts(udp=UDP_SECONDS), seed=1
    )
    gateway.add(SnatEntry("10.0.0.0/8", pool=f"203.0.0.0-203.0.{(addresses - 1) >> 8}.{(addresses - 1) & 255}"))
    return gateway


def flows(first: int, count: int, protocol: int = UDP) -> tuple[Frames, Lengths]:
    """Make 64-byte frames of new flows (TCP: their SYN), each with an inside endpoint of its own."""
    numbers = np.arange(first, first + count, dtype=np.uint64)
    hosts, ports = np.divmod(numbers, np.uint64(PORTS_A_HOST))
    remotes = 0x5DB80000 + (numbers * np.uint64(2654435761) >> np.uint64(8) & np.uint64(0xFFFF))
    return packets(protocol, 0x0A000000 + hosts, 20_000 + ports, remotes, 443, length=FRAME_BYTES)


def with_flags(frames: Frames, flags: int, sequence: int) -> Frames:
    """Make frames of the same TCP endpoints, with other flags and sequence numbers."""
    (sources, source_ports), (destinations, destination_ports) = (
        endpoints(frames, "source"),
        endpoints(frames, "destination"),
    )
    return packets(
        TCP,
        sources,
        source_ports,
        destinations,
        destination_ports,
        length=FRAME_BYTES,
        tcp_flags=flags,
        sequence=sequence,
    )[0]


class Load:
    """A gateway with live sessions in a table that is full at their number, and frames of these sessions.

    All frames are Ethernet, 64 bytes long, and their checksums are right. The same arguments give the same load.

    Parameters
    ----------
    sessions
        How many: 1 to 7, or a multiple of 8.
    churn
        How often each session was replaced before, as in a gateway that has run for a while.
    protocols
        17 (UDP) and 6 (TCP), of the sessions in turn by generation (an eighth of them). TCP's have seen both SYNs and an ACK
        each way.

    Attributes
    ----------
    gateway
        It; not to be used otherwise while frames of the load are sent.
    now
        The time of it, in seconds.
    pristine, expected
        By side, uint8 (sessions, 64): a frame of each session, and what must become of it.

    Raises
    ------
    ValueError
        sessions is neither.
    """

    def __init__(self, sessions: int, churn: int = CHURN, protocols: Sequence[int] = (UDP,)) -> None:
        self.sessions = sessions
        self.gateway = make_gateway(sessions)
        self.random = np.random.default_rng(1)
        self.now = 0.0
        generations = min(GENERATIONS, sessions)
        self.size = sessions // generations
        if self.size * generations != sessions:
            raise ValueError(f"sessions must be less than {GENERATIONS} or a multiple of it, got {sessions}")
        self.protocols = [protocols[generation % len(protocols)] for generation in range(generations)]
        for step in range(generations * churn):  # each step one generation dies and another comes
            self._step(step, generations)
            self._admit(*flows(step * self.size, self.size))
        self.pristine = {side: np.zeros((sessions, FRAME_BYTES), np.uint8) for side in Side}
        self.expected = {side: np.zeros((sessions, FRAME_BYTES), np.uint8) for side in Side}
        for generation, protocol in enumerate(self.protocols):
            step = generations * churn + generation
            self._step(step, generations)
            self._establish(slice(generation * self.size, (generation + 1) * self.size), step * self.size, protocol)
        if self.gateway.counters()["sessions"] != sessions:
            raise AssertionError(f"{self.gateway.counters()['sessions']} sessions, not {sessions}")

    def _step(self, step: int, generations: int) -> None:
        self.now = step * UDP_SECONDS / generations
        self.gateway.advance(self.now)

    def _pass(self, frames: Frames, side: Side) -> Frames:
        out = frames.copy()
        self.expect(self.gateway.translate(out, np.full(len(out), FRAME_BYTES, np.uint32), side, now=self.now), side)
        return out

    def _admit(self, frames: Frames, lengths: Lengths) -> None:
        order = self.random.permutation(len(frames))
        self.expect(self.gateway.translate(frames[order], lengths, Side.INSIDE, now=self.now), Side.INSIDE)

    def _establish(self, rows: slice, first: int, protocol: int) -> None:
        """The last generations: their frames, and what becomes of them both ways."""
        inside, lengths = flows(first, self.size, protocol)
        if protocol == TCP:
            self._pass(with_flags(answers(self._pass(inside, Side.INSIDE), lengths)[0], SYN | ACK, 1), Side.OUTSIDE)
            inside = with_flags(inside, ACK, 2)
        translated = self._pass(inside, Side.INSIDE)
        outside = answers(translated, lengths)[0]
        back = self._pass(outside, Side.OUTSIDE)
        self._check(inside, translated, outside, back, protocol)
        for side, frames, outcome in ((Side.INSIDE, inside, translated), (Side.OUTSIDE, outside, back)):
            self.pristine[side][rows], self.expected[side][rows] = frames, outcome

    @staticmethod
    def _check(inside: Frames, translated: Frames, outside: Frames, back: Frames, protocol: int) -> None:
        """Against plain arithmetic: checksums are right, remotes are kept, answers reach who asked, endpoints are unique."""
        for frames in (translated, back):
            right = layer4_sums(frames, protocol, FRAME_BYTES - 14) == 0xFFFF
            if not (headers_right(frames).all() and right.all()):
                raise AssertionError("checksums")
        outer, ours = endpoints(translated, "source"), endpoints(inside, "source")
        same = [
            (endpoints(translated, "destination"), endpoints(inside, "destination")),
            (endpoints(back, "destination"), ours),
            (endpoints(back, "source"), endpoints(outside, "source")),
        ]
        if not all((one[0] == other[0]).all() and (one[1] == other[1]).all() for one, other in same):
            raise AssertionError("endpoints")
        if len(np.unique(outer[0] << np.uint64(16) | outer[1])) != len(translated):
            raise AssertionError("an outside endpoint twice")

    def rows(self, count: int, protocol: int | None = None) -> Rows:
        """Choose random sessions, of a protocol or of all: int64 (count,), rows of `pristine`."""
        rows = self.random.integers(0, self.sessions, count)
        if protocol is not None:
            own = np.flatnonzero([p == protocol for p in self.protocols])
            rows = rows % self.size + own[rows // self.size % len(own)] * self.size
        return rows

    def frames(self, side: Side, count: int) -> tuple[Frames, Lengths]:
        """Make frames of random sessions, fresh, since `translate` rewrites them: uint8 (count, 64), uint32 (count,)."""
        return self.pristine[side][self.rows(count)], np.full(count, FRAME_BYTES, np.uint32)

    def sides(self, count: int) -> Sides:
        """Choose random sides: uint8 (count,)."""
        return self.random.integers(0, 2, count, np.uint8)

    def take(self, rows: Rows, sides: Sides, of: dict[Side, Frames]) -> Frames:
        """Take a frame for each row, from the side that it says. of: `pristine` or `expected`."""
        return np.where(sides[:, None] == Side.INSIDE, of[Side.INSIDE][rows], of[Side.OUTSIDE][rows])

    @staticmethod
    def expect(verdicts: NDArray[np.uint8], side: Side) -> None:
        """Raise AssertionError unless every frame was translated: what was measured is the path that it should be."""
        if not (verdicts == VERDICT[side]).all():
            found = dict(zip(*np.unique(verdicts, return_counts=True), strict=True))
            raise AssertionError(f"not all {VERDICT[side].name}: {found}")

"""New sessions in a gateway of which a share of the ports is in use, beside a null admission of as many."""

from __future__ import annotations

import time

import numpy as np

from compiled import load_module
from natcore import Gateway, Policy, Side, SnatEntry, Timeouts
from natcore.testing.bulk import UDP
from natcore.testing.load import Load, flows

FLOWS = 16_384  # a round
ADDRESSES = 16
PORTS = 64_512  # an address
WINDOW_SECONDS = 14_400.0  # no window ends in 47 of 48 rounds
SHORT_SECONDS = 300.0


class Admission:
    """A gateway with a share `used` of its ports in use for good, while rounds of FLOWS new sessions come and go.

    Each session has a mapping and a port of its own; endpoint-independent, random ports, held down for hold_down seconds.
    The new ones are UDP; the old ones too, and are refreshed before and amid each round, untimed.
    """

    def __init__(self, used: float, hold_down: float, addresses: int = ADDRESSES, null: bool = True) -> None:
        self.held = int(addresses * PORTS * used)
        capacity = self.held + FLOWS
        self.gateway = Gateway(
            instance="ngw-bench",
            vpc_id="vpc-bench",
            max_sessions=capacity,
            window=WINDOW_SECONDS,
            timeouts=Timeouts(udp=SHORT_SECONDS),
            policy=Policy(hold_down=hold_down, pooling="arbitrary"),
            seed=1,
        )
        self.gateway.add(SnatEntry("10.0.0.0/8", pool=f"203.0.113.0-203.0.113.{addresses - 1}"))
        self.now = 0.0
        self.round = 0
        self.old, self.old_lengths = flows(0, self.held)
        self.refresh()
        if not null:
            return
        module = load_module("null_admission")
        self.null = module.NullTable(capacity)
        self.random = np.random.default_rng(2)
        self.slots = np.zeros(FLOWS, np.uint32)
        fill = [self.random.integers(0, 2**64, self.held, np.uint64) for _ in range(2)]
        if self.null.admit(*fill, np.zeros(self.held, np.uint32)) != self.held:
            raise AssertionError("the null table is full")

    def refresh(self) -> None:
        verdicts = self.gateway.translate(self.old.copy(), self.old_lengths.copy(), Side.INSIDE, now=self.now)
        Load.expect(verdicts, Side.INSIDE)

    def refresh_amid(self) -> None:
        """The clock goes on until this round's sessions are due; the old ones live."""
        self.now += SHORT_SECONDS / 2
        self.refresh()
        self.now += SHORT_SECONDS / 2

    def seconds(self) -> tuple[float, float]:
        """Seconds for a new session, and for its end, in another round."""
        self.round += 1
        self.refresh()
        frames, lengths = flows(self.held + self.round * FLOWS, FLOWS, UDP)
        verdicts = np.full(FLOWS, 255, np.uint8)
        created = self.gateway.counters()["created"]
        start = time.perf_counter()
        self.gateway.translate(frames, lengths, Side.INSIDE, now=self.now, out=verdicts)
        opening = time.perf_counter() - start
        Load.expect(verdicts, Side.INSIDE)
        if self.gateway.counters()["created"] != created + FLOWS:
            raise AssertionError(f"{FLOWS} sessions were to be new")
        self.now += SHORT_SECONDS / 2
        self.refresh()
        if self.gateway.counters()["created"] != created + FLOWS:
            raise AssertionError("the old sessions were to live on")
        self.now += SHORT_SECONDS / 2
        start = time.perf_counter()
        self.gateway.advance(self.now - 1.0)  # nothing ends yet: what looking at every session takes
        looking = time.perf_counter() - start
        start = time.perf_counter()
        self.gateway.advance(self.now)
        ending = time.perf_counter() - start - looking
        if self.gateway.counters()["sessions"] != self.held:
            raise AssertionError("the round's sessions were to end, and no others")
        return opening / FLOWS, ending / FLOWS

    def null_seconds(self) -> tuple[float, float]:
        """The same of the null admission."""
        outbound, inbound = (self.random.integers(0, 2**64, FLOWS, np.uint64) for _ in range(2))
        start = time.perf_counter()
        admitted = self.null.admit(outbound, inbound, self.slots)
        opening = time.perf_counter() - start
        if admitted != FLOWS:
            raise AssertionError("the null table is full")
        start = time.perf_counter()
        self.null.give_back(outbound, inbound, self.slots)
        return opening / FLOWS, (time.perf_counter() - start) / FLOWS

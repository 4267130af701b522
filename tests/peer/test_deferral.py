"""Who has answered a cycle of the stream has every session from before it, whatever happens meanwhile."""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Iterable
from random import Random

import pytest

from natcore import Gateway, Policy, Side, SnatEntry, Verdict
from natcore.peer import feed as feed_module
from natcore.peer.deferral import Deferral
from natcore.peer.feed import Feed
from natcore.peer.messages import ROW_BYTES, Kind, Message
from natcore.peer.standby import Standby
from natcore.testing import craft

SYN, SYN_ACK, ACK = 0x02, 0x12, 0x10
FEW_ROWS = 130  # in one message, so that a pass has several


class Life:
    """A gateway of which sessions begin and end, a standby, and messages on their way to it."""

    def __init__(self, seed: int, workers: int) -> None:
        self.random = Random(seed)
        self.gateway = Gateway(max_sessions=2000, workers=workers, seed=seed)
        self.gateway.add(SnatEntry("10.0.0.0/24", "203.0.113.1"))
        self.feed, self.standby = Feed(self.gateway), Standby(Gateway)
        self.deferral = Deferral(self.gateway, 0.02)
        self.way: deque[Message] = deque()
        self.sent = self.answered = self.cycle = 0
        self.waits_for: dict[tuple[int, int], int] = {}  # by host and port of a session: the cycle that tells it
        self.now = 0.0

    def happen(self) -> None:
        """Sessions begin, and now and then all of a host end."""
        for _ in range(self.random.choice([0, 1, 1, 5, 60])):
            host, port = self.random.randrange(1, 20), self.random.randrange(1024, 3000)
            frame = craft.ether(craft.udp((f"10.0.0.{host}", port), ("198.51.100.7", 53)))
            self.now += 0.001
            before = self.gateway.counters()["created"]
            if not self.gateway.translate_one(frame, Side.INSIDE, self.now)[0].is_forwarded:
                continue
            if self.gateway.counters()["created"] > before:
                self.waits_for[host, port] = self.cycle + 1
        if self.random.random() < 0.1:
            host = self.random.randrange(1, 20)
            self.gateway.end(subscriber=f"10.0.0.{host}", now=self.now)
            self.waits_for = {key: cycle for key, cycle in self.waits_for.items() if key[0] != host}

    def tell(self, messages: Iterable[Message]) -> None:
        for message in messages:
            self.way.append(message._replace(body=bytes(message.body)))
            self.sent += 1
            self.happen()

    def arrive(self, most: int) -> None:
        """So many messages come to the standby, and are answered."""
        while self.way and most:
            self.standby.receive(self.way.popleft())
            self.answered += 1
            most -= 1
            self.deferral.note_answer(self.answered, self.now)

    def fail_over(self) -> int:
        """The standby takes over; how many sessions it had to have, and has."""
        due = {key for key, cycle in self.waits_for.items() if cycle <= self.deferral.acknowledged}
        if not self.standby.is_complete:
            assert self.deferral.acknowledged == 0, "it could not take over"
            return 0
        promoted = self.standby.promote(elapsed=0.0, grace=3.0)
        assert due <= {(int(row["inside_ip"]) & 0xFF, int(row["inside_port"])) for row in promoted.sessions()}
        return len(due)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_session_from_before_an_answered_cycle_is_known(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """Whenever the standby takes over, also in the middle of a pass."""
    monkeypatch.setattr(feed_module, "BUFFER_BYTES", FEW_ROWS * ROW_BYTES[Kind.SESSIONS])
    assert sum(known_after(seed, workers) for seed in range(25)) > 800


def known_after(seed: int, workers: int) -> int:
    """Live a random while, and fail over."""
    life = Life(seed, workers)
    with life.feed, life.deferral:
        life.happen()
        life.tell(life.feed.snapshot())
        life.arrive(life.random.randrange(len(life.way)))
        for _ in range(life.random.randrange(30)):
            life.happen()
            life.cycle = life.deferral.begin_cycle()
            life.tell(life.feed.changes())
            life.deferral.end_cycle(life.cycle, life.sent, life.now)
            if life.random.random() < 0.2:
                life.tell(life.feed.refreshes())
            life.arrive(life.random.randrange(12))
        return life.fail_over()


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
@pytest.mark.parametrize("filtering", ["endpoint-independent", "address-and-port-dependent"])
def test_a_packet_that_meets_a_waiting_session_from_outside_needs_no_hold(protocol: str, filtering: str) -> None:
    """Two hosts open a path to each other. The inside host's first packet waits, the remote's comes in, and the gateway dies.
    The remote knew the outside endpoint, so a session of it had been acknowledged: what the inside host sends next leaves by
    the same one, and opens the path again."""
    gateway = Gateway(max_sessions=100, seed=1, policy=Policy(filtering=filtering, tcp_pickup=True))  # type: ignore[arg-type]
    gateway.add(SnatEntry("10.0.0.0/24", "203.0.113.1"))
    inside, rendezvous, remote = ("10.0.0.5", 5000), ("198.51.100.1", 3478), ("198.51.100.7", 4000)

    def packet(source: tuple[str | int, int], destination: tuple[str | int, int], flags: int) -> bytes:
        made = craft.udp(source, destination) if protocol == "udp" else craft.tcp(source, destination, flags)
        return craft.ether(made)

    def out(by: Gateway, to: tuple[str, int], flags: int) -> tuple[str | int, int]:
        verdict, frame = by.translate_one(packet(inside, to, flags), Side.INSIDE, 1.0)
        assert verdict is Verdict.OUTBOUND and frame is not None
        return int.from_bytes(frame[26:30], "big"), int.from_bytes(frame[34:36], "big")

    feed, standby = Feed(gateway), Standby(Gateway)
    for message in feed.snapshot():
        standby.receive(message)
    known = out(gateway, rendezvous, SYN)  # and the remote is told which endpoint that was
    for message in feed.changes():
        standby.receive(message)
    assert out(gateway, remote, SYN) == known  # it waits, and is lost with the gateway
    assert gateway.translate_one(packet(remote, known, SYN), Side.OUTSIDE, 1.0)[0] is Verdict.INBOUND
    promoted = standby.promote(elapsed=0.0, grace=0.0)
    assert out(promoted, remote, SYN_ACK) == known  # its answer, or that again
    assert promoted.translate_one(packet(remote, known, ACK), Side.OUTSIDE, 2.0)[0] is Verdict.INBOUND


def test_nothing_waits_before_the_first_answer_or_for_a_standby_that_is_silent() -> None:
    with Deferral(Gateway(max_sessions=10), 0.02) as deferral:
        deferral.end_cycle(deferral.begin_cycle(), 10, 0.0)
        deferral.note_answer(9, 0.1)
        assert not deferral.holds
        deferral.note_answer(10, 0.1)
        assert deferral.holds
        deferral.end_cycle(deferral.begin_cycle(), 12, 1.0)
        deferral.end_cycle(deferral.begin_cycle(), 14, 1.4)
        assert deferral.holds
        deferral.end_cycle(deferral.begin_cycle(), 16, 1.6)
        assert not deferral.holds
        deferral.note_answer(12, 1.7)
        assert not deferral.holds, "it is behind still"
        deferral.note_answer(16, 1.7)
        assert deferral.holds


def test_a_cycle_that_begins_asks_for_no_other_one() -> None:
    gateway = Gateway(max_sessions=10)
    with Deferral(gateway, 0.02) as deferral:
        assert not select.select([deferral.fileno()], [], [], 0)[0]
        assert [deferral.begin_cycle() for _ in range(3)] == [1, 2, 3]
    with Deferral(gateway, 0.02) as deferral:
        assert deferral.begin_cycle() == 4, "frames of the stream before wait for no cycle of this one by mistake"
    deferral.close()

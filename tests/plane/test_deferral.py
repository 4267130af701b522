"""A plane holds back the first packets of sessions until a standby has these, and no others."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from natcore.api.peer import Fence, PeerDeferral
from natcore.demo.namespaces import Network
from natcore.internal.parts import parts_of
from support.netns import SERVER, Nat, adds_up, at, gateway, needs_root, ping, ping_once, start, until
from support.netns import each_driver as each_driver
from support.netns import network as network

pytestmark = needs_root
LONG = 3_600_000  # ms
SO_RCVBUFFORCE = 33


class Waiting:
    """The deferral of a gateway, told by hand; and a UDP server of the outside host."""

    def __init__(self, nat: Nat) -> None:
        self.network, self.gateway, self.plane = nat
        self._stack = ExitStack()
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self._stack.callback(os.close, self.fd)
        self.deferral = PeerDeferral(parts_of(self.gateway).core.workers, self.fd)
        self._stack.callback(self.deferral.close)
        self.server = self.socket("out")
        self.server.bind((SERVER, 0))
        self.server.settimeout(60)

    def socket(self, member: str) -> socket.socket:
        with at(self.network, member):
            return self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

    def send(self, *numbers: int, client: socket.socket | None = None) -> socket.socket:
        """Send datagrams over one connection."""
        client = client or self.socket("in")
        for number in numbers:
            client.sendto(number.to_bytes(4), self.server.getsockname())
        return client

    def came(self, count: int) -> list[int]:
        return [int.from_bytes(self.server.recv(64)) for _ in range(count)]

    def nothing_came(self) -> bool:
        return not select.select([self.server], [], [], 0)[0]

    def is_asked(self) -> bool:
        """Whether a frame waits for a cycle that has not begun."""
        return bool(select.select([self.fd], [], [], 60)[0])

    def counters(self) -> dict[str, int]:
        found = self.plane.counters()
        return {name.removeprefix("deferred_"): found[name] for name in found if name.startswith("deferred")}

    def answer(self) -> None:
        """What the feed and the standby do."""
        os.eventfd_read(self.fd)
        self.deferral.acknowledge(self.deferral.begin_cycle())

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def waiting(network: Network, each_driver: str) -> Iterator[Waiting]:
    with gateway() as made, start(network, made) as plane:
        assert ping(network, "in", SERVER)
        found = Waiting((network, made, plane))
        yield found
        found.close()
        assert adds_up(made)


def test_a_first_packet_leaves_when_it_is_acknowledged_and_others_pass(waiting: Waiting) -> None:
    before = waiting.send(1)
    assert waiting.came(1) == [1]
    waiting.deferral.hold(LONG)
    later = waiting.send(2, 3, 4)
    assert waiting.is_asked()
    waiting.send(5, client=before)
    assert waiting.came(1) == [5], "an established session's packets pass"
    until(lambda: waiting.counters()["deferred"] == 3)
    assert waiting.nothing_came()
    waiting.answer()
    assert waiting.came(3) == [2, 3, 4]
    waiting.send(6, client=later)
    assert waiting.came(1) == [6]
    assert waiting.counters()["acknowledged"] == 3
    assert waiting.counters()["late"] == waiting.counters()["overflow"] == 0


def test_a_packet_waits_no_longer_than_it_may_and_not_without_a_standby(waiting: Waiting) -> None:
    waiting.deferral.hold(100)
    waiting.send(1, 2)
    assert waiting.came(2) == [1, 2]
    until(lambda: waiting.counters()["late"] == 2)
    assert waiting.counters()["ms"] >= 200
    waiting.deferral.hold(LONG)
    waiting.send(3)
    until(lambda: waiting.counters()["deferred"] == 1)
    waiting.deferral.hold(0)
    assert waiting.came(1) == [3]
    until(lambda: waiting.counters()["alone"] == 1)
    waiting.send(4)
    assert waiting.came(1) == [4]
    assert waiting.counters()["deferred"] == 0


def test_what_there_is_no_space_for_leaves_in_order(waiting: Waiting) -> None:
    """8192 frames wait at most: the oldest make way."""
    waiting.deferral.hold(LONG)
    waiting.server.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
    client = waiting.send(0)
    assert waiting.is_asked()
    sent = 0
    while waiting.counters()["overflow"] == 0:
        waiting.send(*range(sent + 1, sent + 65), client=client)
        sent += 64
        until(lambda so_far=sent: sum(waiting.counters()[name] for name in ("deferred", "overflow")) > so_far - 64)
        assert sent < 20_000
    numbers = waiting.came(waiting.counters()["overflow"])
    assert numbers == sorted(numbers)
    waiting.answer()
    until(lambda: waiting.counters()["deferred"] == 0)
    rest = waiting.came(waiting.counters()["acknowledged"])
    assert numbers + rest == sorted(numbers + rest)


def test_behind_a_fence_nothing_that_waits_is_sent(waiting: Waiting) -> None:
    waiting.deferral.hold(LONG)
    waiting.send(1)
    assert waiting.is_asked()
    until(lambda: waiting.counters()["deferred"] == 1)
    fence = Fence(parts_of(waiting.gateway).core.workers)
    fence.set(1)
    waiting.answer()
    assert not ping_once(waiting.network, "in", SERVER)
    assert waiting.nothing_came()
    waiting.plane.stop()
    assert waiting.nothing_came(), "another gateway may translate"


def test_a_plane_that_stops_sends_what_waits(waiting: Waiting) -> None:
    waiting.deferral.hold(LONG)
    waiting.send(1)
    until(lambda: waiting.counters()["deferred"] == 1)
    waiting.plane.stop()
    assert waiting.came(1) == [1]


def test_a_ping_and_tcp_wait_too(waiting: Waiting) -> None:
    waiting.deferral.hold(LONG)
    with at(waiting.network, "out"):
        listening = socket.create_server((SERVER, 0))
    with at(waiting.network, "in"):
        client = socket.socket()
    with listening, client:
        client.setblocking(False)
        client.connect_ex(listening.getsockname())
        assert waiting.is_asked()
        until(lambda: waiting.counters()["deferred"] == 1)
        waiting.answer()
        listening.settimeout(60)
        listening.accept()[0].close()
        until(lambda: waiting.counters()["deferred"] == 0)
    assert not ping_once(waiting.network, "in", SERVER)
    assert waiting.counters()["deferred"] == 1

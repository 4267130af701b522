"""A plane translates and sends nothing from the moment on at which another gateway may translate."""

from __future__ import annotations

import time

from natcore import Gateway, Side
from natcore.api.peer import Fence
from natcore.demo.namespaces import Network
from natcore.internal.parts import parts_of
from natcore.peer.feed import Feed
from natcore.peer.pair import Pair
from natcore.peer.standby import Standby
from natcore.plane.plane import Plane
from natcore.testing import craft
from support.netns import CLIENT, POOL, SERVER, at, gateway, needs_root, ping, ping_once
from support.netns import nat as nat
from support.netns import network as network


@needs_root
def test_behind_its_fence_a_plane_forwards_nothing_and_counts_what_came(nat: tuple[Network, Gateway, Plane]) -> None:
    network, gateway, plane = nat
    assert ping(network, "in", SERVER)
    fence = Fence(parts_of(gateway).core.workers)
    fence.set(time.monotonic_ns())
    before = plane.counters()
    received = gateway.counters()["received"]
    assert not ping_once(network, "in", SERVER)
    after = plane.counters()
    assert after["inside_fenced"] > before["inside_fenced"]
    assert after["outside_sent"] == before["outside_sent"]
    assert gateway.counters()["received"] == received
    fence.set(time.monotonic_ns() + 3_600 * 10**9)
    assert ping(network, "in", SERVER)
    fence.set(0)
    assert fence.until_ns() == 0
    assert ping(network, "in", SERVER)


@needs_root
def test_a_plane_that_stands_by_does_nothing_until_its_image_takes_over_and_then_has_its_clock(
    network: Network,
) -> None:
    """Rows are applied to the gateway meanwhile; the plane itself is open, and goes on at once."""
    with gateway() as active, Feed(active) as feed:
        standby = Standby(Gateway)
        for message in feed.snapshot():
            standby.receive(message)
        image = standby.image
        assert image is not None
        Pair.hold(image)
        with at(network, "gw"):
            plane = Plane(image, "lan0", "wan0", block_when_stopped=True, standing_by=True)
        with plane:
            assert not ping_once(network, "in", SERVER)
            assert network.run("out", ["ip", "neigh", "show", POOL]).stdout == ""  # nothing was announced or answered
            assert plane.counters()["inside_fenced"] > 0
            opened = craft.ether(craft.udp((CLIENT, 1024), (SERVER, 53)))
            assert active.translate_one(opened, Side.INSIDE, 1000.0)[0].is_forwarded
            for message in feed.changes():
                standby.receive(message)
            promoted = standby.promote(elapsed=2.0, grace=0.0)
            assert promoted is image
            plane.activate()
            promoted.set_epoch(promoted.epoch)  # a log may begin now; nothing is translated yet
            before = time.monotonic()
            Fence(parts_of(promoted).core.workers).set(0)
            plane.announce()
            assert ping(network, "in", SERVER)
            assert 1002.0 <= promoted.now <= 1002.0 + (time.monotonic() - before) + 1.0
            assert [int(row["inside_port"]) for row in promoted.sessions() if row["protocol"] == 17] == [1024]

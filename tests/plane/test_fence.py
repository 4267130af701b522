"""A plane translates and sends nothing from the moment on at which another gateway may translate."""

from __future__ import annotations

import time

from natcore import Gateway
from natcore.api.peer import Fence
from natcore.demo.namespaces import Network
from natcore.internal.parts import parts_of
from natcore.plane.plane import Plane
from support.netns import SERVER, needs_root, ping, ping_once
from support.netns import nat as nat


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

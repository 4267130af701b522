"""A plane translates and sends nothing from the moment on at which another gateway may translate."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest

from natcore import Gateway, Side
from natcore.api.peer import Fence
from natcore.demo.namespaces import Network
from natcore.internal.parts import parts_of
from natcore.peer.feed import Feed
from natcore.peer.lease import clock
from natcore.peer.pair import Pair
from natcore.peer.standby import Standby
from natcore.plane.plane import Plane
from natcore.testhooks.planted_faults import unlock_worker
from natcore.testing import craft
from support.netns import CLIENT, POOL, SERVER, at, gateway, needs_root, ping, ping_once, until
from support.netns import nat as nat
from support.netns import network as network
from support.worker_lock import locked


@needs_root
def test_behind_its_fence_a_plane_forwards_nothing_and_counts_what_came(nat: tuple[Network, Gateway, Plane]) -> None:
    network, gateway, plane = nat
    assert ping(network, "in", SERVER)
    fence = Fence(parts_of(gateway).core.workers)
    fence.set(int(clock() * 1e9))
    before = plane.counters()
    received = gateway.counters()["received"]
    assert not ping_once(network, "in", SERVER)
    after = plane.counters()
    assert after["inside_fenced"] > before["inside_fenced"]
    assert after["outside_sent"] == before["outside_sent"]
    assert gateway.counters()["received"] == received
    fence.set(int(clock() * 1e9) + 3_600 * 10**9)
    assert ping(network, "in", SERVER)
    fence.set(0)
    assert fence.until_ns() == 0
    assert ping(network, "in", SERVER)


@needs_root
def test_a_fence_counts_the_time_of_a_suspended_machine() -> None:
    """In a time namespace CLOCK_BOOTTIME is a day ahead of CLOCK_MONOTONIC, as after a day of sleep."""
    test = test_behind_its_fence_a_plane_forwards_nothing_and_counts_what_came.__name__
    ahead = ["unshare", "--time", "--boottime", "86400"]
    if subprocess.run([*ahead, "true"], capture_output=True).returncode:
        pytest.skip("no time namespaces here")
    command = [*ahead, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::{test}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout


@needs_root
def test_a_batch_that_waited_for_its_worker_until_the_fence_was_reached_is_not_translated(
    nat: tuple[Network, Gateway, Plane],
) -> None:
    """As in a stalled process: each datagram comes while the plane may translate, and its turn comes when it may not."""
    network, gateway, plane = nat
    assert ping(network, "in", SERVER)
    fence = Fence(parts_of(gateway).core.workers)
    worker = gateway._core.worker_capsule()
    with at(network, "in"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for _ in range(5):  # a loop may wait for the worker's lock with its timers first, and has no frame then
            before = plane.counters()
            sessions = gateway.counters()["created"]
            end = clock() + 0.1
            fence.set(int(end * 1e9))
            until(lambda: locked(worker))
            client.sendto(b"", (SERVER, 9))
            until(lambda end=end: clock() >= end)
            unlock_worker(worker)
            until(lambda before=before: plane.counters()["inside_fenced"] > before["inside_fenced"])
            assert plane.counters()["outside_sent"] == before["outside_sent"]
            assert gateway.counters()["created"] == sessions
            fence.set(0)


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

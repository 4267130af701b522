"""What a plane over AF_XDP has of its own: places that all come back, several queues, ARP that its program passes on."""

from __future__ import annotations

import errno
import socket
import subprocess

import pytest

from natcore import InterfaceError, SnatEntry
from natcore.demo.namespaces import Network
from natcore.plane import xdp_program
from natcore.plane.drivers import RING_ENTRIES, XdpAccess
from natcore.plane.plane import Plane
from support.multi_worker import WORKERS
from support.netns import SERVER, adds_up, at, gateway, needs_root, ping, ping_once, start, transfer, until, xdp_missing

pytestmark = [needs_root, pytest.mark.skipif(bool(xdp_missing()), reason=xdp_missing())]


def free_places(plane: Plane) -> int:
    access = plane._access
    assert isinstance(access, XdpAccess)
    return sum(memory.free for memory in access._memories)


def test_every_place_comes_back_whatever_became_of_its_frame(network: Network) -> None:
    with gateway() as made, start(network, made, driver="af_xdp") as plane:
        idle = 2 * RING_ENTRIES * WORKERS  # the kernel has as many to receive into
        until(lambda: free_places(plane) == idle)
        sent, arrived = transfer(network, 20 << 20)
        assert sent == arrived
        network.run("in", ["ping", "-q", "-f", "-c500", "-s3000", SERVER])
        network.run("in", ["ping", "-q", "-c2", "-i0.2", "-W1", "198.18.0.66"], check=False)  # no host answers
        network.run("in", ["ping", "-q", "-c5", "-i0.2", "-W1", "-t1", SERVER], check=False)
        until(lambda: (made.counters()["dropped_ttl"], made.counters()["dropped_no_neighbour"]) == (5, 2))
        assert plane.counters()["waiting"] == 0
        network.down("gw", "wan0")
        until(lambda: plane.state == "degraded")
        assert not ping_once(network, "in", SERVER)
        network.up("gw", "wan0")
        until(lambda: plane.state == "running" and ping(network, "in", SERVER))
        until(lambda: free_places(plane) == idle)
        assert adds_up(made)
        network.remove("gw", "wan0")
        until(lambda: plane.state == "degraded")
        until(lambda: free_places(plane) == 3 * RING_ENTRIES * WORKERS)
    assert free_places(plane) == 4 * RING_ENTRIES * WORKERS


@pytest.mark.parametrize("threads", [True, False])
def test_an_interface_with_several_queues(network: Network, threads: bool) -> None:
    for member, interface in (("gw", "lan0"), ("in", "eth0"), ("gw", "wan0"), ("out", "eth0")):
        network.run(member, ["ethtool", "-L", interface, "rx", "2", "tx", "2"])
    with gateway() as made, start(network, made, driver="af_xdp", threads=threads) as plane:
        pinging = network.popen("in", ["ping", "-q", "-f", "-c400", SERVER], stdout=subprocess.PIPE, text=True)
        until(lambda: plane.step(64) if not threads else True)
        until(lambda: (threads or plane.step(64) >= 0) and pinging.poll() is not None)
        answered = 400 - made.counters()["dropped_no_neighbour"]  # none, unless the machine took a second to ask
        assert pinging.stdout is not None and f" {answered} received" in pinging.stdout.read()
        assert plane.counters()["inside_received"] >= 400
        assert adds_up(made)


def test_arp_for_a_pool_that_comes_later_is_answered_and_for_one_that_went_no_more(network: Network) -> None:
    with gateway() as made, start(network, made, driver="af_xdp") as plane:
        later = made.add(SnatEntry("10.0.9.0/24", pool="198.18.0.70-198.18.0.71"))
        assert ping(network, "out", "198.18.0.71")
        made.remove(later)
        network.run("out", ["ip", "neigh", "flush", "dev", "eth0"])
        assert not ping_once(network, "out", "198.18.0.71")
        assert plane.counters()["outside_arp_answered"] >= 1


def test_an_interface_with_another_program_is_refused_and_left_as_it_was(network: Network) -> None:
    with at(network, "gw"):
        other = xdp_program.Program(socket.if_nametoindex("wan0"), bytes(6), 1)
        with pytest.raises(InterfaceError, match="outside='wan0': another XDP program") as caught:
            gateway().forward("lan0", "wan0", driver="af_xdp")
        assert caught.value.errno == errno.EBUSY
        assert "xdp" in network.run("gw", ["ip", "link", "show", "wan0"]).stdout
        assert "xdp" not in network.run("gw", ["ip", "link", "show", "lan0"]).stdout
        other.close()
    with gateway() as made, start(network, made, driver="af_xdp"):
        assert ping(network, "in", SERVER)


def test_a_large_mtu_has_larger_places(network: Network) -> None:
    for member, interface in (("gw", "lan0"), ("in", "eth0"), ("gw", "wan0"), ("out", "eth0")):
        network.up(member, interface, mtu=3400)
    with gateway() as made, start(network, made, driver="af_xdp"):
        assert ping(network, "in", SERVER, "-Mdo", "-s3372")
        sent, arrived = transfer(network, 5 << 20)
        assert sent == arrived
        assert adds_up(made)

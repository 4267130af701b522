"""A plane that favours latency: the same traffic, passed on frame by frame."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from natcore.demo.namespaces import Network
from support.netns import POOL, SERVER, Nat, adds_up, at, gateway, needs_root, ping, start, transfer, until

pytestmark = needs_root


@pytest.fixture
def nat(network: Network) -> Iterator[Nat]:
    with gateway() as made, start(network, made, favour="latency") as plane:
        yield network, made, plane


@pytest.mark.parametrize("offloads", ["tx on", "tso off gso off", "tx off"])
@pytest.mark.parametrize("upload", [True, False], ids=["upload", "download"])
def test_tcp_arrives_as_it_was_sent(nat: Nat, offloads: str, upload: bool) -> None:
    """Super-frames too, which do not fit a place of the ring."""
    network, made, plane = nat
    for interface in ("lan0", "wan0"):
        network.run("gw", ["ethtool", "-K", interface, *offloads.split()])
    sent, arrived = transfer(network, 20 << 20, upload=upload)
    assert arrived == sent
    counters = plane.counters()
    assert counters["inside_truncated"] == counters["outside_truncated"] == 0
    assert counters["inside_send_errors"] == counters["outside_send_errors"] == 0
    assert adds_up(made)


def test_datagrams_and_fragments(nat: Nat) -> None:
    network, made, _ = nat
    assert ping(network, "in", SERVER)
    assert ping(network, "in", SERVER, "-s", "4000")
    with at(network, "out"):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with at(network, "in"):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server, client:
        server.bind((SERVER, 0))
        for each in (server, client):
            each.settimeout(60)
        for size in (0, 1472, 1473, 65_507):
            client.sendto(b"x" * size, server.getsockname())
            data, source = server.recvfrom(65_535)
            assert (len(data), source[0]) == (size, POOL)
            server.sendto(data, source)
            assert len(client.recv(65_535)) == size
    assert made.counters()["dropped"] == 0 and adds_up(made)


def test_a_link_that_goes_down_and_one_that_vanishes(nat: Nat) -> None:
    network, made, plane = nat
    assert ping(network, "in", SERVER)
    network.down("gw", "wan0")
    until(lambda: plane.state == "degraded")
    network.up("gw", "wan0")
    until(lambda: plane.state == "running")
    assert ping(network, "in", SERVER)
    network.remove("gw", "wan0")
    until(lambda: plane.state == "degraded")
    network.pair("gw", "wan0", "out", "eth0")
    network.up("gw", "wan0", "198.18.0.1/24")
    network.up("out", "eth0", f"{SERVER}/24")
    until(lambda: plane.state == "running")
    assert ping(network, "in", SERVER)
    assert adds_up(made)


def test_more_frames_than_the_ring_has_places(nat: Nat) -> None:
    """They are counted where they are lost: no account is wrong for it."""
    network, made, plane = nat
    assert ping(network, "in", SERVER)
    with at(network, "in"):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with client:
        for _ in range(20_000):
            client.sendto(b"flood", (SERVER, 9))
    assert ping(network, "in", SERVER)
    counters = plane.counters()
    assert counters["inside_received"] + counters["inside_ring_drops"] > 4096
    assert adds_up(made)

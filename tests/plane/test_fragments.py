"""Fragments between real interfaces: large pings, large datagrams, and a smaller MTU behind the gateway."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterator

import pytest

from natcore import DnatEntry, Gateway
from natcore.demo.namespaces import Network
from support.netns import (
    CLIENT,
    GATEWAY_INSIDE,
    LIMIT_SECONDS,
    POOL,
    SERVER,
    Nat,
    adds_up,
    at,
    gateway,
    needs_root,
    ping,
    ping_once,
    start,
    until,
)

pytestmark = [needs_root, pytest.mark.usefixtures("each_driver")]

WHOLE = "198.18.0.101"  # outside address of the inside host, 1:1
SMALL = 1400  # MTU of the outside link


def echoed(network: Network, size: int, count: int) -> int:
    """How many datagrams of size bytes came back from the server as they were."""
    with at(network, "out"):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with at(network, "in"):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server, client:
        server.bind((SERVER, 0))
        server.settimeout(60)
        client.settimeout(60)
        back = 0
        for number in range(count):
            data = bytes([number]) * size
            client.sendto(data, server.getsockname())
            arrived, source = server.recvfrom(65_535)
            assert source[0] == POOL
            server.sendto(arrived, source)
            back += client.recv(65_535) == data
        return back


def test_large_pings_both_ways(nat: Nat) -> None:
    network, made, _ = nat
    made.add(DnatEntry(WHOLE, "any", CLIENT, "any", protocol="any"))
    assert ping(network, "in", SERVER)
    assert ping(network, "in", SERVER, "-s", "4000")
    assert ping(network, "out", WHOLE, "-s", "4000")
    assert made.counters()["dropped_fragment"] == 0 and adds_up(made)


def test_large_datagrams(nat: Nat) -> None:
    network, made, _ = nat
    assert echoed(network, 8000, 20) == 20
    (row,) = [row for row in made.sessions() if row["protocol"] == 17]
    assert (int(row["packets_out"]), int(row["packets_in"])) == (120, 120), "six fragments each"
    assert made.counters()["dropped"] == 0 and adds_up(made)


def test_the_first_datagram_to_an_unknown_neighbour_arrives_with_all_its_fragments(nat: Nat) -> None:
    """The largest there is: 45 of them."""
    network, made, plane = nat
    assert echoed(network, 65_507, 1) == 1
    assert plane.counters()["outside_unresolved"] == 0
    assert made.counters()["dropped"] == 0 and adds_up(made)


def test_what_waits_for_one_next_hop_is_bounded(nat: Nat) -> None:
    network, made, plane = nat
    with at(network, "in"):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with client:
        for _ in range(5):
            client.sendto(bytes(65_507), ("198.18.0.66", 9))  # no host is there
        until(lambda: plane.counters()["outside_unresolved"] >= 5 * 45)  # received, some do not wait yet
        until(lambda: plane.counters()["waiting"] == 0)
    assert plane.counters()["outside_unresolved"] == made.counters()["dropped_no_neighbour"] == 5 * 45
    assert adds_up(made)
    assert ping(network, "in", SERVER)  # and the space is free again


@pytest.fixture
def narrow(network: Network) -> Iterator[tuple[Network, Gateway]]:
    """The outside link carries 1,400 bytes."""
    network.up("gw", "wan0", mtu=SMALL)
    network.up("out", "eth0", mtu=SMALL)
    with gateway() as made, start(network, made):
        yield network, made


def test_a_narrow_link_gets_fragments(narrow: tuple[Network, Gateway]) -> None:
    """Each is as long as the link carries at most, and the far end puts them together."""
    network, made = narrow
    assert ping(network, "in", SERVER)
    assert ping_once(network, "in", SERVER, "-M", "dont", "-s", "1450", seconds=LIMIT_SECONDS)
    assert made.counters()["generated"] == 1
    assert ping(network, "in", SERVER, "-M", "dont", "-s", "4000")
    assert made.counters()["dropped"] == 0 and adds_up(made)


def test_a_narrow_link_tells_its_mtu(narrow: tuple[Network, Gateway]) -> None:
    """Path MTU discovery (RFC 1191): the sender learns it, from the gateway's inside address."""
    network, made = narrow
    done = network.run("in", ["ping", "-c1", "-W60", "-M", "do", "-s", "1450", SERVER], check=False)
    assert f"From {GATEWAY_INSIDE}" in done.stdout and f"mtu = {SMALL}" in done.stdout
    assert made.counters()["dropped_mtu"] >= 1


@pytest.mark.skipif(shutil.which("tracepath") is None, reason="no tracepath here (Debian: iputils-tracepath)")
def test_tracepath_finds_the_mtu(narrow: tuple[Network, Gateway]) -> None:
    network, _ = narrow
    assert ping(network, "in", SERVER)
    done = network.run("in", ["tracepath", "-n", "-m", "4", SERVER], check=False)
    assert re.search(rf"1:\s+{GATEWAY_INSIDE}", done.stdout), done.stdout
    assert f"pmtu {SMALL}" in done.stdout and f"{SERVER}" in done.stdout and "reached" in done.stdout


@pytest.mark.skipif(shutil.which("traceroute") is None, reason="no traceroute here (Debian: traceroute)")
@pytest.mark.parametrize("options", [[], ["-I"], ["-T", "-p", "80"]])
def test_traceroute_shows_the_gateway_as_a_hop(nat: Nat, options: list[str]) -> None:
    network, _, _ = nat
    assert ping(network, "in", SERVER)
    done = network.run("in", ["traceroute", "-n", "-q1", "-w60,0,0", "-m4", *options, SERVER], check=False)
    hops = [line.split()[1] for line in done.stdout.splitlines()[1:]]
    assert hops == [GATEWAY_INSIDE, SERVER], done.stdout

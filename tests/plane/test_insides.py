"""A plane with two inside interfaces: which way back, hairpins between them, and each one's own life."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress

import pytest

from natcore import Link, NoNatEntry, Policy, SecurityWarning
from natcore.demo.namespaces import Network
from natcore.plane import links
from support.netns import (
    CLIENT,
    GATEWAY_INSIDE,
    GATEWAY_SECOND,
    POOL,
    SECOND,
    SERVER,
    Nat,
    adds_up,
    at,
    build,
    connect,
    gateway,
    join_second,
    listener,
    needs_root,
    ping,
    ping_once,
    queues,
    start,
    until,
)

pytestmark = [needs_root, pytest.mark.usefixtures("each_driver")]

INSIDES = ("lan0", "lan1")
MTU_DISCOVER, DONT, DO, PATH_MTU = 10, 0, 2, 14  # linux/in.h: IP_MTU_DISCOVER, IP_PMTUDISC_…, IP_MTU
HOSTS = {"in": CLIENT, "in2": SECOND}


@pytest.fixture
def network() -> Iterator[Network]:
    with build("in2") as made:
        join_second(made)
        yield made


@pytest.fixture
def nat(network: Network) -> Iterator[Nat]:
    with gateway() as made, start(network, made, inside=INSIDES) as plane:
        yield network, made, plane


def udp(network: Network, member: str, address: str) -> socket.socket:
    with at(network, member):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, 0))
    made.settimeout(60)
    return made


# ---- the way back ----------------------------------------------------------------------------------------------------


def test_answers_go_back_by_the_interface_of_their_host(nat: Nat) -> None:
    network, made, plane = nat
    for member in HOSTS:
        assert ping(network, member, SERVER)
        with listener(network, "out") as server, connect(network, member, (SERVER, server.getsockname()[1])) as client:
            accepted, source = server.accept()
            with accepted:
                accepted.sendall(b"hello")
                assert (client.recv(10), source[0]) == (b"hello", POOL)
    assert plane.state == "running"
    assert sorted(set(made.sessions()["inside_ip"] & 0xFFFF)) == [0x0002, 0x0102]
    assert adds_up(made)


def test_counters_are_told_by_interface_and_as_sums(nat: Nat) -> None:
    network, _, plane = nat
    for _ in range(3):
        assert ping(network, "in2", SERVER)
    until(lambda: plane.counters_by_interface()["lan1"]["sent"] >= 3)  # counted when it has left
    of, sums = plane.counters_by_interface(), plane.counters()
    assert list(of) == ["lan0", "lan1", "wan0"]
    assert of["lan0"]["sent"] < 3
    for name in of["lan0"]:
        assert sums[f"inside_{name}"] >= of["lan0"][name] + of["lan1"][name]  # told later, of a plane that runs
        assert sums[f"outside_{name}"] >= of["wan0"][name]


def test_a_network_behind_a_router_of_the_second_inside_link(nat: Nat) -> None:
    network, _, _ = nat
    network.up("in2", "lo", "10.0.9.9/32")
    network.route("gw", "10.0.9.0/24", via=SECOND)
    assert ping(network, "in2", SERVER, "-I", "10.0.9.9")
    network.up("in", "lo", "10.0.9.9/32")
    network.route("gw", "10.0.9.0/24", via=CLIENT)  # it moves to the other link
    assert ping(network, "in", SERVER, "-I", "10.0.9.9")


def test_hairpin_from_one_inside_link_to_the_other(nat: Nat) -> None:
    network, made, _ = nat
    with udp(network, "in", CLIENT) as one, udp(network, "in2", SECOND) as two:
        for client in (one, two):
            client.sendto(b"open", (SERVER, 9))
        until(lambda: len(made.mappings()) == 2)
        port = {int(row["inside_ip"]) >> 8 & 0xFF: int(row["outside_port"]) for row in made.mappings()}
        one.sendto(b"hello", (POOL, port[1]))
        assert two.recvfrom(100) == (b"hello", (POOL, port[0]))
        two.sendto(b"and back", (POOL, port[0]))
        assert one.recvfrom(100) == (b"and back", (POOL, port[1]))
    assert made.counters()["dropped"] == 0
    assert adds_up(made)


def test_what_is_not_translated_goes_from_one_inside_link_to_the_other(nat: Nat) -> None:
    """By the routing table, with the hosts' own addresses; whole datagrams, fragments, TCP, and ICMP errors."""
    network, made, plane = nat
    made.add(NoNatEntry("10.0.0.0/16", "10.0.0.0/16"))
    assert ping(network, "in", SECOND)
    assert ping(network, "in2", CLIENT, "-s", "4000")
    with listener(network, "in2") as server, connect(network, "in", (SECOND, server.getsockname()[1])) as client:
        accepted, source = server.accept()
        with accepted:
            assert source[0] == CLIENT
            client.sendall(b"question")
            assert accepted.recv(100) == b"question"
            accepted.sendall(b"answer")
            assert client.recv(100) == b"answer"
    assert plane.counters_by_interface()["wan0"]["sent"] <= 2  # gratuitous ARP
    with udp(network, "in", CLIENT) as client:
        client.connect((SECOND, 9))
        client.send(b"no listener")
        with pytest.raises(ConnectionRefusedError):
            client.recv(100)
    assert made.counters()["dropped"] == made.counters()["created"] == 0
    assert made.counters()["forwarded"] > 10 and adds_up(made)
    assert ping(network, "in", SERVER)


def test_between_inside_links_a_router_is_seen(nat: Nat) -> None:
    network, made, _ = nat
    assert not ping_once(network, "in", SECOND)  # without an entry it is translated, and leaves outside
    made.add(NoNatEntry("10.0.0.0/16", "10.0.0.0/16"))
    done = network.run("in", ["ping", "-c1", "-W60", "-t1", SECOND], check=False)
    assert f"From {GATEWAY_INSIDE}" in done.stdout
    assert ping(network, "in", SECOND)


# ---- how long packets may be -----------------------------------------------------------------------------------------


def test_the_mtu_is_that_of_the_link_a_packet_leaves_by(network: Network) -> None:
    """lan1 carries 1,300 bytes, the others 1,500: only what goes to lan1 is cut, or refused with its MTU."""
    network.up("gw", "lan1", mtu=1300)
    network.up("in2", "eth0", mtu=1300)
    with gateway() as made, start(network, made, inside=INSIDES):
        made.add(NoNatEntry("10.0.0.0/16", "10.0.0.0/16"))
        with (
            udp(network, "in", CLIENT) as one,
            udp(network, "in2", SECOND) as two,
            udp(network, "out", SERVER) as server,
        ):
            seen = {}
            server.setsockopt(socket.IPPROTO_IP, MTU_DISCOVER, DONT)
            for client in (one, two):
                client.sendto(b"open", server.getsockname())
                seen[client] = server.recvfrom(100)[1]
            for client, back in seen.items():
                for _ in range(2):  # the second by the fast way
                    server.sendto(bytes(1400), back)
                    assert len(client.recv(2000)) == 1400
            assert made.counters()["generated"] == 2  # a second fragment each, to lan1
            server.setsockopt(socket.IPPROTO_IP, MTU_DISCOVER, DO)
            server.sendto(bytes(1400), seen[one])
            assert len(one.recv(2000)) == 1400
            server.connect(seen[two])
            server.send(bytes(1400))
            until(lambda: server.getsockopt(socket.IPPROTO_IP, PATH_MTU) == 1300)
        told = network.run("in", ["ping", "-c1", "-W60", "-Mdo", "-s1400", SECOND], check=False)
        assert "mtu = 1300" in told.stdout + told.stderr
        assert ping(network, "in", SECOND, "-Mdont", "-s1400")
        assert ping(network, "in2", CLIENT, "-s1400")
        assert made.counters()["dropped_mtu"] == 2


def test_a_change_of_a_link_s_mtu_takes_effect(nat: Nat) -> None:
    network, _, _ = nat
    network.up("gw", "lan1", mtu=1200)
    with udp(network, "in2", SECOND) as two, udp(network, "out", SERVER) as server:
        two.sendto(b"open", server.getsockname())
        server.connect(server.recvfrom(100)[1])
        server.setsockopt(socket.IPPROTO_IP, MTU_DISCOVER, DO)

        def learned() -> bool:
            with suppress(OSError):  # it is known already
                server.send(bytes(1300))
            return server.getsockopt(socket.IPPROTO_IP, PATH_MTU) == 1200

        until(learned)


# ---- the gateway's own words -----------------------------------------------------------------------------------------


def test_errors_and_echo_replies_leave_by_the_interface_they_are_about(nat: Nat) -> None:
    network, made, _ = nat
    for member, own in (("in", GATEWAY_INSIDE), ("in2", GATEWAY_SECOND)):
        done = network.run(member, ["ping", "-c1", "-W60", "-t1", SERVER], check=False)
        assert f"From {own}" in done.stdout
        assert "Time to live exceeded" in done.stdout
        assert ping(network, member, POOL)
    assert made.counters()["dropped_ttl"] == 2


def test_an_address_of_the_gateways_own_is_answered_for_on_each_inside_link(network: Network) -> None:
    with gateway(inside=Link(address="10.0.7.7")) as made, start(network, made, inside=INSIDES) as plane:
        for member in HOSTS:
            network.route(member, "10.0.7.7/32", interface="eth0")
            assert ping(network, member, "10.0.7.7")
            done = network.run(member, ["ping", "-c1", "-W60", "-t1", SERVER], check=False)
            assert "From 10.0.7.7" in done.stdout
        of = plane.counters_by_interface()
        assert of["lan0"]["arp_answered"] >= 1 <= of["lan1"]["arp_answered"]


# ---- each alone ------------------------------------------------------------------------------------------------------


def test_the_kernel_is_kept_out_on_each_interface(network: Network) -> None:
    network.setting("gw", "net/ipv4/ip_forward", 1)
    network.route("out", "10.0.0.0/16", via="198.18.0.1")
    with gateway() as made:
        with pytest.warns(SecurityWarning, match="forwarding is on"):
            plane = start(network, made, inside=INSIDES)
        with plane:
            with at(network, "gw"):
                assert links.installed() == ["lan0", "lan1", "wan0"]
            made.remove(made.entries()[0])
            for member in HOSTS:  # an untranslated packet would be answered
                assert not ping_once(network, member, SERVER)
            assert made.counters()["dropped_no_snat_entry"] == 2
        with at(network, "gw"):
            assert links.installed() == []


@pytest.mark.parametrize("sick", INSIDES)
def test_one_link_down_leaves_the_others_alone(nat: Nat, sick: str) -> None:
    network, made, plane = nat
    well, other = ("in2", "in") if sick == "lan0" else ("in", "in2")
    for member in HOSTS:
        assert ping(network, member, SERVER)
    network.down("gw", sick)
    until(lambda: plane.state == "degraded")
    assert ping(network, well, SERVER)
    network.up("gw", sick)
    until(lambda: plane.state == "running")
    assert ping(network, other, SERVER)
    assert adds_up(made)


def test_an_inside_interface_that_vanishes_comes_back_by_itself(nat: Nat) -> None:
    network, made, plane = nat
    assert ping(network, "in2", SERVER)
    before = plane.counters_by_interface()["lan1"]["received"]
    network.remove("gw", "lan1")
    until(lambda: plane.state == "degraded")
    assert ping(network, "in", SERVER)
    join_second(network)
    until(lambda: plane.state == "running")
    assert ping(network, "in2", SERVER)
    assert plane.counters_by_interface()["lan1"]["received"] > before  # counted on
    assert ping(network, "in", SERVER)
    assert adds_up(made)


def test_one_gateway_after_another_over_other_interfaces(network: Network) -> None:
    made = gateway()
    for insides in (INSIDES, "lan1", ["lan0"]):
        with start(network, made, inside=insides) as plane:
            names = (insides,) if isinstance(insides, str) else tuple(insides)
            assert plane.inside == names
            for member, name in (("in", "lan0"), ("in2", "lan1")):
                assert ping_once(network, member, SERVER) == (name in names)
        assert plane.state == "stopped"
    made.close()


def test_errors_come_from_the_link_that_they_leave_by_whichever_worker_has_the_host(network: Network) -> None:
    """The errors leave by that link while the other worker serves the other link."""
    queues(network, 2, ("gw", "lan0"), ("in", "eth0"), ("gw", "lan1"), ("in2", "eth0"), ("gw", "wan0"), ("out", "eth0"))
    asked = []
    for member, prefix, via, own in (
        ("in", "10.0.2", CLIENT, GATEWAY_INSIDE),
        ("in2", "10.0.3", SECOND, GATEWAY_SECOND),
    ):
        network.run(member, ["ip", "route", "add", "local", f"{prefix}.0/24", "dev", "lo"])
        network.route("gw", f"{prefix}.0/24", via=via)
        asked += [(member, f"{prefix}.{number}", own) for number in range(1, 13)]
    with gateway(workers=2, policy=Policy(icmp_rate=10_000)) as made, start(network, made, inside=INSIDES) as plane:
        running = [
            network.popen(member, ["ping", "-q", "-i0.01", "-c20", "-W60", "-t1", "-I", host, SERVER],
                          stdout=subprocess.PIPE, text=True)
            for member, host, _ in asked
        ]  # fmt: skip
        for process in running:
            assert "+20 errors" in process.communicate()[0]
        for member, host, own in asked:
            done = network.run(member, ["ping", "-c1", "-W60", "-t1", "-I", host, SERVER], check=False)
            assert f"From {own}" in done.stdout
        assert min(plane.counters(worker)["inside_received"] for worker in range(2)) > 20
        assert plane.counters()["inside_no_route"] == 0
        assert adds_up(made)

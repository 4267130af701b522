"""Gateway.forward between real interfaces, with real clients. What takes its time is waited for."""

from __future__ import annotations

import socket

import pytest

from natcore import Link, Policy
from natcore.demo.namespaces import Network
from natcore.testing import craft
from support.netns import (
    CLIENT,
    GATEWAY_INSIDE,
    GATEWAY_OUTSIDE,
    POOL,
    SERVER,
    Nat,
    adds_up,
    at,
    connect,
    gateway,
    listener,
    needs_root,
    ping,
    ping_once,
    start,
    transfer,
    until,
)

pytestmark = [needs_root, pytest.mark.usefixtures("each_driver")]


# ---- traffic ---------------------------------------------------------------------------------------------------------


def test_ping_and_udp_reach_the_server_from_the_pool(nat: Nat) -> None:
    network, made, plane = nat
    assert ping(network, "in", SERVER)
    with at(network, "out"):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with at(network, "in"):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server, client:
        server.settimeout(60)
        client.settimeout(60)
        server.bind((SERVER, 0))
        for size in (0, 1, 1472):
            client.sendto(b"x" * size, server.getsockname())
            data, source = server.recvfrom(2000)
            assert (len(data), source[0]) == (size, POOL)
            server.sendto(data, source)
            assert len(client.recv(2000)) == size
    assert plane.state == "running"
    assert adds_up(made)
    assert sorted(made.sessions()["protocol"]) == [1, 17]


def test_a_plane_takes_no_inside_address_from_outside_whatever_the_policy(network: Network) -> None:
    with gateway(policy=Policy(reverse_path_filter=False)) as made, start(network, made):
        with at(network, "in"):
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with at(network, "out"):
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        with client, raw:
            client.sendto(b"open", (SERVER, 9))
            until(lambda: len(made.mappings()))
            port = int(made.mappings()["outside_port"][0])
            raw.sendto(craft.udp(("10.0.255.254", 9), (POOL, port), b"spoofed"), (POOL, 0))
            until(lambda: made.counters()["dropped_spoofed"])
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(100)
        assert len(made.sessions()) == 1 and adds_up(made)


def test_udp_over_the_mtu_in_one_super_frame(nat: Nat) -> None:
    network, made, _ = nat
    with at(network, "out"):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with at(network, "in"):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server, client:
        server.settimeout(60)
        server.bind((SERVER, 0))
        client.setsockopt(socket.SOL_UDP, 103, 1000)  # UDP_SEGMENT
        client.sendto(bytes(range(256)) * 20, server.getsockname())
        got = [server.recv(2000) for _ in range(6)]
    assert b"".join(got) == bytes(range(256)) * 20
    assert made.sessions()["packets_out"].tolist() == [6]


@pytest.mark.parametrize("offloads", ["tx on", "tso off gso off", "tx off"])
@pytest.mark.parametrize("upload", [True, False], ids=["upload", "download"])
def test_tcp_arrives_as_it_was_sent(nat: Nat, offloads: str, upload: bool) -> None:
    network, made, plane = nat
    for interface in ("lan0", "wan0"):
        network.run("gw", ["ethtool", "-K", interface, *offloads.split()])
    sent, arrived = transfer(network, 40 << 20, upload=upload)
    assert arrived == sent
    assert plane.counters()["inside_send_errors"] == plane.counters()["outside_send_errors"] == 0
    session = made.sessions()[0]
    assert session["bytes_out" if upload else "bytes_in"] > 40 << 20
    assert adds_up(made)


def test_hosts_beyond_routers_on_both_sides(nat: Nat) -> None:
    network, _, plane = nat
    network.up("in", "lo", "10.0.9.9/32")
    network.up("out", "lo", "203.0.113.9/32")
    assert not ping_once(network, "in", "203.0.113.9")
    assert plane.counters()["outside_no_route"] == 1
    network.route("gw", "default", via=SERVER)
    network.route("gw", "10.0.9.0/24", via=CLIENT)
    assert ping(network, "in", "203.0.113.9")
    assert ping(network, "in", "203.0.113.9", "-I", "10.0.9.9")


def test_hairpin_over_the_pool(nat: Nat) -> None:
    network, made, _ = nat
    network.up("in", "eth0", "10.0.0.3/24")
    with at(network, "in"):
        one, two = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    with one, two:
        one.bind(("10.0.0.2", 0))
        two.bind(("10.0.0.3", 0))
        one.settimeout(60)
        two.settimeout(60)
        for client in (one, two):
            client.sendto(b"open", (SERVER, 9))
        until(lambda: len(made.mappings()) == 2)
        port = {row["inside_ip"] & 0xFF: int(row["outside_port"]) for row in made.mappings()}
        one.sendto(b"hello", (POOL, port[3]))
        assert two.recvfrom(100) == (b"hello", (POOL, port[2]))


# ---- the gateway's own words -----------------------------------------------------------------------------------------


def test_time_exceeded_and_echo_come_from_the_gateway(nat: Nat) -> None:
    network, made, _ = nat
    done = network.run("in", ["ping", "-c1", "-W60", "-t1", SERVER], check=False)
    assert f"From {GATEWAY_INSIDE}" in done.stdout
    assert "Time to live exceeded" in done.stdout
    assert ping(network, "out", POOL)
    assert ping(network, "in", POOL)
    assert made.counters()["dropped_ttl"] == 1


def test_the_interfaces_mtu_holds_and_is_told_to_senders(nat: Nat) -> None:
    network, made, _ = nat
    network.up("gw", "wan0", mtu=1300)
    network.up("out", "eth0", mtu=1300)

    def told() -> bool:
        done = network.run("in", ["ping", "-c1", "-W5", "-Mdo", "-s1372", SERVER], check=False)
        return "mtu = 1300" in done.stdout + done.stderr or "mtu=1300" in done.stdout + done.stderr

    until(told)
    assert made.counters()["dropped_mtu"] >= 1
    sent, arrived = transfer(network, 1 << 20)
    assert arrived == sent


def test_a_smaller_mtu_of_the_gateway_holds(network: Network) -> None:
    made = gateway(outside=Link(mtu=1200))
    with made, start(network, made):
        done = network.run("in", ["ping", "-c1", "-W60", "-Mdo", "-s1300", SERVER], check=False)
        assert "1200" in done.stdout + done.stderr
        sent, arrived = transfer(network, 1 << 20)
        assert arrived == sent


def test_the_gateways_own_address_is_answered_for(network: Network) -> None:
    made = gateway(inside=Link(address="10.0.0.77"), outside=Link(address="198.18.0.77"))
    with made, start(network, made):
        assert ping(network, "in", "10.0.0.77")
        assert ping(network, "out", "198.18.0.77")


def test_pool_addresses_are_announced(network: Network) -> None:
    with at(network, "out"):
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
    with tap, gateway() as made, start(network, made):
        tap.settimeout(60)
        pool = socket.inet_aton(POOL)
        while (frame := tap.recv(100))[28:32] != pool:
            pass
        assert frame[38:42] == pool
        assert frame[:6] == b"\xff" * 6


def test_the_gateways_own_address_is_announced_inside_and_the_hosts_is_not(network: Network) -> None:
    """Hosts must learn that another machine has it now."""
    own = socket.inet_aton("10.0.0.77")
    with at(network, "in"):
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
    with tap, gateway(inside=Link(address="10.0.0.77")) as made, start(network, made):
        tap.settimeout(60)
        while (frame := tap.recv(100))[28:32] != own:
            assert frame[28:32] != socket.inet_aton(GATEWAY_INSIDE) or frame[38:42] != frame[28:32]
        assert frame[38:42] == own
        assert frame[:6] == b"\xff" * 6


# ---- what stays with the kernel --------------------------------------------------------------------------------------


def test_a_login_to_the_hosts_own_address_while_traffic_flows(nat: Nat) -> None:
    network, made, plane = nat
    with listener(network, "gw") as server:
        server.settimeout(60)
        for target, member in ((GATEWAY_INSIDE, "in"), (GATEWAY_OUTSIDE, "out"), (GATEWAY_OUTSIDE, "in")):
            assert ping(network, "in", SERVER)
            with connect(network, member, (target, server.getsockname()[1])) as client:
                accepted, source = server.accept()
                with accepted:
                    client.sendall(b"login")
                    assert accepted.recv(100) == b"login"
                    assert source[0] == (CLIENT if member == "in" else SERVER)
    assert plane.counters()["left_to_kernel"] > 0
    assert set(made.sessions()["protocol"]) == {1}


def test_a_vlan_on_the_same_wire_stays_with_the_kernel(nat: Nat) -> None:
    network, made, plane = nat
    mac = bytes.fromhex(network.mac("gw", "lan0").replace(":", ""))
    packet = bytes.fromhex("4500001c00004000401100000a000002c6120002") + bytes(8)
    with at(network, "in"), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("eth0", 0))
        before = plane.counters()["inside_left_to_kernel"]
        wire.send(mac + b"\x02\0\0\0\0\1" + b"\x81\0\0\x64\x08\0" + packet)
    until(lambda: plane.counters()["inside_left_to_kernel"] > before)
    assert made.counters()["received"] == 0


def test_the_kernel_does_not_answer_for_connections_that_are_not_its(nat: Nat) -> None:
    network, made, _ = nat
    network.setting("gw", "net/ipv4/ip_forward", 1)
    network.route("out", "10.0.0.0/24", via=GATEWAY_OUTSIDE)  # an untranslated packet would be answered
    made.remove(made.entries()[0])
    assert not ping_once(network, "in", SERVER)
    assert made.counters()["dropped_no_snat_entry"] == 1
    assert not ping_once(network, "out", CLIENT)

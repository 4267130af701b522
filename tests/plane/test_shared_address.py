"""One outside address for the gateway and its host: each has ports of it, and neither gets the other's packets."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from natcore import ConfigurationError, DnatEntry, Gateway, OutsideInterface, Policy, SnatEntry
from natcore.demo.namespaces import Network
from natcore.plane import host_ports, kernel_bypass
from natcore.plane.plane import Plane
from support.netns import (
    CLIENT,
    GATEWAY_OUTSIDE,
    SERVER,
    at,
    connect,
    listener,
    needs_root,
    ping,
    ping_once,
    start,
    transfer,
    until,
)

pytestmark = [needs_root, pytest.mark.usefixtures("each_driver")]

SHARED = GATEWAY_OUTSIDE
RESERVED = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")


def masquerade(**settings: object) -> Gateway:
    made = Gateway(**settings)  # type: ignore[arg-type]
    made.add(SnatEntry("10.0.0.0/16", pool=OutsideInterface()))
    return made


@pytest.fixture
def shared(network: Network) -> Iterator[tuple[Network, Gateway, Plane]]:
    with masquerade() as made, start(network, made) as plane:
        yield network, made, plane


def reserved(network: Network) -> str:
    with at(network, "gw"):
        return RESERVED.read_text().strip()


@contextmanager
def tcp(
    network: Network, member: str, to: str, at_member: str, port: int = 0
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection."""
    with listener(network, at_member, port=port) as server:
        server.settimeout(60)
        with connect(network, member, (to, server.getsockname()[1])) as client:
            accepted, _ = server.accept()
            with accepted:
                for end in (client, accepted):
                    end.settimeout(60)
                yield client, accepted


def talks(ends: tuple[socket.socket, socket.socket]) -> None:
    for one, other in (ends, ends[::-1]):
        one.sendall(b"hello")
        assert one is not other and other.recv(100) == b"hello"


def test_the_host_and_inside_hosts_use_one_address(shared: tuple[Network, Gateway, Plane]) -> None:
    network, made, plane = shared
    with ExitStack() as stack:
        out = stack.enter_context(tcp(network, "gw", SERVER, "out"))
        into = stack.enter_context(tcp(network, "out", SHARED, "gw", port=22))
        through = stack.enter_context(tcp(network, "in", SERVER, "out"))
        from_inside = stack.enter_context(tcp(network, "in", SHARED, "gw", port=23))
        assert out[1].getpeername()[0] == through[1].getpeername()[0] == SHARED
        for _ in range(3):
            for ends in (out, into, through, from_inside):
                talks(ends)
        first, last = host_ports.ephemeral()
        assert first <= out[1].getpeername()[1] <= last
        assert not first <= through[1].getpeername()[1] <= last
        assert ping(network, "in", SERVER) and ping(network, "gw", SERVER) and ping(network, "out", SHARED)
        assert ping(network, "in", SHARED)
    assert made.counters()["created"] == 2  # the inside host's connection and ping
    assert plane.counters()["left_to_kernel"] > 10


def test_no_packet_of_the_host_is_counted_as_the_gateways(shared: tuple[Network, Gateway, Plane]) -> None:
    network, made, plane = shared
    before = plane.counters()["left_to_kernel"]
    with tcp(network, "gw", SERVER, "out") as ends:
        for _ in range(20):
            talks(ends)
    until(lambda: plane.counters()["left_to_kernel"] >= before + 20)
    assert made.counters()["received"] == 0


def udp(network: Network, member: str, port: int = 0) -> socket.socket:
    with at(network, member):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("0.0.0.0", port))
        made.settimeout(60)
        return made


@pytest.mark.parametrize("size", [10, 20_000])  # bytes: whole, in fragments
def test_datagrams_come_to_who_sent_the_first(shared: tuple[Network, Gateway, Plane], size: int) -> None:
    network, made, plane = shared
    with udp(network, "out", 53) as server, udp(network, "gw") as hosts, udp(network, "in") as inside:
        for client in (hosts, inside, hosts, inside):
            client.sendto(b"?" * size, (SERVER, 53))
            question, who = server.recvfrom(1 << 16)
            assert len(question) == size and who[0] == SHARED
            server.sendto(b"!" * size, who)
            assert len(client.recv(1 << 16)) == size
    counters = made.counters()
    assert counters["dropped"] == counters["held"] == 0
    assert plane.counters()["outside_ring_drops"] == 0


def test_what_arrives_at_a_port_of_the_gateways_that_is_not_open_is_not_answered(
    shared: tuple[Network, Gateway, Plane],
) -> None:
    network, made, _ = shared
    with at(network, "out"):
        for port in (1024, 2000, 32767, 61000, 65535):
            with socket.socket() as probe:
                probe.settimeout(0.1)
                with pytest.raises(TimeoutError):  # the kernel would refuse: it has no listener there
                    probe.connect((SHARED, port))
        for port in (1, 1023, 32768, 60999):
            with pytest.raises(ConnectionRefusedError):  # of the host's: it does
                socket.create_connection((SHARED, port), timeout=60)
    assert made.counters()["dropped_no_mapping"] >= 5


def test_icmp_errors_go_to_whom_they_quote(shared: tuple[Network, Gateway, Plane]) -> None:
    network, made, _ = shared
    for member in ("gw", "in", "gw"):
        with at(network, member), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.settimeout(60)
            probe.connect((SERVER, 9))  # no listener: port unreachable
            probe.send(b"?")
            with pytest.raises(ConnectionRefusedError):
                probe.recv(10)
    assert made.counters()["dropped"] == 0


def test_traceroute_of_both_shows_the_way(shared: tuple[Network, Gateway, Plane]) -> None:
    network, _, _ = shared
    for member, hops in (("gw", 1), ("in", 2)):
        shown = network.run(member, ["traceroute", "-n", "-q1", "-N1", "-m3", SERVER]).stdout
        assert f" {hops}  {SERVER} " in shown


def test_all_ports_of_the_gateways_can_be_in_use_and_none_is_given_to_the_host(network: Network) -> None:
    policy = Policy(host_ports=((40000, 40099),), port_ranges=((1024, 65535),))
    with listener(network, "gw", port=8080), masquerade(policy=policy, max_sessions=100_000) as made:
        with start(network, made) as plane:
            expected = 64_512 - 100 - 1
            tcp_ports = next(r for r in made.ports() if r["protocol"] == 6)
            assert tcp_ports["free"] == expected and tcp_ports["reserved"] == 101
            assert reserved(network) == "1024-39999,40100-65535"
            with at(network, "gw"), ExitStack() as stack:
                got = set()
                with pytest.raises(OSError, match="Address already in use"):
                    while True:
                        one = stack.enter_context(socket.socket())
                        one.bind((SHARED, 0))
                        got.add(one.getsockname()[1])
                assert got == set(range(40000, 40100))
            shown = network.run("gw", ["ss", "-Htan"]).stdout
            assert {int(line.split()[3].rpartition(":")[2]) for line in shown.splitlines()} <= {8080, *got}

            def is_full() -> bool:
                fill(network, expected)  # again, where the ring was full for a moment
                return bool(next(r for r in made.ports() if r["protocol"] == 17)["used"] == expected + 1)

            until(is_full)
            assert plane.counters()["outside_send_errors"] == 0
        assert reserved(network) == ""


def fill(network: Network, ports: int) -> None:
    """UDP from more inside endpoints than the gateway has ports."""
    with at(network, "in"), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for number in range(ports + 1500):
            source = bytes([10, 0, 1 + number // 20_000, 2])
            header = b"\x45\0\0\x1d\0\0\x40\0\x40\x11\0\0" + source + socket.inet_aton(SERVER)
            raw.sendto(header + (1024 + number % 20_000).to_bytes(2) + b"\0\x09\0\x09\0\0?", (SERVER, 0))
            if number % 500 == 0:
                time.sleep(0.01)


def test_entries_take_ports_of_the_host_but_none_at_which_it_listens(shared: tuple[Network, Gateway, Plane]) -> None:
    network, made, _ = shared
    with listener(network, "gw", port=443), pytest.raises(
        ConfigurationError, match=r"external_port must be one at which no socket of this host listens, got 443 .*: "
        r"tcp 0\.0\.0\.0:443 of \S+ \(process \d+\) does",
    ):  # fmt: skip
        made.add(DnatEntry(SHARED, 443, CLIENT, 443))
    forwarded = made.add(DnatEntry(SHARED, 443, CLIENT, 443))
    with tcp(network, "out", SHARED, "in", port=443) as ends:
        talks(ends)
    made.remove(forwarded)
    with tcp(network, "out", SHARED, "gw", port=443) as ends:
        talks(ends)


def test_a_port_at_which_the_host_listens_later_becomes_the_hosts(shared: tuple[Network, Gateway, Plane]) -> None:
    network, _, _ = shared
    with listener(network, "gw", port=5432) as server:
        server.settimeout(60)

        def reached() -> bool:
            with at(network, "out"), socket.socket() as probe:
                probe.settimeout(0.2)
                return probe.connect_ex((SHARED, 5432)) == 0

        until(reached)


@pytest.mark.parametrize("change", ["replaced", "second"])
def test_the_pool_follows_the_interface(shared: tuple[Network, Gateway, Plane], change: str) -> None:
    network, made, _ = shared
    with tcp(network, "in", SERVER, "out") as ends:
        talks(ends)
        if change == "replaced":
            network.run("gw", ["ip", "addr", "del", f"{SHARED}/24", "dev", "wan0"])
        network.run("gw", ["ip", "addr", "add", "198.18.0.7/24", "dev", "wan0"])
        if change == "replaced":
            until(lambda: made.counters()["ended"] == 1)
        else:
            until(lambda: len(made.ports()) == 6)
            talks(ends)
            assert made.counters()["ended"] == 0
    told: list[tuple[str, str]] = []
    expected = {("address-added", "198.18.0.7"), *([("address-removed", SHARED)] if change == "replaced" else [])}

    def is_told() -> bool:  # an event follows what it is about
        told.extend((event.reason, str(event.outside)) for event in made.take_events())
        return expected <= set(told)

    until(is_told)
    assert (("address-removed", SHARED) in told) == (change == "replaced")
    if change == "replaced":
        with tcp(network, "in", SERVER, "out") as ends:
            assert ends[1].getpeername()[0] == "198.18.0.7"
            talks(ends)


def test_an_address_that_comes_back_at_once_keeps_its_sessions(shared: tuple[Network, Gateway, Plane]) -> None:
    """As of a DHCP client that sets the interface up anew for each renewal."""
    network, made, _ = shared
    with tcp(network, "in", SERVER, "out") as ends:
        for _ in range(3):
            network.run("gw", ["sh", "-c", f"ip addr del {SHARED}/24 dev wan0; ip addr add {SHARED}/24 dev wan0"])
            talks(ends)
    assert made.counters()["ended"] == 0


def test_inside_hosts_reach_a_forwarded_port_at_the_shared_address(shared: tuple[Network, Gateway, Plane]) -> None:
    network, made, _ = shared
    made.add(DnatEntry("interface", 8443, CLIENT, 8443))
    for member in ("in", "out"):
        with tcp(network, member, SHARED, "in", port=8443) as ends:
            talks(ends)


FIREWALL = """
table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        iif lo accept
        tcp dport 22 accept
        icmp type echo-request accept
    }
}
"""


def test_a_stateful_firewall_of_the_host_sees_its_own_traffic_alone(
    shared: tuple[Network, Gateway, Plane], tmp_path: Path
) -> None:
    network, _, _ = shared
    file = tmp_path / "nftables.conf"
    file.write_text(FIREWALL)
    network.run("gw", ["nft", "-f", str(file)])
    with tcp(network, "gw", SERVER, "out") as out, tcp(network, "out", SHARED, "gw", port=22) as into:
        with tcp(network, "in", SERVER, "out") as through:
            for ends in (out, into, through):
                talks(ends)
        assert ping(network, "gw", SERVER) and ping(network, "out", SHARED) and ping(network, "in", SERVER)


@pytest.mark.parametrize("protocol", [50, 89, 112])  # ESP, OSPF, VRRP
def test_protocols_without_ports_are_the_hosts(shared: tuple[Network, Gateway, Plane], protocol: int) -> None:
    network, made, _ = shared
    with at(network, "gw"):
        hosts = socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol)
    with hosts, at(network, "out"), socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol) as other:
        hosts.settimeout(60)
        other.settimeout(60)
        for size in (100, 4000):  # whole, in fragments
            other.sendto(b"x" * size, (SHARED, 0))
            assert len(hosts.recv(1 << 16)) == size + 20
            hosts.sendto(b"x" * size, (SERVER, 0))
            assert len(other.recv(1 << 16)) == size + 20
    assert made.counters()["received"] == 0


def test_one_address_is_the_hosts_and_others_are_the_pools(network: Network) -> None:
    network.run("gw", ["ip", "addr", "add", "198.18.0.8/24", "dev", "wan0"])
    made = Gateway()
    made.add(SnatEntry("10.0.0.0/16", pool=[OutsideInterface("198.18.0.8"), "198.18.0.9"]))
    with made, start(network, made):
        assert sorted({int(row["outside_ip"]) & 0xFF for row in made.ports()}) == [8, 9]
        with listener(network, "gw", port=2000), tcp(network, "in", SERVER, "out") as ends:
            assert ends[1].getpeername()[0] in ("198.18.0.8", "198.18.0.9")
            with tcp(network, "out", SHARED, "gw", port=2001) as others:
                talks(others)
        with pytest.raises(ConfigurationError, match="1:1 entry must be an address that this host does not have"):
            made.add(DnatEntry(SHARED, "any", CLIENT, "any", protocol="any"))


def test_a_gateway_in_memory_has_no_interface() -> None:
    with masquerade() as made, pytest.raises(ConfigurationError, match="there is none before a plane has begun"):
        made.translate_one(bytes(60), 0, now=0.0)


def test_host_ports_that_leave_nothing_are_refused(network: Network) -> None:
    for policy, match in (
        (Policy(port_ranges=((40000, 41000),)), "must leave the gateway some of port_ranges"),
        (Policy(host_ports=()), "must have ports of the kernel's ip_local_port_range"),
    ):
        with masquerade(policy=policy) as made, pytest.raises(ConfigurationError, match=match):
            start(network, made)


KILLED = """
import sys, time
from natcore import Gateway, OutsideInterface, Policy, SnatEntry
gateway = Gateway(policy=Policy(host_ports=((40000, 49999),)))
gateway.add(SnatEntry("10.0.0.0/16", pool=OutsideInterface()))
plane = gateway.forward("lan0", "wan0", driver=sys.argv[1])
print("started", flush=True)
time.sleep(600)
"""


def test_the_host_goes_on_before_during_and_after_a_plane_that_is_killed(network: Network, each_driver: str) -> None:
    network.setting("gw", "net/ipv4/ip_local_reserved_ports", "8000-8001")
    with tcp(network, "gw", SERVER, "out") as out, tcp(network, "out", SHARED, "gw", port=22) as into:
        program = network.popen("gw", [sys.executable, "-c", KILLED, each_driver], stdout=subprocess.PIPE, text=True)
        try:
            assert program.stdout is not None and program.stdout.readline() == "started\n"
            for ends in (out, into):
                talks(ends)
            assert ping(network, "in", SERVER)
        finally:
            program.send_signal(signal.SIGKILL)
            program.wait()
        for ends in (out, into):
            talks(ends)
        assert not ping_once(network, "in", SERVER)
        with at(network, "out"), socket.socket() as probe:
            probe.settimeout(0.2)
            with pytest.raises(TimeoutError):  # the block keeps the kernel from answering for the gateway
                probe.connect((SHARED, 2000))
        assert reserved(network) == "1024-39999,50000-65535"
        with at(network, "gw"):
            assert kernel_bypass.clean() == ["lan0", "wan0"]
        assert reserved(network) == "8000-8001"
        for ends in (out, into):
            talks(ends)


def test_ten_thousand_inside_sessions_leave_the_hosts_connections_alone(shared: tuple[Network, Gateway, Plane]) -> None:
    network, made, _ = shared
    with tcp(network, "gw", SERVER, "out") as out, tcp(network, "out", SHARED, "gw", port=22) as into:
        worker = threading.Thread(target=fill_some, args=(network, 10_000))
        worker.start()
        try:
            for _ in range(50):
                for ends in (out, into):
                    talks(ends)
        finally:
            worker.join()
        until(lambda: made.counters()["sessions"] >= 10_000)
        for ends in (out, into):
            talks(ends)
    one, other = transfer(network, 8 << 20)
    assert one == other
    assert counter(network, "gw", "Tcp", "OutRsts") == counter(network, "gw", "Icmp", "OutDestUnreachs") == 0


def fill_some(network: Network, count: int) -> None:
    """UDP sessions, each answered."""
    with udp(network, "out", 7) as server, at(network, "in"):
        for number in range(count):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.bind(("", 2000 + number))
                client.settimeout(60)
                client.sendto(b"?", (SERVER, 7))
                _, who = server.recvfrom(10)
                server.sendto(b"!", who)
                assert client.recv(10) == b"!"


def counter(network: Network, member: str, group: str, name: str) -> int:
    """A counter of /proc/net/snmp."""
    with at(network, member):
        lines = [line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()]
    names, values = [line for line in lines if line[0] == f"{group}:"]
    return int(values[names.index(name)])

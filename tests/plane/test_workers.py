"""A plane with several workers: real clients, whatever the driver, and who of the workers did what."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from natcore import ConfigurationError, Gateway, Policy, SnatEntry
from natcore.api.plane import PlaneLoop
from natcore.demo.namespaces import Network
from natcore.plane import loops
from natcore.plane.plane import Plane
from support.netns import (
    CLIENT,
    GATEWAY_INSIDE,
    GATEWAY_OUTSIDE,
    LIMIT_SECONDS,
    POOL,
    SERVER,
    Nat,
    adds_up,
    at,
    build,
    gateway,
    needs_root,
    ping,
    queues,
    start,
    transfer,
    until,
    xdp_missing,
)

pytestmark = needs_root

HOSTS = [f"10.0.1.{number}" for number in range(1, 65)]  # of the inside member, beside CLIENT
ENDS = (("gw", "lan0"), ("in", "eth0"), ("gw", "wan0"), ("out", "eth0"))
FLOWS_EACH = 4  # of a host


@pytest.fixture
def network() -> Iterator[Network]:
    with build() as made:
        queues(made, 2, *ENDS)
        made.run("in", ["ip", "route", "add", "local", "10.0.1.0/24", "dev", "lo"])
        made.route("gw", "10.0.1.0/24", via=CLIENT)
        yield made


@pytest.fixture
def nat(network: Network, each_driver: str) -> Iterator[Nat]:
    with gateway(workers=2) as made, start(network, made) as plane:
        yield network, made, plane


@contextmanager
def echo_server(network: Network) -> Iterator[tuple[str, int]]:
    """Sends back every datagram."""
    with at(network, "out"):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    server.bind((SERVER, 0))
    server.settimeout(0.1)
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            try:
                data, source = server.recvfrom(2000)
            except TimeoutError:
                continue
            server.sendto(data, source)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server.getsockname()
    finally:
        ended.set()
        thread.join()
        server.close()


def exchange(network: Network, rounds: int = 10, *, first: bool = False) -> int:
    """Datagrams of many hosts, there and back. first: no next hop is known before, so that packets wait for it, a second
    at most; how many were sent again, since no answer came for longer."""
    assert first or ping(network, "in", SERVER)
    again = 0
    with echo_server(network) as server, at(network, "in"):
        clients = []
        for host in HOSTS * FLOWS_EACH:
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            client.bind((host, 0))
            client.connect(server)
            client.settimeout(5 if first else LIMIT_SECONDS)
            clients.append(client)
        for number in range(rounds):
            for client in clients:
                client.send(number.to_bytes(4, "big"))
            for client in clients:
                while True:
                    try:
                        assert int.from_bytes(client.recv(100), "big") == number
                        break
                    except TimeoutError:
                        assert first
                        client.send(number.to_bytes(4, "big"))
                        again += 1
        for client in clients:
            client.close()
    return again


def of_each(plane: Plane, name: str) -> list[int]:
    return [plane.counters(worker)[name] for worker in range(2)]


# ---- who does what ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("favour", ["throughput", "latency"])
@pytest.mark.parametrize("policy", [Policy(), Policy(ports="block")], ids=["random", "block"])
def test_both_work_and_hand_nothing_off_where_the_kernel_can_tell_the_worker(
    network: Network, favour: str, policy: Policy
) -> None:
    with gateway(workers=2, policy=policy) as made, start(network, made, driver="af_packet", favour=favour) as plane:
        exchange(network)
        counters = made.counters()
        assert counters["forwarded"] >= 2 * 10 * len(HOSTS) * FLOWS_EACH
        assert counters["handed_over"] == 0
        shares = [made.counters(worker)["received"] for worker in range(2)]
        assert sum(shares) == counters["received"]
        assert min(shares) > counters["received"] // 4
        until(
            lambda: min(of_each(plane, "inside_sent") + of_each(plane, "outside_sent")) > 0
        )  # counted when it has left
        assert adds_up(made)


def test_what_the_kernel_cannot_tell_is_handed_over(network: Network) -> None:
    """Ports that are chosen by what inside hosts have: the answer's port says nothing of its worker."""
    policy = Policy(ports="preserve")
    with gateway(workers=2, policy=policy) as made, start(network, made, driver="af_packet") as plane:
        exchange(network)
        assert made.counters()["handed_over"] > 0
        assert plane.counters()["inside_no_route"] == 0
        assert adds_up(made)


def test_counters_by_worker_add_up(nat: Nat) -> None:
    network, made, plane = nat
    exchange(network)
    until(lambda: plane.counters()["waiting"] == 0)
    total, parts = plane.counters_by_interface(), [plane.counters_by_interface(worker) for worker in range(2)]
    for interface, counters in total.items():
        for name in ("received", "sent", "unresolved", "send_dropped", "ring_drops"):
            assert counters[name] == sum(part[interface][name] for part in parts), (interface, name)
    assert sum(of_each(plane, "outside_received")) == plane.counters()["outside_received"]
    with pytest.raises(ConfigurationError, match="worker must be a whole number between 0 and 1, got 2"):
        plane.counters(2)
    with pytest.raises(ConfigurationError, match=r"worker must .*, got -1"):
        plane.counters_by_interface(worker=-1)
    assert adds_up(made)


# ---- traffic ---------------------------------------------------------------------------------------------------------


def test_web_bulk_and_fragments(nat: Nat, tmp_path: Path) -> None:
    network, made, plane = nat
    assert ping(network, "in", SERVER)
    for host in (CLIENT, *HOSTS[:6]):
        assert ping(network, "in", SERVER, "-s", "4000", "-I", host)
    (tmp_path / "page").write_bytes(os.urandom(1 << 20))
    serving = network.popen("out", [sys.executable, "-m", "http.server", "-d", str(tmp_path), "80"],
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        for host in HOSTS[:6]:
            ask = ["curl", "-sf", "--retry", "20", "--retry-connrefused", "--retry-delay", "1", "--interface", host]
            network.run("in", [*ask, "-o", str(tmp_path / host), f"http://{SERVER}/page"])
            assert (tmp_path / host).read_bytes() == (tmp_path / "page").read_bytes()
    finally:
        serving.terminate()
        serving.wait()
    for options in (["-n", "64M", "-P4"], ["-n", "64M", "-P4", "-R"], ["-u", "-b", "50M", "-n", "4M"]):
        told = iperf(network, *options)
        assert told["end"]["sum_received" if "-u" not in options else "sum"]["bytes"] > 3 << 20
    assert plane.counters()["inside_send_errors"] == plane.counters()["outside_send_errors"] == 0
    assert adds_up(made)


def iperf(network: Network, *options: str) -> dict:  # type: ignore[type-arg]
    with network.popen("out", ["iperf3", "-s", "-1", "--forceflush"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        while "listening" not in server.stdout.readline():
            pass
        done = network.run("in", ["iperf3", "-J", "-c", SERVER, *options], check=False)
        server.terminate()
    told: dict = json.loads(done.stdout)  # type: ignore[type-arg]
    assert "error" not in told, told["error"]
    return told


def test_errors_and_echoes_come_back_to_whoever_asked(nat: Nat) -> None:
    network, made, _ = nat
    network.setting("out", "net/ipv4/icmp_ratelimit", 0)
    for host in (CLIENT, *HOSTS[:8]):
        done = network.run("in", ["ping", "-c1", "-W60", "-t1", "-I", host, SERVER], check=False)
        assert f"From {GATEWAY_INSIDE}" in done.stdout
        done = network.run("in", ["traceroute", "-n", "-q1", "-w60,0,0", "-m3", "-s", host, SERVER])
        assert f" 1  {GATEWAY_INSIDE} " in done.stdout and f" 2  {SERVER} " in done.stdout
        assert ping(network, "in", POOL, "-I", host)
    assert ping(network, "out", POOL)
    assert adds_up(made)


def test_hairpins_between_hosts_of_either_worker(nat: Nat) -> None:
    network, made, _ = nat
    with at(network, "in"):
        clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(8)]
    for host, client in zip(HOSTS, clients, strict=False):
        client.bind((host, 0))
        client.settimeout(60)
        client.sendto(b"open", (SERVER, 9))
    until(lambda: len(made.mappings()) == len(clients))
    ports = {int(row["inside_ip"]) & 0xFF: int(row["outside_port"]) for row in made.mappings()}
    for one in range(len(clients)):
        other = (one + 3) % len(clients)
        clients[one].sendto(b"hello", (POOL, ports[other + 1]))
        assert clients[other].recvfrom(100) == (b"hello", (POOL, ports[one + 1]))
    for client in clients:
        client.close()
    assert adds_up(made)


def test_the_first_packets_of_all_wait_for_one_next_hop(nat: Nat) -> None:
    """Each worker has its own pending frames and asks; both get the answer."""
    network, made, plane = nat
    again = exchange(network, rounds=1, first=True)
    before = plane.counters()["outside_unresolved"], made.counters()["dropped_no_neighbour"]
    assert before[0] + plane.counters()["inside_unresolved"] <= again  # none, unless the machine took a second to ask
    pinging = [
        network.popen("in", ["ping", "-c1", "-W1", "-I", host, "198.18.0.66"], stdout=subprocess.DEVNULL)
        for host in HOSTS[:8]
    ]
    until(lambda: made.counters()["dropped_no_neighbour"] - before[1] == 8)
    for each in pinging:
        each.wait()
    assert min(of_each(plane, "outside_unresolved")) > 0
    rows = made.sessions()
    assert rows[rows["remote_ip"] == int(IPv4Address("198.18.0.66"))]["packets_out"].tolist() == [0] * 8
    assert adds_up(made)


# ---- what is done once, not by each ----------------------------------------------------------------------------------


def test_arp_is_answered_once(nat: Nat) -> None:
    network, _, plane = nat
    exchange(network, rounds=1)
    with at(network, "out"):
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
    with tap:
        tap.bind(("eth0", 0x0806))
        tap.settimeout(60)
        mac = tap.getsockname()[4]
        before = plane.counters()["outside_arp_answered"]
        pool, server = socket.inet_aton(POOL), socket.inet_aton(SERVER)
        asking = b"\xff" * 6 + mac + bytes.fromhex("0806000108000604") + b"\0\1" + mac + server + bytes(6) + pool
        for _ in range(5):
            tap.send(asking)
        until(lambda: plane.counters()["outside_arp_answered"] - before == 5)
        answers = [frame for frame in (tap.recv(100) for _ in range(5)) if frame[20:22] == b"\0\2"]
        assert [frame[28:32] for frame in answers] == [pool] * 5
        tap.setblocking(False)
        with pytest.raises(BlockingIOError):
            tap.recv(100)


def test_pool_addresses_are_announced_by_one_worker(network: Network) -> None:
    made = Gateway(workers=2)
    made.add(SnatEntry("10.0.0.0/16", pool="198.18.0.100-198.18.0.149"))
    with made, start(network, made, driver="af_packet") as plane:
        until(lambda: plane.counters()["outside_sent"] >= 50)
        assert of_each(plane, "outside_sent")[1] == 0


# ---- a plane's life --------------------------------------------------------------------------------------------------


def test_an_interface_that_vanishes_is_opened_again_by_all(nat: Nat) -> None:
    """With AF_XDP it comes back with one queue: who has none there sends by a packet socket."""
    network, made, plane = nat
    exchange(network)
    network.remove("gw", "wan0")
    until(lambda: plane.state == "degraded")
    network.pair("gw", "wan0", "out", "eth0")
    network.up("gw", "wan0", f"{GATEWAY_OUTSIDE}/24")
    network.up("out", "eth0", f"{SERVER}/24")
    until(lambda: plane.state == "running")
    assert ping(network, "in", SERVER)
    before = of_each(plane, "outside_sent")
    exchange(network)
    until(lambda: all(now > then for now, then in zip(of_each(plane, "outside_sent"), before, strict=True)))
    sent, arrived = transfer(network, 5 << 20)
    assert sent == arrived
    assert adds_up(made)


def test_a_link_that_goes_down_and_comes_back(nat: Nat, each_driver: str) -> None:
    """The rings leave their group and join it again: every worker gets the frames that it had."""
    network, made, plane = nat
    exchange(network)
    network.down("gw", "lan0")
    until(lambda: plane.state == "degraded")
    network.up("gw", "lan0")
    network.route("gw", "10.0.1.0/24", via=CLIENT)
    until(lambda: plane.state == "running" and ping(network, "in", SERVER))
    until(lambda: all(ping(network, "in", SERVER, "-I", host) for host in HOSTS[:6]))
    exchange(network)
    assert made.counters()["handed_over"] == 0 or each_driver == "af_xdp"
    assert adds_up(made)


def test_step_drives_all_workers(network: Network, each_driver: str) -> None:
    with gateway(workers=2) as made, start(network, made, threads=False) as plane:
        ended = threading.Event()

        def drive() -> None:
            while not ended.is_set():
                if select.select([plane], [], [], 0.5)[0]:
                    plane.step(64)

        thread = threading.Thread(target=drive)
        thread.start()
        try:
            exchange(network)
            sent, arrived = transfer(network, 2 << 20)
        finally:
            ended.set()
            thread.join()
        assert sent == arrived
        assert min(of_each(plane, "inside_received")) > 0
        assert plane.step(1) >= 0
        assert adds_up(made)


def test_what_ended_one_worker_ends_the_plane(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    made = gateway(workers=2)

    class Failing(PlaneLoop):
        def run(self) -> None:
            if threading.current_thread().name == "natcore-w1":
                raise RuntimeError("this worker failed")
            super().run()

    monkeypatch.setattr(loops, "PlaneLoop", Failing)
    with start(network, made) as plane:
        with pytest.raises(RuntimeError, match="this worker failed"):
            plane.wait(60)
        assert plane.state == "stopped"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("natcore-w")]
    monkeypatch.undo()
    with start(network, made):
        assert ping(network, "in", SERVER)


def test_each_worker_has_its_processor(network: Network) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    cpus = [allowed[-1], allowed[0]]
    made = gateway(workers=2)
    with start(network, made, cpus=cpus):
        threads = {thread.name: thread.native_id for thread in threading.enumerate()}
        for worker, cpu in enumerate(cpus):
            until(lambda worker=worker, cpu=cpu: os.sched_getaffinity(threads[f"natcore-w{worker}"]) == {cpu})
    with pytest.raises(ConfigurationError, match=r"cpus must be one for each worker \(2\)"):
        start(network, made, cpus=allowed[:1])


def test_control_calls_take_effect_while_traffic_flows(nat: Nat) -> None:
    network, made, plane = nat
    sender = network.popen("in", ["ping", "-q", "-f", "-I", HOSTS[0], SERVER], stdout=subprocess.DEVNULL)
    other = network.popen("in", ["ping", "-q", "-f", "-I", HOSTS[1], SERVER], stdout=subprocess.DEVNULL)
    until(lambda: made.counters()["forwarded"] > 100)
    for _ in range(100):
        assert adds_up(made)
        assert len(made.sessions()) <= 2
        made.end_all()
    for each in (sender, other):
        each.terminate()
        each.wait()
    assert plane.state == "running"


def test_fewer_queues_than_workers_are_told_and_served(network: Network) -> None:
    if missing := xdp_missing():
        pytest.skip(missing)
    network.run("in", ["ethtool", "-L", "eth0", "tx", "1"])
    network.run("gw", ["ethtool", "-L", "lan0", "rx", "1"])
    made = gateway(workers=2)
    with pytest.warns(UserWarning, match=r"lan0: fewer receive queues than the 2 workers: run: ethtool -L lan0"):
        plane = start(network, made, driver="af_xdp")
    with plane:
        exchange(network)
        assert of_each(plane, "inside_received")[1] == 0
        assert adds_up(made)


FILE = """
[gateway]
workers = 2
[[snat]]
source = "10.0.0.0/16"
pool = ["198.18.0.100"]
[plane]
inside = "lan0"
outside = "wan0"
"""


def test_natcore_run_with_two_workers(network: Network, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(FILE)
    command = [sys.executable, "-m", "natcore.cli.main", "run", str(file), "--json"]
    process = network.popen("gw", command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["happened"] == "started"
    exchange(network)
    process.send_signal(signal.SIGTERM)
    counters = json.loads(process.communicate(timeout=60)[0])["counters"]
    assert process.returncode == 0
    assert counters["forwarded"] >= 2 * 10 * len(HOSTS) * FLOWS_EACH
    assert counters["handed_over"] == 0

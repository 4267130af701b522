"""A network for tests: an inside host, the gateway, an outside host in their namespaces, and real clients there."""

from __future__ import annotations

import functools
import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from natcore import Gateway, SnatEntry
from natcore.demo.namespaces import Network, inside
from natcore.io import bpf
from natcore.plane.plane import Plane
from support.multi_worker import WORKERS

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root (CAP_SYS_ADMIN, CAP_NET_ADMIN)")

CLIENT, SERVER = "10.0.0.2", "198.18.0.2"
GATEWAY_INSIDE, GATEWAY_OUTSIDE = "10.0.0.1", "198.18.0.1"
POOL = "198.18.0.100"
QUEUES_MOST = os.cpu_count() or 1  # of a veth
DRIVER = "af_packet"  # of planes that `start` starts; see the fixture `each_driver`
LIMIT_SECONDS = 60.0  # for what happens by itself, however busy the machine is
SECOND, GATEWAY_SECOND = "10.0.1.2", "10.0.1.1"  # where there are two inside interfaces


def build(*more: str) -> Network:
    """in eth0 -- lan0 gw wan0 -- eth0 out; the inside host's default route leads to the gateway. more: other members."""
    network = Network(f"natcore-test-{os.getpid()}-", ["in", "gw", "out", *more])
    network.pair("in", "eth0", "gw", "lan0")
    network.pair("gw", "wan0", "out", "eth0")
    queues(network, WORKERS, ("gw", "lan0"), ("in", "eth0"), ("gw", "wan0"), ("out", "eth0"))
    network.up("in", "eth0", f"{CLIENT}/24")
    network.up("gw", "lan0", f"{GATEWAY_INSIDE}/24")
    network.up("gw", "wan0", f"{GATEWAY_OUTSIDE}/24")
    network.up("out", "eth0", f"{SERVER}/24")
    network.route("in", "default", via=GATEWAY_INSIDE)
    return network


def queues(network: Network, count: int, *interfaces: tuple[str, str]) -> None:
    """So many each way, for as many workers with AF_XDP; one is there from the beginning. interfaces: member, name."""
    count = min(count, QUEUES_MOST)
    for member, interface in interfaces if count > 1 else ():
        network.run(member, ["ethtool", "-L", interface, "rx", str(count), "tx", str(count)])


def join_second(network: Network) -> None:
    """in2 eth0 -- lan1 gw: another inside host, on a link of its own. The network has the member in2."""
    network.pair("in2", "eth0", "gw", "lan1")
    queues(network, WORKERS, ("in2", "eth0"), ("gw", "lan1"))
    network.up("in2", "eth0", f"{SECOND}/24")
    network.up("gw", "lan1", f"{GATEWAY_SECOND}/24")
    network.route("in2", "default", via=GATEWAY_SECOND)


@contextmanager
def at(network: Network, member: str) -> Iterator[None]:
    with inside(network.name(member)):
        yield


def gateway(**settings: object) -> Gateway:
    made = Gateway(**settings)  # type: ignore[arg-type]
    made.add(SnatEntry("10.0.0.0/16", pool=POOL))
    return made


def until(condition: Callable[[], object], seconds: float = LIMIT_SECONDS) -> None:
    """Waits for something that happens by itself; fails if it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def ping(network: Network, member: str, target: str, *options: str) -> bool:
    """Whether echo requests are answered. They are sent again until one is: a busy machine may take its time."""
    end = time.monotonic() + LIMIT_SECONDS
    while network.run(member, ["ping", "-c1", "-i0.2", "-w5", *options, target], check=False).returncode:
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def ping_once(network: Network, member: str, target: str, *options: str, seconds: float = 1) -> bool:
    """Whether one echo request is answered. seconds: the default is for those that are not."""
    return network.run(member, ["ping", "-c1", f"-W{seconds}", *options, target], check=False).returncode == 0


def listener(network: Network, member: str, address: str = "0.0.0.0", port: int = 0) -> socket.socket:
    with at(network, member):
        return socket.create_server((address, port))


def connect(network: Network, member: str, address: tuple[str, int], timeout: float = 60.0) -> socket.socket:
    with at(network, member):
        return socket.create_connection(address, timeout=timeout)


def transfer(network: Network, size: int, *, upload: bool = True, server: str = SERVER) -> tuple[str, str]:
    """SHA-256 of what was sent and of what arrived, over one TCP connection of the inside host to the outside one."""
    data = os.urandom(1 << 20) * (size >> 20)
    digests = [hashlib.sha256(data).hexdigest(), ""]
    with listener(network, "out") as listening:
        listening.settimeout(60)
        port = listening.getsockname()[1]

        def send(connection: socket.socket) -> None:
            with connection:
                connection.sendall(data)

        def serve() -> None:
            accepted, _ = listening.accept()
            accepted.settimeout(60)
            if upload:
                digests[1] = digest(accepted)
            else:
                send(accepted)

        thread = threading.Thread(target=serve)
        thread.start()
        client = connect(network, "in", (server, port))
        client.settimeout(60)
        if upload:
            send(client)
        else:
            digests[1] = digest(client)
        thread.join()
    return digests[0], digests[1]


def digest(connection: socket.socket) -> str:
    found = hashlib.sha256()
    with connection:
        while piece := connection.recv(1 << 18):
            found.update(piece)
    return found.hexdigest()


@pytest.fixture(params=["af_packet", "af_xdp"])
def each_driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test runs with every driver of planes."""
    driver = str(request.param)
    if driver == "af_xdp" and (missing := xdp_missing()):
        pytest.skip(missing)
    monkeypatch.setitem(globals(), "DRIVER", driver)
    return driver


@functools.cache
def xdp_missing() -> str:
    """Why AF_XDP cannot be tried here; empty if it can."""
    if WORKERS > QUEUES_MOST:
        return f"{WORKERS} workers have a queue each, and a veth {QUEUES_MOST}, one for each processor"
    try:
        socket.socket(socket.AF_XDP if hasattr(socket, "AF_XDP") else 44, socket.SOCK_RAW).close()
        os.close(bpf.sockets(1))
    except OSError as error:
        return f"AF_XDP needs a kernel with CONFIG_XDP_SOCKETS and CAP_BPF: {error}"
    return ""


@pytest.fixture
def network() -> Iterator[Network]:
    with build() as made:
        yield made


def start(network: Network, made: Gateway, **options: object) -> Plane:
    with at(network, "gw"):
        return made.forward(**{"inside": "lan0", "outside": "wan0", "driver": DRIVER, **options})  # type: ignore[arg-type]


@pytest.fixture
def nat(network: Network) -> Iterator[tuple[Network, Gateway, Plane]]:
    with gateway() as made, start(network, made) as plane:
        yield network, made, plane


Nat = tuple[Network, Gateway, Plane]


def adds_up(made: Gateway) -> bool:
    counters = made.counters()
    parts = ("forwarded", "local", "dropped", "held")
    return counters["received"] == sum(counters[part] for part in parts)

"""Reloads under traffic: connections of entries that did not change stay, the others drain or end as the plan said."""

from __future__ import annotations

import gc
import json
import resource
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from natcore.demo.namespaces import Network
from support.netns import SERVER, at, needs_root, until
from support.service import FakePlane, run, service_of

SOURCES = {"kept": "10.0.0.2", "moved": "10.0.0.3", "gone": "10.0.0.4", "new": "10.0.0.5"}
POOLS = {"kept": "198.18.0.100", "moved": "198.18.0.101", "gone": "198.18.0.102"}
IDLE = {"kept": 700, "moved": 100, "gone": 100, "web": 50, "mail": 50}
BUSY = {"kept": 40, "gone": 10}
PORTS = {"web": (80, 8080), "mail": (25, 2525)}  # of DNAT entries: outside, inside
COUNTS = ("kept", "drained", "ended", "unchanged")
PIECE = bytes(range(256)) * 4

FILE = """
[gateway]
max_sessions = 10000
{snat}
{dnat}
[plane]
inside = "lan0"
outside = "wan0"
"""
SNAT = '[[snat]]\nname = "{name}"\nsource = "{source}/32"\npool = "{pool}"\n'
DNAT = (
    '[[dnat]]\nname = "{name}"\nexternal_ip = "198.18.0.100"\nexternal_port = {port}\ninternal_ip = "{target}"\n'
    "internal_port = {inside}\n"
)


def text(pools: dict[str, str], targets: dict[str, str]) -> str:
    snat = "".join(SNAT.format(name=name, source=SOURCES[name], pool=pool) for name, pool in pools.items())
    dnat = "".join(
        DNAT.format(name=name, port=PORTS[name][0], target=target, inside=PORTS[name][1])
        for name, target in targets.items()
    )
    return FILE.format(snat=snat, dnat=dnat)


class Echoes:
    """Servers that send back what comes, in one thread."""

    def __init__(self) -> None:
        self._waiting = selectors.DefaultSelector()
        self._ended = False
        self._thread = threading.Thread(target=self._run)

    def listen(self, network: Network, member: str, address: str, port: int = 0) -> int:
        with at(network, member):
            made = socket.create_server((address, port), backlog=2048)
        made.setblocking(False)
        self._waiting.register(made, selectors.EVENT_READ, True)
        return int(made.getsockname()[1])

    def _run(self) -> None:
        while not self._ended:
            for key, _ in self._waiting.select(0.1):
                found: Any = key.fileobj
                if key.data:
                    self._waiting.register(found.accept()[0], selectors.EVENT_READ, False)
                    continue
                try:
                    piece = found.recv(65_536)
                    found.sendall(piece)
                except OSError:
                    piece = b""
                if not piece:
                    self._waiting.unregister(found)
                    found.close()

    def __enter__(self) -> Echoes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join()
        for key in list(self._waiting.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]


class Busy:
    """Connections on which a piece is always under way, in one thread."""

    def __init__(self, connections: list[socket.socket]) -> None:
        self.echoed = dict.fromkeys(connections, 0)
        self.failed: list[object] = []
        self._ended = False
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with selectors.DefaultSelector() as waiting:
            for each in self.echoed:
                waiting.register(each, selectors.EVENT_READ, 0)
                each.sendall(PIECE)
            while not self._ended:
                for key, _ in waiting.select(0.1):
                    each: Any = key.fileobj
                    try:
                        got = len(each.recv(len(PIECE)))
                        if not got:
                            raise ConnectionError("closed")
                        self.echoed[each] += got
                        if self.echoed[each] % len(PIECE) == 0:
                            each.sendall(PIECE)
                    except OSError as error:
                        self.failed.append(error)
                        waiting.unregister(each)

    def goes_on(self) -> None:
        before = dict(self.echoed)
        until(lambda: self.failed or all(count > before[each] for each, count in self.echoed.items()))

    def __enter__(self) -> Busy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join()


def works(connection: socket.socket, timeout: float = 60.0) -> bool:
    connection.settimeout(timeout)
    try:
        connection.sendall(PIECE)
        left = len(PIECE)
        while left:
            got = len(connection.recv(left))
            if not got:
                return False
            left -= got
    except OSError:
        return False
    return True


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 8192), max(before[1], 8192)))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Told:
    """What `natcore run --json` prints."""

    def __init__(self, process: subprocess.Popen[Any]) -> None:
        assert process.stdout is not None
        self._lines = iter(process.stdout.readline, "")

    def next(self, happened: str) -> dict[str, Any]:
        while (found := json.loads(next(self._lines)))["happened"] != happened:
            pass
        return dict(found)


@needs_root
def test_a_reload_under_traffic_keeps_drains_and_ends_what_the_plan_says(
    network: Network, tmp_path: Path, many_descriptors: None
) -> None:
    file, socket_path = tmp_path / "gateway.toml", tmp_path / "control.sock"
    targets = dict.fromkeys(PORTS, SOURCES["kept"])
    control = f'[control]\npath = "{socket_path}"\n'
    file.write_text(text(POOLS, targets) + control)
    for name in ("moved", "gone"):
        network.run("in", ["ip", "address", "add", f"{SOURCES[name]}/24", "dev", "eth0"])
    process = run(network, file, "--json", stdout=subprocess.PIPE, text=True)
    told = Told(process)
    told.next("started")

    def counters() -> dict[str, Any]:
        process.send_signal(signal.SIGUSR1)
        return told.next("counters")

    def reload() -> dict[str, Any]:
        process.send_signal(signal.SIGHUP)
        return told.next("reload")

    def planned() -> dict[str, Any]:
        command = [
            sys.executable,
            "-m",
            "natcore.cli.main",
            "plan",
            str(file),
            "--instance",
            str(socket_path),
            "--json",
        ]
        return dict(json.loads(network.run("gw", command).stdout))

    with Echoes() as echoes:
        server = (SERVER, echoes.listen(network, "out", SERVER))
        for _, inside in PORTS.values():
            echoes.listen(network, "in", "0.0.0.0", inside)

        def opened(name: str) -> socket.socket:
            with at(network, "out" if name in PORTS else "in"):
                if name in PORTS:
                    return socket.create_connection(("198.18.0.100", PORTS[name][0]), timeout=60)
                return socket.create_connection(server, timeout=60, source_address=(SOURCES[name], 0))

        idle = {name: [opened(name) for _ in range(count)] for name, count in IDLE.items()}
        busy = {name: [opened(name) for _ in range(count)] for name, count in BUSY.items()}
        with Busy([each for found in busy.values() for each in found]) as traffic:
            traffic.goes_on()
            assert counters()["sessions"] == sum(IDLE.values()) + sum(BUSY.values()) == 1050

            file.write_text(file.read_text().replace("198.18.0.101", "198.18.0.300"))
            refused = reload()
            assert not refused["ok"] and "snat[1].pool must be an IPv4 address" in refused["error"]
            traffic.goes_on()
            assert counters()["sessions"] == 1050

            pools = {"kept": POOLS["kept"], "moved": "198.18.0.103", "new": "198.18.0.104"}
            file.write_text(text(pools, {**targets, "web": SOURCES["moved"]}) + control)
            said = planned()
            assert counters()["sessions"] == 1050
            done = reload()
            assert {name: done[name] for name in COUNTS} == {name: said[name] for name in COUNTS}
            assert sum(step["sessions"] or 0 for step in said["steps"] if step["drain"]) == done["drained"]
            ended = IDLE["moved"] + IDLE["web"]
            drained = IDLE["gone"] + BUSY["gone"]
            assert done["ok"] and (done["ended"], done["drained"], done["kept"]) == (
                ended,
                drained,
                1050 - ended - drained,
            )
            assert done["unchanged"] == 2
            traffic.goes_on()
            assert counters()["sessions"] == 1050 - ended

            for name in ("kept", "mail", "gone"):
                assert sum(map(works, idle[name])) == IDLE[name], name
            assert counters()["sessions"] == 1050 - ended
            assert not any(works(each, 1.0) for each in (idle["moved"][0], idle["web"][0]))
            for name in ("kept", "moved", "mail"):
                with opened(name) as fresh:
                    assert works(fresh), name
            with pytest.raises(OSError), at(network, "in"):  # what drains takes no new one
                socket.create_connection(server, timeout=1, source_address=(SOURCES["gone"], 0))
            traffic.goes_on()
        assert traffic.failed == []
        for found in (*idle.values(), *busy.values()):
            for each in found:
                each.close()
    process.terminate()
    assert process.wait(60) == 0


def test_hundreds_of_reloads_leak_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are exchanged that add, replace, drain and end entries, and start, change, restart and stop logs."""
    file = tmp_path / "gateway.toml"
    log = f'[[log]]\nsink = "jsonlines"\nname = "{{}}"\nfolder = "{tmp_path}/{{}}"\n'
    other = text({"kept": POOLS["kept"], "moved": "198.18.0.103"}, {"mail": SOURCES["moved"]})
    files = [
        text(POOLS, dict.fromkeys(PORTS, SOURCES["kept"])) + log.format("a", "a") + log.format("b", "b"),
        other + log.format("a", "c") + log.format("b", "b") + "redact_destination = true\n",
        text(POOLS, {}),
    ]
    file.write_text(files[0])
    resident: list[int] = []
    descriptors: list[int] = []
    alive: list[int] = []

    def reload_often() -> None:
        for number in range(1, 401):
            file.write_text(files[number % len(files)])
            service.reload()
            if number % 100 == 0:
                gc.collect()
                resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
                descriptors.append(len(list(Path("/proc/self/fd").iterdir())))
                alive.append(threading.active_count())

    plane = FakePlane(reload_often, lambda: plane.stop())
    service, _ = service_of(file, monkeypatch, plane)
    service.run()
    assert service.reloads == 400 and service.failed_reloads == 0
    assert max(descriptors) <= 12 + min(descriptors) and max(alive) <= 4 + min(alive)
    assert resident[3] - resident[0] < 4 << 20, resident

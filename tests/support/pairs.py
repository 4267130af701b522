"""Two gateways of `natcore run`, a witness, an inside and an outside host, on three switches that can be cut.

in 10.0.0.2 --- lan --- a, b (10.0.0.1 is the active one's) --- wan --- out 198.18.0.2
                        a, b, w --- mgmt 192.168.77.1, .2, .3
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from natcore.demo.namespaces import Network
from natcore.peer.channel import Credentials
from support.netns import POOL, SERVER, at, until

LEASE = 0.3
START_SECONDS = 240.0  # of a process, on a busy machine
GATEWAYS = ("a", "b")
AT_A_TIME = 4  # connections that are being opened
PORT = 7411
ADDRESSES = {"a": "192.168.77.1", "b": "192.168.77.2", "w": "192.168.77.3"}
FILE = """
[gateway]
instance = "{name}"
max_sessions = {sessions}
{inside}[[snat]]
source = "10.0.0.0/24"
pool = "{pool}"
[[log]]
sink = "parquet"
folder = "{folder}/log-{name}"
name = "audit"
spool = "{folder}/spool-{name}"
[control]
path = "{folder}/{name}.sock"
[plane]
inside = "lan0"
outside = "wan0"
[peer]
name = "{name}"
peer_name = "{other}"
listen = "{own}:{port}"
peer = "{peer}:{port}"
certificate_file = "{certificate}"
key_file = "{key}"
authority_file = "{authority}"
"""
ADDRESS = 'inside = { address = "10.0.0.1" }\n'
WITNESSED = 'witness = "{witness}:{port}"\nlease = {lease}\nprefer = {prefer}\n'


class Lab:
    """The network, and the processes in it. more: at the end of both files, NAME stands for a path of each one's own."""

    def __init__(
        self, network: Network, folder: Path, credentials: Credentials, *, witness: bool, more: str = "",
        lease: float = LEASE, pool: str = POOL, sessions: int = 100_000, inside: str = ADDRESS,
    ) -> None:  # fmt: skip
        self.network, self.folder, self.credentials, self.has_witness = network, folder, credentials, witness
        self._more, self._lease, self._pool, self._sessions = more, lease, pool, sessions
        self._inside = inside
        self.processes: dict[str, subprocess.Popen[Any]] = {}
        for one, other in (("in", "lan"), ("out", "wan")):
            self._join(other, one, "eth0")
        network.up("in", "eth0", "10.0.0.2/24")
        network.up("out", "eth0", f"{SERVER}/24")
        network.route("in", "default", via="10.0.0.1")
        for number, name in enumerate(GATEWAYS, 11):
            self._join("lan", name, "lan0")
            self._join("wan", name, "wan0")
            network.up(name, "lan0", f"10.0.0.{number}/24")
            network.up(name, "wan0", f"198.18.0.{number}/24")
        for name, address in ADDRESSES.items():
            self._join("mgmt", name, "m0")
            network.up(name, "m0", f"{address}/24")

    def _join(self, switch: str, member: str, interface: str) -> None:
        port = f"{member}-{switch}"
        self.network.pair(member, interface, "sw", port)
        self.network.run("sw", ["ip", "link", "set", port, "master", switch, "up"])

    def cut(self, member: str, switch: str) -> None:
        """Cut a member from a switch."""
        self.network.run("sw", ["ip", "link", "set", f"{member}-{switch}", "nomaster"])

    def join(self, member: str, switch: str) -> None:
        """The contrary."""
        self.network.run("sw", ["ip", "link", "set", f"{member}-{switch}", "master", switch])

    def start(self, name: str) -> None:
        """Start a gateway, or the witness "w"."""
        with (self.folder / f"told-{name}").open("a") as output:
            self.processes[name] = self.network.popen(name, self._command(name), stdout=output, stderr=output)

    def _command(self, name: str) -> list[str]:
        command = [sys.executable, "-m", "natcore.cli.main"]
        certificate, key, authority = map(str, self.credentials)
        if name == "w":
            return [*command, "witness", "--listen", f"{ADDRESSES['w']}:{PORT}", "--certificate", certificate, "--key", key,
                    "--authority", authority, "--lease", str(self._lease), "--json"]  # fmt: skip
        other = "b" if name == "a" else "a"
        text = FILE.format(
            name=name, other=other, inside=self._inside, folder=self.folder, pool=self._pool, sessions=self._sessions,
            own=ADDRESSES[name], peer=ADDRESSES[other], port=PORT, certificate=certificate, key=key, authority=authority,
        )  # fmt: skip
        if self.has_witness:
            text += WITNESSED.format(
                witness=ADDRESSES["w"], port=PORT, lease=self._lease, prefer=str(name == "a").lower()
            )
        file = self.folder / f"{name}.toml"
        file.write_text(text + self._more.replace("NAME", f"{self.folder}/{name}"))
        return [*command, "run", str(file), "--json"]

    def ask(self, name: str, *command: str) -> dict[str, Any]:
        """What a command says of a gateway."""
        asked = [
            sys.executable,
            "-m",
            "natcore.cli.main",
            *command,
            "--json",
            "--instance",
            str(self.folder / f"{name}.sock"),
        ]
        done = self.network.run(name, asked, check=False)
        return {"error": done.stderr, **json.loads(done.stdout or "{}"), "status": done.returncode}

    def told(self, name: str, what: str) -> list[dict[str, Any]]:
        """What a process said so far."""
        lines = (self.folder / f"told-{name}").read_text().splitlines()
        told = [json.loads(line) for line in lines if line.startswith('{"happened"')]
        return [line for line in told if line["happened"] == what]

    def output(self, name: str) -> str:
        return (self.folder / f"told-{name}").read_text()

    def role(self, name: str) -> str:
        told = self.told(name, "role")
        return str(told[-1]["role"]) if told else ""

    def follows(self, name: str) -> bool:
        """Whether a gateway is a standby that could take over."""
        peer = self.ask(name, "status").get("peer", {})
        return bool(peer.get("role") == "standby" and peer.get("has_image") and peer.get("connected"))

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    def stop(self, name: str) -> int:
        self.processes[name].send_signal(signal.SIGTERM)
        return int(self.processes[name].wait(60))


@contextmanager
def lab(folder: Path, credentials: Credentials, *, witness: bool = True, **settings: Any) -> Iterator[Lab]:
    """Build it; nothing is started yet. settings: as for Lab."""
    with Network(f"natcore-pair-{os.getpid()}-", ["in", "a", "b", "out", "w", "sw"]) as network:
        for switch in ("lan", "wan", "mgmt"):
            network.run("sw", ["ip", "link", "add", switch, "type", "bridge"])
            network.run("sw", ["ip", "link", "set", switch, "up"])
        made = Lab(network, folder, credentials, witness=witness, **settings)
        try:
            yield made
        finally:
            for process in made.processes.values():
                if process.poll() is None:
                    process.kill()
                    process.wait()


class Echo:
    """A UDP flow, or a TCP connection, over which a byte goes and comes each `every` seconds; and how long none came."""

    def __init__(self, network: Network, *, tcp: bool, every: float = 0.005) -> None:
        self._every, self._tcp = every, tcp
        self._end = threading.Event()
        self.failed = ""
        self.answered = 0
        self.longest = 0.0  # seconds between two answers
        self.silent = 0.0, 0.0  # CLOCK_MONOTONIC of those two
        self._last = time.monotonic()
        kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
        with at(network, "out"):
            self._server = socket.socket(socket.AF_INET, kind)
        self._server.bind((SERVER, 0))
        port = self._server.getsockname()[1]
        with at(network, "in"):
            self._client = socket.socket(socket.AF_INET, kind)
        if tcp:
            self._server.listen()
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._threads[0].start()
        self._client.settimeout(30)
        self._client.connect((SERVER, port))
        self.client_port = self._client.getsockname()[1]
        self._client.settimeout(1)
        self._threads += [threading.Thread(target=each, daemon=True) for each in (self._ask, self._hear)]
        for thread in self._threads[1:]:
            thread.start()

    def _serve(self) -> None:
        try:
            if self._tcp:
                accepted, _ = self._server.accept()
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with accepted:
                    while data := accepted.recv(4096):
                        accepted.sendall(data)
            else:
                while True:
                    data, source = self._server.recvfrom(4096)
                    if source is None:  # it is closed
                        return
                    self._server.sendto(data, source)
        except OSError as error:
            if not self._end.is_set():
                self.failed = f"the server: {error!r}"

    def _ask(self) -> None:
        while not self._end.wait(self._every):
            try:
                self._client.send(b"x", socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass
            except OSError as error:
                self._fail(error)
                return

    def _fail(self, error: OSError) -> None:
        if not self._end.is_set():
            self.failed = f"the client: {error!r}"

    def _hear(self) -> None:
        while not self._end.is_set():
            try:
                data = self._client.recv(4096)
            except TimeoutError:
                continue
            except OSError as error:
                self._fail(error)
                return
            if not data:
                return
            now = time.monotonic()
            if self.answered and now - self._last > self.longest:
                self.longest, self.silent = now - self._last, (self._last, now)
            self._last, self.answered = now, self.answered + len(data)

    def goes_on(self) -> bool:
        """Wait until it is answered again."""
        before = self.answered
        until(lambda: self.answered > before + 20 or self.failed)
        return not self.failed

    def finish(self) -> str:
        """End it; what went wrong."""
        self._end.set()
        for each in (self._client, self._server):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(5)
        return self.failed


class Churn:
    """TCP connections that the inside host opens as fast as it can, some at a time, and keeps."""

    def __init__(self, network: Network) -> None:
        with at(network, "out"):
            self._server = socket.create_server((SERVER, 0), backlog=1024)
        self._to = self._server.getsockname()
        self._network = network
        self._end = threading.Event()
        self._sends = threading.Event()
        self._accepted: dict[tuple[str, int], socket.socket] = {}
        self.answered: list[socket.socket] = []
        todo = [self._accept, *[self._open] * AT_A_TIME]
        self._threads = [threading.Thread(target=each, daemon=True) for each in todo]
        for thread in self._threads:
            thread.start()

    def _accept(self) -> None:
        with suppress(OSError):  # it is closed
            while True:
                accepted, source = self._server.accept()
                self._accepted[source] = accepted
                if self._sends.is_set():  # its last handshake segment came late
                    accepted.send(b"x")

    def _open(self) -> None:
        with at(self._network, "in"):
            while not self._end.is_set():
                client = socket.socket()
                client.settimeout(0.5)
                try:
                    client.connect(self._to)
                except OSError:
                    client.close()
                else:
                    self.answered.append(client)

    def finish(self) -> tuple[int, list[str]]:
        """Stop opening, and have the outside host send over each connection; how many there are, and what failed."""
        self._end.set()
        for thread in self._threads[1:]:
            thread.join()
        self._sends.set()
        for accepted in list(self._accepted.values()):
            with suppress(OSError):
                accepted.send(b"x")
        failed = []
        end = time.monotonic() + 20
        for client in self.answered:
            client.settimeout(max(0.05, end - time.monotonic()))
            try:
                came = client.recv(1)
            except OSError as error:
                failed.append(f"{client.getsockname()}: {error!r}")
            else:
                if came != b"x":
                    failed.append(f"{client.getsockname()}: closed")
        self._server.shutdown(socket.SHUT_RDWR)
        for each in (self._server, *self.answered, *self._accepted.values()):
            each.close()
        return len(self.answered), failed

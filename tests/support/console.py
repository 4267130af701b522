"""A console in tests: gateways with an hour behind them, session logs to a local Simple Log Service and to Parquet files."""

from __future__ import annotations

import http.client
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import numpy as np

from natcore import Gateway, Policy, Side, SnatEntry
from natcore.console.app import Console, Server, bind, url_of
from natcore.console.gateways import Gateways
from natcore.console.who import Who
from natcore.control.client import Client
from natcore.control.server import ControlServer
from natcore.service.configuration_file import Settings, load
from natcore.service.reload import Reloaded, find, plan_of
from natcore.testing import SlsServer
from natcore.testing.bulk import ACK, SYN, TCP, UDP, endpoints, packets
from support.frames import udp
from support.netns import until

HOSTILE = "<script>alert(1)</script>"
STEPS = 90
PROJECT, LOGSTORE = "nat-logs", "sessions"


class FileService:
    """What verbs ask of `natcore run`: its file, and its running logs."""

    def __init__(self, gateway: Gateway, settings: Settings) -> None:
        self.gateway, self.settings = gateway, settings
        self.logs: dict[str, Any] = {}
        self.started, self.reloads, self.failed_reloads = time.time() - 3600, 0, 0
        self.last_reload_ok, self.last_reload_at = True, time.time() - 3600

    def call(self, function: Any, *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*arguments))
        return done

    def reload(self, path: str | None = None, *, dry_run: bool = False) -> Reloaded:
        assert dry_run
        planned = find(
            self.settings, load(path or self.settings.source), self.gateway, [log.name for log in self.gateway.logs]
        )
        return planned.said(dry_run=True, plan=plan_of(planned, self.gateway))


class World:
    """Two gateways: "ngw-1" with a file, logs and an hour of traffic, and one with hostile names."""

    def __init__(self, folder: Path, sls: SlsServer, stack: ExitStack) -> None:
        self.folder, self.sls = folder, sls
        self.file = folder / "gateway.toml"
        self.begun = time.time() - 3600
        self.clock = 0.0
        self.key_files()
        self.file.write_text(self.text())
        settings = load(self.file)
        self.gateway = stack.enter_context(settings.make_gateway())
        self.service = FileService(self.gateway, settings)
        self.parquet = next(log for log in settings.logs if log.name == "audit").start(self.gateway)
        self.control = self._serve(self.gateway, "ngw-1", stack)
        self.control.service = self.service
        hostile = stack.enter_context(Gateway(instance=HOSTILE, vpc_id=HOSTILE, max_sessions=100, policy=Policy()))
        hostile.add(SnatEntry("10.0.0.0/24", pool="203.0.113.9", name=HOSTILE))
        hostile.translate_one(udp("10.0.0.5", 5353), Side.INSIDE, now=1.0)
        self._serve(hostile, "hostile", stack)
        sls.make(PROJECT, LOGSTORE)
        sls.make("other-project", "other-store")

    def key_files(self) -> None:
        for name, secret in (("key-id", "id"), ("key-secret", "secret")):
            (self.folder / name).write_text(secret)

    def text(self, pool: str = "203.0.113.1, 203.0.113.2") -> str:
        addresses = ", ".join(f'"{each.strip()}"' for each in pool.split(","))
        return f"""
            [gateway]
            instance = "ngw-1"
            vpc_id = "vpc-1"
            region = "local"
            max_sessions = 4000
            epoch = {self.begun}
            seed = 7
            [policy]
            sessions_per_subscriber = 120
            port_ranges = [[1024, 1343]]
            [[snat]]
            source = "10.0.0.0/16"
            pool = [{addresses}]
            name = "office"
            [[dnat]]
            external_ip = "203.0.113.1"
            external_port = 443
            internal_ip = "10.0.0.80"
            internal_port = 8443
            protocol = "tcp"
            name = "web"
            [plane]
            inside = "lan0"
            outside = "wan0"
            [[log]]
            sink = "sls"
            name = "nat"
            endpoint = "{self.sls.endpoint}"
            project = "{PROJECT}"
            logstore = "{LOGSTORE}"
            region = "local"
            access_key_id_file = "{self.folder / "key-id"}"
            access_key_secret_file = "{self.folder / "key-secret"}"
            [[log]]
            sink = "parquet"
            folder = "{self.folder / "rows"}"
            name = "audit"
            """

    def _serve(self, gateway: Gateway, name: str, stack: ExitStack) -> ControlServer:
        return stack.enter_context(
            ControlServer(
                gateway, self.folder / f"{name}.sock", clock=lambda: self.clock, wall=lambda: self.begun + self.clock
            )
        )

    def pass_an_hour(self) -> None:
        """An hour of traffic, of which the history has a sample each 40 seconds."""
        chance = np.random.default_rng(5)
        with Client(self.folder / "ngw-1.sock") as client:
            for step in range(1, STEPS + 1):
                self.clock = 3600.0 * step / STEPS
                self._traffic(chance, step)
                until(lambda step=step: len(client.ask("history")) > step)  # type: ignore[misc]

    def _traffic(self, chance: np.random.Generator, step: int) -> None:
        busy = 6 + int(8 * abs((step % 30 - 15) / 15)) + (70 if 50 < step < 58 else 0)
        for protocol, count in ((UDP, busy), (TCP, 6)):
            flow = (
                0x0A000005 + chance.integers(0, 40, count), 20_000 + chance.integers(0, 400, count),
                0xC6336401 + chance.integers(0, 200, count), np.full(count, 443 if protocol == TCP else 53),
            )  # fmt: skip
            self._exchange(protocol, *flow, length=int(chance.integers(200, 1400)), times=int(chance.integers(2, 30)))
        frames, lengths = packets(UDP, 0xC6336409, 53, 0xCB007101, 1100 + chance.integers(0, 200, 4))
        self.gateway.translate(frames, lengths, Side.OUTSIDE, now=self.clock)  # nothing lets them in
        if step == 53:  # more than one host may have
            frames, lengths = packets(UDP, 0x0A000063, 30_000 + np.arange(130), 0xC6336407, 53)
            self.gateway.translate(frames, lengths, Side.INSIDE, now=self.clock)

    def _exchange(
        self, protocol: int, source: Any, source_port: Any, remote: Any, remote_port: Any, *, length: int, times: int
    ) -> None:
        """A first packet of each flow, its answer, and some more both ways."""
        frames, lengths = packets(protocol, source, source_port, remote, remote_port, tcp_flags=SYN)
        self.gateway.translate(frames, lengths, Side.INSIDE, now=self.clock)
        outside, port = endpoints(frames, "source")
        back, lengths = packets(protocol, remote, remote_port, outside, port, tcp_flags=SYN | ACK)
        self.gateway.translate(back, lengths, Side.OUTSIDE, now=self.clock)
        for _ in range(times):
            frames, lengths = packets(
                protocol,
                source,
                source_port,
                remote,
                remote_port,
                tcp_flags=ACK,
                length=max(64, length // 4),
                sequence=2,
            )
            self.gateway.translate(frames, lengths, Side.INSIDE, now=self.clock)
            back, lengths = packets(
                protocol, remote, remote_port, outside, port, tcp_flags=ACK, length=length, sequence=2
            )
            self.gateway.translate(back, lengths, Side.OUTSIDE, now=self.clock)

    def end_a_session(self) -> None:
        """A host sends a packet, and its session ends: a row for every log."""
        self.gateway.translate_one(udp("10.0.0.250", 5353), Side.INSIDE, now=self.clock)
        assert self.gateway.end(subscriber="10.0.0.250") == 1

    def one_session(self) -> dict[str, Any]:
        with Client(self.folder / "ngw-1.sock") as client:
            (row,) = client.ask("sessions", sort="session", limit=1, reverse=True)
            return dict(row)


@contextmanager
def world(folder: Path) -> Iterator[World]:
    with ExitStack() as stack:
        sls = stack.enter_context(SlsServer())
        yield World(folder, sls, stack)


@contextmanager
def serving(
    folder: Path, *, write: bool = True, only: str = "", who: Who | None = None
) -> Iterator[tuple[Console, str]]:
    """A console over the world's sockets in a thread, and the URL that opens it."""
    names = [str(path) for path in sorted(folder.glob(f"{only or '*'}.sock"))]
    with bind("127.0.0.1", 0) as bound:
        console = Console(Gateways(names), write=write, cookie=f"natcore-{bound.getsockname()[1]}", who=who)
        server = Server(console)
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        try:
            until(lambda: server.started)
            yield console, url_of(bound, console.access.token)
        finally:
            server.should_exit = True
            thread.join(30)


@contextmanager
def asking(folder: Path, file: str = "", who: Who | None = None) -> Iterator[Visitor]:
    """A console over one gateway, "ngw-1", with this in its file."""
    path = folder / "gateway.toml"
    path.write_text(f'{file}[plane]\ninside = "lan0"\noutside = "wan0"\n')
    if "[gateway]" not in file:
        path.write_text(f'[gateway]\ninstance = "ngw-1"\n{path.read_text()}')
    settings = load(path)
    with (
        settings.make_gateway() as gateway,
        ControlServer(gateway, folder / "ngw-1.sock") as server,
        serving(folder, who=who) as (_, url),
    ):
        server.service = FileService(gateway, settings)
        yield Visitor(url)


class Visitor:
    """Asks a console over HTTP without a browser; it came in by the printed URL."""

    def __init__(self, address: str) -> None:
        url = urlsplit(address)
        self.host, self.token = url.netloc, url.query.removeprefix("token=")
        self.headers: dict[str, str] = {}
        answer = self.get(f"/?{url.query}")
        self.headers["Cookie"] = answer.headers["set-cookie"].partition(";")[0]

    def ask(self, method: str, path: str, body: str | None = None, **headers: str | None) -> Answered:
        """Return the answer; a header that is None is left out."""
        connection = http.client.HTTPConnection(self.host, timeout=30)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {name: value for name, value in {**self.headers, **named}.items() if value is not None}
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return Answered(
                answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()
            )
        finally:
            connection.close()

    def get(self, path: str, **headers: str | None) -> Answered:
        return self.ask("GET", path, **headers)

    def key(self, path: str) -> str:
        """The form's key of a page."""
        found = re.search(r'name="key" value="([0-9a-f]+)"', self.get(path).text)
        assert found is not None
        return found[1]

    def post(self, path: str, fields: dict[str, str], **headers: str | None) -> Answered:
        """Send a form as a browser does from a page of the console's own."""
        own: dict[str, str | None] = {
            "Origin": f"http://{self.host}",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        return self.ask("POST", path, urlencode(fields), **{**own, **headers})

    def status_of_live(self, path: str) -> int:
        """The status of a live part, which is not read."""
        connection = http.client.HTTPConnection(self.host, timeout=30)
        try:
            connection.request("GET", path, headers=self.headers)
            return connection.getresponse().status
        finally:
            connection.close()

    def part(self, path: str) -> str:
        """The first live part of a page: what a server-sent event brings."""
        connection = http.client.HTTPConnection(self.host, timeout=30)
        try:
            connection.request("GET", path, headers=self.headers)
            answer = connection.getresponse()
            assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
            lines: list[str] = []
            while lines[-1:] != [""] or "event: part" not in lines:
                lines.append(answer.readline().decode().rstrip("\n"))
            return "\n".join(line.removeprefix("data: ") for line in lines if line.startswith("data: "))
        finally:
            connection.close()


class Answered(NamedTuple):
    """An answer: status, headers by their names in lower case, and text."""

    status: int
    headers: dict[str, str]
    text: str

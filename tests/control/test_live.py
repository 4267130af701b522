"""Every verb on a running `natcore run` under traffic, as root and as a member of the group."""

from __future__ import annotations

import base64
import json
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from natcore.capture import pcap
from natcore.control.client import Client
from natcore.control.verb import verbs
from natcore.demo.namespaces import Network
from natcore.internal.exit_codes import ExitCode
from support.command_line import call, call_json
from support.control import MEMBERS, STRANGERS, ask_as, folder  # noqa: F401
from support.frames import tcp
from support.netns import CLIENT, POOL, SERVER, connect, listener, needs_root, until, xdp_missing
from support.service import run

pytestmark = needs_root


class Traffic:
    """A TCP connection through the gateway that is never idle, and a UDP client; until it is closed."""

    def __init__(self, network: Network) -> None:
        self._ended = threading.Event()
        self._listening = listener(network, "out", port=8080)
        self.client = connect(network, "in", (SERVER, 8080))
        self.server, _ = self._listening.accept()
        self.sent = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(0.002):
            self.client.sendall(b"x" * 100)
            self.server.recv(1000)
            self.sent += 1

    @property
    def port(self) -> int:
        """The inside port."""
        return int(self.client.getsockname()[1])

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        for each in (self.client, self.server, self._listening):
            each.close()


@pytest.fixture(params=["af_packet", "af_xdp"])
def service(request: pytest.FixtureRequest, network: Network, folder: Path) -> Iterator[tuple[Path, Traffic]]:  # noqa: F811
    """A running gateway's socket, with traffic through it."""
    if request.param == "af_xdp" and (missing := xdp_missing()):
        pytest.skip(missing)
    log = Path(tempfile.mkdtemp(prefix="natcore-log-"))
    file = log / "gateway.toml"
    file.write_text(
        f"""
        [gateway]
        instance = "ngw-1"
        max_sessions = 1000
        [policy]
        sessions_per_subscriber = 20
        [[snat]]
        source = "10.0.0.0/24"
        pool = "{POOL}"
        name = "office"
        [[log]]
        sink = "parquet"
        folder = "{log / "log"}"
        name = "audit"
        [plane]
        inside = "lan0"
        outside = "wan0"
        driver = "{request.param}"
        [control]
        path = "{folder / "s"}"
        group = {MEMBERS}
        """
    )
    process = run(network, file, "--json", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        status = call_json("status", "--wait-ready", "--timeout", 120, "--instance", folder / "s")
        assert status["state"] == "running"
        traffic = Traffic(network)
        try:
            yield folder / "s", traffic
        finally:
            traffic.close()
        process.send_signal(signal.SIGTERM)
        lines = [json.loads(line) for line in process.stdout]
        assert process.wait(60) == 0
        assert lines[0]["control"] == str(folder / "s")
        assert lines[-1]["happened"] == "stopped"
        assert not (folder / "s").exists()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        shutil.rmtree(log)


def test_every_verb_under_traffic(service: tuple[Path, Traffic], network: Network, tmp_path: Path) -> None:
    path, traffic = service
    with Client(path) as client:
        (session,) = client.ask("sessions", subscriber=f"{CLIENT}:{traffic.port}")
        assert (session["remote_ip"], session["remote_port"], session["outside_ip"]) == (SERVER, 8080, POOL)
        assert (session["state"], session["entry_name"]) == ("established", "office")
        (mapping,) = client.ask("mappings", outside=f"{POOL}:{session['outside_port']}")
        assert mapping["inside_ip"] == CLIENT
        (ports,) = client.ask("ports", protocol="tcp")
        assert ports["used"] == 1
        client.ask("who", address=POOL, port=session["outside_port"], protocol="tcp")
        assert client.summary["status"] == "exact"
        frame = tcp("A", CLIENT, traffic.port, SERVER, 8080, seq=1, ack=1)
        client.ask("explain", frame=frame.hex())
        assert client.summary["verdict"] == "OUTBOUND"
        until(lambda: heads_the_list(client.ask("top", interval=0.3, samples=1)))
        assert [log["name"] for log in client.ask("logs")] == ["audit"]
        client.ask("status")
        assert client.summary["file"].endswith("gateway.toml") and client.summary["reloads"] == 0
    watched(path, network)
    captured(path, traffic, tmp_path)
    logs(path)
    ended(path, network)
    before = traffic.sent
    until(lambda: traffic.sent > before)  # none of it disturbed the connection


def heads_the_list(samples: list[dict[str, Any]]) -> bool:
    """Whether the client is the subscriber with most packets, more than one."""
    (row,) = samples
    return [(each["subscriber"], each["packets_out"] > 1) for each in row["subscribers"][:1]] == [(CLIENT, True)]


def watched(path: Path, network: Network) -> None:
    """Sessions, drops and events as they come."""
    with Client(path) as sessions, Client(path) as drops, Client(path) as events:
        begun = sessions.rows("watch-sessions", protocol="udp")
        dropped, told = drops.rows("watch-drops"), events.rows("watch-events")
        found: dict[str, Any] = {}
        threads = [
            threading.Thread(target=lambda name=name, rows=rows: found.setdefault(name, next(rows)))  # type: ignore[misc]
            for name, rows in (("begin", begun), ("drop", dropped), ("event", told))
        ]
        for thread in threads:
            thread.start()
        with network_socket(network, "in") as client, network_socket(network, "out") as stranger:
            port = iter(range(20_000, 60_000))

            def came() -> bool:
                for _ in range(5):  # above the subscriber's quota, which is an event
                    client.sendto(b"x", (SERVER, next(port)))
                stranger.sendto(b"x", (POOL, 9))  # nothing lets it in
                return len(found) == 3

            until(came)
        for thread in threads:
            thread.join()
    assert (found["begin"]["event"], found["begin"]["inside_ip"]) == ("begin", CLIENT)
    assert found["drop"]["verdict"].startswith("DROP_") and "UDP" in found["drop"]["packet"]
    assert (found["event"]["reason"], found["event"]["subscriber"]) == ("subscriber-limit", CLIENT)


def network_socket(network: Network, member: str) -> socket.socket:
    from support.netns import at

    with at(network, member):
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def captured(path: Path, traffic: Traffic, folder: Path) -> None:  # noqa: F811
    """One session's packets, inside and outside joined."""
    file = folder / "both.pcapng"
    told = call_json(
        "capture", "-w", file, "--subscriber", f"{CLIENT}:{traffic.port}", "--count", 20, "--instance", path
    )
    assert told == {"packets": 20, "lost": 0}
    packets = list(pcap.read(file))
    assert len(packets) == 40
    sources = {socket.inet_ntoa(packet.frame[26:30]) for packet in packets}
    assert sources == {CLIENT, POOL, SERVER}
    text = file.read_bytes()
    for words in (b"lan0", b"wan0", b"OUTBOUND: TCP", b"leaves by wan0 as", b"came by lan0 as"):
        assert words in text
    with Client(path) as client:
        row = next(client.rows("capture", subscriber=f"{CLIENT}:{traffic.port}", snap=64))
        assert len(base64.b64decode(row["before"])) == 64 <= row["before_length"]
    assert (
        call_json("capture", "-w", file, "--remote", "192.0.2.1", "--seconds", 0.2, "--instance", path)["packets"] == 0
    )


def logs(path: Path) -> None:
    """A session log is stopped, and started again by its name in the file."""
    with Client(path) as client:
        client.ask("log-stop", name="audit")
        assert client.summary["status"] == "Disabled"
        (stopped,) = client.ask("logs")
        assert (stopped["name"], stopped["status"], stopped["type"]) == ("audit", "Disabled", "parquet")
        assert stopped["destination"]["folder"].endswith("log")
        client.ask("log-start", name="audit")
        assert client.summary["status"] == "Enabled"
        client.ask("log-retry", name="audit")


def ended(path: Path, network: Network) -> None:
    """What --dry-run counts is what ends."""
    count = call_json("end", "--protocol", "udp", "--dry-run", "--instance", path)["sessions"]
    assert count > 0
    assert call_json("end", "--protocol", "udp", "--instance", path)["sessions"] == count
    assert call("sessions", "--protocol", "udp", "--instance", path).count("\n") == 1


@pytest.mark.parametrize("service", ["af_packet"], indirect=True)
def test_a_member_of_the_group_may_look_and_is_refused_what_changes(service: tuple[Path, Traffic]) -> None:
    path, traffic = service
    arguments: dict[str, dict[str, Any]] = {
        "explain": {"frame": tcp("A", CLIENT, traffic.port, SERVER, 8080).hex()},
        "who": {"address": POOL, "port": 1},
        "top": {"interval": 0.1, "samples": 1},
        "end": {"all": True},
        "log-stop": {"name": "audit"},
        "log-start": {"name": "audit"},
        "log-destinations": {"name": "audit"},
        "log-retry": {"name": "audit"},
    }
    asked = [
        {"verb": name, "arguments": arguments.get(name, {}), "id": number}
        for number, name in enumerate(sorted(verbs()))
        if not name.startswith("watch-")
    ]
    _, *lines = ask_as(path, *asked, group=STRANGERS, groups=(MEMBERS,))
    answers = {line["id"]: line for line in lines if line["type"] != "rows"}
    for request in asked:
        answer = answers[request["id"]]
        if verbs()[request["verb"]].writes:
            assert (answer["type"], answer["code"]) == ("failure", ExitCode.REFUSED), request
        elif request["verb"] == "blocks":
            assert "no port blocks" in answer["message"]
        else:
            assert answer["type"] == "end", answer
    assert ask_as(path, {"verb": "status"}, group=STRANGERS) == [{"type": "refused", "errno": 13}]
    with Client(path) as client:
        assert len(client.ask("sessions", protocol="tcp")) == 1

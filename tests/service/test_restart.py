"""`natcore restart`: a successor takes over without a loss; one that cannot leaves everything as it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from natcore import Gateway
from natcore.demo.namespaces import Network
from natcore.plane import kernel_bypass
from natcore.service.configuration_file import load
from natcore.service.run import Service
from natcore.service.succession import Estate, SuccessionError, Successor, file_in_memory
from support.netns import SERVER, at, needs_root, ping, until
from support.restarts import look, restart, rows_of
from support.service import FakePlane, Told, run, sends
from support.service import file as file
from support.traffic import Flows

IPERF = "20M" if shutil.which("iperf3") else ""


@needs_root
@pytest.mark.parametrize("more", ["", "favour = 'latency'\n"], ids=["throughput", "latency"])
def test_nothing_is_lost_over_restarts_under_traffic(network: Network, tmp_path: Path, more: str) -> None:
    """No connection is reset; every UDP packet is in the log, or counted; sums are exact over all processes; `who` answers."""
    found = look(
        network, tmp_path, restarts=3, connections=20, size=4 << 20, seconds=12.0, iperf=IPERF, more=more
    )  # fmt: skip
    assert found.wrong == []
    assert len(found.waited) == 3


@contextmanager
def running(network: Network, folder: Path, text: str) -> Iterator[subprocess.Popen[Any]]:
    """A service of the file in the folder, with its control socket."""
    (folder / "gateway.toml").write_text(text.replace("enabled = false", f'path = "{folder / "nat.sock"}"'))
    with (folder / "told").open("a") as output:
        process = run(network, folder / "gateway.toml", "--json", stdout=output, stderr=output, text=True)
    try:
        until(lambda: (folder / "nat.sock").exists())
        until(lambda: ping(network, "in", SERVER))
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def told(folder: Path, what: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "told").read_text().splitlines() if line.startswith('{"happened"')]
    return [line for line in lines if line["happened"] == what]


@needs_root
def test_a_successor_that_cannot_take_over_leaves_everything_as_it_was(
    network: Network, file: Path, tmp_path: Path
) -> None:
    """It does not like the file; has no place for the sessions; cannot start a log, and gives the gateway back."""
    text = file.read_text()
    refused = f'[[log]]\nsink = "syslog"\nhost = "127.0.0.1"\nport = 9\nspool = "{tmp_path / "spool"}"\n'
    with running(network, tmp_path, text) as process:
        flows = Flows(network, 5)
        until(lambda: flows.answered > 10)
        good = file.read_text()
        for bad, reason in (
            (good.replace("max_sessions = 1000", "max_sessions = 0"), "max_sessions"),
            (good.replace("max_sessions = 1000", "max_sessions = 1"), "sessions"),
            (good + refused + 'name = "far"\non_failure = "refuse"\n', "far"),
        ):
            file.write_text(bad)
            answer = restart(network, tmp_path)
            assert answer["status"] == 70 and reason in answer["error"], answer
            assert process.poll() is None
            before = flows.answered
            until(lambda before=before: flows.answered > before + 10)  # type: ignore[misc]
        file.write_text(good)
        assert restart(network, tmp_path)["status"] == 0
        assert flows.finish() == []
        assert [line["ok"] for line in told(tmp_path, "restart")] == [False, False, False, True]
    rows = rows_of(tmp_path / "log")
    assert "gap" not in {row["kind"] for row in rows}
    numbers = [int(row["number"]) for row in rows if row["kind"] in ("window", "create", "end")]
    assert numbers == list(range(len(numbers)))
    logged = sum(int(row["bytes_from_vpc"]) for row in rows if row["kind"] == "window")
    assert logged == told(tmp_path, "stopped")[-1]["counters"]["bytes_from_inside"]


@needs_root
def test_the_first_process_stands_in_for_its_successors(network: Network, file: Path, tmp_path: Path) -> None:
    """Who started it sees one process, and its signals are the service's; killing it ends the service."""
    with running(network, tmp_path, file.read_text()) as process:
        pids = [restart(network, tmp_path)["pid"] for _ in range(2)]
        assert len({process.pid, *pids}) == 3
        until(lambda: not Path(f"/proc/{pids[0]}").exists())
        process.send_signal(signal.SIGHUP)
        until(lambda: [line["ok"] for line in told(tmp_path, "reload")] == [True])
    assert not Path(f"/proc/{pids[1]}").exists()
    (tmp_path / "nat.sock").unlink(missing_ok=True)
    with pytest.raises(AssertionError), running(network, tmp_path, file.read_text()) as process:
        last = restart(network, tmp_path)["pid"]
        until(lambda: "stand_in" in Path(f"/proc/{process.pid}/cmdline").read_text())
        process.kill()
        until(lambda: not Path(f"/proc/{last}").exists())
    with at(network, "gw"):
        assert kernel_bypass.installed() == []


@needs_root
def test_interfaces_that_the_new_file_does_not_have_are_given_back(
    network: Network, file: Path, tmp_path: Path
) -> None:
    network.pair("gw", "lan1", "in", "eth1")
    network.up("gw", "lan1", "10.0.1.1/24")
    one, two = file.read_text(), file.read_text().replace('inside = "lan0"', 'inside = ["lan0", "lan1"]')
    with running(network, tmp_path, two):
        with at(network, "gw"):
            assert kernel_bypass.installed() == ["lan0", "lan1", "wan0"]
        file.write_text(file.read_text().replace('inside = ["lan0", "lan1"]', 'inside = "lan0"'))
        assert restart(network, tmp_path)["status"] == 0
        with at(network, "gw"):
            assert kernel_bypass.installed() == ["lan0", "wan0"]
        assert ping(network, "in", SERVER)
        file.write_text(two.replace("enabled = false", f'path = "{tmp_path / "nat.sock"}"'))
        assert restart(network, tmp_path)["status"] == 0
        with at(network, "gw"):
            assert kernel_bypass.installed() == ["lan0", "lan1", "wan0"]
    assert one != two


# ---- the predecessor's side, with a successor that is a few lines ------------------------------------------------------------

DIES = "p = Predecessor.of_environment(); e = p.take('af_packet'); os._exit(1)"
DIES_EARLY = "os._exit(1)"
REFUSES = "p = Predecessor.of_environment()\nwith p.telling():\n    raise ValueError('no such thing')"
READY = "p = Predecessor.of_environment(); p._line.say('ready', version={}, driver='af_packet', pid=os.getpid())"
ANOTHER = READY.format(99) + "; p._line.hear(60)"
OTHER_DRIVER = "p = Predecessor.of_environment(); p.take('af_xdp')"
RETURNS = """
p = Predecessor.of_environment()
e = p.take('af_packet')
gateway = Gateway.restore(e.state, resume=True)
gateway.end_all()
s = Estate(file_in_memory())
gateway.hand_over(s.state)
p.give_back(s, 'changed its mind')
"""
TAKES = "p = Predecessor.of_environment(); e = p.take('af_packet'); p.forwards(seconds=0.5, sessions=7)"


def as_successor(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """The next successor runs these lines."""
    names = "Estate, Predecessor, file_in_memory"
    head = f"import os\nfrom natcore import Gateway\nfrom natcore.service.succession import {names}\n"
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-c", head + program])


def life(
    file: Path, monkeypatch: pytest.MonkeyPatch, program: str, after: Any = lambda gateway: None
) -> tuple[Service, Told, list[Any]]:
    """A service with three sessions that is asked for a restart, then looked at, if it goes on, and stopped."""
    as_successor(monkeypatch, program)
    file.write_text(file.read_text().replace("[gateway]", f"[gateway]\nepoch = {time.time()!r}"))  # as a plane sets it
    said: list[tuple[str, dict[str, Any]]] = []
    answers: list[Any] = []
    planes: list[FakePlane] = []

    def ask() -> None:
        try:
            answers.append(service.restart())
        except SuccessionError as error:
            answers.append(error)

    def begin() -> None:
        sends(1, 2, 3)(service.gateway)
        threading.Thread(target=ask).start()

    def wait() -> None:
        until(lambda: answers or service._restart is not None)

    def end() -> None:
        after(service.gateway)
        for log in service.gateway.logs:  # until it has the folder again: a stop does not wait for one that fails
            assert log.wait(60)
        os.kill(os.getpid(), signal.SIGTERM)

    def forward(gateway: Gateway, **interfaces: Any) -> FakePlane:
        planes.append(FakePlane(*([begin, wait] if not planes else []), end))
        return planes[-1]

    monkeypatch.setattr(Gateway, "forward", forward)
    service = Service(load(file), lambda what, fields: said.append((what, fields)))
    service.run()
    until(lambda: answers)
    return service, said, answers


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (DIES_EARLY, "ended"), (REFUSES, "no such thing"), (ANOTHER, "version 99"), (OTHER_DRIVER, "plane.driver must stay"),
        (DIES, "ended"), (RETURNS, "changed its mind"),
    ],
    ids=["dies early", "refuses", "another version", "another driver", "dies", "returns it"],
)  # fmt: skip
def test_the_predecessor_goes_on_when_its_successor_does_not(
    file: Path, monkeypatch: pytest.MonkeyPatch, program: str, reason: str
) -> None:
    left: list[int] = []
    service, said, [answer] = life(file, monkeypatch, program, lambda gateway: left.append(len(gateway.sessions())))
    assert isinstance(answer, SuccessionError)
    assert reason in str(answer)
    assert left == [0 if program is RETURNS else 3]
    assert service.successor is None
    assert [fields["ok"] for what, fields in said if what == "restart"] == [False]
    rows = rows_of(file.parent / "log")
    assert len({row["run"] for row in rows}) == (2 if program is DIES else 1)  # what that one logged is not known
    assert ("gap" in {row["kind"] for row in rows}) is (program is DIES)


def test_a_successor_that_forwards_ends_its_predecessor(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service, said, [answer] = life(file, monkeypatch, TAKES)
    assert answer == {"pid": service.successor, "sessions": 7, "seconds": 0.5}
    assert [what for what, _ in said][-2:] in (["restart", "stopped"], ["stopped", "restart"])


def test_the_manager_is_told_of_the_new_process_before_that_is_told_of_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "10000000")
        then = "\nn = Notifier(); n.ready(); assert n.watchdog == 10.0; n.stopping()"
        service, _, _ = life(file, monkeypatch, "from natcore.service.notify import Notifier\n" + TAKES + then)
        messages: list[str] = []

        def heard() -> bool:
            with_more = True
            while with_more:
                try:
                    messages.append(manager.recv(4096).decode())
                except BlockingIOError:
                    with_more = False
            return "STOPPING=1" in messages

        until(heard)
    after = messages[messages.index(f"MAINPID={service.successor}") :]
    assert [message for message in after if not message.startswith("STATUS")][:2] == [
        f"MAINPID={service.successor}", "READY=1"
    ]  # fmt: skip


def descriptors() -> set[str]:
    return {each.name for each in Path("/proc/self/fd").iterdir()}


def test_an_estate_that_no_one_takes_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    as_successor(monkeypatch, READY.format(1) + "; p._line.hear(60)")
    with Successor() as successor:
        successor.wait_ready("af_packet")
        before = descriptors()
        with Estate(file_in_memory()) as estate:
            successor.give(estate)
        assert descriptors() == before
        with pytest.raises(SuccessionError):
            successor.wait_forwarding()

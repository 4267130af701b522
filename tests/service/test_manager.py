"""`natcore run` under a manager: what it tells systemd, when the watchdog is petted, its exit statuses and its metrics."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from natcore.demo.namespaces import Network
from natcore.internal.exit_codes import ExitCode
from natcore.service.configuration_file import load
from natcore.service.run import Service
from natcore.testhooks.planted_faults import lock_worker, unlock_worker
from support.netns import at, needs_root, network, until
from support.service import FakePlane, run, service_of
from support.service import file as file

__all__ = ["network"]  # a fixture


def told_by(manager: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(manager.recv(4096).decode())
        except BlockingIOError:
            return messages


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.bind(str(tmp_path / "notify"))
    made.setblocking(False)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    return made


def test_a_service_is_ready_when_it_forwards_and_stopping_before_it_ends(
    file: Path, monkeypatch: pytest.MonkeyPatch, manager: socket.socket
) -> None:
    messages: list[list[str]] = []
    reloaded: list[str] = []

    def is_reloaded() -> bool:  # in a thread of its own
        reloaded.extend(told_by(manager))
        return "READY=1" in reloaded

    plane = FakePlane(
        lambda: messages.append(told_by(manager)),
        lambda: os.kill(os.getpid(), signal.SIGHUP),
        lambda: until(is_reloaded),
        lambda: os.kill(os.getpid(), signal.SIGTERM),
    )
    service, _ = service_of(file, monkeypatch, plane)
    service.run()
    with manager:
        messages.append(told_by(manager))
    assert messages[0] == ["READY=1"]
    assert reloaded[0] == "STATUS=running, 1 entries"
    assert reloaded[1].startswith("RELOADING=1\nMONOTONIC_USEC=") and reloaded[2] == "READY=1"
    assert messages[1][-1] == "STOPPING=1" and "NOTIFY_SOCKET" not in os.environ


@needs_root
def test_the_watchdog_is_petted_until_a_loop_stops_to_turn(
    network: Network, file: Path, monkeypatch: pytest.MonkeyPatch, manager: socket.socket
) -> None:
    """Planted: a worker's lock is held, so that its loop waits for ever."""
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    service = Service(load(file), lambda what, fields: None)
    seen: list[list[str]] = []

    def hold() -> None:
        def pets() -> bool:
            return "WATCHDOG=1" in told_by(manager)

        until(lambda: service.started is not None)
        worker = service.gateway._core.worker_capsule(0)
        for _ in range(2):
            until(pets)
            while True:
                try:
                    lock_worker(worker)
                    break
                except RuntimeError:  # its loop has it now
                    time.sleep(0.001)
            until(lambda: service.plane.turn_ages()["natcore-w0"] > 1)
            told_by(manager)
            until(lambda: service.plane.turn_ages()["natcore-w0"] > 3)
            seen.append(told_by(manager))
            unlock_worker(worker)
        until(pets)
        os.kill(os.getpid(), signal.SIGTERM)

    holder = threading.Thread(target=hold)
    holder.start()
    with at(network, "gw"):
        service.run()
    holder.join()
    manager.close()
    assert [message for messages in seen for message in messages if message == "WATCHDOG=1"] == []


@needs_root
def test_run_serves_its_metrics_and_tells_where(network: Network, file: Path) -> None:
    file.write_text(file.read_text() + '\n[metrics]\nlisten = "127.0.0.1:0"\n')
    process = run(network, file, "--json", stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [json.loads(process.stdout.readline()) for _ in range(2)]
    served = next(each["listen"] for each in told if each["happened"] == "metrics")
    network.run("gw", ["ip", "link", "set", "lo", "up"])
    with at(network, "gw"):
        text = urllib.request.urlopen(f"http://{served}/metrics", timeout=60).read().decode()
        assert urllib.request.urlopen(f"http://{served}/readyz", timeout=60).status == 200
    assert "natcore_config_last_reload_successful 1.0" in text and 'natcore_log_up{log="audit"} 1.0' in text
    process.terminate()
    assert process.wait(60) == ExitCode.OK


@needs_root
def test_run_tells_events_in_lines_on_standard_error(network: Network, file: Path) -> None:
    process = run(network, file, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None and process.stdout is not None
    line = process.stderr.readline()
    assert line.split(" ", 3)[1:3] == ["info", "started"] and "inside=lan0 outside=wan0" in line
    process.terminate()
    rest = process.stderr.read()
    assert process.wait(60) == 0 and process.stdout.read() == "" and " info stopped-log log=audit accepted=" in rest

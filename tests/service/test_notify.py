"""What a service tells its manager, and when it pets the watchdog."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from natcore.service.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "notify"))
        made.setblocking(False)
        yield made


def told(manager: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(manager.recv(4096).decode())
        except BlockingIOError:
            return messages


def test_states_are_told_as_the_manager_expects_them(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()}, clock=lambda: 12.5)
    notifier.ready()
    notifier.reloading()
    notifier.stopping()
    assert told(manager) == ["READY=1", "RELOADING=1\nMONOTONIC_USEC=12500000", "STOPPING=1"]
    assert notifier.watchdog is None


def test_the_watchdog_is_petted_four_times_in_its_time_and_only_while_all_goes_on(manager: socket.socket) -> None:
    now = [0.0]
    alive = [True]
    given = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}
    notifier = Notifier(given, clock=lambda: now[0])
    assert notifier.watchdog == 10.0
    for now[0] in (0.0, 1.0, 2.0, 2.5, 3.0, 5.0):
        notifier.pet(lambda: alive[0])
    assert told(manager) == ["WATCHDOG=1"] * 3
    alive[0] = False
    for now[0] in (8.0, 11.0, 20.0):
        notifier.pet(lambda: alive[0])
    assert told(manager) == []
    alive[0] = True
    notifier.pet(lambda: alive[0])
    assert told(manager) == ["WATCHDOG=1"]


def test_the_status_is_one_line_and_no_flood(manager: socket.socket) -> None:
    now = [0.0]
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()}, clock=lambda: now[0])
    for now[0], text in ((0.0, "running\nWATCHDOG=1"), (1.0, "degraded"), (5.0, "degraded"), (60.0, "degraded")):
        notifier.status(text)
    assert told(manager) == ["STATUS=running WATCHDOG=1", "STATUS=degraded"]


def test_another_process_s_watchdog_and_a_manager_that_is_gone_cost_nothing(tmp_path: Path) -> None:
    notifier = Notifier(
        {"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid() + 1)}
    )
    notifier.ready()
    notifier.pet(lambda: True)
    assert notifier.watchdog is None
    assert Notifier({"WATCHDOG_USEC": "soon"}).watchdog is None


def test_programs_that_are_started_get_neither_socket_nor_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.setenv(name, "1")
    Notifier()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)

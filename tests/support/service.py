"""`natcore run` as a process, or in this one with a plane that carries nothing, and a configuration file for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from natcore import Gateway, Side, Verdict
from natcore.demo.namespaces import Network
from natcore.plane.left_plane import LeftPlane
from natcore.service.configuration_file import load
from natcore.service.run import Service
from natcore.testing import craft


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(
        f"""
        [gateway]
        max_sessions = 1000
        [[snat]]
        source = "10.0.0.0/24"
        pool = "198.18.0.100"
        [[log]]
        sink = "parquet"
        folder = "{tmp_path / "log"}"
        name = "audit"
        spool = "{tmp_path / "spool"}"
        [control]
        enabled = false
        [plane]
        inside = "lan0"
        outside = "wan0"
        """
    )
    return path


def run(network: Network, file: Path, *more: str, **options: Any) -> subprocess.Popen[Any]:
    return network.popen("gw", [sys.executable, "-m", "natcore.cli.main", "run", str(file), *more], **options)


class FakePlane:
    """A plane that carries nothing; each wait() lets something happen, then it waits for signals."""

    def __init__(self, *happenings: Any) -> None:
        self.state = "running"
        self.happenings = list(happenings)

    def wait(self, timeout: float | None = None) -> None:
        if self.happenings:
            self.happenings.pop(0)()

    def counters(self) -> dict[str, int]:
        return {"left_to_kernel": 3}

    def stop(self) -> None:
        self.state = "stopped"

    def leave(self) -> LeftPlane:
        self.stop()
        return LeftPlane(("fake", False, 1, 64), None, {})

    def __enter__(self) -> FakePlane:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


REMOTE = "198.51.100.7"


def sends(*ports: int, later: float = 1.0) -> Callable[[Gateway], object]:
    """What sends a UDP packet from each of these inside ports."""

    def send(gateway: Gateway) -> None:
        now = gateway.now + later
        for port in ports:
            packet = craft.ether(craft.udp(("10.0.0.1", port), (REMOTE, 53), bytes(10)))
            assert gateway.translate_one(packet, Side.INSIDE, now)[0] is Verdict.OUTBOUND

    return send


Told = list[tuple[str, dict[str, Any]]]


def service_of(file: Path, monkeypatch: pytest.MonkeyPatch, plane: FakePlane) -> tuple[Service, Told]:
    """A service of the file over the plane, and what it will tell."""
    told: Told = []
    monkeypatch.setattr(Gateway, "forward", lambda self, **interfaces: plane)
    return Service(load(file), lambda what, fields: told.append((what, fields))), told


def serve(file: Path, monkeypatch: pytest.MonkeyPatch, plane: FakePlane) -> Told:
    """What a service tells from its start to its end."""
    service, told = service_of(file, monkeypatch, plane)
    service.run()
    return told

"""A control socket in tests: its folder, raw clients, clients of other users, and verbs for tests alone."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from natcore import Gateway
from natcore.control import verb as registry
from natcore.control.server import ControlServer

MEMBERS, STRANGERS = 54_321, 54_322  # groups that this system need not know
USER = 65_534

# What another user runs: without natcore, since it may not be able to read its files.
_ASK = """
import json, socket, sys
with socket.socket(socket.AF_UNIX) as client:
    client.settimeout(60)
    try:
        client.connect(sys.argv[1])
    except OSError as error:
        print(json.dumps([{"type": "refused", "errno": error.errno}]))
        sys.exit()
    lines = client.makefile("rw")
    print("[", lines.readline())
    for request in json.loads(sys.argv[2]):
        print(json.dumps(request), file=lines, flush=True)
        while True:
            line = lines.readline()
            print(",", line)
            if json.loads(line)["type"] != "rows":
                break
    print("]")
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can pass; tmp_path is its owner's alone."""
    made = Path(tempfile.mkdtemp(prefix="natcore-control-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def verbs() -> Iterator[None]:
    """Verbs that a test registers are gone after it."""
    before = dict(registry.verbs())
    yield
    registry.verbs().clear()  # type: ignore[attr-defined]
    registry.verbs().update(before)  # type: ignore[attr-defined]


@contextmanager
def serving(path: Path, **options: Any) -> Iterator[ControlServer]:
    with Gateway(instance="ngw-1", max_sessions=100) as gateway, ControlServer(gateway, path, **options) as server:
        yield server


def joined(messages: list[Any]) -> list[Any]:
    """The same with an answer's rows in one message: they come in several where the server was short of time."""
    found: list[Any] = []
    for each in messages:
        if found and each["type"] == found[-1]["type"] == "rows":  # an end stands between two answers
            found[-1]["rows"] += each["rows"]
        else:
            found.append(each)
    return found


class Raw:
    """A client that sends bytes."""

    def __init__(self, path: Path, *, receive_bytes: int | None = None) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(60)
        self.socket.connect(os.fsencode(path))
        self._lines = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def line(self) -> Any:
        """The next line's object; None: the connection has ended."""
        try:
            line = self._lines.readline()
        except ConnectionResetError:
            return None
        return json.loads(line) if line else None

    def ask(self, verb: str, **arguments: object) -> list[Any]:
        """The messages of an answer."""
        self.send(json.dumps({"verb": verb, "arguments": arguments, "id": 7}).encode() + b"\n")
        found = [self.line()]
        while found[-1] is not None and found[-1]["type"] == "rows":
            found.append(self.line())
        return joined([message for message in found if message is not None])

    def close(self) -> None:
        self._lines.close()
        self.socket.close()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ask_as(
    path: Path, *requests: dict[str, Any], user: int = USER, group: int, groups: tuple[int, ...] = ()
) -> list[Any]:
    """The messages that another user gets: the greeting, and each request's answer."""
    system = Path("/usr/bin/python3")  # that others may run
    program = str(system) if system.exists() else sys.executable
    done = subprocess.run(
        [program, "-I", "-c", _ASK, str(path), json.dumps(requests)],
        user=user, group=group, extra_groups=groups, capture_output=True, text=True, check=True, cwd="/",
    )  # fmt: skip
    return joined(json.loads(done.stdout))

"""The control socket of `natcore run`: its table in the file, and that a socket that cannot be made stops nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from natcore import Gateway
from natcore.control.client import Client
from natcore.service import control
from natcore.service.configuration_file import SettingsError, load
from support.control import MEMBERS, folder  # noqa: F401
from support.netns import needs_root
from support.service import file  # noqa: F401


def with_control(file: Path, lines: str) -> Path:  # noqa: F811
    file.write_text(file.read_text().replace("enabled = false", lines))
    return file


def served(gateway: Gateway, **table: Any) -> tuple[Any, str]:
    return control.serve(SimpleNamespace(gateway=gateway, settings=SimpleNamespace(control=table)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('group = "no-such-group"', "control.group must be a group of this system, .* got 'no-such-group'"),
        ('write_group = "no-such-group"', "control.write_group must be a group of this system"),
        ("group = -1", "control.group must be a group of this system, .* got -1"),
        ('path = ""', "control.path must be a path"),
        ('sokcet = "x"', "control.sokcet: unknown key; known ones are enabled, group, path, write_group"),
        ("enabled = 1", "control.enabled must be true or false, got 1"),
    ],
)
def test_a_wrong_table_is_refused_with_its_key(file: Path, lines: str, said: str) -> None:  # noqa: F811
    with pytest.raises(SettingsError, match=said):
        load(with_control(file, lines), to_run=True)


def test_the_table_is_where_the_socket_lies_and_who_may_connect(file: Path, folder: Path) -> None:  # noqa: F811
    table = load(with_control(file, f'path = "{folder / "s"}"\ngroup = {os.getegid()}'), to_run=True).control
    with Gateway() as gateway:
        server, why_not = served(gateway, **table)
        assert (why_not, server.path) == ("", folder / "s")
        Client(folder / "s").close()


def test_the_default_is_a_socket_of_the_gateway_s_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr("natcore.control.socket_file.FOLDER", folder / "run")
    for instance, name in (("ngw-1", "ngw-1.sock"), ("", "natcore.sock")):
        with Gateway(instance=instance) as gateway:
            server, _ = served(gateway)
            assert server.path == folder / "run" / name
    assert (folder / "run").stat().st_mode & 0o777 == 0o755


def test_where_none_can_be_made_the_reason_is_told(folder: Path) -> None:  # noqa: F811
    with Gateway(instance="../x") as gateway:
        server, why_not = served(gateway)
        assert server is None and "instance must have no '/'" in why_not
        server, why_not = served(gateway, path=str(folder / "missing" / "s"))
        assert server is None and "No such file or directory" in why_not
        assert served(gateway, enabled=False) == (None, "")


@needs_root
def test_the_socket_is_given_to_a_group_without_cap_chown() -> None:
    """`natcore run` gives up capabilities before it makes the socket."""
    code = (
        "import os; from natcore.service import control\n"
        f"control.join_group({{'group': {MEMBERS}}}); print({MEMBERS} in os.getgroups())\n"
        "control.join_group({'group': 'no-such-group'})  # said by the file's check"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"

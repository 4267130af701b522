"""The exit status of every command: by the kind of error, never Python's 1 or the library's 2."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from natcore import CapacityError, ConfigurationError, Error, InterfaceError
from natcore.cli import main
from natcore.cli.completion import man_pages, statuses
from natcore.errors import ControlError, DeliveryError, MissingExtraError, RestartNeededError, UntrustedFileError
from natcore.internal.exit_codes import ANSWERS, MEANINGS, READER_GONE, ExitCode, exit_code
from natcore.service.problems import SettingsError
from support.command_line import call, call_json


@pytest.mark.parametrize(
    ("error", "status", "of_file"),
    [
        (ConfigurationError("pool must be …"), 64, 78),
        (FileNotFoundError(errno.ENOENT, "no such file"), 64, 78),
        (FileExistsError(errno.EEXIST, "is there"), 64, 78),
        (SettingsError(Path("f"), "plane.inside", 5, "must be text"), 78, 78),
        (SettingsError(Path("f"), "log[0].on_failure", "refuse", "session log 'a' does not work"), 75, 75),
        (SettingsError(Path("f"), "log[0].on_failure", "stop", "must be 'forward' or 'refuse'"), 78, 78),
        (RestartNeededError("block_size", ("Policy.block_size",)), 78, 78),
        (MissingExtraError("rich is not installed"), 78, 78),
        (UntrustedFileError("a link"), 78, 78),
        (InterfaceError(errno.ENODEV, "no such interface"), 75, 75),
        (InterfaceError(errno.EBUSY, "another process has it"), 75, 75),
        (InterfaceError(errno.EADDRINUSE, "metrics cannot listen"), 75, 75),
        (InterfaceError(errno.EPERM, "CAP_NET_RAW"), 78, 78),
        (PermissionError(errno.EACCES, "permission denied"), 78, 78),
        (OSError(errno.ENOSPC, "no space left"), 75, 75),
        (CapacityError("no memory"), 75, 75),
        (DeliveryError("ServerBusy", "later"), 75, 75),
        (DeliveryError("Unauthorized", "no", "reject"), 70, 70),
        (ControlError("too many clients", 75), 75, 75),
        (OSError(errno.EIO, "input/output error"), 70, 70),
        (Error("the gateway is closed"), 70, 70),
    ],
)
def test_the_status_says_what_may_help(error: BaseException, status: int, of_file: int) -> None:
    assert (exit_code(error), exit_code(error, of_file=True)) == (status, of_file)


def leaves(group: Any, *path: str) -> Iterator[tuple[str, ...]]:
    for name, found in group.commands.items():
        yield from leaves(found, *path, name) if hasattr(found, "commands") else [(*path, name)]


def test_an_unknown_option_is_64_for_every_command() -> None:
    for path in leaves(get_command(main.app)):
        assert "No such option" in call(*path, "--none", exit_code=ExitCode.USAGE)


def test_no_command_and_an_unknown_one_are_64() -> None:
    for arguments in ([], ["none"], ["run"]):
        done = subprocess.run([sys.executable, "-m", "natcore.cli.main", *arguments], capture_output=True)
        assert done.returncode == ExitCode.USAGE, done.stderr


def test_a_defect_is_70_with_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("natcore.plane.links.clean", fail)
    call("clean", exit_code=ExitCode.FAILED)


def test_a_reader_that_has_gone_is_no_error() -> None:
    script = "import sys; sys.argv = ['natcore', 'config']; from natcore.cli.main import main; main()"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == (b"", READER_GONE)


def test_json_has_the_status(tmp_path: Path) -> None:
    for arguments, status in (
        (["check", tmp_path / "none"], 78),
        (["log", "top", tmp_path / "none"], 64),
        (["status", "--instance", tmp_path / "none"], 75),
    ):
        told = call_json(*arguments, exit_code=status)
        assert (told["ok"], told["code"]) == (False, status)


def test_what_the_table_names_is_a_command_and_its_page_has_it() -> None:
    names = {" ".join(path) for path in leaves(get_command(main.app))}
    assert set(ANSWERS) <= names
    pages = dict(man_pages(main.app))
    for name in names:
        page = pages["-".join(("natcore", *name.split()))]
        assert ".SH EXIT STATUS" in page and set(statuses(name)) >= {int(status) for status in MEANINGS}
    assert "\\fB3\\fR\nseveral may have had it" in pages["natcore-who"]

"""What is made of the commands themselves: completions and man pages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from natcore.cli.completion import SHELLS, man_pages
from natcore.cli.main import app
from support.command_line import call


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_takes_the_script(shell: str) -> None:
    script = call("completion", shell)
    assert "_NATCORE_COMPLETE" in script
    if shutil.which(shell):
        check = ["--no-execute"] if shell == "fish" else ["-n"]
        subprocess.run([shell, *check], input=script.encode(), check=True)


def test_another_shell_is_refused() -> None:
    assert "SHELL must be 'bash', 'zsh' or 'fish', got 'csh'" in call("completion", "csh", exit_code=64)


def test_commands_and_options_are_completed() -> None:
    def completed(words: str) -> list[str]:
        given = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_NATCORE_COMPLETE": "complete_bash"}
        done = subprocess.run(
            [sys.executable, "-m", "natcore.cli.main"], env=os.environ | given, capture_output=True, text=True
        )
        return done.stdout.split()

    assert completed("natcore serv") == ["service"]
    assert completed("natcore service inst") == ["install"]
    assert "--log-level" in completed("natcore run --log")


def test_every_command_has_a_man_page_without_a_warning(tmp_path: Path) -> None:
    pages = dict(man_pages(app, datetime(2026, 11, 29, tzinfo=UTC)))
    assert {"natcore", "natcore-run", "natcore-service-install", "natcore-log-top"} <= set(pages)
    assert '.TH "NATCORE\\-RUN" "1" "2026-11-29"' in pages["natcore-run"]
    assert "\\fB\\-\\-log\\-level <" in pages["natcore-run"]
    if shutil.which("man") is None:
        pytest.skip("man (Debian: man-db)")
    assert "man" in call("man", tmp_path)
    for page in tmp_path.iterdir():
        shown = subprocess.run(["man", "--warnings", "-l", page], capture_output=True, text=True)
        assert (shown.returncode, shown.stderr) == (0, ""), page.name
        assert len(shown.stdout) > 100

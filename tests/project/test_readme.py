"""The README keeps its word: its example runs as printed, its commands are there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from support.readme_example import example

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_the_example_runs_as_printed(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", example(README)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    shown = re.search(r"^```python\n.*?^```\n+```text\n(.*?)^```$", README, re.S | re.M)
    assert shown is not None, "the README shows what its example prints"
    assert run.stdout == shown[1]


def test_the_example_is_five_lines() -> None:
    """Besides the import line that it cannot do without."""
    lines = [line for line in example(README).splitlines() if line.strip() and not line.startswith(("from", "import"))]
    assert len(lines) == 5


def test_its_commands_are_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`?make ([a-z]+)", README)) <= targets

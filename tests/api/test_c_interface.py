"""The frozen C interface: a foreign package is built against an installed wheel and drives `translate`."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
USER = ROOT / "tests" / "cimport_user"
NAMES: list[str] = re.findall(r"^def check_(\w+)\(\) -> None:", (USER / "check.py").read_text(), re.M)


def run(*command: str | Path, cwd: Path) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has natcore from its wheel, and cimport_user built against that; nothing comes over a network."""
    folder = tmp_path_factory.mktemp("cimport")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    [wheel] = folder.glob("natcore-*.whl")
    venv = folder / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=folder)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(venv), "platbase": str(venv)}))
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(others) + "\n")
    python = venv / "bin" / "python"
    install = [
        *pip,
        "--python",
        python,
        "install",
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
        "--force-reinstall",
    ]
    run(*install, wheel, cwd=folder)
    run(*install, USER, f"-Cbuild-dir={folder / 'build'}", cwd=folder)
    where = run(python, "-c", "import natcore; print(natcore.__file__)", cwd=folder)
    assert Path(where.strip()).is_relative_to(venv), f"not the wheel's natcore: {where}"
    return python


@pytest.mark.parametrize("name", NAMES)
def test_a_ring_of_our_own(interpreter: Path, tmp_path: Path, name: str) -> None:
    assert run(interpreter, "-W", "error", USER / "check.py", name, cwd=tmp_path) == f"{name}: ok\n"

"""The Debian package: what is in it, and that it runs from its own folder. It is built only where the tools and a wheel are."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import natcore

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"
PYTHON = "/usr/bin/python3"  # the package is for the system's


def run(*command: object, **options: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def test_its_version_is_natcore_s() -> None:
    first = (PACKAGING / "debian/changelog").read_text().splitlines()[0]
    assert first.startswith(f"natcore ({natcore.__version__}) ")


def wheel() -> Path:
    """A wheel in dist for the system's Python."""
    for tool in ("dpkg-buildpackage", "dh", "lintian"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} (Debian: dpkg-dev, debhelper, lintian)")
    if not Path(PYTHON).exists():
        pytest.skip(f"{PYTHON} is not there")
    tag = run(PYTHON, "-c", "import sys; print('cp%d%d' % sys.version_info[:2])").strip()
    found = sorted((ROOT / "dist").glob(f"natcore-{natcore.__version__}-{tag}-*.whl"))
    if not found:
        pytest.skip(f"no wheel of {tag} in dist: python -m build --wheel")
    return found[-1]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The package's file, and its content."""
    made, content = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("content")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    run(PACKAGING / "build-deb", wheel(), made, env=environment)
    (file,) = made.glob("natcore_*.deb")
    run("dpkg-deb", "-x", file, content)
    return file, content


def test_it_has_the_command_the_unit_and_what_is_made_of_them(package: tuple[Path, Path]) -> None:
    _, content = package
    unit = (content / "lib/systemd/system/natcore.service").read_text()
    assert "ExecStart=/usr/bin/natcore run /etc/natcore/gateway.toml" in unit
    assert "u natcore" in (content / "usr/lib/sysusers.d/natcore.conf").read_text()
    assert "d /run/natcore" in (content / "usr/lib/tmpfiles.d/natcore.conf").read_text()
    for path in (
        "usr/share/man/man1/natcore-run.1.gz", "usr/share/bash-completion/completions/natcore",
        "usr/share/zsh/vendor-completions/_natcore", "usr/share/fish/vendor_completions.d/natcore.fish",
        "usr/share/natcore/natcore-alerts.yml", "usr/share/natcore/natcore-dashboard.json",
        "usr/share/doc/natcore/examples/gateway.toml", "usr/share/doc/natcore/copyright",
    ):  # fmt: skip
        assert (content / path).exists(), path
    assert list(content.rglob("*.pyc")) == []
    assert (content / "usr/bin/natcore").readlink() == Path("../lib/natcore/bin/natcore")


def test_its_command_runs_with_the_system_s_python_and_its_own_packages(package: tuple[Path, Path]) -> None:
    _, content = package
    own = content / "usr/lib/natcore"
    text = (own / "bin/natcore").read_text()
    assert text.startswith(f"#!{PYTHON} -I\n") and "/usr/lib/natcore/lib" in text
    command = content / "natcore"
    command.write_text(text.replace("/usr/lib/natcore", str(own)))
    assert run(PYTHON, "-IB", command, "--version") == f"natcore {natcore.__version__}\n"
    assert "is good" in run(PYTHON, "-IB", command, "check", content / "usr/share/doc/natcore/examples/gateway.toml")


def test_it_needs_the_python_that_it_was_built_for_and_starts_nothing(package: tuple[Path, Path]) -> None:
    file, _ = package
    version = run(PYTHON, "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    depends = run("dpkg-deb", "-f", file, "Depends")
    assert f"python3 (>= {version})" in depends and "libc6" in depends
    scripts = Path(str(file) + "-control")
    run("dpkg-deb", "-e", file, scripts)
    installed = (scripts / "postinst").read_text()
    assert "systemd-sysusers" in installed and "py3compile" in installed and "deb-systemd-invoke start" not in installed
    found = run("lintian", "--fail-on", "error", "--suppress-tags", "bad-distribution-in-changes-file", file)
    assert "E: " not in found, found

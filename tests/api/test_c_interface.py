"""The frozen C interface: a package and a C file that are not natcore's are built against it and drive `translate`.

`.ci/run` builds the package against the wheel as well.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

import natcore
from natcore import Error, Gateway, Side, SnatEntry, Verdict

ROOT = Path(__file__).resolve().parents[2]
USER = ROOT / "tests" / "cimport_user"
C_EXAMPLE = ROOT / "docs" / "examples" / "c_caller.c"
FRAME = bytes.fromhex("02000000000102000000000208004500001c00000000401146920a000005c633640714e900350008b680")
NAMES: list[str] = re.findall(r"^def check_(\w+)\(\) -> None:", (USER / "check.py").read_text(), re.M)


def run(*command: str | Path, cwd: Path) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that has cimport_user, built against what is installed of natcore; nothing comes over a network."""
    folder = tmp_path_factory.mktemp("cimport")
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--target", folder / "site"]
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *options, USER,
        f"-Cbuild-dir={folder / 'build'}", cwd=folder)  # fmt: skip
    return folder / "site"


@pytest.mark.parametrize("name", NAMES)
def test_a_ring_of_our_own(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("PYTHONPATH", str(built))
    assert run(sys.executable, "-W", "error", USER / "check.py", name, cwd=tmp_path) == f"{name}: ok\n"


def test_users_sources_name_no_private_module() -> None:
    named = set()
    for path in [*USER.glob("*.pyx"), *USER.glob("*.py"), C_EXAMPLE]:
        named |= set(re.findall(r"natcore(?:\.\w+)+(?=\s+c?import)|\._\w+", path.read_text()))
    assert named <= {"natcore.translate", "natcore.frame"}


def test_the_binary_names_no_private_module(built: Path) -> None:
    [binary] = built.glob("cimport_user*.so")
    assert set(re.findall(rb"natcore\.[\w.]+", binary.read_bytes())) <= {b"natcore.C_API", b"natcore.Worker"}


def test_only_what_is_frozen_is_installed() -> None:
    folder = Path(natcore.get_include()) / "natcore"
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.pxd")} == {"frame.pxd", "translate.pxd"}


# ---- the C example ---------------------------------------------------------------------------------------------------


def compile_c(source: Path, folder: Path, include: Path) -> Path:
    module = folder / f"{source.stem}{sysconfig.get_config_var('EXT_SUFFIX')}"
    warnings = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wno-cast-function-type"]
    includes = [f"-I{include}", f"-isystem{sysconfig.get_path('include')}"]
    run("cc", "-O2", "-shared", "-fPIC", *warnings, *includes, source, "-o", module, cwd=folder)
    return module


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.name.partition(".")[0], path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_c_example_translates(tmp_path: Path) -> None:
    c_caller = load(compile_c(C_EXAMPLE, tmp_path, Path(natcore.get_include())))
    with Gateway(seed=1, workers=2) as gateway, Gateway(seed=1, workers=2) as other:
        for each in (gateway, other):
            each.add(SnatEntry("10.0.0.0/16", pool="203.0.113.1"))
        verdict, frame = c_caller.run(gateway.capsule(worker=1), FRAME, Side.INSIDE, 0)
        assert (verdict, frame) == other.translate_one(FRAME, Side.INSIDE, now=0.0, worker=1)
        assert gateway.counters()["forwarded"] == 1
        with pytest.raises(ValueError, match="PyCapsule_GetPointer"):
            c_caller.run(object(), FRAME, Side.INSIDE, 0)


def test_a_module_for_another_abi_is_refused_at_import(tmp_path: Path) -> None:
    header = (Path(natcore.get_include()) / "natcore" / "natcore.h").read_text()
    (tmp_path / "natcore").mkdir()
    later = header.replace("#define NATCORE_ABI_VERSION 1", "#define NATCORE_ABI_VERSION 2")
    assert later != header
    (tmp_path / "natcore" / "natcore.h").write_text(later)
    with pytest.raises(ImportError, match="natcore has ABI version 1, and this module was compiled for 2"):
        load(compile_c(C_EXAMPLE, tmp_path, tmp_path))


def test_the_header_has_pythons_numbers() -> None:
    header = (Path(natcore.get_include()) / "natcore" / "natcore.h").read_text()
    numbers = {name: int(value) for name, value in re.findall(r"NATCORE_(\w+)(?: =)? (\d+)", header)}
    assert numbers["ABI_VERSION"] == natcore.ABI_VERSION
    assert {side.name: side.value for side in Side}.items() <= numbers.items()
    kept = {verdict.name: verdict.value for verdict in Verdict if not verdict.is_drop}
    assert kept.items() <= numbers.items()
    assert numbers["DROPS"] == min(verdict for verdict in Verdict if verdict.is_drop)


def test_a_capsule_is_of_an_open_gateways_worker() -> None:
    with Gateway(workers=2) as gateway, pytest.raises(Error, match=r"worker must be .*between 0 and 1, got 2"):
        gateway.capsule(worker=2)
    with pytest.raises(Error, match="the gateway is closed"):
        gateway.capsule()

"""The benchmarks' own Cython modules, compiled into build/benchmarks when they are asked for."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build" / "benchmarks"
DIRECTIVES = "cdivision=True,boundscheck=False,wraparound=False,initializedcheck=False"


def build(name: str) -> Path:
    """The compiled benchmarks/name.pyx; compiled again only when it or what it cimports is newer."""
    source = HERE / f"{name}.pyx"
    name = source.stem
    module = BUILD / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    newest = max(path.stat().st_mtime for path in (source, *(HERE.parent / "natcore").rglob("*.pxd")))
    if module.exists() and module.stat().st_mtime >= newest:
        return module
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:  # another process may compile the same, or use what is there
        generated, compiled = Path(folder, f"{name}.c"), Path(folder, module.name)
        cython = [sys.executable, "-m", "cython", "-3", "-X", DIRECTIVES, "-I", str(HERE.parent)]
        subprocess.run([*cython, str(source), "-o", str(generated)], check=True)
        compiler = ["cc", "-O3", "-shared", "-fPIC", f"-I{sysconfig.get_path('include')}", f"-I{HERE.parent}"]
        subprocess.run([*compiler, str(generated), "-o", str(compiled)], check=True)
        compiled.replace(module)
    return module


def load_module(name: str) -> ModuleType:
    """benchmarks/name.pyx, imported."""
    spec = importlib.util.spec_from_file_location(Path(name).name, build(name))
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def walk(sessions: int, packets: int) -> float:
    """walk.pyx, the memory's limit, in a process of its own: seconds a packet over `sessions` sessions and their buckets."""
    program = f"import walk; print(walk.walk({sessions}, {packets}))"
    folder = build("walk").parent
    run = subprocess.run([sys.executable, "-c", program], cwd=folder, check=True, capture_output=True, text=True)
    return 1e-6 / float(run.stdout)

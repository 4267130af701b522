"""walk.pyx, the memory's limit: built once into build/benchmarks, run in a process of its own each time."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build" / "benchmarks"


def build_walk() -> Path:
    """The folder with the compiled module; compiled again only when walk.pyx is newer."""
    source = HERE / "walk.pyx"
    module = BUILD / f"walk{sysconfig.get_config_var('EXT_SUFFIX')}"
    if module.exists() and module.stat().st_mtime >= source.stat().st_mtime:
        return BUILD
    BUILD.mkdir(parents=True, exist_ok=True)
    generated = BUILD / "walk.c"
    cython = [sys.executable, "-m", "cython", "-3", "-X", "cdivision=True,boundscheck=False,wraparound=False"]
    subprocess.run([*cython, str(source), "-o", str(generated)], check=True)
    include = sysconfig.get_path("include")
    compiler = ["cc", "-O3", "-shared", "-fPIC", f"-I{include}", str(generated), "-o", str(module)]
    subprocess.run(compiler, check=True)
    return BUILD


def walk(sessions: int, packets: int) -> float:
    """Seconds a packet of the bare walk over `sessions` session lines and their buckets."""
    program = f"import walk; print(walk.walk({sessions}, {packets}))"
    run = subprocess.run([sys.executable, "-c", program], cwd=build_walk(), check=True, capture_output=True, text=True)
    return 1e-6 / float(run.stdout)

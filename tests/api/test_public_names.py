"""What `import natcore` gives: every public name, the slow ones when they are first named."""

from __future__ import annotations

import subprocess
import sys

import pytest

import natcore

# What a gateway in memory does not need; numpy's own imports are numpy's.
LATE = {
    "natcore.c_interface", "natcore.capture", "natcore.cli", "natcore.demo", "natcore.explain", "natcore.io", "natcore.plane",
    "natcore.service", "natcore.sessionlog", "natcore.sinks", "natcore.testhooks", "natcore.testing", "natcore.who",
    "aliyun", "asyncio", "click", "concurrent", "confluent_kafka", "duckdb", "email", "hashlib", "http", "json", "logging",
    "matplotlib", "msgspec", "multiprocessing", "pyarrow", "pyroute2", "random", "rich", "secrets", "select", "socket", "ssl",
    "subprocess", "tempfile", "tomllib", "typer", "unittest", "urllib.request", "xml",
}  # fmt: skip
MODULES_MOST = 71  # natcore's own; more costs time, so raise it only for what every gateway needs
IMPORT = "import numpy, sys; before = set(sys.modules); import natcore; print(*(set(sys.modules) - before))"


@pytest.mark.parametrize("name", natcore.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(natcore, name) is not None
    assert name in dir(natcore)


def test_the_import_leaves_out_what_is_slow_or_seldom_needed() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    packages = {".".join(name.split(".")[:depth]) for name in modules for depth in (1, 2)}
    assert not packages & LATE
    assert len([name for name in modules if name.split(".")[0] == "natcore"]) <= MODULES_MOST


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Gatewy'"):
        _ = natcore.Gatewy

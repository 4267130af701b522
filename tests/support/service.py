"""`natcore run` as a process, and a configuration file for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from natcore.demo.namespaces import Network


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(
        f"""
        [gateway]
        max_sessions = 1000
        [[snat]]
        source = "10.0.0.0/24"
        pool = "198.18.0.100"
        [[log]]
        sink = "parquet"
        folder = "{tmp_path / "log"}"
        name = "audit"
        spool = "{tmp_path / "spool"}"
        [plane]
        inside = "lan0"
        outside = "wan0"
        """
    )
    return path


def run(network: Network, file: Path, *more: str, **options: Any) -> subprocess.Popen[Any]:
    return network.popen("gw", [sys.executable, "-m", "natcore.cli.main", "run", str(file), *more], **options)

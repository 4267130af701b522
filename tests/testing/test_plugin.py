"""The pytest plugin, in a pytest of its own: its fixtures, and that it imports natcore for a test that asks alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFIGURATION = """
[pytest]
addopts = --strict-markers -p natcore.testing.plugin -p no:cacheprovider
filterwarnings =
    error
    ignore:Module already imported so cannot be rewritten:pytest.PytestAssertRewriteWarning
"""
TESTS = """
import pytest
from natcore import Gateway, Policy, Side, SnatEntry, Verdict
from natcore.testing import craft

FRAME = craft.ether(craft.udp(("10.0.0.5", 5000), ("198.51.100.7", 53)))

@pytest.mark.gateway(policy=Policy(port_ranges=[(4000, 4000)]))
def test_a_gateway_of_these_keywords(gateway: Gateway) -> None:
    gateway.add(SnatEntry("10.0.0.0/16", pool="203.0.113.1"))
    verdict, sent = gateway.translate_one(FRAME, Side.INSIDE, 0.0)
    assert verdict is Verdict.OUTBOUND and sent is not None and sent[34:36] == (4000).to_bytes(2, "big")

def test_another_is_new_and_repeatable(gateway: Gateway) -> None:
    assert not gateway.entries() and gateway.counters()["received"] == 0

def test_sls_server(sls_server) -> None:
    assert sls_server.endpoint.startswith("http://127.0.0.1:")

@pytest.mark.lab
def test_lab(lab) -> None:
    assert lab.run("inside", ["ip", "-4", "-o", "addr"]).stdout.count("10.0.0.2") == 1
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "pytest.ini").write_text(CONFIGURATION + "markers =\n    lab: of a network\n")
    (folder / "test_own.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_fixtures_give_what_they_say(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "not lab")
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout + done.stderr


def test_a_lab_is_made_by_root_alone(tmp_path: Path) -> None:
    pytest.importorskip("pyroute2", reason="pyroute2 is not installed")
    done = run(tmp_path, "-m", "lab")
    assert ("1 passed" if os.geteuid() == 0 else "1 skipped") in done.stdout, done.stdout + done.stderr


def test_the_marker_is_listed(tmp_path: Path) -> None:
    assert "@pytest.mark.gateway(**settings): keywords of natcore.Gateway" in run(tmp_path, "--markers").stdout

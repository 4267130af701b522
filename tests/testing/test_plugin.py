"""The pytest plugin, found by its entry point in a pytest of its own, and what Hypothesis knows of natcore's types."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natcore import DnatEntry, Gateway, NoNatEntry, Policy, SnatEntry, Timeouts
from natcore.config import AnyEntry
from natcore.testing import Configuration

CONFIGURATION = """
[pytest]
addopts = --strict-markers -p no:cacheprovider
filterwarnings =
    error
    ignore:Module already imported so cannot be rewritten; _editable:pytest.PytestAssertRewriteWarning
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


@given(st.from_type(Configuration))
def test_hypothesis_draws_gateways(drawn: Configuration) -> None:
    with drawn.gateway(seed=1) as gateway:
        assert len(gateway.entries()) == len(drawn.entries)


def test_the_types_above_are_drawn_as_without_natcore() -> None:
    """Hypothesis asks every strategy that it knows of a type below: a failure would break the tests of other projects."""
    for kind in (object, Hashable):
        st.from_type(kind).validate()


@given(st.builds(dict, policy=st.from_type(Policy), timeouts=st.from_type(Timeouts)))
def test_hypothesis_draws_settings(settings: dict[str, Any]) -> None:
    with Gateway(max_sessions=1024, **settings) as gateway:
        assert gateway.policy == settings["policy"]


@given(st.one_of([st.from_type(kind) for kind in (SnatEntry, DnatEntry, NoNatEntry)]))
def test_hypothesis_draws_entries_that_a_gateway_takes(entry: AnyEntry) -> None:
    with Gateway(max_sessions=1024, policy=Policy(class_e=True)) as gateway:
        gateway.add(entry)
        (one,) = gateway.entries()
        assert type(one.entry) is type(entry)

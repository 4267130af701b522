"""What the documents show passes the strictest type checks: README, every page's Python, the examples."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
# What a page may take for granted: it says so in words, or the page before it has it.
SURROUNDINGS = """
import numpy as np
from natcore import Gateway
from numpy.typing import NDArray

gateway: Gateway
frames: NDArray[np.uint8]
lengths: NDArray[np.uint32]
"""
MYPY = f"""
[mypy]
strict = True
mypy_path = {ROOT / "python"}
explicit_package_bases = True

[mypy-duckdb.*,pyarrow.*]
ignore_missing_imports = True
"""
CHECKED_BADLY = """
from natcore import DnatEntry, Gateway, Policy, SnatEntry
from natcore.sinks import BaseSink, IpfixSink, MemorySink

class NoSink:
    pass

gateway = Gateway(kind="cloud")
Policy(mapping="symmetric")
gateway.start_session_log(NoSink())
gateway.add(SnatEntry("10.0.0.0/16", pool="203.0.113.1")).entry.external_ip
gateway.forward("lan0", "wan0", driver="dpdk")
gateway.remove(gateway.add(DnatEntry("203.0.113.1", 80, "10.0.0.5", 80)), True)
IpfixSink("192.0.2.1", 4739, transport="sctp")
MemorySink().batch_rows = 7
Policy(port_ranges=[(1024, 65535)]).port_ranges.append((1, 2))
"""
CHECKED_WELL = """
from ipaddress import IPv4Address, IPv4Network
from typing import assert_type

from natcore import DnatEntry, Eip, Entry, Gateway, Link, NoNatEntry, Policy, Sink, SnatEntry
from natcore.sinks import Batch, JsonLinesSink, MemorySink

class Own:
    def deliver(self, batch: Batch) -> None:
        print(len(batch))

sinks: list[Sink] = [Own(), MemorySink(), JsonLinesSink("rows")]
gateway = Gateway(framing="ip")
snat = gateway.add(SnatEntry("10.0.0.0/16", pool=[Eip("203.0.113.1", private_ip=1), "203.0.113.8-203.0.113.9"]))
assert_type(snat, Entry[SnatEntry])
assert_type(snat.entry.source, IPv4Network)
assert_type(snat.entry.eips, tuple[Eip, ...])
assert_type(snat.entry.eips[0].address, IPv4Address)
dnat = gateway.add(DnatEntry("203.0.113.1", (80, 81), [("10.0.0.5", 2), ("10.0.0.6", 1)], (8080, 8081)))
assert_type(dnat.entry.internal_ip, tuple[tuple[IPv4Address, int], ...])
assert_type(gateway.add(NoNatEntry("10.0.0.0/16", IPv4Network("10.0.0.0/8"))).entry.destination, IPv4Network)
assert_type(Policy(port_ranges=[(1024, 65535)]).port_ranges, tuple[tuple[int, int], ...])
assert_type(Link(address="10.0.0.1").address, IPv4Address | None)
handles: list[Entry] = gateway.entries()
gateway.remove(snat, drain=True)
gateway.translate_many([b"", bytearray(), memoryview(b"")], 0, now=0.0)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every page's Python as a module, the examples beside them, and what is right and wrong on purpose."""
    folder = tmp_path_factory.mktemp("typing")
    (folder / "surroundings.pyi").write_text(SURROUNDINGS)
    for page in PAGES:
        blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.S | re.M)
        if blocks:
            text = "\n".join(blocks)
            granted = sorted(names_missing(text) & {"gateway", "frames", "lengths"})
            head = f"from surroundings import {', '.join(granted)}\n" if granted else ""
            name = re.sub(r"\W", "_", str(page.relative_to(ROOT).with_suffix("")))
            (folder / f"page_{name}.py").write_text(head + text)
    for path in EXAMPLES:
        shutil.copy(path, folder)
    (folder / "well.py").write_text(CHECKED_WELL)
    (folder / "badly.py").write_text(CHECKED_BADLY)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_python_of_a_page_is_passed_over(page: Path) -> None:
    """Each block of Python begins with the line that the fixture looks for."""
    fences = re.findall(r"^[ >]*(?:```|~~~)[ ]*\S*(?:py)\S*$", page.read_text(), re.M)
    assert set(fences) <= {"```python"}


def names_missing(text: str) -> set[str]:
    """Names that a module uses and does not make."""
    nodes = list(ast.walk(ast.parse(text)))
    used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    made = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    made |= {alias.asname or alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    return used - made


def lines_of(text: str) -> set[int]:
    """The lines of a program that are its statements but for imports and classes."""
    nodes = ast.parse(text).body
    return {node.lineno for node in nodes if not isinstance(node, ast.ImportFrom | ast.ClassDef)}


def test_mypy_strict(folder: Path) -> None:
    settings = folder / "mypy.ini"
    settings.write_text(MYPY)
    files = [path for path in sorted(folder.glob("*.py")) if path.name != "badly.py"]
    command = [sys.executable, "-m", "mypy", "--config-file", settings, "--cache-dir", folder / "cache"]
    done = subprocess.run([*command, *files], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run([*command, folder / "badly.py"], cwd=folder, capture_output=True, text=True, check=False)
    refused = {int(line) for line in re.findall(r"badly\.py:(\d+): error", done.stdout)}
    assert refused >= lines_of(CHECKED_BADLY), done.stdout


def test_pyright_strict(folder: Path) -> None:
    pyright = Path(sys.executable).with_name("pyright")
    if not pyright.exists():
        pytest.skip("pyright is not installed")
    settings = {
        "include": ["."],
        "extraPaths": [str(ROOT / "python")],
        "typeCheckingMode": "strict",
        "pythonVersion": "3.11",
        "reportUnusedExpression": False,  # a page shows what an attribute is by naming it
        "reportUnusedVariable": False,
        "reportMissingTypeStubs": False,
    }
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [pyright, "--outputjson", "--pythonpath", sys.executable, "-p", folder]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    found = [each for each in json.loads(done.stdout)["generalDiagnostics"] if each["severity"] == "error"]
    told = {
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1): f"{Path(each['file']).name}:"
        f"{each['range']['start']['line'] + 1}: {each['message']}"
        for each in found
    }
    assert not [text for (name, _), text in told.items() if name != "badly.py"]
    refused = {line for name, line in told if name == "badly.py"}
    assert refused >= lines_of(CHECKED_BADLY), told

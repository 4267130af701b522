"""Gates for a pipeline: instructions counted in a process of its own and judged by a file, ratios of paired times."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from natcore import Error, Side
from natcore.testing import Gate, Load, gates
from natcore.testing.bulk import TCP, UDP

needs_valgrind = pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
COUNTED = """
def short():
    return lambda: sum(range(10_000))
def long():
    return lambda: sum(range(20_000))
def broken():
    raise RuntimeError("no pool")
"""


@pytest.fixture
def counted(tmp_path: Path) -> ModuleType:
    file = tmp_path / "counted.py"
    file.write_text(COUNTED)
    found = importlib.util.spec_from_file_location("counted", file)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@needs_valgrind
def test_instructions_are_recorded_once_and_judged_then(counted: ModuleType, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gates.json", record=False)
    with pytest.warns(UserWarning, match="a sum was not recorded for .*Python 3"):
        first = gate.instructions("a sum", counted.short, per=10_000)
    assert 5 < first.ours < 500 and first.ok
    assert json.loads(gate.file.read_text()) == {gate.tools: {"a sum": first.ours}}
    with pytest.raises(AssertionError, match=r"a sum .* ratio  (1\.9|2\.0)\d   limit 1.02   TOO MUCH"):
        gate.instructions("a sum", counted.long, per=10_000)
    assert Gate(gate.file, record=True).instructions("a sum", counted.long, per=10_000).ok
    assert gate.recorded()["a sum"] > 1.9 * first.ours


def test_a_count_needs_a_function_that_another_process_can_find(
    counted: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Error, match=r"make must be a function of a module's file, got .*lambda"):
        gates.instructions(lambda: lambda: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Error, match="valgrind is missing: apt-get install valgrind"):
        gates.instructions(counted.short)


def test_a_counted_program_that_fails_says_why(counted: ModuleType) -> None:
    with pytest.raises(Error, match=r"(?s)the counted program failed with 1: .*RuntimeError: no pool"):
        gates.instructions(counted.broken)


def test_a_ratio_is_the_median_of_pairs_and_the_best_of_three_attempts(tmp_path: Path) -> None:
    gate, times = Gate(tmp_path / "none.json"), iter([9.0, 9.0, 9.0, 9.0, 9.0, 1.0, 1.0, 1.0])
    outcome = gate.ratio("a call", lambda: next(times), lambda: 1.0, 2.0, rounds=3)
    assert (outcome.ours, outcome.ratio, outcome.ok) == (1e9, 1.0, True)
    with pytest.raises(AssertionError, match=r"a call .* ratio  3.00   limit 2   TOO MUCH"):
        gate.ratio("a call", lambda: 3.0, lambda: 1.0, 2.0, rounds=3)


@pytest.mark.parametrize("protocols", [(UDP,), (UDP, TCP)])
def test_a_load_is_of_live_sessions_and_says_what_comes_out(protocols: tuple[int, ...]) -> None:
    load = Load(64, churn=1, protocols=protocols)
    assert load.gateway.counters()["sessions"] == 64
    rows, sides = load.rows(500), load.sides(500)
    frames, lengths = load.take(rows, sides, load.pristine), np.full(500, 64, np.uint32)
    verdicts = load.gateway.translate(frames, lengths, sides, load.now)
    for side in Side:
        load.expect(verdicts[sides == side], side)
    assert (frames == load.take(rows, sides, load.expected)).all()
    assert load.gateway.counters()["sessions"] == 64
    with pytest.raises(AssertionError, match="not all OUTBOUND"):
        load.expect(np.full(1, 255, np.uint8), Side.INSIDE)
    with pytest.raises(ValueError, match="sessions must be less than 8 or a multiple of it, got 12"):
        Load(12)

"""Counted instructions are judged by the record of the tools at hand, and by no other."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def instructions(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "path", list(sys.path))
    import instructions

    return instructions


def test_two_percent_more_than_recorded_fails_and_less_does_not(instructions):
    records = {"gcc 12.2": {"miss": 100.0}}
    assert instructions.judge({"miss": 102.0}, "gcc 12.2", records)
    assert instructions.judge({"miss": 50.0}, "gcc 12.2", records)
    assert not instructions.judge({"miss": 102.1}, "gcc 12.2", records)


@pytest.mark.parametrize(("cache", "most"), [("D1", 1.15), ("D2", 1.12)])
def test_misses_have_a_tenth_more_and_no_further(instructions, cache, most):
    name = "miss" + getattr(instructions, cache)
    records = {"gcc 12.2": {name: 1.0}}
    assert instructions.judge({name: most - 0.001}, "gcc 12.2", records)
    assert not instructions.judge({name: most + 0.01}, "gcc 12.2", records)


def test_a_dump_gives_instructions_and_misses_of_one(instructions, tmp_path):
    """Of callgrind's nine sums: reads and writes that missed the first level, then the last."""
    sums = [instructions.SESSIONS * number for number in range(1, 10)]
    lines = ["desc: Trigger: Client Request: sweep", "events: Ir Dr Dw I1mr D1mr D1mw ILmr DLmr DLmw"]
    (tmp_path / "out.1").write_text("\n".join([*lines, f"totals: {' '.join(map(str, sums))}", ""]))
    found = dict(instructions.figures(tmp_path))
    assert found == {"sweep": 1.0, "sweep" + instructions.D1: 11.0, "sweep" + instructions.D2: 17.0}


def test_another_compiler_is_printed_and_not_judged(instructions, capsys):
    assert instructions.judge({"miss": 900.0}, "gcc 99.1", {"gcc 12.2": {"miss": 100.0}})
    assert "NOT JUDGED" in capsys.readouterr().out


def test_an_import_of_more_than_its_share_of_numpys_fails(instructions):
    assert instructions.judge_import(120, 100)
    assert not instructions.judge_import(121, 100)


def test_a_kind_that_is_no_longer_counted_fails(instructions):
    assert not instructions.judge({}, "gcc 12.2", {"gcc 12.2": {"miss": 100.0}})


def test_the_record_has_every_kind_for_each_of_its_tools():
    kinds = [set(figures) for figures in json.loads((BENCHMARKS / "instructions.json").read_text()).values()]
    assert kinds
    assert all(one == kinds[0] for one in kinds)

"""Breaks each requirement on purpose and wants its conformance tests to fail: `python tests/runs/mutants.py`.

A mutant that no test notices is a failure of the run, and so is a test that fails under no mutant, or has none.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # tests/

import argparse
import importlib.util
import io
import multiprocessing
import warnings
from collections import defaultdict
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout

import pytest

from conformance.mutations import MUTANTS, Mutant

CONFORMANCE = Path(__file__).parents[1] / "conformance"


def requirement_of() -> Callable[[str], tuple[str, str] | None]:
    """The conformance suite's own reading of a test's name."""
    spec = importlib.util.spec_from_file_location("conformance_conftest", CONFORMANCE / "conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[[str], tuple[str, str] | None] = module.requirement_of
    return found


class Outcomes:
    """A pytest plugin: the tests that ran, and those of them that failed."""

    def __init__(self) -> None:
        self.ran: set[str] = set()
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("::")[2].partition("[")[0]
        self.ran.add(name)
        if report.failed:
            self.failed.add(name)


def failing(mutant: Mutant, tests: list[str]) -> set[str]:
    """The tests that fail with a mutant at work."""
    outcomes = Outcomes()
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), mutant.at_work():
        pytest.main(["-q", *tests], plugins=[outcomes])
    missing = {test.rpartition("::")[2] for test in tests} - outcomes.ran
    assert not missing, f"not run: {missing}"
    return outcomes.failed


def trial(job: tuple[str, int, list[str]]) -> tuple[str, int, set[str]]:
    key, number, tests = job
    return key, number, failing(MUTANTS[key][number], tests)


def conformance_tests() -> dict[str, list[str]]:
    """The node ids of each requirement's tests, by "RFC-REQ"."""
    requirement, found = requirement_of(), defaultdict(list)
    for path in sorted(CONFORMANCE.glob("test_*.py")):
        for line in path.read_text(encoding="utf-8").splitlines():
            name = line.removeprefix("def ").partition("(")[0]
            if line.startswith("def test_") and (key := requirement(name)) is not None:
                found["-".join(key)].append(f"{path}::{name}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="a requirement, such as 4787-6")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    tests = {key: of for key, of in conformance_tests().items() if arguments.only in (None, key)}
    jobs = [(key, number, tests[key]) for key in tests for number in range(len(MUTANTS.get(key, ())))]
    wrong = [f"{key}: has no mutant" for key in tests if key not in MUTANTS]
    wrong += [f"{key}: has a mutant and no test" for key in MUTANTS if arguments.only is None and key not in tests]
    sound = failing(Mutant("nothing is wrong"), [test for of in tests.values() for test in of])
    wrong += [f"{name} fails without a mutant" for name in sorted(sound)]
    noticed: dict[str, set[str]] = defaultdict(set)
    with multiprocessing.get_context("fork").Pool(arguments.jobs, maxtasksperchild=1) as pool:
        for key, number, failed in pool.imap(trial, jobs):
            what, count = MUTANTS[key][number].what, len(tests[key])
            print(f"{key:10}{what:48}{len(failed)} of {count} tests fail", flush=True)
            noticed[key] |= failed
            if not failed:
                wrong.append(f"{key}: no test notices: {what}")
    for key, of in tests.items():
        names = {test.rpartition("::")[2] for test in of}
        wrong += [f"{key}: {name} fails under no mutant" for name in sorted(names - noticed[key]) if key in MUTANTS]
    print("\n".join(wrong) or f"{len(jobs)} mutants of {len(tests)} requirements, all noticed")
    return 1 if wrong else 0


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    raise SystemExit(main())

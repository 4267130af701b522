"""What the RFCs require of natcore: the public cases, and the page that `natcore conformance` writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from natcore.testing import DataPath
from natcore.testing.conformance import CASES, REQUIREMENTS, Case, Outcome, page, run_case
from natcore.testing.conformance.suite import Verdict, judge, of_all

PAGE = Path(__file__).parents[2] / "docs" / "rfc-compliance.md"
MET = {each.key for each in REQUIREMENTS if each.is_met}
OURS = [each for each in CASES if each.key in MET]


@pytest.mark.parametrize("case", OURS, ids=lambda case: f"{case.key}-{case.name}")
def test_a_requirement_is_met(case: Case) -> None:
    outcome = run_case(case, DataPath)
    assert outcome.finding == "passed", outcome.reason


def test_every_requirement_has_a_case_or_says_why_not() -> None:
    assert {each.key for each in CASES} >= MET
    assert len({each.name for each in CASES}) == len(CASES)


def verdicts() -> list[Verdict]:
    """Those of a run in which every case passes."""
    passed = {each.key: [Outcome(case, "passed") for case in OURS if case.key == each.key] for each in REQUIREMENTS}
    return of_all([judge(each, passed[each.key], is_natcore=True) for each in REQUIREMENTS])


def test_the_page_names_the_cases() -> None:
    """All of them pass, by the test above; so the page is what a run writes."""
    command = "natcore conformance --page docs/rfc-compliance.md"
    assert PAGE.read_text() == page(verdicts(), title="Conformance", command=command), f"out of date: {command}"

"""Runs the cases against a data path, and says what came of each requirement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

from natcore.errors import Error
from natcore.testing.conformance import rfc4787, rfc5382, rfc5508, rfc6888, rfc7857
from natcore.testing.conformance.cases import CASES, Case
from natcore.testing.conformance.device import Bench, NotJudged
from natcore.testing.conformance.requirements import REQUIREMENTS, Requirement
from natcore.testing.data_path import DataPath, NotSupportedError

Finding = Literal["passed", "failed", "not supported", "not judged"]
PARTS = (rfc4787, rfc5382, rfc5508, rfc6888, rfc7857)  # their import registers the cases
_EARLIER = ("4787", "5382", "5508")  # what RFC 6888 REQ-1 asks for


class Outcome(NamedTuple):
    """What came of a case.

    Attributes
    ----------
    case
        The case.
    finding
        "passed", "failed", "not supported" (the data path cannot be asked for it) or "not judged".
    reason
        Why; empty where it passed.
    """

    case: Case
    finding: Finding
    reason: str = ""


class Verdict(NamedTuple):
    """What came of a requirement.

    Attributes
    ----------
    requirement
        The requirement.
    finding
        The worst of its cases: "failed", "not supported", "not judged" or "passed".
    mark
        In words: "yes", "by policy", "no: …", "not judged: …".
    outcomes
        Those of its cases.
    """

    requirement: Requirement
    finding: Finding
    mark: str
    outcomes: list[Outcome]


def run_case(case: Case, make: Callable[[], DataPath], patience: float = float("inf")) -> Outcome:
    """Run a case.

    Parameters
    ----------
    case
        The case.
    make
        Makes a data path that has not started.
    patience
        Seconds that a data path with a real clock may be waited for.
    """
    bench = Bench(make, patience)
    try:
        case.run(bench)
    except NotSupportedError as error:
        return Outcome(case, "not supported", _line(error))
    except NotJudged as error:
        return Outcome(case, "not judged", _line(error))
    except AssertionError as error:
        return Outcome(case, "failed", _line(error) or "an assertion fails")
    except (Error, OSError):  # it cannot be tested at all
        raise
    except Exception as error:
        return Outcome(case, "failed", f"{type(error).__name__}: {_line(error)}")
    finally:
        bench.close()
    return Outcome(case, "passed")


def run(
    make: Callable[[], DataPath] = DataPath, *, rfcs: Iterable[str] = (), patience: float = 10.0, jobs: int = 1,
    is_natcore: bool = False, progress: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Verdict]:  # fmt: skip
    """Run the cases of all requirements.

    Parameters
    ----------
    make
        Makes a data path that has not started, such as a subclass of `DataPath`.
    rfcs
        Such as "4787"; none: all.
    patience
        Seconds that a data path with a real clock may be waited for; what takes longer is not judged.
    jobs
        Cases at once.
    is_natcore
        What natcore says that it does not meet is not run, and says why.
    progress
        Called after each case.

    Returns
    -------
    list
        One of each requirement, in the order of the RFCs.
    """
    wanted = [each for each in REQUIREMENTS if not rfcs or each.rfc in set(rfcs)]
    keys = {each.key for each in wanted if each.is_met or not is_natcore}
    outcomes: dict[str, list[Outcome]] = {}

    def one(case: Case) -> Outcome:
        outcome = run_case(case, make, patience)
        progress(outcome)
        return outcome

    with ThreadPoolExecutor(max(1, jobs), "natcore-conformance") as threads:
        for outcome in threads.map(one, [case for case in CASES if case.key in keys]):
            outcomes.setdefault(outcome.case.key, []).append(outcome)
    return of_all([judge(each, outcomes.get(each.key, []), is_natcore=is_natcore) for each in wanted])


def judge(requirement: Requirement, outcomes: Sequence[Outcome], *, is_natcore: bool) -> Verdict:
    """Return what came of a requirement, by that of its cases."""
    if not outcomes:
        mark = requirement.mark if is_natcore and not requirement.is_met else "not judged: it has no case"
        return Verdict(requirement, "not judged", mark, [])
    for finding, words in (
        ("failed", "no"),
        ("not supported", "no, cannot be asked for"),
        ("not judged", "not judged"),
    ):
        reasons = [each.reason for each in outcomes if each.finding == finding]
        if reasons:
            return Verdict(requirement, finding, f"{words}: {'; '.join(dict.fromkeys(reasons))}", list(outcomes))  # type: ignore[arg-type]
    return Verdict(requirement, "passed", requirement.mark if is_natcore else "yes", list(outcomes))


def of_all(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return the verdicts with that on RFC 6888 REQ-1, which is what came of the earlier RFCs' requirements."""
    earlier = [each for each in verdicts if each.requirement.rfc in _EARLIER]
    missed = [each.requirement for each in earlier if each.finding != "passed"]
    named = [
        f"RFC {rfc} REQ-{', '.join(each.number for each in missed if each.rfc == rfc)}"
        for rfc in dict.fromkeys(each.rfc for each in missed)
    ]
    mark = f"not yet: see above, {'; '.join(named)}" if missed else "yes"
    finding: Finding = "failed" if any(each.finding == "failed" for each in earlier) else "not judged"
    if not earlier:
        mark = "not judged: it takes RFC 4787, 5382 and 5508"
    elif not missed:
        finding = "passed"
    made = {"mark": mark, "finding": finding}
    return [each._replace(**made) if each.requirement.key == "6888-1" else each for each in verdicts]  # type: ignore[arg-type]


def _line(error: Exception) -> str:
    """The first line: an assertion that a test rewrote has more."""
    return (str(error).splitlines() or [""])[0]

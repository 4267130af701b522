"""What RFC 4787, 5382, 5508, 6888 and 7857 require of a NAT, as cases that run against any data path.

`natcore conformance` runs them. They look at packets alone: what goes in, what leaves, and when.

Examples
--------
>>> from natcore.testing.conformance import run
>>> verdicts = run(rfcs=["6888"])
>>> [each.mark for each in verdicts if each.requirement.number == "8"]
['yes']
"""

from natcore.testing.conformance.cases import CASES, Case
from natcore.testing.conformance.device import Bench, Device, Left, NotJudged, Talk
from natcore.testing.conformance.page import page, summary
from natcore.testing.conformance.requirements import REQUIREMENTS, TITLES, Requirement
from natcore.testing.conformance.suite import Outcome, Verdict, run, run_case

__all__ = [
    "CASES",
    "REQUIREMENTS",
    "TITLES",
    "Bench",
    "Case",
    "Device",
    "Left",
    "NotJudged",
    "Outcome",
    "Requirement",
    "Talk",
    "Verdict",
    "page",
    "run",
    "run_case",
    "summary",
]

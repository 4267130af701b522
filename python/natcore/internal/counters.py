"""Counters by name: what the core counts by verdict, with the sums that users know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from natcore.verdict import Verdict


def tally(verdicts: Sequence[int], own: Mapping[str, int]) -> dict[str, int]:
    """verdicts: frames by number of the Verdict. own: what the core has names for itself."""
    result = {
        "received": sum(verdicts),
        "forwarded": sum(verdicts[v] for v in Verdict if v.is_forwarded),
        "local": verdicts[Verdict.LOCAL],
        "dropped": sum(verdicts[128:]),
        "held": verdicts[Verdict.HELD],
    }
    result.update({v.counter: verdicts[v] for v in Verdict if v.is_drop})
    result.update(own)
    return result

"""Counters by name: frames by verdict, and the sums of the public counters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from natcore.verdict import Verdict


def tally(verdicts: Sequence[int], own: Mapping[str, int]) -> dict[str, int]:
    """verdicts: frames by number of the Verdict. own: the core's named counters."""
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

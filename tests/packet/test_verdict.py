"""The verdicts and sides of Python and of the core are the same numbers."""

from __future__ import annotations

from natcore import Side, Verdict
from natcore.testhooks import wrappers


def test_python_and_the_core_number_alike() -> None:
    assert wrappers.verdict_numbers() == {member.name: member.value for kind in (Side, Verdict) for member in kind}


def test_drops_are_128_and_above() -> None:
    for verdict in Verdict:
        assert verdict.is_drop == verdict.name.startswith("DROP_") == (verdict >= 128)
        assert 0 <= verdict <= 254
    assert not any(verdict.is_drop and verdict.is_forwarded for verdict in Verdict)

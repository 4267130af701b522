"""The verdicts and sides of Python and of the core are the same numbers, and neither has one that the other lacks."""

from __future__ import annotations

import re
from enum import IntEnum
from pathlib import Path

import pytest

from natcore import Side, Verdict

CORE = (Path(__file__).resolve().parents[2] / "natcore" / "packet" / "verdict.pxd").read_text()
INTERNAL = {"PENDING"}


def numbers(name: str) -> dict[str, int]:
    """The members of an enum of the core; its line names it."""
    block = re.search(rf"^cdef enum: +# {name}\n((?: {{4}}.*\n)+)", CORE, re.M)
    assert block is not None
    return {member: int(number) for member, number in re.findall(r"^ {4}(\w+) = (\d+)", block[1], re.M)}


@pytest.mark.parametrize("kind", [Side, Verdict])
def test_python_and_the_core_number_alike(kind: type[IntEnum]) -> None:
    core = numbers(kind.__name__)
    assert {name: number for name, number in core.items() if name not in INTERNAL} == {m.name: m.value for m in kind}
    assert all(core[name] > max(kind) for name in INTERNAL & core.keys())


def test_drops_are_128_and_above() -> None:
    for verdict in Verdict:
        assert verdict.is_drop == verdict.name.startswith("DROP_") == (verdict >= 128)
        assert 0 <= verdict <= 254
    assert not any(verdict.is_drop and verdict.is_forwarded for verdict in Verdict)

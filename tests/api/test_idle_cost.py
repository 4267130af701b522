"""What a gateway costs that does nothing: its tables are allocated at their sizes, and touched when used."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from natcore import Gateway, SnatEntry

STATUS = Path("/proc/self/status")
COUNT = 50


def resident_kb() -> int:
    """Resident memory of this process, KB."""
    gc.collect()
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("VmRSS"))


@pytest.mark.skipif(not STATUS.exists(), reason="no /proc here")
def test_an_idle_gateway_costs_less_than_a_megabyte() -> None:
    """At its default size, a million sessions, with an entry; looked at once."""
    before = resident_kb()
    gateways = []
    for number in range(COUNT):
        made = Gateway()
        made.add(SnatEntry("10.0.0.0/8", pool=f"203.0.113.{number + 1}"))
        made.advance(10.0)
        assert made.counters()["sessions"] == 0
        gateways.append(made)
    each = (resident_kb() - before) / COUNT
    assert 0 < each < 1024, f"{each:.0f} KB each"

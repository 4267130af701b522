"""CSIT's table sizes: the load is what it says, and the picture shows it beside what was published."""

from __future__ import annotations

from pathlib import Path

import pytest

from session_scale import SIZES, Scale, Sessions, draw, line

POINT = Scale(64_512, 2e6, 1.5e6, 40e6, 42e6, 250.0)


def test_the_smallest_table_takes_every_port_of_an_address() -> None:
    table = Sessions(SIZES[0])
    counters = table.gateway.counters()
    assert (counters["sessions"], counters["mappings"], counters["ports_used"]) == (64_512, 64_512, 64_512)
    assert all(seconds >= 0 for seconds in table.both_ways())
    table.gateway.close()


def test_sizes_are_whole_outside_addresses() -> None:
    assert [size // 64_512 for size in SIZES] == [1, 16, 64, 256]
    with pytest.raises(ValueError, match="sessions must be a multiple of 64,512, got 65,536"):
        Sessions(65_536)


def test_a_line_and_a_picture_tell_the_figures(tmp_path: Path) -> None:
    assert "64,512 sessions   40.0 out  42.0 in M packets/s   2.00 M new/s (1.50 at the end)    250 bytes" in line(
        POINT
    )
    picture = tmp_path / "sessions.svg"
    draw([POINT], picture)
    for words in (
        "16,515,072",
        "natcore, one core, in memory",
        "VPP 21.01 nat44-ed on the wire (FD.io CSIT, 2021)",
        "4 cores",
    ):
        assert words in picture.read_text()

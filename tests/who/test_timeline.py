"""An answer as a timeline: sessions, windows, gaps and the time that was asked for."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from natcore import ConfigurationError
from natcore.who.query import talked, what, who
from natcore.who.timeline import lines, save, timeline
from support.lives import ANN, BOB, Log, at


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    log = Log(tmp_path / "log").tick(0).session(7, ANN, 100, [(100, 400)], 400)
    log.session(8, BOB, 500, [(500, 900)], None)
    return log.tick(1000).write()


def test_lines_show_who_had_it_when(folder: Path) -> None:
    shown = list(lines(talked(folder, "198.51.100.7", at=at(90), until=at(900)), 100))
    assert [line.split()[0] for line in shown[:2]] == ["10.0.0.5:555", "10.0.0.6:555"]
    first, second = (line.partition("4000 ")[2] for line in shown[:2])
    assert first.strip() == "█" * len(first.strip()) and len(first) - len(first.lstrip()) < len(second) - len(
        second.lstrip()
    )
    assert second.rstrip().endswith("─") and "█" in second  # no end is known
    assert set(shown[2].strip()) == {"▲"} and "2023-11-14 22:" in shown[3]
    assert max(map(len, shown)) <= 100


def test_the_picture_ends_two_hours_from_the_question(tmp_path: Path) -> None:
    folder = Log(tmp_path / "log").tick(0).session(7, ANN, 100, [(100, 700)], 90_000).tick(99_000).write()
    shown = timeline(what(folder, "10.0.0.5", at=at(150)))
    assert (shown.end - at(150)).total_seconds() < 2.5 * 3600 and shown.start < at(100)


def test_a_gap_is_drawn(folder: Path) -> None:
    answer = who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(1500))
    assert answer.status == "gap" and any(line.startswith("not known") and "░" in line for line in lines(answer))


@pytest.mark.parametrize("moment", ["0002-01-01T00:00:00+23:59", "9998-12-31T23:59:59-23:59"])
def test_the_first_and_the_last_moment_can_be_drawn(folder: Path, moment: str) -> None:
    asked = datetime.fromisoformat(moment)
    answer = who(folder, "203.0.113.1", 4000, protocol="tcp", at=asked, tolerance=86_400)
    assert answer.status == "gap" and list(lines(answer))


def test_it_is_drawn_into_a_file(folder: Path, tmp_path: Path) -> None:
    answer = talked(folder, "198.51.100.7", at=at(90), until=at(1500))
    with pytest.raises(ConfigurationError, match="plot must end in"):
        save(answer, tmp_path / "x.gif")
    pytest.importorskip("matplotlib", reason="the extra natcore[plot]")
    save(answer, tmp_path / "answer.svg")
    assert (tmp_path / "answer.svg").read_bytes().startswith(b"<?xml") and (
        tmp_path / "answer.svg"
    ).stat().st_size > 5000

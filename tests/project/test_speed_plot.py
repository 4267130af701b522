"""The picture of speed: what it draws of a sweep's figures and of the gates', and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from plot import Point, draw, told, words

PLOT = Path(__file__).resolve().parents[2] / "benchmarks" / "plot.py"
POINTS = [
    Point(1 << power, way, 20.0 + power, 5.0 + power, 3.0) for power in (10, 16, 20) for way in ("outbound", "inbound")
]


def test_a_picture_names_sizes_and_lines(tmp_path: Path) -> None:
    pictures = [tmp_path / "speed.png", tmp_path / "speed.svg"]
    draw(POINTS, pictures)
    assert pictures[0].read_bytes()[:4] == b"\x89PNG"
    text = pictures[1].read_text()
    for words_in_it in ("1 k", "64 k", "1 M", "memory walk", "natcore, from inside", "natcore, from outside", "30 ns"):
        assert words_in_it in text
    first = text
    draw(POINTS, pictures[1:])
    assert "<dc:date>" not in first  # no date: what is the same looks the same


def test_the_gates_figures_are_drawn_too(tmp_path: Path) -> None:
    rows = [
        {"name": "1,048,576 sessions, UDP, outbound, against walk", "ours": 35.0, "baseline": 14.0, "ratio": 2.5},
        {"name": "1,048,576 sessions, TCP, outbound, against walk", "ours": 1.0, "baseline": 1.0, "ratio": 1.0},
        {"name": "translate of one frame", "ours": 2.0, "baseline": 2.5, "ratio": 0.8},
    ]
    file = tmp_path / "gate.json"
    file.write_text(json.dumps(rows))
    assert told(file) == [Point(1_048_576, "outbound", 35.0, 14.0, 2.5)]
    file.write_text(json.dumps([asdict(point) for point in POINTS]))
    assert told(file) == POINTS
    picture = tmp_path / "of.svg"
    subprocess.run([sys.executable, str(PLOT), str(picture), "--from", str(file)], check=True)
    assert "natcore, from inside" in picture.read_text()


def test_a_file_without_such_figures_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text("[]")
    with pytest.raises(ValueError, match=r"other\.json: no row of established UDP sessions"):
        told(file)


def test_another_ending_is_refused(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, str(PLOT), str(tmp_path / "x.gif")], capture_output=True, text=True)
    assert run.returncode == 2
    assert "plot must end in .png or .svg" in run.stderr


def test_sizes_are_in_words() -> None:
    assert [words(sessions) for sessions in (1000, 1024, 65_536, 3 << 20, 1_000_000)] == [
        "1,000", "1 k", "64 k", "3 M", "1,000,000",
    ]  # fmt: skip

"""Figures from the log: top talkers, ports in use, and rows for other programs."""

from __future__ import annotations

import csv
import json
from datetime import datetime
from pathlib import Path

import duckdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natcore import ConfigurationError
from natcore.dtypes import END, WINDOW
from natcore.sinks import Batch, ParquetSink
from natcore.who import plots
from natcore.who.query import Store
from natcore.who.usage import Uses, _peaks, export, port_usage, top
from support.lives import ANN, BOB, DNS, Log, at
from support.log_fakes import make_records


@pytest.fixture
def store(tmp_path: Path) -> Store:
    log = Log(tmp_path / "log")
    log.session(1, ANN, 100, [(100, 700), (900, 1200)], 1200, bytes_from_pub=50)
    log.session(2, ANN, 150, [(150, 250)], 250, port=4001, bytes_from_pub=50)
    log.session(3, ANN, 160, [(160, 250)], 260, port=4001, pub_ip=DNS)  # the same port: one use of it
    log.write()
    log.session(4, BOB, 400, [(400, 500)], None, port=4002, bytes_from_pub=100_000)  # it has not ended
    log.session(5, BOB, 1250, [], 1300, port=4001, protocol=17)
    log.add(END, 50, 1000, 6, BOB, port=4003)  # its beginning is in no row
    log.write()
    return Store(tmp_path / "log")


def test_top_counts_windows_once_and_orders_by_what_is_asked(store: Store) -> None:
    bob, ann = top(store)
    assert (str(ann.pri_ip), ann.bytes_from_vpc, ann.bytes_from_pub, ann.bytes) == ("10.0.0.5", 400, 150, 550)
    assert (ann.packets, ann.sessions, ann.ports, ann.instance) == (4, 3, 2, "ngw-1")
    assert (str(bob.pri_ip), bob.bytes, bob.sessions, bob.ports) == ("10.0.0.6", 100_100, 1, 1)
    assert [str(each.pri_ip) for by in ("sessions", "ports") for each in top(store, by=by, limit=1)] == ["10.0.0.5"] * 2


def test_ranges_side_by_side_count_each_row_once(store: Store) -> None:
    parts = [top(store, start=at(first), end=at(first + 350)) for first in range(0, 1400, 350)]
    assert sum(each.bytes for part in parts for each in part) == sum(each.bytes for each in top(store))
    assert [each.bytes for each in top(store, start=at(700), end=at(1200))] == [150]
    assert top(store, start=at(2000)) == []


def test_usage_is_the_most_ports_at_a_time(store: Store) -> None:
    tcp, udp = port_usage(store, step=100, start=at(0), end=at(1400))
    assert (str(tcp.address), tcp.protocol, udp.protocol) == ("172.16.10.13", 6, 17)
    #              0  100  200 …          400: 4002 begins                 1000: 4003 ended    1200
    assert tcp.peaks == (1, 3, 3, 2, 3, 3, 3, 3, 3, 3, 3, 2, 2, 1)
    assert udp.peaks == (0,) * 12 + (1, 1)
    assert tcp.times[:2] == [at(0), at(100)]


def test_usage_of_a_part_begins_with_what_is_in_use_then(store: Store) -> None:
    whole, _ = port_usage(store, step=100, start=at(0), end=at(1400))
    (part,) = port_usage(store, step=100, start=at(500), end=at(900))
    assert part.peaks == whole.peaks[5:9]
    assert [str(each.address) for each in port_usage(store, address="172.16.10.13")] == ["172.16.10.13"] * 2
    assert port_usage(store, address="172.16.10.14") == []


LIVES = st.lists(st.tuples(st.integers(1024, 1027), st.integers(0, 60), st.integers(0, 30)), min_size=1, max_size=40)


@given(LIVES, st.integers(-10, 70), st.integers(1, 30), st.integers(1, 12), st.integers(0, 46))
def test_peaks_are_those_of_a_count_moment_by_moment(
    lives: list[tuple[int, int, int]], first: int, width: int, steps: int, scale: int
) -> None:
    """scale: also beyond what a number has bits for, where times become coarser."""
    unit = 1 << scale
    key = np.array([port for port, _, _ in lives])
    began, ended = (
        np.array(times) * unit for times in ([b for _, b, _ in lives], [b + length for _, b, length in lives])
    )
    edges = first + width * np.arange(steps + 1)
    used = [
        len({port for port, begin, length in lives if begin <= moment <= begin + length})
        for moment in range(edges[0], edges[-1])
    ]
    told = _peaks(Uses(key, began, ended), edges * unit)
    if told is None:
        assert not any(used) and min(began) >= edges[-1] * unit
        return
    before = [
        len({port for port, begin, length in lives if begin < edge <= begin + length}) for edge in edges[:-1].tolist()
    ]
    within = [max(used[n * width : (n + 1) * width]) for n in range(steps)]
    assert told == tuple(max(pair) for pair in zip(before, within, strict=True))


def test_a_session_over_many_files_holds_its_port_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natcore.who.usage._FILES_AT_ONCE", 1)
    log = Log(tmp_path / "log")
    log.session(1, ANN, 100, [(100, 700)], None)
    log.write()
    log.add(WINDOW, 800, 1400, 1, ANN)
    log.write()
    log.session(2, BOB, 1500, [(1500, 1550)], 1600, port=4001)
    log.add(END, 100, 2000, 1, ANN)
    log.write()
    (usage,) = port_usage(Store(tmp_path / "log"), step=500)
    assert usage.peaks[0] == 1 and max(usage.peaks) == 2 and usage.times[0] <= at(100)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_export_writes_the_rows_of_a_time(store: Store, tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"it's{suffix}"
    assert export(store, target) == 15
    assert target.stat().st_mode & 0o777 == 0o600
    quoted = str(target).replace("'", "''")
    found = duckdb.sql(f"SELECT number, pri_ip, kind, epoch_us(end_time::TIMESTAMPTZ) FROM '{quoted}'").fetchall()
    assert [row[0] for row in found] == list(range(15))
    assert found[0][1:] == ("10.0.0.5", "create", round(at(100).timestamp() * 1e6))
    assert export(store, target, start=at(250), end=at(400)) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == [target.name, "log"]
    if suffix == ".jsonl":
        assert json.loads(target.read_text().splitlines()[0])["end_time"] == "2023-11-14T22:17:30.000000Z"


def test_an_export_into_another_user_s_folder_writes_to_no_other_file(store: Store, tmp_path: Path) -> None:
    """Links under the names that a draft had, and under the target's own."""
    victim = tmp_path / "victim"
    victim.write_text("root's")
    for name in ("..x.csv.export.draft", ".x.csv.export", ".x.csv.draft", "tmp_x.csv", "x.csv"):
        (tmp_path / name).symlink_to(victim)
    assert export(store, tmp_path / "x.csv") == 15
    assert victim.read_text() == "root's" and not (tmp_path / "x.csv").is_symlink()


def test_no_cell_of_a_csv_file_is_a_formula(tmp_path: Path) -> None:
    """Users choose names; a spreadsheet would run what begins with = + - @, a tab or a line's end."""
    sink, names = ParquetSink(tmp_path / "log"), ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "ngw-1", "a=b", ""]
    sink.open()
    for name in names:
        sink.deliver(Batch(name, f"{name}v", "run", make_records(1)))
    sink.close()
    assert export(Store(tmp_path / "log"), tmp_path / "x.csv") == len(names)
    assert export(Store(tmp_path / "log"), tmp_path / "x.jsonl") == len(names)
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["instance"] for row in rows} == {
        f"'{name}" if name[:1] in ("=", "+", "-", "@", "\t", "\r") else name for name in names
    }
    assert not any(cell[:1] in tuple("=+-@\t\r") for row in rows for cell in row.values() if cell)
    assert "=1+1" in {json.loads(line)["instance"] for line in (tmp_path / "x.jsonl").read_text().splitlines()}


def test_bad_questions_are_refused(store: Store, tmp_path: Path) -> None:
    for call, text in (
        (lambda: top(store, by="colour"), "by must .*, got 'colour'"),  # type: ignore[arg-type]
        (lambda: top(store, limit=0), "limit must .*, got 0"),
        (lambda: top(store, start=datetime(2026, 1, 1)), "start must"),
        (lambda: top(store, start=at(1), end=at(1)), "end must"),
        (lambda: port_usage(store, step=0), "step must .*, got 0"),
        (lambda: port_usage(store, step=1, start=at(0), end=at(10_000_000)), "steps"),
        (lambda: export(store, tmp_path / "x.xls"), "target must"),
        (lambda: export(store, tmp_path / "x.csv", start=at(1e6)), "no files of that time"),
        (lambda: plots.save([], tmp_path / "x.gif"), "plot must"),
    ):
        with pytest.raises(ConfigurationError, match=text):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_blocks_show_the_most_of_each_part() -> None:
    assert plots.blocks([0, 1, 4, 8], 8, 10) == " ▁▄█"
    assert plots.blocks([0, 8, 0, 0], 8, 2) == "█ "
    assert plots.blocks([0, 0], 0, 2) == "  "


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_a_picture_is_drawn(store: Store, tmp_path: Path, suffix: str, magic: bytes) -> None:
    pytest.importorskip("matplotlib", reason="the extra natcore[plot]")
    target = tmp_path / f"usage{suffix}"
    plots.save(port_usage(store, step=100), target)
    assert target.read_bytes().startswith(magic)

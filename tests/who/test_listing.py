"""The names of a folder's files: those of a time are found as by a look at each, and a change of the folder is noticed."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from natcore.sessionlog.facts import clock_row
from natcore.sinks._parquet_folder import read_footer
from natcore.who import files as files_module
from natcore.who import store as module
from natcore.who.store import DAY, Store, _label, _Names
from support.lives import ANN, Log, label

HOUR = 3_600_000_000
BEGIN = 1_700_000_000_000_000


def name_of(at: int, run: str, number: int) -> str:
    return f"{_label(at, 0)}-{run}-{number:012d}.parquet"


def straightforward(paths: list[str], start: int | None, end: int | None, slack: int) -> tuple[set[str], set[str]]:
    """The names that may matter, and those behind them, by a look at each."""
    earliest, latest = _label(start, -slack), _label(end, slack)
    near: set[str] = set()
    series: dict[tuple[str, str], list[tuple[str, str]]] = {}
    folders: dict[str, list[str]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        folders.setdefault(folder, []).append(path)
        if module._NAME.fullmatch(name) is None:
            near.add(path)
        else:
            series.setdefault((folder, name.split("-")[1]), []).append((name, path))
    for files in series.values():
        files.sort()
        for at, (_, path) in enumerate(files):
            is_late = latest is not None and at > 0 and files[at - 1][0] > latest
            is_early = earliest is not None and at + 2 < len(files) and files[at + 2][0] < earliest
            if not (is_late or is_early) or at in (0, len(files) - 1):
                near.add(path)
    behind: set[str] = set()
    for found in folders.values():
        found.sort()
        for at, path in enumerate(found):
            if path not in near and not near.isdisjoint(found[max(0, at - 2) : at]):
                behind.add(path)
    return near, behind


@pytest.mark.parametrize("seed", range(30))
def test_names_of_a_time_are_those_that_a_look_at_each_gives(seed: int) -> None:
    chance = random.Random(seed)
    paths = [
        f"/log/{chance.choice('ab')}/{name_of(BEGIN + chance.randrange(200) * 6 * HOUR, chance.choice(['r1', 'r2']), number)}"
        for number in range(chance.choice([0, 1, 3, 60]))
    ]
    paths += [f"/log/a/other{number}.parquet" for number in range(chance.randrange(3))]
    folders: dict[str, list[str]] = {}
    for path in sorted(paths):
        folders.setdefault(path.rpartition("/")[0], []).append(path)
    names = _Names(folders)
    for _ in range(20):
        start = chance.choice([None, BEGIN + chance.randrange(-100, 1400) * HOUR])
        end = chance.choice([None, (start or BEGIN) + chance.randrange(100) * HOUR])
        slack = chance.choice([0, HOUR, DAY])
        near, stretches = names.near(start, end, slack)
        assert (set(near), set(names.witnesses(near))) == straightforward(paths, start, end, slack)
        for there, is_first, is_last, newest in stretches:
            folder, run = newest.rpartition("/")[0], newest.split("-")[-2]
            files = [path for path in sorted(paths) if path.startswith(f"{folder}/") and f"-{run}-" in path]
            first = files.index(there[0])
            assert files[first : first + len(there)] == there and newest == files[-1]
            assert (is_first, is_last) == (first == 0, there[-1] == newest)
        assert len(set(near)) == len(near) and names.paths == set(paths)


def test_a_large_folder_is_listed_again_only_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "_LARGE_FOLDER", 10)
    for number in range(20):
        (tmp_path / name_of(BEGIN, "r1", number)).touch()
    os.utime(tmp_path, ns=(0, time.time_ns() - 5 * 10**9))
    store, looks, scandir = Store(tmp_path), 0, os.scandir

    def counted(path: str):  # type: ignore[no-untyped-def]
        nonlocal looks
        looks += 1
        return scandir(path)

    monkeypatch.setattr(files_module.os, "scandir", counted)
    for _ in range(5):
        assert len(store._scan()[0].paths) == 20
    assert looks == 1
    (tmp_path / name_of(BEGIN, "r1", 20)).touch()
    for expected in (2, 3):  # while the change is fresh another one may have the same time
        assert len(store._scan()[0].paths) == 21 and looks == expected
    monkeypatch.setattr(files_module, "_LISTED_NS", 0)
    store._scan()
    assert looks == 4


def written_by_the_hour(folder: Path, hours: int, *, has_covers: bool = True, clock_set_at: int | None = None) -> Path:
    """A file an hour with a session in each; without cover rows the one of hour 40 has a row that ended in hour 30."""
    log = Log(folder)
    if has_covers:
        log.tick(0)
    for hour in range(hours):
        start = hour * 3600.0
        if hour == clock_set_at:
            log.fact(clock_row(label(start), label(start + 100), 0))
        log.session(hour + 1, ANN, start + 100, [(start + 100, start + 200)], start + 200)
        if has_covers:
            log.tick(start + 1800)
        elif hour == 40:
            log.add(1, start, 30 * 3600.0 + 10, 1000, ANN)
        log.write()
    return folder


def looked_at(store: Store, start: float, end: float) -> tuple[set[str], int]:
    """The files with rows of the span that a look finds; how many it looked at."""
    begin, until = label(start), label(end)
    parts = store.parts(begin, until)
    there = {part.name for part in parts if part.footer.first_time <= until and part.footer.last_time >= begin}
    return there, len(store._footers)


def with_rows(folder: Path, start: float, end: float) -> set[str]:
    footers = {str(path): read_footer(path) for path in folder.glob("*.parquet")}
    return {
        path for path, footer in footers.items()
        if footer is not None and footer.first_time <= label(end) and footer.last_time >= label(start)
    }  # fmt: skip


def test_cover_rows_tell_that_no_other_file_matters(tmp_path: Path) -> None:
    folder = written_by_the_hour(tmp_path / "log", 96)
    for hour in (0, 1, 50, 94, 95):
        span = (hour * 3600.0 - 3600, hour * 3600.0 + 3600)
        there, looks = looked_at(Store(folder), *span)
        assert there == with_rows(folder, *span) and looks <= 12, (
            hour
        )  # first, last, 2 before, 2 behind and those of the time


def test_without_them_a_late_row_is_found_within_a_day(tmp_path: Path) -> None:
    folder = written_by_the_hour(tmp_path / "log", 96, has_covers=False)
    span = (30 * 3600.0, 30 * 3600.0 + 1000)
    there, looks = looked_at(Store(folder), *span)
    assert there == with_rows(folder, *span) and len(there) == 2 and looks > 48


def test_where_the_clock_was_set_a_look_goes_a_day_around(tmp_path: Path) -> None:
    folder = written_by_the_hour(tmp_path / "log", 96, clock_set_at=52)
    _, near = looked_at(Store(folder), 50 * 3600.0, 51 * 3600.0)
    _, far = looked_at(Store(folder), 10 * 3600.0, 11 * 3600.0)
    assert near > 48 and far <= 12

"""The names of a folder's files: those of a time are found as by a look at each, and a change of the folder is noticed."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from natcore.who import files as files_module
from natcore.who import store as module
from natcore.who.store import DAY, Store, _label, _Names

HOUR = 3_600_000_000
BEGIN = 1_700_000_000_000_000


def name_of(at: int, run: str, number: int) -> str:
    return f"{_label(at, 0)}-{run}-{number:012d}.parquet"


def straightforward(paths: list[str], start: int | None, end: int | None) -> tuple[set[str], set[str]]:
    """The names that may matter, and those behind them, by a look at each."""
    earliest, latest = _label(start, -DAY), _label(end, DAY)
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
        near, behind = names.near(start, end)
        assert (set(near), set(behind)) == straightforward(paths, start, end)
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

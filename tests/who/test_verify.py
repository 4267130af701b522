"""A folder that was changed, cut or put in another order is found out; one that retention cut is not."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from natcore import ConfigurationError
from natcore.sessionlog.collector import Collector
from natcore.sinks import Batch, ParquetSink
from natcore.sinks._parquet_folder import read_footer, removal_lines, sha256_of
from natcore.who.store import Store
from natcore.who.verify import verify
from support.log_fakes import FakeClock, FakeCore, make_records

DAY = 86_400
START = 1_700_000_000  # of the rows of log_fakes, seconds


def batch_of(count: int, first: int, run: str = "run1", instance: str = "ngw-1") -> Batch:
    records = make_records(count, first)
    records["start_time"] += first * 3_600_000_000  # an hour a row
    records["end_time"] += first * 3_600_000_000
    return Batch(instance, "vpc-1", run, records)


def write(folder: Path, files: int = 5, first: int = 0, run: str = "run1", **more: object) -> list[Path]:
    """One file a batch of one row."""
    sink = ParquetSink(folder, batch_rows=1, **more)  # type: ignore[arg-type]
    sink.open()
    for number in range(first, first + files):
        sink.deliver(batch_of(1, number, run))
    sink.close()
    return sorted(folder.glob("*.parquet"))


def kinds(folder: Path, **more: str) -> dict[str, str]:
    return {finding.file: finding.kind for finding in verify(folder, **more).findings}


def test_a_folder_as_it_was_written_is_whole(tmp_path: Path) -> None:
    paths = write(tmp_path)
    result = verify(tmp_path)
    assert (result.ok, result.files, result.rows, result.removed) == (True, 5, 5, 0)
    assert result.anchor == (paths[4].name, sha256_of(paths[4]))
    assert read_footer(paths[0]).previous == "" and read_footer(paths[4]).previous == paths[3].name


def test_the_chain_goes_on_over_runs_and_restarts(tmp_path: Path) -> None:
    write(tmp_path, 2)
    write(tmp_path, 2, first=2)
    paths = write(tmp_path, 2, run="run2")
    assert verify(tmp_path).ok and verify(tmp_path).files == 6
    assert len({read_footer(path).previous for path in paths}) == 6


def test_small_files_that_were_put_together_are_no_finding(tmp_path: Path) -> None:
    clock = FakeClock()
    sink = ParquetSink(tmp_path, roll_seconds=60.0, clock=clock)
    anchors = []
    for number in range(5):
        sink.deliver(batch_of(1, number))
        assert verify(tmp_path).ok
        anchors.append(verify(tmp_path).anchor)
    clock.now += 60
    sink.deliver(batch_of(1, 5))
    assert (verify(tmp_path).files, verify(tmp_path).rows) == (2, 6)
    for anchor in anchors:
        assert anchor is not None and verify(tmp_path, anchor=anchor[1]).ok


def test_a_row_is_written_twice_at_most(tmp_path: Path) -> None:
    """However small the batches are."""
    clock, sink = FakeClock(), ParquetSink(tmp_path, roll_seconds=3600.0)
    sink._clock = clock
    written = 0
    for number in range(240):
        written += sink.deliver(batch_of(40, 40 * number)).wire_bytes
        clock.now += 15
    clock.now += 3600
    sink.deliver(batch_of(1, 40 * 240))
    (whole,) = [path for path in tmp_path.glob("*.parquet") if (footer := read_footer(path)) and footer.rows == 9600]
    assert written < 240 * 20_000 and whole.stat().st_size < 400_000 and len(list(tmp_path.glob("*.parquet"))) == 2


def test_a_crash_between_a_merged_file_and_its_parts_leaves_each_row_once(tmp_path: Path, monkeypatch) -> None:
    clock = FakeClock()
    sink = ParquetSink(tmp_path, roll_seconds=60.0, clock=clock)
    for number in range(4):
        sink.deliver(batch_of(1, number))
    clock.now += 60
    monkeypatch.setattr("natcore.sinks._parquet_folder.remove", lambda path: (_ for _ in ()).throw(OSError(5, "dead")))
    with suppress(OSError):
        sink.deliver(batch_of(1, 4))
    monkeypatch.undo()
    sink.close()
    assert len(list(tmp_path.glob("*.parquet"))) >= 5
    assert sum(file.footer.rows for file in Store(tmp_path).parts()) in (4, 5)
    again = ParquetSink(tmp_path)
    again.deliver(batch_of(1, 4))
    assert sum(file.footer.rows for file in Store(tmp_path).parts()) == 5 and verify(tmp_path).ok


def test_a_crash_before_the_seal_of_a_merged_file_loses_no_row(tmp_path: Path, monkeypatch) -> None:
    clock = FakeClock()
    sink = ParquetSink(tmp_path, roll_seconds=60.0, clock=clock)
    for number in range(4):
        sink.deliver(batch_of(1, number))
    clock.now += 60
    monkeypatch.setattr("natcore.sinks._parquet_folder.Folder._seal", lambda _: sys.exit())
    with suppress(SystemExit):
        sink.deliver(batch_of(1, 4))
    monkeypatch.undo()
    sink.close()
    assert len(list(tmp_path.glob("*.parquet"))) == 5
    assert sum(file.footer.rows for file in Store(tmp_path).parts()) == 4
    assert verify(tmp_path).ok and verify(tmp_path).rows == 4
    ParquetSink(tmp_path).open()  # it removes the parts
    assert len(list(tmp_path.glob("*.parquet"))) == 1
    assert sum(file.footer.rows for file in Store(tmp_path).parts()) == 4 and verify(tmp_path).ok


def test_a_folder_is_one_log_s(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path)
    sink.claim("session log audit of gateway ngw-1")
    with pytest.raises(ConfigurationError, match="session log audit of gateway ngw-1, process"):
        ParquetSink(tmp_path).claim("another")
    core = FakeCore()
    collector = Collector(core, instance="ngw-2", vpc_id="vpc-1", threads=False)
    with pytest.raises(ConfigurationError, match="ngw-1"):
        collector.start(ParquetSink(tmp_path))
    sink.close()
    collector.start(ParquetSink(tmp_path))
    collector.close(0.0)


def test_folders_in_a_folder_are_verified_too(tmp_path: Path) -> None:
    write(tmp_path / "a")
    paths = write(tmp_path / "b")
    assert verify(tmp_path).ok and verify(tmp_path).files == 10
    paths[2].unlink()
    assert kinds(tmp_path) == {f"b/{paths[2].name}": "missing"}
    (tmp_path / "none").mkdir()
    assert not verify(tmp_path / "none").ok


def test_a_forged_removal_excuses_no_file(tmp_path: Path) -> None:
    now = START + 600 + 100 * 3600
    paths = write(tmp_path, 10, keep_days=96 / 24, wall=lambda: now)
    footer, sha256 = read_footer(paths[2]), sha256_of(paths[2])
    last = removal_lines(tmp_path)[-1][1]
    forged = {"file": paths[2].name, "sha256": sha256, "instance": "ngw-1", "run": "run1", "first_number": 6, "last_number": 6,
              "first_time": footer.first_time, "last_time": footer.last_time, "size_bytes": 1, "removed_at": now,
              "reason": "keep_days", "before": last}  # fmt: skip
    paths[2].unlink()
    with (tmp_path / "removed.jsonl").open("a") as file:
        file.write(json.dumps(forged) + "\n")
    assert set(kinds(tmp_path).values()) == {"changed", "missing"}


def test_the_newest_file_is_sealed(tmp_path: Path) -> None:
    paths = write(tmp_path)
    data = bytearray(paths[-1].read_bytes())
    data[20] ^= 1
    paths[-1].write_bytes(data)
    assert kinds(tmp_path) == {paths[-1].name: "changed"}
    assert [Path(file.name).name for file in Store(tmp_path).parts()] == [path.name for path in paths[:-1]]


@pytest.mark.parametrize("which", [0, 2, 3])
def test_a_changed_file_is_named(tmp_path: Path, which: int) -> None:
    paths = write(tmp_path)
    table = pq.read_table(paths[which])
    pq.write_table(table.set_column(table.column_names.index("flags"), "flags", [[7]]), paths[which])
    assert kinds(tmp_path) == {paths[which].name: "changed"}


def test_a_byte_that_changed_is_found(tmp_path: Path) -> None:
    paths = write(tmp_path)
    data = bytearray(paths[1].read_bytes())
    data[20] ^= 1
    paths[1].write_bytes(data)
    assert kinds(tmp_path) == {paths[1].name: "changed"}
    paths[2].write_bytes(b"nothing")
    assert kinds(tmp_path)[paths[2].name] in ("damaged", "missing")


def test_a_removed_file_is_named(tmp_path: Path) -> None:
    paths = write(tmp_path)
    paths[1].unlink()
    assert kinds(tmp_path) == {paths[1].name: "missing"}
    paths[0].unlink()  # with the one after it gone too, no file names it any more
    assert kinds(tmp_path) == {paths[1].name: "missing"}


def test_files_that_changed_places_are_named(tmp_path: Path) -> None:
    paths = write(tmp_path)
    first, second = paths[1].read_bytes(), paths[2].read_bytes()
    paths[1].write_bytes(second)
    paths[2].write_bytes(first)
    found = verify(tmp_path).findings
    assert {finding.file for finding in found} == {paths[1].name, paths[2].name}
    assert "reordered" in {finding.kind for finding in found}


def test_a_renamed_file_is_named(tmp_path: Path) -> None:
    paths = write(tmp_path)
    other = tmp_path / "20990101T000000Z-run1-000000000002.parquet"
    paths[1].rename(other)
    assert kinds(tmp_path) == {other.name: "renamed"}


def test_an_added_file_is_named(tmp_path: Path) -> None:
    paths = write(tmp_path / "log")
    for path in paths[3:]:
        path.rename(tmp_path / path.name)
    (tmp_path / "log" / "newest.json").unlink()
    write(tmp_path / "log", 1, first=9)  # continues paths[2], as paths[3] does
    for path in paths[3:]:
        (tmp_path / path.name).rename(path)
    found = verify(tmp_path / "log").findings
    assert {finding.kind for finding in found} == {"added"} and len(found) >= 2


def test_an_anchor_shows_that_the_end_was_cut_off_or_written_anew(tmp_path: Path) -> None:
    paths = write(tmp_path)
    name, anchor = verify(tmp_path).anchor or ("", "")
    assert verify(tmp_path, anchor=anchor).ok and name == paths[4].name
    for path in paths[3:]:
        path.unlink()
    assert kinds(tmp_path) == {paths[4].name: "missing"}
    seal = json.dumps({"file": paths[2].name, "sha256": sha256_of(paths[2]), "removals": ""})
    (tmp_path / "newest.json").write_text(seal)
    assert verify(tmp_path).ok  # nothing in the folder tells any more
    assert kinds(tmp_path, anchor=anchor) == {"": "missing"}
    with pytest.raises(ConfigurationError, match="SHA-256"):
        verify(tmp_path, anchor="x")
    with pytest.raises(ConfigurationError, match="folder must"):
        verify(tmp_path / "none")


def test_retention_by_age_is_no_finding_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "natcore.sinks")
    now = START + 600 + 100 * 3600
    left = write(tmp_path, 10, keep_days=96 / 24, wall=lambda: now)  # rows end at START + 600 s + n hours
    assert len(left) == 6 and verify(tmp_path).ok and verify(tmp_path).removed == 4
    removals = [removal for removal, _ in removal_lines(tmp_path)]
    assert [removal.first_number for removal in removals] == [0, 1, 2, 3]
    assert {(removal.reason, removal.removed_at) for removal in removals} == {("keep_days", now)}
    assert len([record for record in caplog.records if hasattr(record, "removal")]) == 4
    assert (tmp_path / "removed.jsonl").stat().st_mode & 0o777 == 0o600


def test_retention_by_bytes_keeps_the_newest(tmp_path: Path) -> None:
    size = write(tmp_path / "one", 1)[0].stat().st_size
    folder = tmp_path / "log"
    write(folder, 10, keep_bytes=size * 4)
    assert 3 <= len(list(folder.glob("*.parquet"))) <= 4
    assert verify(folder).ok and {removal.reason for removal, _ in removal_lines(folder)} == {"keep_bytes"}
    write(folder, 3, first=10, keep_bytes=0)
    assert len(list(folder.glob("*.parquet"))) == 1 and verify(folder).ok


def test_a_removal_that_retention_did_not_make_is_found_beside_those_that_it_made(tmp_path: Path) -> None:
    now = START + 600 + 100 * 3600
    paths = write(tmp_path, 10, keep_days=96 / 24, wall=lambda: now)
    paths[2].unlink()
    assert kinds(tmp_path) == {paths[2].name: "missing"}


def test_a_removal_that_was_told_is_made_after_a_crash(tmp_path: Path) -> None:
    paths = write(tmp_path)
    footer = read_footer(paths[0])
    line = {"file": paths[0].name, "sha256": sha256_of(paths[0]), "instance": footer.instance, "run": footer.run,
            "first_number": 0, "last_number": 0, "first_time": footer.first_time, "last_time": footer.last_time,
            "size_bytes": 1, "removed_at": 0.0, "reason": "keep_days"}  # fmt: skip
    (tmp_path / "removed.jsonl").write_text(json.dumps(line) + "\n" + '{"file": "half')
    ParquetSink(tmp_path).open()
    assert not paths[0].exists() and verify(tmp_path).ok
    write(tmp_path, 1, first=8, keep_bytes=0)
    assert [removal.first_number for removal, _ in removal_lines(tmp_path)] == [
        0,
        1,
        2,
        3,
        4,
    ]  # the half line is passed over


def test_retention_that_fails_does_not_fail_the_delivery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                          caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    write(tmp_path, 3)
    sink = ParquetSink(tmp_path, keep_bytes=0)
    sink.open()
    monkeypatch.setattr(
        "natcore.sinks._parquet_folder._append", lambda *arguments: (_ for _ in ()).throw(OSError(28, "full"))
    )
    assert sink.deliver(batch_of(1, 3)).wire_bytes > 0
    assert "retention failed" in caplog.text
    monkeypatch.undo()
    sink.deliver(batch_of(1, 4))
    assert len(list(tmp_path.glob("*.parquet"))) == 1 and verify(tmp_path).ok


def test_bad_retention_is_refused(tmp_path: Path) -> None:
    for more in ({"keep_days": -1}, {"keep_bytes": -1}, {"keep_bytes": 1.5}):
        with pytest.raises(ConfigurationError, match=r"ParquetSink\.keep_"):
            ParquetSink(tmp_path, **more)  # type: ignore[arg-type]

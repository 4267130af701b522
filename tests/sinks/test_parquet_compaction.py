"""Compaction: the files of an hour that is over become one, and every answer, the chain and `verify` stay as they were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from natcore import ConfigurationError
from natcore.sessionlog.facts import cover_row
from natcore.sinks import ParquetSink, _parquet_compaction, _parquet_folder
from natcore.sinks._parquet_folder import COMPACTED, Folder, compaction_lines, read_footer
from natcore.sinks.compaction import Compacted, compact
from natcore.who.anchor import Anchor
from natcore.who.query import Store, what, who
from natcore.who.verify import verify
from support.lives import ANN, BOB, EPOCH, Log, at, label

LATE = EPOCH + 1e6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight files of two hours, 22:13 to 23:20, one of the third hour, and the newest."""
    log = Log(tmp_path / "log").tick(0)
    for number in range(8):
        start = 500 * number
        log.session(2 * number + 1, ANN, start + 10, [(start + 10, start + 60)], start + 60)
        log.session(2 * number + 2, BOB, start + 20, [(start + 20, start + 90)], start + 90, port=4000 - number)
        log.tick(start + 100).write()
    log.tick(7000).write()
    return log.tick(20_000).write()


def answers(folder: Path) -> list[Any]:
    store = Store(folder)
    asked = [
        who(store, "203.0.113.1", port, protocol="tcp", at=at(seconds), tolerance=0)
        for port in (4000, 3995) for seconds in (-5, 30, 520, 2550, 3570, 5000, 21_000)
    ]  # fmt: skip
    return [
        *asked,
        what(store, "10.0.0.6", at=at(5), until=at(9000)),
        what(store, "10.0.0.5", at=at(5), until=at(30_000)),
    ]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.parquet")}


def test_answers_and_chain_stay_as_they_were(folder: Path) -> None:
    before, rows, count, anchor = answers(folder), verify(folder).rows, len(names(folder)), verify(folder)
    assert anchor.anchor is not None
    done = compact(folder, now=LATE)
    assert done.parts > done.files >= 1 and len(names(folder)) == count - done.parts + done.files
    found = verify(folder, anchor.state)
    assert (found.findings, found.rows) == ((), rows) and verify(folder, anchor.anchor[1]).ok
    assert answers(folder) == before
    assert compact(folder, now=LATE) == Compacted(0, 0, 0)
    log = Log(folder, "run2").tick(30_000)  # the chain goes on
    log.write()
    assert verify(folder).ok and answers(folder)[:-1] == before[:-1]


def test_rows_are_sorted_by_the_endpoint(folder: Path) -> None:
    compact(folder, now=LATE)
    path, *_ = (path for path in folder.glob("*.parquet") if (footer := read_footer(path)) and footer.order)
    table = pq.read_table(path, columns=["nat_ip", "protocol", "nat_port", "end_time"]).to_pylist()
    keys = [tuple(row.values()) for row in table]
    assert keys == sorted(keys) and len(keys) > 10


@pytest.mark.parametrize("seed", range(1, 21))
def test_row_groups_end_where_the_endpoints_address_or_protocol_does(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_parquet_compaction, "GROUP_ROWS", 10)
    chance = np.random.default_rng(seed)
    keys = sorted(zip(chance.integers(0, 4, 60).tolist(), chance.choice([6, 17], 60).tolist(), strict=True))[: 3 * seed]
    texts = pa.array([f"203.0.113.{address}" for address, _ in keys], pa.string()).dictionary_encode()
    table = pa.table({"nat_ip": texts, "protocol": pa.array([protocol for _, protocol in keys], pa.uint8())})
    groups = _parquet_compaction.row_groups(table)
    assert sum(groups) == len(keys) and all(0 < rows <= 10 for rows in groups)
    ends = np.cumsum(groups).tolist()
    for begin, end in zip([0, *ends], ends, strict=False):
        inside = set(keys[begin:end])
        assert len(inside) == 1 or all(keys.count(key) == keys[begin:end].count(key) for key in inside)


def test_an_hour_that_is_not_over_stays(folder: Path) -> None:
    (line, _), *_ = [*compaction_lines(folder), (None, None)]
    assert line is None
    assert compact(folder, now=EPOCH + 200) == Compacted(0, 0, 0)
    assert compact(folder, now=EPOCH + 3 * 3600).parts > 0


def test_a_file_has_a_bounded_number_of_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_parquet_compaction, "MOST_ROWS", 20)
    before = answers(folder)
    done = compact(folder, now=LATE)
    assert done.files > 2 and verify(folder).ok and answers(folder) == before


class Crash(BaseException):
    """The process dies here."""


def crashing(monkeypatch: pytest.MonkeyPatch, calls: int) -> Callable[[], int]:
    """Whatever changes the folder for the calls-th time dies, before it does so. -> how often it was called."""
    count = 0

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            if count == calls:
                raise Crash
            return real(*arguments, **more)

        return run

    for name in ("replaced", "_append", "remove"):
        monkeypatch.setattr(_parquet_folder, name, dying(getattr(_parquet_folder, name)))
    return lambda: count


def test_a_crash_anywhere_leaves_every_row_and_a_whole_chain(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, rows = answers(folder), verify(folder).rows
    calls = 0
    while True:
        calls += 1
        with monkeypatch.context() as patch:
            count = crashing(patch, calls)
            try:
                compact(folder, now=LATE)
                break
            except Crash:
                pass
        assert answers(folder) == before, calls
        Folder(folder, None, None)  # the next start
        assert answers(folder) == before and (verify(folder).findings, verify(folder).rows) == ((), rows), calls
    assert calls > 3 and count() < calls and len(names(folder)) < 10


def compacted_file(folder: Path) -> Path:
    compact(folder, now=LATE)
    return folder / compaction_lines(folder)[0][0].file


def test_a_compacted_file_that_was_changed_is_a_gap(folder: Path) -> None:
    path = compacted_file(folder)
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)
    assert who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(30)).status == "gap"
    assert "compacted.jsonl knew it otherwise" in str(verify(folder).findings)
    path.unlink()
    assert who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(30)).status == "gap"
    assert "retention did not remove it" in str(verify(folder).findings)


def flipped(one: Path, other: Path) -> None:
    data = bytearray(one.read_bytes())
    data[50] ^= 1
    one.write_bytes(data)


def cut(one: Path, other: Path) -> None:
    one.write_bytes(one.read_bytes()[:300])


def exchanged(one: Path, other: Path) -> None:
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def gone(one: Path, other: Path) -> None:
    one.unlink()


@pytest.mark.parametrize("is_open", [True, False], ids=["before", "after"])  # before or after the damage
@pytest.mark.parametrize("damage", [flipped, cut, exchanged, gone])
def test_compaction_hides_no_damage(folder: Path, damage: Callable[[Path, Path], None], is_open: bool) -> None:
    """What was not as it was written is missing afterwards too: with the hash of the new file it would be believed."""
    files = Folder(folder, None, None) if is_open else None
    _, second, third, *_ = sorted(folder.glob("*.parquet"))
    damage(second, third)
    before, found = answers(folder), {finding.file for finding in verify(folder).findings}
    assert found & {second.name, third.name}
    files = files or Folder(folder, None, None)
    while files.compact(LATE) is not None:
        pass
    assert compaction_lines(folder) and answers(folder) == before
    assert {finding.file for finding in verify(folder).findings} & {second.name, third.name}
    assert not any(second.name in line.replaces for line, _ in compaction_lines(folder))


@pytest.mark.parametrize("kept", [0, 1])
def test_a_manifest_that_was_cut_or_changed_is_found(folder: Path, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_parquet_compaction, "MOST_ROWS", 20)
    compact(folder, now=LATE)
    manifest = folder / COMPACTED
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(lines[:kept]))
    assert any(finding.file == COMPACTED for finding in verify(folder).findings)
    assert who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(30)).status == "gap"
    manifest.write_bytes(b"".join(lines[1:]))
    assert "does not continue" in str(verify(folder).findings)
    assert who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(30)).status == "gap"


def test_retention_removes_compacted_files_too(folder: Path) -> None:
    anchor: Anchor = verify(folder).state
    path = compacted_file(folder)
    Folder(folder, 0.0, None).retain(LATE)
    assert not path.exists() and verify(folder, anchor).ok and len(names(folder)) == 1
    answer = who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(30))
    assert answer.status == "gap" and "was removed by keep_days" in answer.reason


def test_a_sink_compacts_by_itself(tmp_path: Path) -> None:
    now = [EPOCH + 0.0]
    sink = ParquetSink(tmp_path / "log", compact=True, roll_bytes=1, wall=lambda: now[0], clock=lambda: now[0])
    log = Log(tmp_path / "unused").tick(0)
    for number in range(12):
        now[0] = EPOCH + 600.0 * (number + 1)
        log.session(number + 1, ANN, 600 * number + 1, [(600 * number + 1, 600 * number + 90)], 600 * number + 90)
        sink.deliver(log.tick(600 * number + 100).batch())
    sink.close()
    assert compaction_lines(tmp_path / "log") and verify(tmp_path / "log").ok
    assert who(tmp_path / "log", "203.0.113.1", 4000, protocol="tcp", at=at(50)).status == "exact"


def test_a_folder_that_a_log_writes_into_is_refused(folder: Path) -> None:
    sink = ParquetSink(folder)
    sink.open()
    with pytest.raises(ConfigurationError, match="one log alone"):
        compact(folder)
    sink.close()
    with pytest.raises(ConfigurationError, match="a ParquetSink's folder"):
        compact(folder / "none")


def test_many_rows_stay_the_same_rows(tmp_path: Path) -> None:
    """Of several dictionaries, in one order."""
    log = Log(tmp_path / "log").tick(0)
    chance = np.random.default_rng(1)
    for part in range(4):
        for number in range(50):
            port, host = int(chance.integers(1024, 1100)), int(chance.integers(0x0A000000, 0x0A0000F0))
            start = 100 * part + number
            log.session(
                100 * part + number,
                host,
                start,
                [(start, start + 1)],
                start + 1,
                port=port,
                eip=int(chance.integers(2)),
            )
        log.tick(100 * part + 60).write()
    log.tick(9000).write()

    def rows() -> list[tuple[Any, ...]]:
        store = Store(tmp_path / "log")
        files = {"files": [part.name for part in store.parts()]}
        return store.sql("SELECT * FROM read_parquet($files) ORDER BY number, kind, pkts_from_vpc, nat_ip", files)

    before = rows()
    assert compact(tmp_path / "log", now=LATE).parts == 4
    assert rows() == before


def test_a_files_name_is_never_another_ones(tmp_path: Path) -> None:
    """Two rows about the log have one number and one time, and so would their files; the first is put together with others."""
    log = Log(tmp_path / "log").tick(0)
    batches = [log.batch(), *(log.fact(cover_row(label(1), label(1), label(1))).batch() for _ in range(2))]
    sink = ParquetSink(log.folder, roll_bytes=15_000, compact=False)
    for batch in batches:
        sink.deliver(batch)
    sink.close()
    assert len(list(log.folder.glob("*.parquet"))) == 2  # the first two files became one
    ParquetSink(log.folder).open()  # it removes what was put together before a crash
    rows = sum(pq.read_metadata(each).num_rows for each in log.folder.glob("*.parquet"))
    assert rows == sum(map(len, batches))

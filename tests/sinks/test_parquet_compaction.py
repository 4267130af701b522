"""Compaction: the files of an hour that is over become one, and every answer, the chain and `verify` stay as they were."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from natcore import ConfigurationError
from natcore.sessionlog import file_metadata
from natcore.sessionlog.facts import cover_row
from natcore.sinks import ParquetSink, _parquet_compaction, _parquet_folder
from natcore.sinks._parquet_folder import COMPACTED, Compaction, Folder, compaction_lines, read_footer
from natcore.sinks.compaction import Compacted, compact
from natcore.who.anchor import Anchor
from natcore.who.files import LocalFiles, Wanted
from natcore.who.query import Store, what, who
from natcore.who.source import DamagedPart
from natcore.who.usage import top
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
    numbers = np.array([address << 8 | protocol for address, protocol in keys])
    groups = _parquet_compaction.row_groups(numbers)
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


@pytest.fixture
def sorted_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its compacted files have several row groups each."""
    monkeypatch.setattr(_parquet_compaction, "GROUP_ROWS", 5)
    assert compact(folder, now=LATE).files > 0
    return folder


def lines_of(folder: Path) -> list[Compaction]:
    return [line for line, _ in compaction_lines(folder)]


def largest(folder: Path) -> tuple[Compaction, file_metadata.Footer]:
    """The compacted file with most rows."""
    line = max(lines_of(folder), key=lambda line: line.rows)
    footer = read_footer(folder / line.file)
    assert footer is not None and len(footer.groups) > 3
    return line, footer


def changed(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_file_tells_what_each_row_group_has_and_the_manifest_what_the_file_tells(sorted_folder: Path) -> None:
    for line in lines_of(sorted_folder):
        path = sorted_folder / line.file
        data, file, footer = path.read_bytes(), pq.ParquetFile(path), read_footer(path)
        assert footer is not None and len(footer.groups) == file.metadata.num_row_groups
        begin = 0
        for place, group in enumerate(footer.groups):
            told, table = file.metadata.row_group(place), file.read_row_group(place)
            chunks = [told.column(column) for column in range(told.num_columns)]
            firsts = [chunk.dictionary_page_offset or chunk.data_page_offset for chunk in chunks]
            assert begin <= min(firsts) and max(firsts) < group.end and group.rows == len(table)
            assert sum(chunk.total_compressed_size for chunk in chunks) == group.end - max(begin, 4)
            assert hashlib.sha256(data[begin : group.end]).hexdigest() == group.sha256
            rows = table.to_pylist()
            for name, bounds in (
                ("nat_ip", group.addresses), ("protocol", group.protocols), ("nat_port", group.ports), ("eip", group.eips),
            ):  # fmt: skip
                values = [row[name] for row in rows if row[name] is not None]
                assert bounds == ((min(values), max(values)) if values else None)
            for name in ("pri_ip", "nat_ip", "kind"):  # no value of another row group is in its dictionaries
                assert set(table[name].chunk(0).dictionary.to_pylist()) == {row[name] for row in rows}
            begin = group.end
        assert begin + line.tail_bytes == len(data) == line.size_bytes
        assert hashlib.sha256(data[begin:]).hexdigest() == line.tail_sha256


def test_a_question_of_an_endpoint_reads_the_row_groups_that_can_have_it(
    sorted_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: list[str] = []
    read: dict[str, int] = {}
    real, real_whole = LocalFiles.fetch_pieces, LocalFiles.sha256

    def fetch_pieces(self: LocalFiles, path: str, wanted: Wanted) -> Any:
        for piece in wanted.pieces or ():
            read[path] = read.get(path, 0) + piece.end - piece.start
        return real(self, path, wanted)

    monkeypatch.setattr(LocalFiles, "fetch_pieces", fetch_pieces)
    monkeypatch.setattr(LocalFiles, "sha256", lambda self, path: whole.append(path) or real_whole(self, path))
    store = Store(sorted_folder)
    line, footer = largest(sorted_folder)
    path = str(sorted_folder / line.file)
    for _ in range(2):  # each is read once
        assert who(store, "203.0.113.1", 3998, protocol="tcp", at=at(1050)).status == "exact"
    groups = [
        group.end - before
        for before, group in zip((0, *(each.end for each in footer.groups)), footer.groups, strict=False)
    ]
    assert line.tail_bytes < read[path] <= line.tail_bytes + 2 * max(groups) and path not in whole
    assert top(store) == top(Store(sorted_folder))  # all rows are read: so are the other row groups
    assert read[path] >= line.size_bytes


def test_a_damaged_row_group_is_a_gap_of_what_it_could_hold(sorted_folder: Path) -> None:
    line, footer = largest(sorted_folder)
    before = answers(sorted_folder)
    assert [who(sorted_folder, "203.0.113.1", port, protocol="tcp", at=at(1050)).status for port in (4000, 3998)] == [
        "exact"
    ] * 2
    place = next(at for at, group in enumerate(footer.groups) if group.ports[0] <= 3998 <= group.ports[1])
    assert footer.groups[place].ports[1] != 4000
    changed(sorted_folder / line.file, footer.groups[place].end - 3)
    store = Store(sorted_folder)
    for _ in range(2):  # in any order
        assert who(store, "203.0.113.1", 3998, protocol="tcp", at=at(1050)).status == "gap"
        assert who(store, "203.0.113.1", 4000, protocol="tcp", at=at(1050)).status == "exact"
    assert who(store, "203.0.113.1", 4000, protocol="tcp", at=at(-5), tolerance=0) == before[0]
    assert what(store, "10.0.0.5", at=at(5), until=at(9000)).status == "incomplete"  # it may be in any row group
    with pytest.raises(DamagedPart):
        top(store)
    assert "compacted.jsonl knew it otherwise" in str(verify(sorted_folder).findings)


@pytest.mark.parametrize("place", ["first", "tail", "end"])
def test_without_its_tail_or_its_length_a_sorted_file_is_a_gap_of_all_it_has(sorted_folder: Path, place: str) -> None:
    line, _ = largest(sorted_folder)
    path = sorted_folder / line.file
    if place == "first":
        path.write_bytes(path.read_bytes()[1:])
    elif place == "end":
        path.write_bytes(path.read_bytes() + b"x")
    else:
        changed(path, line.size_bytes - line.tail_bytes + 20)
    store = Store(sorted_folder)
    assert [who(store, "203.0.113.1", port, protocol="tcp", at=at(1050)).status for port in (4000, 3998)] == ["gap"] * 2


def test_rows_of_other_row_groups_are_not_believed(sorted_folder: Path) -> None:
    """Whatever a reader of Parquet makes of the conditions."""
    line, footer = largest(sorted_folder)
    store = Store(sorted_folder)
    (part,) = (part for part in store.parts() if part.name.endswith(line.file))
    for chosen in ([1], [0, 2], range(len(footer.groups))):
        found = store.rows("filename, number", "true", {}, [part], {part.name: list(chosen)})
        assert len(found) == sum(footer.groups[group].rows for group in chosen)


@pytest.mark.parametrize("is_old", [False, True])
def test_of_many_addresses_either_one_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_old: bool) -> None:
    """The footer does not name them all then."""
    monkeypatch.setattr(_parquet_compaction, "GROUP_ROWS", 5)
    monkeypatch.setattr(file_metadata, "_MOST_ADDRESSES", 1)
    log = Log(tmp_path / "log").tick(0)
    for number in range(40):
        log.session(number + 1, ANN + number, 10 + number, [(10 + number, 60 + number)], 60 + number, port=5000 + number,
                    nat_ip=0xCB007101 + number % 4, eip=0xC6336401 + number % 4 if number % 4 else 0)  # fmt: skip
        if number % 8 == 7:
            log.tick(100 + number).write()
    log.tick(7000).write()
    if is_old:
        as_before(monkeypatch)
    questions = [
        (address, 5000 + number, at(20 + number)) for number in (1, 3, 20, 38)
        for address in (f"203.0.113.{1 + number % 4}", f"198.51.100.{1 + number % 4}")
    ]  # fmt: skip
    before = [who(log.folder, address, port, protocol="tcp", at=time) for address, port, time in questions]
    assert {answer.status for answer in before} == {"exact", "gap"} and before[1].status == "exact"
    assert compact(log.folder, now=LATE).files == 1
    (footer,) = (footer for path in log.folder.glob("*.parquet") if (footer := read_footer(path)) and footer.order)
    assert footer.addresses is None and bool(footer.groups) is not is_old
    assert [who(log.folder, address, port, protocol="tcp", at=time) for address, port, time in questions] == before


def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compaction as it was, and as it is with an older pyarrow."""
    monkeypatch.delattr(pq.ParquetWriter, "add_key_value_metadata")


def test_files_of_before_are_believed_as_a_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = answers(folder)
    as_before(monkeypatch)
    compact(folder, now=LATE)
    assert answers(folder) == before and verify(folder).ok
    line = lines_of(folder)[0]
    assert not line.tail_bytes
    changed(folder / line.file, 50)
    assert who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(30)).status == "gap"


@pytest.mark.parametrize("seed", range(4))
def test_wherever_a_sorted_file_is_damaged_answers_stay_or_are_gaps(sorted_folder: Path, seed: int) -> None:
    chance = np.random.default_rng(seed)
    before = answers(sorted_folder)
    line, _ = largest(sorted_folder)
    path = sorted_folder / line.file
    data = path.read_bytes()
    told = 0
    for place in chance.integers(0, len(data), 6).tolist():
        changed(path, place)
        for now, then in zip(answers(sorted_folder), before, strict=True):
            assert now == then or now.status in ("gap", "incomplete"), (place, now, then)
            told += now != then
        assert not verify(sorted_folder).ok
        path.write_bytes(data)
    assert told and answers(sorted_folder) == before

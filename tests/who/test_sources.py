"""Every source gives the same answers: Parquet files, also in a bucket, ClickHouse and Simple Log Service, of the same rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from natcore import Error
from natcore.dtypes import FIELDS, RECORD
from natcore.internal.validation import parse_ipv4
from natcore.sinks import Batch, ClickHouseSink, ParquetSink, SlsSink
from natcore.sinks.base import ADDRESSES, KINDS, TIMES
from natcore.sinks.compaction import compact
from natcore.testing import SlsServer
from natcore.who.clickhouse import ClickHouseSource
from natcore.who.query import Store, answered, talked, what, who
from natcore.who.sls import SlsSource
from natcore.who.source import Source
from natcore.who.upload import upload
from natcore.who.usage import export
from natcore.who.waiting import Waiting
from runs.truth import lived
from runs.truth_asking import judge, judge_listing
from support.lives import ANN, BOB, DNS, Log, at

chdb = pytest.importorskip("chdb", reason="needs chdb (PyPI)")
pytest.importorskip("moto", reason="needs moto[server] (PyPI)")

from support.chdb_server import ChdbServer  # noqa: E402
from support.object_storage import ObjectStorage  # noqa: E402

HOST = str(IPv4Address(ANN))
NUMBERS = itertools.count()
KIND_NUMBERS = {word: number for number, word in KINDS.items()}


@pytest.fixture
def server() -> Iterator[ChdbServer]:
    with ChdbServer() as made:
        yield made


@pytest.fixture
def sls() -> Iterator[SlsServer]:
    with SlsServer() as made:
        yield made


@pytest.fixture(scope="module")
def storage() -> Iterator[ObjectStorage]:
    made = ObjectStorage()
    yield made
    made.close()


def in_clickhouse(server: ChdbServer, batches: list[Batch], **more: Any) -> ClickHouseSource:
    """The batches in a table of their own."""
    table = f"log{next(NUMBERS)}"
    sink = ClickHouseSink(server.url, table=table, **more)
    sink.open()
    for batch in batches:
        sink.deliver(batch)
    return ClickHouseSource(server.url, table=table, fresh=86_400)


def in_sls(server: SlsServer, batches: list[Batch]) -> SlsSource:
    """The batches in a Logstore of their own."""
    where: dict[str, Any] = {"access_key_id": "id", "access_key_secret": "secret", "region": "cn-hangzhou"}
    logstore = f"log{next(NUMBERS)}"
    label = any(batch.labels is not None for batch in batches)
    sink = SlsSink(server.endpoint, "project", logstore, rows="all", label=label, **where)
    sink.open()
    for batch in batches:
        for first in range(0, len(batch), 4096):
            some = slice(first, first + 4096)
            sink.deliver(replace(batch, records=batch.records[some], labels=batch.labels and batch.labels[some]))
    return SlsSource(server.endpoint, "project", logstore, label=label, fresh=86_400, **where)


def in_parquet(folder: Path, batches: list[Batch]) -> Store:
    sink = ParquetSink(folder)
    sink.open()
    for batch in batches:
        sink.deliver(batch)
    sink.close()
    return Store(folder)


def in_bucket(storage: ObjectStorage, folder: str) -> Store:
    """A copy of a folder."""
    bucket = storage.bucket(fresh=3600)
    assert upload(folder, bucket).files > 0
    return Store(bucket)


def everywhere(
    server: ChdbServer, sls: SlsServer, storage: ObjectStorage, folder: Path, batches: list[Batch]
) -> list[Source]:
    """The same rows in files, in compacted files, both in a bucket, in ClickHouse and in Simple Log Service."""
    plain, compacted = in_parquet(folder / "plain", batches), in_parquet(folder / "compacted", batches)
    assert compact(compacted.name).files > 0
    copies = [in_bucket(storage, each.name) for each in (plain, compacted)]
    return [plain, compacted, *copies, in_clickhouse(server, batches), in_sls(sls, batches)]


def test_the_same_rows_give_the_same_answers(
    server: ChdbServer, sls: SlsServer, storage: ObjectStorage, tmp_path: Path
) -> None:
    log = Log(tmp_path).tick(0).session(7, ANN, 100, [(100, 400)], 400)
    batches = [log.batch(), log.tick(420).batch()]
    log.session(8, BOB, 300, [(300, 500)], 500, port=4001).session(
        9, BOB, 6000, [(6000, 6100)], None, port=4002, pub_ip=DNS, pub_port=53, protocol=17
    )
    batches.append(log.tick(9000).batch())
    log.number += 3  # rows that never came
    batches.append(log.tick(20_000).batch())
    parquet, *others = everywhere(server, sls, storage, tmp_path, batches)
    for address, seconds in (
        ("203.0.113.1", 450), ("172.16.10.13", 6050), ("203.0.113.7", 9500), ("203.0.113.1", 30_000),
    ):  # fmt: skip
        for port, protocol, remote in (
            (4001, 6, "198.51.100.7"), (4002, "udp", None), (None, None, "198.51.100.7"),
        ):  # fmt: skip
            asked: dict[str, Any] = {"protocol": protocol, "at": at(seconds), "remote": remote, "tolerance": 60}
            answer = who(parquet, address, port, **asked)
            assert [who(other, address, port, **asked) for other in others] == [answer] * 5
    for start, end in ((90, 9000), (500, 25_000)):
        for host in ("10.0.0.6", "192.0.2.1"):
            span: dict[str, Any] = {"at": at(start), "until": at(end)}
            had, met = what(parquet, host, **span), talked(parquet, "198.51.100.53", **span)
            assert [what(other, host, **span) for other in others] == [had] * 5
            assert [talked(other, "198.51.100.53", **span) for other in others] == [met] * 5


def test_a_row_s_label_comes_back_as_it_was_recorded(
    server: ChdbServer, sls: SlsServer, storage: ObjectStorage, tmp_path: Path
) -> None:
    log = Log(tmp_path).tick(0).session(7, ANN, 100, [(100, 400), (500, 600)], 600)
    batch = log.batch()
    hosts = [row["kind"] for row in batch.rows(local=True) if row["pri_ip"] == HOST]
    assert hosts == ["create", "window", "window", "end"]
    texts = iter(("first", "first", 'it\'s \\ "second"', "third"))
    labels = tuple(next(texts) if row["pri_ip"] == HOST else None for row in batch.rows())
    batches = [replace(batch, labels=labels), log.tick(700).batch(), log.tick(9000).batch()]
    plain, compacted = in_parquet(tmp_path / "plain", batches), in_parquet(tmp_path / "compacted", batches)
    assert compact(compacted.name).files > 0
    old = ClickHouseSink(server.url, table="old")
    server.ask(old.table_definition((26, 1)).replace("label String CODEC(ZSTD(1)), ", ""))
    old.open()
    for batch in batches:
        old.deliver(replace(batch, labels=None))
    tables = (in_clickhouse(server, batches), in_sls(sls, batches))
    for source in (plain, compacted, in_bucket(storage, compacted.name), *tables):
        told = {
            seconds: who(source, "203.0.113.1", 4000, protocol="tcp", at=at(seconds)).matches[0].recorded_labels
            for seconds in (100, 200, 450, 550)
        }
        second = 'it\'s \\ "second"'
        assert told == {100: ("first",), 200: ("first",), 450: ("first",), 550: (second,)}
        (match,) = what(source, HOST, at=at(0), until=at(550)).matches
        assert match.recorded_labels == ("first", second)
        (match,) = talked(source, "198.51.100.7", at=at(550), until=at(650)).matches
        assert match.recorded_labels == (second, "third")
    source = ClickHouseSource(server.url, table="old")
    assert who(source, "203.0.113.1", 4000, protocol="tcp", at=at(100)).matches[0].recorded_labels == ()


def test_files_of_before_have_no_label_and_are_read_beside_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_before(table: Any, file: Any, footer: dict[str, str], groups: Any = None) -> None:
        del footer["labels"]
        pq.write_table(table.drop_columns(["label"]).replace_schema_metadata(footer), file)

    log = Log(tmp_path).tick(0).session(7, ANN, 100, [(100, 400)], 400)
    batches = [log.batch(), log.session(8, BOB, 500, [(500, 600)], 600, port=4001).tick(700).batch()]
    last = log.tick(9000).batch()
    for folder in ("plain", "compacted"):
        with monkeypatch.context() as patch:
            patch.setattr("natcore.sinks._parquet_folder.write_table", of_before)
            in_parquet(tmp_path / folder, batches[:1])
        in_parquet(tmp_path / folder, [replace(batches[1], labels=("account",) * len(batches[1])), last])
    assert compact(tmp_path / "compacted").parts == 2
    for folder in ("plain", "compacted"):
        store = Store(tmp_path / folder)
        told = [
            who(store, "203.0.113.1", port, protocol="tcp", at=at(seconds)).matches[0].recorded_labels
            for port, seconds in ((4000, 200), (4001, 550))
        ]
        assert told == [(), ("account",)]
        for name in ("rows.csv", "rows.jsonl"):
            assert export(store, tmp_path / name) > 0
            assert (tmp_path / name).read_text().count("account") == 4  # rows about the log itself are left out


def test_a_batch_that_came_twice_and_facts_of_one_number_are_kept_once_each(server: ChdbServer, tmp_path: Path) -> None:
    log = Log(tmp_path).tick(0).session(7, ANN, 100, [(100, 400)], 400).tick(9000)
    batch = log.batch()
    source = in_clickhouse(server, [batch, batch], keep_days=3_660)
    table = source.name
    assert int(server.ask(f"SELECT count() FROM {table}")) == len(batch)
    server.ask(f"OPTIMIZE TABLE {table} FINAL")
    assert int(server.ask(f"SELECT count() FROM {table}")) == len(batch)
    assert who(source, "203.0.113.1", 4000, protocol="tcp", at=at(200)).status == "exact"
    assert who(source, "203.0.113.1", 4000, protocol="tcp", at=at(2000)).status == "unused"


def test_rows_that_went_are_a_gap(server: ChdbServer, tmp_path: Path) -> None:
    log = Log(tmp_path).tick(0).session(7, ANN, 100, [(100, 400)], 400).tick(9000)
    source = in_clickhouse(server, [log.batch()])
    server.ask(f"ALTER TABLE {source.name} DELETE WHERE session = 7 SETTINGS mutations_sync = 2")
    answer = who(source, "203.0.113.1", 4000, protocol="tcp", at=at(200))
    assert answer.status == "gap" and "rows 1 to 3 of run run1 are missing" in answer.reason


def test_what_is_no_table_of_a_sink_is_an_error(server: ChdbServer) -> None:
    for name in ("none", "other"):
        server.ask("CREATE TABLE IF NOT EXISTS default.other (a UInt8) ENGINE = Memory")
        with pytest.raises(Error, match=r"UNKNOWN_TABLE|no table of a ClickHouseSink"):
            who(ClickHouseSource(server.url, table=name), "203.0.113.1", 1, protocol="tcp", at=at(0))


def test_a_cut_answer_is_no_answer(server: ChdbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, whole = in_clickhouse(server, [Log(tmp_path).tick(0).batch()]), server.answer
    monkeypatch.setattr(server, "answer", lambda *arguments: whole(*arguments)[:-20])
    with pytest.raises(Error, match="is not ClickHouse's"):
        who(source, "203.0.113.1", 1, protocol="tcp", at=at(0))


def rows_of(store: Store) -> list[Batch]:
    """All rows of a folder, a batch a file."""
    batches = []
    for part in store.parts():
        names = ", ".join(f"epoch_us({name})" if name in TIMES else name for name in FIELDS)
        found = store.sql(f"SELECT {names} FROM read_parquet($files)", {"files": [part.name]})
        records = np.zeros(len(found), RECORD)
        for name, column in zip(FIELDS, zip(*found, strict=True), strict=True):
            if name in ADDRESSES:
                records[name] = [0 if value is None else int(parse_ipv4(value, name)) for value in column]
            else:
                records[name] = [KIND_NUMBERS[value] for value in column] if name == "kind" else column
        footer = part.footer
        batches.append(Batch(footer.instance, footer.vpc_id, footer.run, records))
    return batches


@pytest.mark.parametrize(("seed", "in_blocks"), [(3, False), (14, False), (40_001, True), (40_004, True)])
def test_a_random_life_has_the_same_answers_everywhere_and_each_is_right(
    server: ChdbServer, sls: SlsServer, storage: ObjectStorage, seed: int, in_blocks: bool
) -> None:
    """A copy in a bucket, with whatever damage, has the answers of the folder. A redacted log is left out of the others: in one
    table its rows would stand in the place of the others'."""
    with lived(seed, steps=40, in_blocks=in_blocks) as life:
        store = Store(life.folder / "log")
        redacted = {each.name for each in store.parts() if "second" in each.name}
        batches = [
            batch for batch, part in zip(rows_of(store), store.parts(), strict=True) if part.name not in redacted
        ]
        if not batches:
            pytest.skip("no row was delivered in this life")
        sources = [in_clickhouse(server, batches), in_sls(sls, batches)]
        bucket = storage.bucket(fresh=3600)
        storage.copy(life.folder / "log", bucket)
        copy = Store(bucket)
        for _ in range(20):
            asked = life.draw()
            question = life.question_of(asked)
            answer, other = (answered(question, source, Waiting()) for source in sources)
            judged = judge_listing if question.subject in ("inside", "remote") else judge
            assert judged(life.truth, answer, asked, round(asked.at, 3)) == "", (asked, answer)
            assert other == answer, asked
            assert answered(question, copy, Waiting()) == answered(question, store, Waiting()), asked
            if not redacted and not life.may_damage:
                assert answer == answered(question, store, Waiting()), asked


def test_an_incomplete_answer_of_the_service_is_none(
    sls: SlsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = in_sls(sls, [Log(tmp_path).tick(0).batch()])
    monkeypatch.setattr("aliyun.log.logclient.DEFAULT_QUERY_RETRY_INTERVAL", 0)
    sls.progress = "Incomplete"
    with pytest.raises(Error, match="the service's answer is incomplete"):
        who(source, "203.0.113.1", 1, protocol="tcp", at=at(0))
    sls.progress = "Complete"
    sls.granted.discard("log:GetLogStoreLogs")
    with pytest.raises(Error, match="Unauthorized"):
        who(source, "203.0.113.1", 1, protocol="tcp", at=at(0))


def test_a_logstore_with_the_contract_s_fields_alone_is_refused(sls: SlsServer, tmp_path: Path) -> None:
    where: dict[str, Any] = {"access_key_id": "id", "access_key_secret": "secret", "region": "cn-hangzhou"}
    SlsSink(sls.endpoint, "project", "contract", **where).open()
    with pytest.raises(Error, match=r"key \(kind\) is not config"):
        who(SlsSource(sls.endpoint, "project", "contract", **where), "203.0.113.1", 1, protocol="tcp", at=at(0))


def test_rows_with_all_fields_are_as_the_sdk_encodes_them(tmp_path: Path) -> None:
    from aliyun.log.log_logs_pb2 import LogGroup  # type: ignore[attr-defined]

    batch = Log(tmp_path).tick(0).session(7, ANN, 100, [(100, 400)], 400).batch()
    sink = SlsSink("http://h", "project", "store", rows="all", access_key_id="id", access_key_secret="secret")
    assert sink.events and sink.gaps and sink.blocks and sink.facts
    group = LogGroup.FromString(sink.encode(batch))
    for log, row in zip(group.Logs, batch.rows(local=True), strict=True):
        told = {content.Key: content.Value for content in log.Contents}
        row |= {"start_us": row["start_time"], "end_us": row["end_time"], "eip": row["eip"] or "0.0.0.0"}
        row |= {
            "start_time": row["start_us"] // 10**6,
            "end_time": row["end_us"] // 10**6,
            "kind": KIND_NUMBERS[row["kind"]],
        }
        assert told == {name: str(value) for name, value in row.items()}
    assert group.SerializeToString() == sink.encode(batch)


def test_a_run_that_a_stranger_wrote_is_no_part_of_a_search(sls: SlsServer) -> None:
    source = SlsSource(
        sls.endpoint,
        "project",
        "logstore",
        region="cn-hangzhou",
        access_key_id="test-id",
        access_key_secret="test-secret",
    )
    with pytest.raises(Error, match=r"run='x\" or \*' must be up to 64 letters"):
        source.values("sessions", ("ngw-1", "vpc-1", 'x" or *'), [0], 0, 1)

"""Every source gives the same answers: Parquet files and ClickHouse, of the same rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from natcore import Error
from natcore.dtypes import FIELDS, RECORD
from natcore.internal.validation import parse_ipv4
from natcore.sinks import Batch, ClickHouseSink, ParquetSink
from natcore.sinks.base import ADDRESSES, KINDS, TIMES
from natcore.who.clickhouse import ClickHouseSource
from natcore.who.query import Store, answered, talked, what, who
from natcore.who.source import Source
from natcore.who.waiting import Waiting
from runs.truth import lived
from runs.truth_asking import judge, judge_listing
from support.lives import ANN, BOB, DNS, Log, at

chdb = pytest.importorskip("chdb", reason="needs chdb (PyPI)")

from support.chdb_server import ChdbServer  # noqa: E402

NUMBERS = itertools.count()
KIND_NUMBERS = {word: number for number, word in KINDS.items()}


@pytest.fixture
def server() -> Iterator[ChdbServer]:
    with ChdbServer() as made:
        yield made


def in_clickhouse(server: ChdbServer, batches: list[Batch], **more: Any) -> ClickHouseSource:
    """The batches in a table of their own."""
    table = f"log{next(NUMBERS)}"
    sink = ClickHouseSink(server.url, table=table, **more)
    sink.open()
    for batch in batches:
        sink.deliver(batch)
    return ClickHouseSource(server.url, table=table, fresh=86_400)


def in_parquet(folder: Path, batches: list[Batch]) -> Store:
    sink = ParquetSink(folder)
    sink.open()
    for batch in batches:
        sink.deliver(batch)
    sink.close()
    return Store(folder)


def both(server: ChdbServer, folder: Path, batches: list[Batch]) -> list[Source]:
    return [in_parquet(folder, batches), in_clickhouse(server, batches)]


def test_the_same_rows_give_the_same_answers(server: ChdbServer, tmp_path: Path) -> None:
    log = Log(tmp_path).tick(0).session(7, ANN, 100, [(100, 400)], 400)
    batches = [log.batch()]
    log.session(8, BOB, 300, [(300, 500)], 500, port=4001).session(
        9, BOB, 6000, [(6000, 6100)], None, port=4002, pub_ip=DNS, pub_port=53, protocol=17
    )
    batches.append(log.tick(9000).batch())
    log.number += 3  # rows that never came
    batches.append(log.tick(20_000).batch())
    parquet, clickhouse = both(server, tmp_path / "log", batches)
    for address, seconds in (
        ("203.0.113.1", -50), ("172.16.10.13", 99), ("203.0.113.1", 450), ("203.0.113.7", 6050), ("172.16.10.13", 8000),
        ("203.0.113.1", 9500), ("203.0.113.1", 30_000),
    ):  # fmt: skip
        for port, protocol, remote in (
            (4000, "tcp", None), (4001, 6, "198.51.100.7"), (4002, "udp", None), (None, None, "198.51.100.7"),
            (None, None, ("198.51.100.53", 53)),
        ):  # fmt: skip
            asked: dict[str, Any] = {"protocol": protocol, "at": at(seconds), "remote": remote, "tolerance": 60}
            assert who(clickhouse, address, port, **asked) == who(parquet, address, port, **asked)
    for start, end in ((90, 9000), (500, 25_000)):
        for host in ("10.0.0.5", "10.0.0.6", "192.0.2.1"):
            span: dict[str, Any] = {"at": at(start), "until": at(end)}
            assert what(clickhouse, host, **span) == what(parquet, host, **span)
            assert talked(clickhouse, "198.51.100.53", **span) == talked(parquet, "198.51.100.53", **span)


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


@pytest.mark.parametrize("seed", [3, 14])
def test_a_random_life_has_the_same_answers_in_clickhouse_and_each_is_right(server: ChdbServer, seed: int) -> None:
    """A redacted log is left out: in one table its rows would stand in the place of the others'."""
    with lived(seed, steps=40) as life:
        store = Store(life.folder / "log")
        redacted = {each.name for each in store.parts() if "second" in each.name}
        batches = [
            batch for batch, part in zip(rows_of(store), store.parts(), strict=True) if part.name not in redacted
        ]
        if not batches:
            pytest.skip("no row was delivered in this life")
        clickhouse = in_clickhouse(server, batches)
        for _ in range(25):
            asked = life.draw()
            question = life.question_of(asked)
            answer = answered(question, clickhouse, Waiting())
            judged = judge_listing if question.subject in ("inside", "remote") else judge
            assert judged(life.truth, answer, asked, round(asked.at, 3)) == "", (asked, answer)
            if not redacted and not life.may_damage:
                assert answer == answered(question, store, Waiting()), asked

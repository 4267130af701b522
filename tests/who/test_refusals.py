"""The question to the rows of refusals and events: the same answer everywhere, and complete only where no row is missing."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from natcore import ConfigurationError, Gateway, Policy, Side, SnatEntry, Timeouts
from natcore.cli.main import app
from natcore.dtypes import is_event
from natcore.internal.exit_codes import Answer
from natcore.sinks import Batch, ClickHouseSink, ParquetSink, SlsSink
from natcore.sinks.base import BaseSink
from natcore.sinks.compaction import compact
from natcore.testing import SlsServer, craft
from natcore.who.clickhouse import ClickHouseSource
from natcore.who.query import Store, who
from natcore.who.refusals import Refusals, refusals
from natcore.who.sls import SlsSource
from natcore.who.source import Source

EPOCH = 1_700_000_040
NUMBERS = itertools.count()


class Kept(BaseSink):
    """Takes rows of every kind, and keeps the batches."""

    events = gaps = blocks = refusals = facts = True

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def deliver(self, batch: Batch) -> None:
        self.batches.append(batch)


class Life:
    """A gateway with small quotas, random packets, and an account of its own of what was refused."""

    def __init__(self, seed: int) -> None:
        self.sink = Kept()
        self.refused: list[tuple[float, str, str]] = []
        chance, now = random.Random(seed), 0.0
        policy = Policy(
            sessions_per_subscriber=2, port_ranges=((1024, 1123),), pooling="arbitrary", warn_at=0.05, rearm_at=0.02
        )  # fmt: skip
        with Gateway(
            instance="ngw",
            vpc_id="vpc",
            framing="ip",
            policy=policy,
            seed=seed,
            epoch=EPOCH,
            timeouts=Timeouts(udp=120),
        ) as gateway:
            gateway.add(SnatEntry("10.0.0.0/24", "203.0.113.1"))
            gateway.start_session_log(self.sink, refusals=True)
            for _ in range(600):
                now += chance.choice([0.0, 0.1, 2.0, 5.0])
                host = f"10.0.0.{chance.randrange(8)}"
                packet = craft.udp((host, chance.randrange(4000, 4010)), ("198.51.100.7", 53), b"x")
                verdict, _ = gateway.translate_one(packet, Side.INSIDE, now)
                if verdict.is_drop:
                    self.refused.append((now, host, verdict.reason))
                if chance.random() < 0.3:
                    assert gateway._collector is not None
                    gateway._collector.beat()
        self.end = now

    def without(self, sequences: Sequence[int]) -> list[Batch]:
        """The batches without some of the rows."""
        found = []
        for batch in self.sink.batches:
            rows = batch.records
            kept = rows[~(is_event(rows) & np.isin(rows["pkts_from_vpc"], sequences))]
            if len(kept):
                found.append(Batch(batch.instance, batch.vpc_id, batch.run, kept))
        return found


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(EPOCH, UTC) + timedelta(seconds=seconds)


def in_parquet(folder: Path, batches: list[Batch]) -> Store:
    sink = ParquetSink(folder)
    sink.open()
    for batch in batches:
        sink.deliver(batch)
    sink.close()
    return Store(folder)


@pytest.fixture
def everywhere(tmp_path: Path) -> Iterator[Any]:
    pytest.importorskip("chdb", reason="needs chdb (PyPI)")
    from support.chdb_server import ChdbServer

    where: dict[str, Any] = {"access_key_id": "id", "access_key_secret": "secret", "region": "cn-hangzhou"}
    with ChdbServer() as server, SlsServer() as sls:

        def put(batches: list[Batch]) -> list[Source]:
            number = next(NUMBERS)
            plain = in_parquet(tmp_path / f"plain{number}", batches)
            compacted = in_parquet(tmp_path / f"compacted{number}", batches)
            compact(compacted.name)
            table = ClickHouseSink(server.url, table=f"log{number}")
            store = SlsSink(sls.endpoint, "project", f"log{number}", rows="all", **where)
            for sink in (table, store):
                sink.open()
                for batch in batches:
                    sink.deliver(batch)
            return [
                plain, compacted, ClickHouseSource(server.url, table=f"log{number}", fresh=0),
                SlsSource(sls.endpoint, "project", f"log{number}", fresh=0, **where),
            ]  # fmt: skip

        yield put


def judge(life: Life, answer: Refusals, start: float, end: float, host: str | None) -> None:
    """Every refusal of that time is in a row of its host and reason, and a row has no more than there were in its span."""
    asked = [each for each in life.refused if start <= each[0] <= end and host in (None, each[1])]
    rows = [row for row in answer.rows if row.subscriber is not None]
    for now, who_, reason in asked:
        at = moment(now)
        assert any(
            str(row.subscriber) == who_ and row.reason == reason and row.start <= at <= row.end for row in rows
        ), (now, who_, reason)
    for row in rows:
        seen = sum(
            who_ == str(row.subscriber) and reason == row.reason and row.start <= moment(now) <= row.end
            for now, who_, reason in life.refused
        )
        assert 0 < row.count <= seen


@pytest.mark.parametrize("seed", range(2))
def test_every_place_gives_the_same_answer_and_it_is_right(everywhere: Any, seed: int) -> None:
    life = Life(seed)
    parquet, *others = everywhere(life.sink.batches)
    chance = random.Random(seed)
    for _ in range(12):
        start = chance.uniform(0, life.end)
        end = chance.uniform(start, life.end)
        host = chance.choice([None, f"10.0.0.{chance.randrange(8)}"])
        answer = refusals(parquet, start=moment(start), end=moment(end), subscriber=host)
        assert answer.status == "complete", answer.gaps
        judge(life, answer, start, end, host)
        for other in others:
            assert refusals(other, start=moment(start), end=moment(end), subscriber=host) == answer
    whole = refusals(parquet, start=moment(0), end=moment(life.end))
    counted = Counter(
        (str(row.subscriber), row.reason) for row in whole.rows for _ in range(row.count) if row.subscriber
    )
    assert counted == Counter((host, reason) for _, host, reason in life.refused)
    assert any(row.reason == "ports-threshold" and str(row.outside) == "203.0.113.1" for row in whole.rows)


def test_a_row_that_is_missing_is_a_gap_everywhere(everywhere: Any) -> None:
    life = Life(5)
    for sequences in ([3], [0], [4, 5, 6]):
        answers = [
            refusals(source, start=moment(0.001), end=moment(life.end))
            for source in everywhere(life.without(sequences))
        ]
        assert [answer.status for answer in answers] == ["incomplete"] * 4
        assert answers[1:] == answers[:1] * 3 and answers[0].gaps


def test_before_and_behind_the_log_nothing_is_known(tmp_path: Path) -> None:
    life = Life(7)
    store = in_parquet(tmp_path / "log", life.sink.batches)
    answer = refusals(store, start=moment(-100), end=moment(life.end + 100), subscriber="10.0.0.3")
    assert answer.status == "incomplete" and len(answer.gaps) == 2
    assert answer.gaps[0][0] == moment(-100) and answer.gaps[1][1] == moment(life.end + 100)
    nothing = refusals(store, start=moment(50_000), end=moment(50_100))
    assert nothing.status == "incomplete" and nothing.rows == () and nothing.as_dict()["count"] == 0


def test_who_is_not_disturbed_by_them(tmp_path: Path) -> None:
    life = Life(8)
    plain = [
        Batch(batch.instance, batch.vpc_id, batch.run, rows)
        for batch in life.sink.batches if len(rows := batch.records[~is_event(batch.records)])
    ]  # fmt: skip
    with_them, without = in_parquet(tmp_path / "with", life.sink.batches), in_parquet(tmp_path / "without", plain)
    for port in range(1024, 1124, 9):
        for seconds in range(-50, int(life.end) + 500, 97):
            asked: dict[str, Any] = {"protocol": "udp", "at": moment(seconds)}
            assert who(with_them, "203.0.113.1", port, **asked) == who(without, "203.0.113.1", port, **asked)


def test_rows_that_came_twice_count_once(tmp_path: Path) -> None:
    life = Life(9)
    once = in_parquet(tmp_path / "once", life.sink.batches)
    twice = in_parquet(tmp_path / "twice", [*life.sink.batches, *life.sink.batches])
    asked: dict[str, Any] = {"start": moment(0), "end": moment(life.end)}
    assert refusals(twice, **asked) == refusals(once, **asked)


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (datetime(2026, 1, 1), moment(1), "start must be a datetime with its time zone"),
        (moment(5), moment(4), "end must be after"),
    ],
)
def test_what_cannot_be_asked_is_an_error(tmp_path: Path, start: datetime, end: datetime, message: str) -> None:
    store = in_parquet(tmp_path / "log", [])
    with pytest.raises(ConfigurationError, match=message):
        refusals(store, start=start, end=end)
    with pytest.raises(ConfigurationError, match="store must be a folder unless spool is given"):
        refusals(None, start=moment(0), end=moment(1))


def test_the_command_lists_them(tmp_path: Path) -> None:
    life = Life(2)
    in_parquet(tmp_path / "log", life.sink.batches)
    arguments = [
        "log", "refusals", str(tmp_path / "log"), "--subscriber", "10.0.0.3", "--from", moment(0).isoformat(), "--until",
        moment(life.end - 1).isoformat(),
    ]  # fmt: skip
    told = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert told.exit_code == 0, told.output
    assert "subscriber-limit" in told.output and "complete" in told.output and "198.51.100.7:53 UDP" in told.output
    told = CliRunner().invoke(app, [*arguments, "--json"])
    answer = json.loads(told.output)
    assert answer["status"] == "complete" and answer["count"] == sum(row["count"] for row in answer["rows"]) > 0
    told = CliRunner().invoke(app, [*arguments[:-1], moment(life.end + 500).isoformat()])
    assert told.exit_code == Answer.GAP and "may be missing" in told.output

"""The labels of a log's rows: as of the row's time, looked up once, and no reason for a delivery to stop."""

from __future__ import annotations

import logging
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from natcore import ConfigurationError, DeliveryError
from natcore.dtypes import CREATE, END, GAP, WINDOW
from natcore.sessionlog.collector import Collector
from natcore.sessionlog.row_labels import RowLabels
from natcore.sinks import Batch
from support.log_fakes import FakeClock, FakeCore, ScriptedSink, make_records

EPOCH = 1_700_000_000
HOST = "10.0.0.0"  # of row 0


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(EPOCH + seconds, UTC).isoformat()


class Labelled(ScriptedSink):
    labels = True

    @property
    def texts(self) -> list[str | None]:
        return [text for batch in self.taken for text in batch.labels or ()]


class Bench:
    """A log without threads, and a clock."""

    def __init__(self, sink: ScriptedSink, labels: Any, **more: Any) -> None:
        self.core, self.clock = FakeCore(), FakeClock()
        self.collector = Collector(
            self.core, instance="ngw-1", vpc_id="vpc-1", threads=False, clock=self.clock, wall=self.clock,
            chance=random.Random(1),
        )  # fmt: skip
        self.log = self.collector.start(sink, labels=labels, **more)

    def deliver(self, rows: int) -> None:
        self.core.produce(rows)
        self.collector.step()
        while (pause := self.log._send()) is not None:
            self.clock.now += pause


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "accounts.csv"
    path.write_text(
        f"prefix,label,until,from\n{HOST},first,{iso(300)},\n{HOST},second,,{iso(300)}\n10.0.0.0/31,line 3,,\n"
    )
    return path


def test_a_row_has_the_label_of_its_time_and_a_window_all_of_its_time(table: Path) -> None:
    rows = make_records(6)
    rows["pri_ip"] = 0x0A000000
    rows["kind"] = [WINDOW, CREATE, END, WINDOW, GAP, WINDOW]
    rows["start_time"], rows["end_time"] = EPOCH * 10**6, (EPOCH + 10) * 10**6
    rows["end_time"][0] = rows["end_time"][2] = (EPOCH + 600) * 10**6
    rows["pri_ip"][3:] = [0x0A000001, 0, 0x0A000002]
    texts = ("first; second", "first", "second", "line 3", None, None)
    assert RowLabels(str(table)).of(Batch("i", "v", "r", rows)) == (texts, 0)
    asked: list[tuple[str, float, float]] = []

    def account(address: object, start: datetime, end: datetime) -> list[str]:
        asked.append((str(address), start.timestamp() - EPOCH, end.timestamp() - EPOCH))
        return ["x"]

    assert RowLabels(account).of(Batch("i", "v", "r", rows)) == (("x", "x", "x", "x", None, "x"), 0)
    assert asked[:3] == [(HOST, 0, 600), (HOST, 10, 10), (HOST, 600, 600)]


def test_a_label_that_changes_changes_no_row_that_was_written(table: Path) -> None:
    sink = Labelled()
    bench = Bench(sink, str(table))
    bench.deliver(2)
    table.write_text("prefix,label\n10.0.0.0/8,other\n")
    bench.deliver(1)
    assert sink.texts == ["first; second", "line 3", "other"]


def test_a_table_that_fails_stops_no_delivery(table: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = Labelled()
    bench = Bench(sink, str(table) + ".none")
    with caplog.at_level(logging.WARNING):
        bench.deliver(3)
        bench.deliver(2)
        assert (
            sink.texts == [None] * 5
            and bench.log.counters()["unlabelled"] == 5
            and bench.log.counters()["delivered"] == 5
        )
        table.rename(str(table) + ".none")
        bench.deliver(1)
    assert sink.texts[5:] == [None] and bench.log.counters()["unlabelled"] == 5  # row 5 has no label in the table
    told = [record.message for record in caplog.records]
    assert len(told) == 2 and "labels must be a readable file" in told[0] and told[1] == "rows have labels again"


@pytest.mark.parametrize("answer", [3, [3], None])
def test_a_function_that_answers_otherwise_is_a_failure(answer: Any) -> None:
    batch = Batch("i", "v", "r", make_records(2))
    texts, failed = RowLabels(lambda *_: answer).of(batch)
    if answer == [3]:  # a number is a text too
        assert (texts, failed) == (("3", "3"), 0)
    else:
        assert (texts, failed) == ((None, None), 2)


def test_a_batch_that_is_sent_again_is_as_it_was_also_in_parts(table: Path) -> None:
    def refuse(batch: Batch, attempt: int) -> None:
        table.write_text(f"prefix,label\n10.0.0.0/8,{attempt}\n")
        if attempt < 3:
            raise DeliveryError("PostBodyTooLarge", "", "split" if attempt == 2 else "backoff")

    seen: list[tuple[str | None, ...] | None] = []

    class Watched(Labelled):
        def deliver(self, batch: Batch) -> Any:
            seen.append(batch.labels)
            return super().deliver(batch)

    sink = Watched(refuse)
    bench = Bench(sink, str(table))
    bench.deliver(4)
    first = ("first; second", "line 3", None, None)
    assert seen == [first, first, first[:2], ("3", "3")]
    assert len(sink.taken) == 2 and bench.log.counters()["unlabelled"] == 0


def test_what_cannot_have_labels_says_so(table: Path) -> None:
    with pytest.raises(ConfigurationError, match="labels must be None with a sink that takes no labels"):
        Bench(ScriptedSink(), str(table))
    with pytest.raises(ConfigurationError, match="labels must be a path, Labels, a function or None, got 7"):
        Bench(Labelled(), 7)
    with pytest.raises(ConfigurationError, match="labels must be a readable file"):
        Bench(Labelled(), str(table) + ".none", on_failure="refuse")

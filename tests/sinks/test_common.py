"""One suite over all sinks: open, deliver, close, order, restart, failure and recovery, secrets, the word in a file."""

from __future__ import annotations

import dataclasses
import inspect
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from natcore import DeliveryError, DeliveryPolicy
from natcore.dtypes import OPENED_OUTSIDE
from natcore.service.configuration_file import load, sink_of
from natcore.sessionlog.collector import Collector
from natcore.sinks import Batch, Receipt
from natcore.sinks.base import BatchedSink
from support.batches import batch_of
from support.log_fakes import FakeClock, FakeCore, assert_adds_up
from support.receivers import DESTINATIONS, SECRET, Destination
from support.receivers_more import ClickHouse, Kafka, Syslog
from support.receivers_sls import Sls

ALL: dict[str, type[Destination]] = {
    **DESTINATIONS, "sls": Sls, "syslog": Syslog, "kafka": Kafka, "clickhouse": ClickHouse,
}  # fmt: skip
NEEDS = {"sls": "aliyun.log", "kafka": "confluent_kafka"}  # what the extras bring
NETWORK = [name for name, made in ALL.items() if made.fails]
pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")


@pytest.fixture(params=ALL)
def destination(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Destination]:
    if request.param in NEEDS:
        pytest.importorskip(NEEDS[request.param], reason=f"the extra natcore[{request.param}] is not installed")
    made = ALL[request.param](tmp_path)
    yield made
    made.close()


def expected_of(destination: Destination, batches: list[Batch]) -> list[dict[str, object]]:
    return [row for batch in batches for row in destination.expected(batch)]


def test_every_row_arrives_once_in_order_as_it_was(destination: Destination) -> None:
    sink = destination.make()
    sink.open()
    parts = ((1000, 0), (1, 1000), (300, 1001))
    batches = [batch_of(*part, events=sink.events, gaps=sink.gaps) for part in parts]
    for batch in batches:
        receipt = sink.deliver(batch)
        assert isinstance(receipt, Receipt) and receipt.raw_bytes > 0 and receipt.wire_bytes > 0
    assert destination.rows(1301) == expected_of(destination, batches)
    sink.close()
    assert destination.rows(1301) == expected_of(destination, batches)


def test_labels_arrive_with_their_rows(destination: Destination) -> None:
    sink = destination.make()
    if not sink.labels:
        pytest.skip("this sink takes no labels")
    texts = ("account 4711", None, 'a "b" \\c] €%\n; d', None, "account 4711")
    batch = batch_of(5, events=True)
    labelled = dataclasses.replace(batch, labels=texts)
    assert [row["label"] for row in labelled.rows(local=True)] == list(texts) and "label" not in next(labelled.rows())
    sink.open()
    sink.deliver(labelled)
    rows = sorted(destination.rows(5), key=lambda row: int(row["number"]))
    assert [row.pop("label", None) or None for row in rows] == list(texts)
    assert rows == [{name: row[name] for name in row if name != "label"} for row in destination.expected(batch)]
    sink.close()


def test_a_batch_is_there_when_deliver_returns(destination: Destination) -> None:
    sink = destination.make()
    sink.open()
    batches = []
    for number in range(4):
        batches.append(batch_of(10, 10 * number, events=sink.events))
        sink.deliver(batches[-1])
        assert destination.rows(10 * len(batches)) == expected_of(destination, batches)
    sink.close()


def test_extreme_values_arrive_as_they_are(destination: Destination) -> None:
    sink = destination.make()
    batch = batch_of(3, events=False)
    for name in set(batch.records.dtype.names or ()) - {"start_time", "end_time", "kind", "number", "flags"}:
        batch.records.base[name][1] = np.iinfo(batch.records.dtype[name]).max
        batch.records.base[name][2] = 0
    batch.records.base["flags"] = [0, OPENED_OUTSIDE, 0]
    sink.open()
    sink.deliver(batch)
    assert destination.rows(3) == destination.expected(batch)
    sink.close()


def test_a_second_sink_goes_on_where_the_first_one_ended(destination: Destination) -> None:
    batches = []
    for number in range(3):
        sink = destination.make()
        sink.open()
        batches.append(batch_of(20, 20 * number, events=sink.events))
        sink.deliver(batches[-1])
        sink.close()
        sink.close()  # idempotent
        assert destination.rows(20 * (number + 1)) == expected_of(destination, batches)


def test_a_sink_says_what_it_is_without_its_secrets(destination: Destination) -> None:
    sink = destination.make()
    assert sink.delivery_type and sink.destination == destination.make().destination
    assert all(isinstance(value, str) for value in sink.destination.values())
    shown = repr(sink) + str(sink.destination) + repr(vars(sink))
    assert SECRET not in shown
    assert sink.batch_rows is None or sink.batch_rows > 0


@pytest.mark.parametrize("name", ["batch_rows", "batch_seconds"])
def test_the_size_of_its_batches_is_read_at_the_start_and_cannot_be_set_later(
    destination: Destination, name: str
) -> None:
    sink = destination.make()
    if not isinstance(sink, BatchedSink):
        pytest.skip("this sink's batches are the delivery policy's")
    before = getattr(sink, name)
    with pytest.raises(AttributeError, match=f"{name} is read-only"):
        setattr(sink, name, 1)
    assert getattr(sink, name) == before


def test_a_file_can_name_it(destination: Destination, tmp_path: Path) -> None:
    if not destination.toml:
        pytest.skip("this sink is for programs only")
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    file = tmp_path / "gateway.toml"
    file.write_text(f"[[log]]\n{destination.toml.format(secret if '_file' in destination.toml else tmp_path)}\n")
    (log,) = load(file).logs
    made = log.make_sink()
    assert type(made) is sink_of(made.delivery_type) is type(destination.make())
    assert SECRET not in repr(log) + repr(made)
    for parameter in inspect.signature(type(made)).parameters.values():
        assert parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


@pytest.mark.parametrize("destination", NETWORK, indirect=True)
def test_what_is_away_is_tried_again_and_nothing_is_missing(destination: Destination) -> None:
    sink = destination.make()
    sink.open()
    sink.deliver(batch_of(10, events=sink.events))
    before = destination.rows(10)
    destination.take_away()
    for _ in range(2):
        with pytest.raises(DeliveryError) as raised:
            sink.deliver(batch_of(10, 10, events=sink.events))
        assert raised.value.action == "backoff" and raised.value.code and SECRET not in str(raised.value)
    destination.bring_back()
    again = batch_of(10, 10, events=sink.events)
    sink.deliver(again)
    arrived = destination.rows(20)
    assert arrived[:10] == before and arrived[-10:] == destination.expected(again)
    sink.close()


@pytest.mark.parametrize("destination", NETWORK, indirect=True)
def test_what_is_away_at_the_start_is_no_reason_to_give_up(destination: Destination) -> None:
    first = destination.make()
    first.open()  # so that a table, a topic, a Logstore is there
    first.close()
    destination.take_away()
    sink = destination.make()
    with pytest.raises(DeliveryError):
        sink.open()
        sink.deliver(batch_of(1, events=sink.events))
    destination.bring_back()
    sink.open()
    batch = batch_of(5, events=sink.events)
    sink.deliver(batch)
    assert destination.rows(5)[-5:] == destination.expected(batch)
    sink.close()


def test_a_session_log_to_it_accounts_for_every_row(destination: Destination, tmp_path: Path) -> None:
    """Two logs at once, this sink and a memory: the same rows."""
    core, clock = FakeCore(), FakeClock()
    collector = Collector(core, instance="ngw-1", vpc_id="vpc-1", region="cn-hangzhou", run="run1", threads=False,
                          clock=clock, wall=clock, chance=random.Random(1))  # fmt: skip
    sink, beside = destination.make(), DESTINATIONS["memory"](tmp_path)
    log = collector.start(sink, name="it", spool=tmp_path / "spool", delivery=DeliveryPolicy(batch=70))
    collector.start(beside.make(), name="beside")

    def produce_and_send() -> None:
        core.produce_sessions(100)
        collector.step()
        for _ in range(2):
            log._persist()
            while log._send() == 0.0:
                pass
            clock.now += 60
        assert_adds_up(log.counters())

    produce_and_send()
    destination.rows(log.counters()["delivered"])  # what it has not read when it is taken away, it does not have
    destination.take_away()
    produce_and_send()
    destination.bring_back()
    produce_and_send()
    assert collector.close() == 0
    counters = log.counters()
    rows = beside.rows(900)
    expected = (900 if sink.events else 300) + counters["facts"]
    assert (counters["accepted"], counters["delivered"], counters["lost"]) == (expected, expected, 0)
    assert counters["raw_bytes_delivered"] >= counters["wire_bytes_delivered"] > 0
    assert len(rows) == 900 and len(destination.rows(expected)) == expected

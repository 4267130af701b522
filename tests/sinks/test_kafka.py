"""KafkaSink against librdkafka's mock cluster: keys, order, each error's action, a broker that goes away."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest

from natcore import ConfigurationError, DeliveryError
from natcore.sinks import Batch, KafkaSink
from natcore.sinks.kafka import ACTIONS
from support.log_fakes import make_records
from support.netns import until
from support.receivers_more import MockCluster, read_topic

kafka = pytest.importorskip("confluent_kafka", reason="the extra natcore[kafka] is not installed")


@pytest.fixture
def cluster():
    made = MockCluster()
    yield made
    made.close()


def batch_of(count, first=0):
    return Batch("ngw-1", "vpc-1", "run1", make_records(count, first))


def test_a_sessions_rows_keep_their_order_under_one_key(cluster):
    sink = KafkaSink(cluster.bootstrap_servers, "t", config={"partitioner": "murmur2"})
    sink.open()
    for first in range(0, 3000, 1000):
        sink.deliver(batch_of(1000, first))
    messages = read_topic(cluster.bootstrap_servers, "t", 3000)
    places, numbers = {}, {}
    for message in messages:
        row = json.loads(message.value())
        assert message.timestamp()[1] == row["end_time"] // 1000
        assert places.setdefault(message.key(), message.partition()) == message.partition()
        numbers.setdefault(message.key(), []).append(row["number"])
    assert len(places) == 1000 and len(set(places.values())) > 1
    assert all(found == sorted(found) and len(found) == 3 for found in numbers.values())
    sink.close()


@pytest.mark.parametrize("name, action", ACTIONS.items())
def test_each_code_has_its_action(cluster, name, action):
    if name.startswith("_"):
        pytest.skip("librdkafka's own, not a broker's")
    is_tried_again = action in ("unavailable", "backoff")  # by librdkafka itself, perhaps until the time is over
    sink = KafkaSink(cluster.bootstrap_servers, "t", timeout=1 if is_tried_again else 60)
    sink.open()
    cluster.fail_produce(*[getattr(kafka.KafkaError, name)] * 20)
    with pytest.raises(DeliveryError) as raised:
        sink.deliver(batch_of(2))
    if is_tried_again and raised.value.code == "_MSG_TIMED_OUT":
        assert raised.value.action == "backoff"
    else:
        assert (raised.value.code, raised.value.action) == (name, action)
    sink.close()


def test_what_was_not_acknowledged_does_not_come_later(cluster):
    sink = KafkaSink(cluster.bootstrap_servers, "t", timeout=1)
    sink.open()
    cluster.set_down(True)
    with pytest.raises(DeliveryError) as raised:
        sink.deliver(batch_of(10))
    assert raised.value.action == "backoff"
    cluster.set_down(False)

    def is_delivered():
        with suppress(DeliveryError):  # the connection is not there yet
            sink.deliver(batch_of(5, 10))
            return True
        return False

    until(is_delivered)
    arrived = read_topic(cluster.bootstrap_servers, "t", 5)
    assert {json.loads(message.value())["number"] for message in arrived} == set(range(10, 15))
    sink.close()


def test_bad_arguments_are_refused():
    for arguments, more in (
        (("", "t"), {}), (("h", ""), {}), (("h", "t"), {"username": "u"}), (("h", "t"), {"mechanism": "GSSAPI"}),
        (("h", "t"), {"timeout": 0}),
    ):  # fmt: skip
        with pytest.raises(ConfigurationError, match=" must "):
            KafkaSink(*arguments, **more)
    with pytest.raises(ConfigurationError, match=r"no\.such\.setting"):
        KafkaSink("127.0.0.1:9", "t", config={"no.such.setting": 1}).open()

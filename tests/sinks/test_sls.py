"""SlsSink against SlsServer: bytes, provisioning, every error code, what a server may do to a client, R8, R9."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from support.log_fakes import FakeClock, FakeCore, assert_adds_up, make_records
from support.receivers_more import Answering, Dripping

pytest.importorskip("aliyun.log", reason="the extra natcore[sls] is not installed")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the SDK's own
    from aliyun.log import LogClient, LogException
    from aliyun.log.log_logs_pb2 import LogGroup

    from natcore.sinks.sls import ACTIONS, TOPIC, SlsSink
    from natcore.testing.sls_server import FAULTS, SlsServer

from natcore import ConfigurationError, DeliveryError, DeliveryPolicy
from natcore.log.encode_sls import encode_logs
from natcore.sessionlog.collector import Collector
from natcore.sinks import Batch
from natcore.sinks.base import CONTRACT

pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
DOCS = Path(__file__).resolve().parents[2] / "docs"
LONG = ("ProjectNotExist", "LogStoreNotExist", "ProjectForbidden", "Unauthorized")


@pytest.fixture
def server():
    with SlsServer() as server:
        yield server


def sink_for(server, **more):
    options = {"access_key_id": "id", "access_key_secret": "secret", "region": "cn-hangzhou"} | more
    return SlsSink(server.endpoint, "p", "l", **options)


def batch_of(count, first=0, instance="ngw-1", vpc_id="vpc-1"):
    return Batch(instance, vpc_id, "run1", make_records(count, first))


def sdk_encoding(batch, names=CONTRACT):
    group = LogGroup(Topic=TOPIC, Source=batch.instance)
    for row in batch.rows():
        log = group.Logs.add(Time=row["end_time"])
        for name, value in zip(names, row.values(), strict=True):
            log.Contents.add(Key=name, Value=str(value))
    group.LogTags.add(Key="run", Value=batch.run)
    group.LogTags.add(Key="first_number", Value=str(batch.first_number))
    return group.SerializeToString()


@pytest.mark.parametrize("length", [0, 1, 100, 127, 128, 1024])
def test_a_log_group_is_byte_for_byte_the_sdks(server, length):
    batch = batch_of(200, instance="i" * length, vpc_id="v\u00e9" * (length // 2))
    assert sink_for(server).encode(batch) == sdk_encoding(batch)


def test_a_label_is_a_field_behind_the_others(server):
    texts = ("account 4711", None, "Büro €" * 100, "", "account 4711")
    batch = dataclasses.replace(batch_of(1000), labels=tuple(texts[number % 5] for number in range(1000)))
    group = LogGroup.FromString(sdk_encoding(dataclasses.replace(batch, labels=None)))
    for log, text in zip(group.Logs, batch.labels, strict=True):
        if text is not None:
            log.Contents.add(Key="label", Value=text)
    assert sink_for(server, label=True).encode(batch) == group.SerializeToString()
    without = sdk_encoding(dataclasses.replace(batch, labels=None))
    assert sink_for(server).encode(batch) == without
    assert sink_for(server, label=True).encode(dataclasses.replace(batch, labels=None)) == without
    sink = sink_for(server, label=True)
    assert sink.labels and not sink_for(server).labels
    sink.open()
    assert server.projects["p"]["l"].index["keys"]["label"]["type"] == "text"


@pytest.mark.parametrize(
    ("texts", "offsets", "numbers"),
    [
        (b"ab", [0, 2], [0]),
        (b"ab", [0, 2], [0, 1]),
        (b"ab", [0, 3], [0, 0]),
        (b"ab", [2, 0, 2], [0, 0]),
        (b"ab", [0], [0, 0]),
    ],
)
def test_the_encoder_refuses_texts_that_are_not_there(texts, offsets, numbers):
    arrays = {"texts": np.frombuffer(texts, np.uint8), "offsets": np.array(offsets, np.uint32),
              "numbers": np.array(numbers, np.uint32)}  # fmt: skip
    with pytest.raises(ValueError, match="tails must"):
        encode_logs(make_records(2).view("u1"), b"", CONTRACT[2:], **arrays)


def test_extreme_numbers_are_encoded_alike(server):
    batch = batch_of(3)
    for name in set(batch.records.dtype.names) - {"start_time", "end_time", "kind", "number"}:
        batch.records.base[name][1] = np.iinfo(batch.records.dtype[name]).max
        batch.records.base[name][2] = 0
    batch.records.base["end_time"][2] = (2**32 - 1) * 1_000_000
    assert sink_for(server).encode(batch) == sdk_encoding(batch)


def test_schema_preview2024_spells_as_that_page_does(server):
    names = ["intstance", "vpc_id", "portocol", *CONTRACT[3:]]
    assert sink_for(server, schema="preview2024").encode(batch_of(5)) == sdk_encoding(batch_of(5), names)


def test_a_field_row_tells_what_came_twice(server):
    """A lost answer brings a batch again; the tags say so to a program, the 16th field to a query."""
    sink = sink_for(server, row=True)
    sink.open()
    assert server.projects["p"]["l"].index["keys"]["row"]["type"] == "text"
    server.fail("lost-answer")
    with pytest.raises(DeliveryError):
        sink.deliver(batch_of(20, 5))
    sink.deliver(batch_of(20, 5))
    rows = server.rows("p", "l", unique=False)
    assert [row["row"] for row in rows] == [f"run1/{number}" for number in range(5, 25)] * 2
    expected = [{key: str(value) for key, value in row.items()} for row in batch_of(20, 5).rows()]
    assert [{key: row[key] for key in CONTRACT} for row in rows] == expected * 2
    assert "row" not in sink_for(server)._types()


def test_the_encoder_refuses_other_names():
    with pytest.raises(ValueError, match="names must be 13"):
        encode_logs(make_records(1).view("u1"), b"", ["x"])
    with pytest.raises(ValueError, match="40 bytes"):
        encode_logs(make_records(1).view("u1"), b"", CONTRACT[2:], b"x" * 41)
    with pytest.raises(ValueError, match="records whole; got"):
        encode_logs(make_records(1).view("u1")[:95], b"", CONTRACT[2:])


@pytest.mark.parametrize("region", ["cn-hangzhou", None])
def test_rows_arrive_signed_by_v4_or_v1_with_everything_made_R8(server, region):
    sink = sink_for(server, region=region)
    sink.open()
    receipt = sink.deliver(batch_of(1000))
    expected = [
        {**{k: str(v) for k, v in row.items()}, "__time__": str(row["end_time"])} for row in batch_of(1000).rows()
    ]
    assert server.rows("p", "l") == expected
    assert receipt.raw_bytes == len(sink.encode(batch_of(1000))) > 3 * receipt.wire_bytes
    index = server.projects["p"]["l"].index
    kinds = {name: key["type"] for name, key in index["keys"].items()}
    assert set(kinds) == set(CONTRACT)
    assert {name for name, kind in kinds.items() if kind == "text"} == {
        "instance",
        "vpc_id",
        "pri_ip",
        "pub_ip",
        "nat_ip",
    }
    assert sink.provision() == []


def test_provision_makes_what_is_missing_and_says_what(server):
    sink = sink_for(server)
    with pytest.raises(DeliveryError, match="ProjectNotExist: Project is missing") as raised:
        sink.provision(create=False)
    assert raised.value.action == "unavailable"
    server.make("p")
    assert sink.provision() == ["LogStore", "Index"]


@pytest.mark.parametrize("name, creates", [("sls-policy-deliver.json", False), ("sls-policy-create.json", True)])
def test_the_policies_in_docs_grant_what_is_needed_and_no_more(server, name, creates):
    policy = json.loads((DOCS / name).read_text())
    actions = {action for statement in policy["Statement"] for action in statement["Action"]}
    assert all(statement["Effect"] == "Allow" for statement in policy["Statement"])
    if not creates:
        server.make("p", "l")
    server.granted = actions
    sink = sink_for(server, create=creates)
    sink.open()
    sink.deliver(batch_of(3))
    assert len(server.rows("p", "l")) == 3
    for action in actions:  # each of them is needed, and named where it is missing
        server.granted, server.projects = actions - {action}, {}
        if not creates:
            server.make("p", "l")
        with pytest.raises(DeliveryError, match=f"is not granted {action} on acs:log:") as raised:
            sink.open()
            sink.deliver(batch_of(1))
        assert (raised.value.code, raised.value.action) == ("Unauthorized", "unavailable")
        (statement,) = [each for each in policy["Statement"] if action in each["Action"]]
        granted_on = statement["Resource"].replace("YOUR-PROJECT", "p").replace("YOUR-LOGSTORE", "l")
        assert granted_on in raised.value.message


def test_credentials_come_from_the_provider_at_each_request(server):
    keys = iter([("id", "secret", None)] * 6 + [("old", "old", "token")] + [("id", "secret", "token")] * 10)
    sink = SlsSink(server.endpoint, "p", "l", region="r", credentials=lambda: next(keys))
    sink.open()
    with pytest.raises(DeliveryError, match=r"InvalidAccessKeyId.*does not exist"):
        sink.deliver(batch_of(1))
    sink.deliver(batch_of(1))


def test_a_wrong_secret_or_clock_is_told(server):
    server.make("p", "l")
    with pytest.raises(DeliveryError, match=r"SignatureNotMatch.*secret is wrong"):
        sink_for(server, access_key_secret="no", create=False).deliver(batch_of(1))
    server._clock = lambda: 0.0
    with pytest.raises(DeliveryError, match=r"RequestTimeExpired.*clock"):
        sink_for(server, create=False).deliver(batch_of(1))


@pytest.mark.parametrize("code, action", [*ACTIONS.items(), *((code, "backoff") for code in (
    "InvalidAccessKeyId", "WriteQuotaExceed", "ShardWriteQuotaExceed", "SignatureNotMatch", "RequestTimeExpired",
    "InternalServerError", "ServerBusy", "SomethingNew"))])  # fmt: skip
def test_each_code_has_its_action(server, code, action):
    server.make("p", "l")
    server.fail(code, None)
    with pytest.raises(DeliveryError) as raised:
        sink_for(server, create=False).deliver(batch_of(2))
    assert (raised.value.code, raised.value.action) == (code, action)
    if code == "ShardWriteQuotaExceed":
        assert "split shards" in raised.value.message


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_network_does_is_backoff(server, fault):
    server.make("p", "l")
    server.fail(fault, None)
    with pytest.raises(DeliveryError) as raised:
        sink_for(server, create=False).deliver(batch_of(2))
    assert raised.value.action == "backoff"


@pytest.mark.parametrize("code", ["InternalServerError", "ServerBusy", "RequestTimeout", *FAULTS])
def test_a_delivery_is_one_request_whatever_the_answer(server, code):
    """When to try again is the log's to decide: the SDK's own tries would hide a service that hangs."""
    server.make("p", "l")
    server.fail(code, None)
    with pytest.raises(DeliveryError):
        sink_for(server, create=False).deliver(batch_of(2))
    assert len(server.requests) == 1


def test_a_service_that_drips_its_answer_is_one_connection_and_one_timeout(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr("natcore.internal.http_request.monotonic", lambda: next(ticks) / 10)
    with Dripping() as dripping:
        options = {"access_key_id": "id", "access_key_secret": "secret", "region": "r", "create": False}
        sink = SlsSink(dripping.url, "p", "l", timeout=2.0, **options)
        with pytest.raises(DeliveryError, match=r"(?i)timed out|within 2 s") as raised:
            sink.deliver(batch_of(2))
        assert (raised.value.code, raised.value.action) == ("LogRequestError", "backoff")
        assert dripping.accepted == 1


@pytest.mark.parametrize("answer", [
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>",
    b"HTTP/1.1 200 OK\r\nx-log-requestid: 1\r\nContent-Length: 48\r\n\r\n"
    b'{"errorCode": "ServerBusy", "errorMessage": "so"}'[:-1].ljust(47) + b"}",
    b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nx-log-requestid: 1\r\nContent-Length: 50\r\n\r\n{",
])  # fmt: skip
def test_a_good_status_that_is_not_the_services_is_no_delivery(answer):
    with Answering(answer) as proxy:
        options = {"access_key_id": "id", "access_key_secret": "secret", "region": "r", "create": False}
        with pytest.raises(DeliveryError) as raised:
            SlsSink(proxy.url, "p", "l", **options).deliver(batch_of(2))
        assert raised.value.action == "backoff"


def test_success_is_not_said_before_the_service_has_answered(server, tmp_path):
    server.make("p", "l")
    bench = Bench(server, tmp_path, create=False)
    bench.run()
    assert bench.log.delivery_status.state == "Modifying" and bench.log.wait(0)
    bench.core.produce(5)
    bench.run(10)
    assert bench.log.delivery_status.state == "Success"


def test_a_batch_larger_than_a_request_is_split_before_it_is_sent(server):
    with pytest.raises(DeliveryError) as raised:
        sink_for(server, create=False).deliver(batch_of(4097))
    assert raised.value.action == "split" and server.requests == []


@pytest.mark.parametrize("host, region", [
    ("cn-hangzhou.log.aliyuncs.com", "cn-hangzhou"), ("cn-hangzhou-intranet.log.aliyuncs.com", "cn-hangzhou"),
    ("ap-southeast-1-share.log.aliyuncs.com", "ap-southeast-1"), ("p.cn-beijing.sls.aliyuncs.com", "cn-beijing"),
    ("log-global.aliyuncs.com", None), ("logs.example", None),
])  # fmt: skip
def test_R6_a_region_is_checked_against_the_endpoint_s_host_name(host, region):
    good = {"access_key_id": "a", "access_key_secret": "b"}
    assert SlsSink(f"https://{host}", "p", "l", **good).region == region
    if region is None:
        assert SlsSink(f"https://{host}", "p", "l", region="eu-west-1", **good).region == "eu-west-1"
        return
    assert SlsSink(f"https://{host}", "p", "l", region=region, **good).region == region
    with pytest.raises(
        ConfigurationError, match=f"region must be '{region}', where the endpoint is, or None, got 'eu-west-1'"
    ):
        SlsSink(f"https://{host}", "p", "l", region="eu-west-1", **good)


def test_secrets_are_in_no_repr_and_no_destination(server):
    sink = sink_for(server)
    assert "secret" not in repr(sink) + str(sink.destination)
    assert sink.destination == {"endpoint": server.endpoint, "project": "p", "logstore": "l", "region": "cn-hangzhou"}


def test_bad_arguments_are_refused():
    good = {"access_key_id": "a", "access_key_secret": "b"}
    for arguments, more in (
        (("cn.example", "p", "l"), good),
        (("http://h", "", "l"), good),
        (("http://h", "p", "l"), {}),
        (("http://h", "p", "l"), {**good, "credentials": lambda: ("a", "b", None)}),
        (("http://h", "p", "l"), {**good, "schema": "1999"}),
    ):
        with pytest.raises(ConfigurationError, match=" must "):
            SlsSink(*arguments, **more)


def post_zstd(server, data, size=None):
    """A write as the SDK makes it, compressed by zstd."""
    client = LogClient(server.endpoint, "id", "secret", source="t", auth_version="v4", region="r")
    client._isRowIp = True
    body = pa.Codec("zstd").compress(data, asbytes=True)
    headers = {"Content-Type": "application/x-protobuf", "x-log-bodyrawsize": str(len(data) if size is None else size),
               "x-log-compresstype": "zstd"}  # fmt: skip
    client._send("POST", "p", body, "/logstores/l/shards/lb", {}, headers)


def test_the_server_takes_zstd_too(server):
    server.make("p", "l")
    data = sink_for(server, create=False).encode(batch_of(100))
    post_zstd(server, data)
    assert len(server.rows("p", "l")) == 100
    with pytest.raises(LogException) as raised:
        post_zstd(server, data, size=7)
    assert raised.value.get_error_code() in ("PostBodyUncompressError", "PostBodyInvalid")


def test_the_server_refuses_an_empty_key_and_a_log_without_contents(server):
    server.make("p", "l")
    sink = sink_for(server, create=False)
    group = LogGroup(Topic="t", Source="s")
    group.Logs.add(Time=1).Contents.add(Key="a", Value="")
    sink.encode = lambda batch: group.SerializeToString()
    sink.deliver(batch_of(1))
    group.Logs.add(Time=1).Contents.add(Key="", Value="v")
    with pytest.raises(DeliveryError, match="InvalidKey"):
        sink.deliver(batch_of(1))
    del group.Logs[:]
    group.Logs.add(Time=1)
    with pytest.raises(DeliveryError, match="without contents"):
        sink.deliver(batch_of(1))
    assert server.projects["p"]["l"].count == 1


def test_the_server_is_strict(server):
    server.make("p", "l")
    sink = sink_for(server, create=False)
    sink.encode = lambda batch: b"\xff\xff"
    with pytest.raises(DeliveryError, match="PostBodyInvalid"):
        sink.deliver(batch_of(1))
    sink.encode = lambda batch: b""
    with pytest.raises(DeliveryError, match="no logs"):
        sink.deliver(batch_of(1))
    with pytest.raises(DeliveryError, match="LogStoreNotExist"):
        SlsSink(server.endpoint, "p", "other", region="r", access_key_id="id", access_key_secret="secret",
                create=False).deliver(batch_of(1))  # fmt: skip


class Bench:
    """A log to the local server, without threads, its clock moved by the test."""

    def __init__(self, server, tmp_path, **more):
        self.core, self.clock = FakeCore(), FakeClock()
        self.collector = Collector(self.core, instance="ngw-1", vpc_id="vpc-1", region="cn-hangzhou", threads=False,
                                   clock=self.clock, wall=self.clock, chance=random.Random(3))  # fmt: skip
        self.log = self.collector.start(sink_for(server, **more), name="audit", spool=tmp_path,
                                        delivery=DeliveryPolicy(batch=50))  # fmt: skip

    def run(self, seconds=0.0, tick=10.0):
        until = self.clock.now + seconds
        while True:
            self.collector.step()
            self.log._persist()
            while self.log._send() == 0.0:
                pass
            assert_adds_up(self.log.counters())
            if self.clock.now >= until:
                return
            self.clock.now += tick


def delivered_in_order(server, count):
    """Every row once, in order, after the groups that came twice are dropped by (run, first_number, position)."""
    return [int(row["bytes_from_vpc"]) - 100 for row in server.rows("p", "l")] == list(range(count))


@pytest.mark.parametrize("code", LONG)
def test_D1_to_D4_against_the_server(server, tmp_path, code):
    server.make("p", "l")
    bench = Bench(server, tmp_path, create=False)
    server.fail(code, None)
    bench.core.produce(120)
    bench.run(3600)
    writes = [answer for _, path, answer in server.requests if path.endswith("/lb")]
    assert writes == [code] * 13  # at 0, 300, … 3600 s
    status = bench.log.delivery_status
    assert (status.state, status.code, status.cause) == ("Failed", "UnavaliableTarget", code)
    server.recover()
    bench.run(310)
    assert delivered_in_order(server, 120) and bench.log.delivery_status.state == "Success"


# The lines of the contract's table of delivery errors; the last stands for "anything else".
LINES = (*LONG, "InvalidAccessKeyId", "WriteQuotaExceed", "ShardWriteQuotaExceed", "SomethingNew")


@pytest.mark.parametrize("manner", ["once", "for an hour", "intermittent"])
@pytest.mark.parametrize("code", LINES)
def test_error_line_loses_no_row_and_resumes_in_order(server, tmp_path, code, manner):
    server.make("p", "l")
    bench, chance, tries = Bench(server, tmp_path, create=False), random.Random(code), []
    deliver = bench.log.sink.deliver

    def note(batch):
        tries.append([bench.clock.now, True])
        receipt = deliver(batch)
        tries[-1][1] = False
        return receipt

    bench.log.sink.deliver = note
    server.fail(code, 1 if manner == "once" else None)
    for round_ in range(12):
        if manner == "intermittent":
            server.recover()
            if chance.random() < 0.5:
                server.fail(code, chance.choice([1, 2, None]))
        bench.core.produce(20)
        bench.run(300, tick=60.0)
        if manner == "for an hour" and round_ == 6:
            status = bench.log.delivery_status
            expected = ("UnavaliableTarget", code) if code in LONG else (code, "")
            assert (status.state, status.code, status.cause) == ("Failed", *expected)
            assert bench.log.counters()["spooled"] == 7 * 20
    server.recover()
    bench.run(600, tick=60.0)
    assert delivered_in_order(server, 240) and bench.log.delivery_status.state == "Success"
    assert (bench.log.counters()["delivered"], bench.log.counters()["lost"]) == (240, 0)
    if code in LONG:  # D1, D3: at most one try in 300 s while it is unavailable
        assert all(after - at >= 300 for (at, failed), (after, _) in itertools.pairwise(tries) if failed)


@pytest.mark.parametrize("fault", ["ServerBusy", *FAULTS])
def test_intermittent_faults_of_the_network_lose_nothing(server, tmp_path, fault):
    server.make("p", "l")
    bench = Bench(server, tmp_path, create=False)
    for round_ in range(10):
        server.fail(fault, 1 + round_ % 3)
        bench.core.produce(30)
        bench.run(60)
    server.recover()
    bench.run(200)
    assert delivered_in_order(server, 300)
    assert (bench.log.counters()["delivered"], bench.log.counters()["lost"]) == (300, 0)


def test_a_missing_target_that_may_not_be_made_is_unavailable_with_its_cause(server, tmp_path):
    bench = Bench(server, tmp_path, create=False)
    bench.core.produce(5)
    bench.run(10)
    assert bench.log.delivery_status.cause == "ProjectNotExist"
    server.make("p", "l")
    bench.run(300)
    assert delivered_in_order(server, 5)


def test_R9_destination_and_bytes(server, tmp_path):
    bench = Bench(server, tmp_path)
    bench.run()
    assert (bench.log.delivery_type, bench.log.delivery_status.state) == ("sls", "Success")
    bench.core.produce(200)
    bench.run()
    counters = bench.log.counters()
    assert counters["raw_bytes_delivered"] > counters["wire_bytes_delivered"] > 0
    assert bench.log.destination["logstore"] == "l"

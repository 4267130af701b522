"""ClickHouseSink: tables, error codes, versions, by a strict stand-in and by a real server."""

from __future__ import annotations

import http.client
import shutil
import socket
import subprocess
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest

from natcore import ConfigurationError, DeliveryError
from natcore.dtypes import CREATE, END, WINDOW
from natcore.log.encode_rowbinary import ROW_BYTES, encode_rows
from natcore.sinks import Batch, ClickHouseSink
from natcore.sinks.clickhouse import COLUMNS, ERRORS
from support.log_fakes import make_records
from support.netns import until
from support.receivers import SECRET
from support.receivers_more import ClickHouse, Dripping, FakeClickHouse


def batch_of(count, first=0):
    records = make_records(count, first)
    records["kind"] = np.resize([CREATE, WINDOW, END], count)
    return Batch("ngw-" + "é" * 100, "vpc-1", "run1", records)


@pytest.fixture
def server():
    made = FakeClickHouse()
    yield made
    made.close()


def sink_for(server, **more):
    return ClickHouseSink(server.url, user="audit", password=SECRET, **more)


@pytest.mark.parametrize("version", ["24.8.1.1", "20.1.2", "18.16.1"])
def test_a_new_table_has_the_types_that_the_server_knows(server, version, tmp_path):
    server.version = version
    sink = sink_for(server, table="log", database="nat")
    sink.open()
    types = server.tables["nat.log"]
    assert list(types) == [*COLUMNS, "label"] and types["label"] == "String"
    new = version != "18.16.1"
    assert types["nat_ip"] == ("IPv4" if new else "UInt32") and types["bytes_from_pub"] == "UInt64"
    assert types["end_time"] == ("DateTime64(6, 'UTC')" if new else "Int64")
    sink.deliver(batch_of(10))
    expected = [row | {"eip": row["eip"] or "0.0.0.0"} for row in batch_of(10).rows(local=True)]
    if new:
        assert server.rows == expected
    else:
        assert [row["number"] for row in server.rows] == list(range(10)) and server.rows[0]["pri_ip"] == 0x0A000000


def test_where_nothing_may_be_made_a_missing_table_is_unavailable(server):
    sink = sink_for(server, create=False)
    sink.open()
    with pytest.raises(DeliveryError) as raised:
        sink.deliver(batch_of(1))
    assert (raised.value.code, raised.value.action) == ("UNKNOWN_TABLE", "unavailable")


@pytest.mark.parametrize("number, expected", ERRORS.items())
@pytest.mark.parametrize("in_header", [True, False])
def test_each_code_has_its_action(server, number, expected, in_header):
    server.fault = 500, str(number) if in_header else None, f"Code: {number}, e.displayText() = DB::Exception: told"
    with pytest.raises(DeliveryError) as raised:
        sink_for(server).deliver(batch_of(1001))
    assert (raised.value.code, raised.value.action) == expected


EXCEPTION = "Code: 241. DB::Exception: Memory limit (total) exceeded. (MEMORY_LIMIT_EXCEEDED) (version 24.8.1.1)"


@pytest.mark.parametrize("header, body", [("241", ""), (None, EXCEPTION), (None, f"\r\n__exception__\r\n{EXCEPTION}")])
@pytest.mark.parametrize("in_chunks", ["", "whole"])
def test_an_exception_behind_a_good_status_is_no_delivery(server, header, body, in_chunks):
    server.in_chunks = in_chunks
    server.fault = 200, header, body
    with pytest.raises(DeliveryError) as raised:
        sink_for(server).deliver(batch_of(1001))
    assert (raised.value.code, raised.value.action) == ("MEMORY_LIMIT_EXCEEDED", "split")


@pytest.mark.parametrize("fault", [(200, None, "<html>please log in</html>"), (302, None, ""), (204, None, "")])
def test_an_answer_that_no_insert_has_is_no_delivery(server, fault):
    server.fault = fault
    with pytest.raises(DeliveryError) as raised:
        sink_for(server).deliver(batch_of(1))
    assert raised.value.action == "backoff"


def test_an_answer_that_was_cut_is_no_delivery(server):
    server.in_chunks, server.fault = "cut", (200, None, "")
    with pytest.raises(DeliveryError) as raised:
        sink_for(server).deliver(batch_of(1))
    assert (raised.value.code, raised.value.action) == ("IncompleteRead", "backoff")


def test_rows_of_too_many_days_are_split_and_too_many_parts_wait(server):
    for words, expected in (
        ("Too many partitions for single INSERT block (more than 100).", ("TOO_MANY_PARTITIONS", "split")),
        (
            "Too many parts (300). Merges are processing significantly slower than inserts.",
            ("TOO_MANY_PARTS", "backoff"),
        ),
    ):
        server.fault = 500, "252", f"Code: 252. DB::Exception: {words}"
        with pytest.raises(DeliveryError) as raised:
            sink_for(server).deliver(batch_of(500))
        assert (raised.value.code, raised.value.action) == expected


def test_a_servers_memory_does_not_cost_a_single_row(server):
    """Halved down to one row, a batch that is refused again would be set aside as bad."""
    server.fault = 500, "241", EXCEPTION
    with pytest.raises(DeliveryError) as raised:
        sink_for(server).deliver(batch_of(1000))
    assert (raised.value.code, raised.value.action) == ("MEMORY_LIMIT_EXCEEDED", "backoff")


@pytest.mark.parametrize(
    "version, waits", [("18.16.1", False), ("21.10.1", False), ("21.11.2.1", True), ("24.8.1.1", True)]
)
def test_an_insert_waits_until_it_is_over(server, version, waits):
    server.version = version
    sink = sink_for(server)
    sink.open()
    sink.deliver(batch_of(3))
    expected = {"wait_end_of_query": ["1"], "insert_distributed_sync": ["1"]}
    tokens = server.settings.pop("insert_deduplication_token", [])
    assert len(tokens) == (version.startswith("24")) and all(token.startswith("run1-0-") for token in tokens)
    assert server.settings == expected | ({"wait_for_async_insert": ["1"]} if waits else {})


def test_a_server_that_drips_its_answer_does_not_make_a_request_last():
    """Every byte comes in time, the answer never does; the moment at which the request has failed is one."""
    ticks = iter(range(1000))
    with pytest.MonkeyPatch.context() as patch, Dripping() as server:
        patch.setattr("natcore.internal.http_request.monotonic", lambda: next(ticks) / 10)
        with pytest.raises(DeliveryError) as raised:
            ClickHouseSink(server.url, timeout=5.0).open()
        assert raised.value.action == "backoff" and "within 5 s" in raised.value.message


@pytest.mark.parametrize("status, code, action", [(413, "PayloadTooLarge", "split"), (502, "HTTP502", "backoff")])
def test_what_a_proxy_says(server, status, code, action):
    server.fault = status, None, "<html>"
    with pytest.raises(DeliveryError) as raised:
        sink_for(server).deliver(batch_of(1))
    assert (raised.value.code, raised.value.action) == (code, action)


def test_an_unknown_code_and_a_wrong_password_are_backoff(server):
    server.fault = 500, "9999", "Code: 9999"
    with pytest.raises(DeliveryError, match="Code9999") as raised:
        sink_for(server).open()
    assert raised.value.action == "backoff"
    server.fault = None
    with pytest.raises(DeliveryError, match="AUTHENTICATION_FAILED") as raised:
        ClickHouseSink(server.url, user="audit", password="wrong").open()
    assert raised.value.action == "backoff"


def test_a_server_that_does_not_answer_is_backoff(server):
    sink = sink_for(server)
    server.close()
    with pytest.raises(DeliveryError, match="ConnectionRefusedError") as raised:
        sink.open()
    assert raised.value.action == "backoff"


def test_the_encoder_wants_whole_records():
    with pytest.raises(ValueError, match="whole records"):
        encode_rows(make_records(1).view("u1")[:95], b"", b"")
    assert encode_rows(make_records(0).view("u1"), b"x", b"y") == b""
    assert len(encode_rows(make_records(3).view("u1"), b"ab", b"c")) == 3 * (ROW_BYTES + 3)


def test_bad_arguments_are_refused():
    good = "http://h:8123"
    for url, more in (
        ("h:8123", {}), ("http://user:secret@h", {}), (good, {"table": "a b"}), (good, {"database": "`"}),
        (good, {"create": 1.5}), (good, {"timeout": 0}), (good, {"batch_rows": 0}),
    ):  # fmt: skip
        with pytest.raises(ConfigurationError, match=" must ") as raised:
            ClickHouseSink(url, **more)
        assert "secret" not in str(raised.value)


CONFIGURATION = """<?xml version="1.0"?>
<yandex>
  <logger><level>warning</level><log>{folder}/log</log><errorlog>{folder}/errors</errorlog></logger>
  <listen_host>127.0.0.1</listen_host>
  <http_port>{port}</http_port>
  <path>{folder}/data/</path> <tmp_path>{folder}/tmp/</tmp_path>
  <users_config>users.xml</users_config> <mark_cache_size>1000000</mark_cache_size>
</yandex>
"""
USERS = """<?xml version="1.0"?>
<yandex>
  <profiles><default/></profiles> <quotas><default/></quotas>
  <users><audit>
    <password>hush-hush</password> <profile>default</profile> <quota>default</quota>
    <networks><ip>127.0.0.1</ip></networks>
  </audit></users>
</yandex>
"""
BINARY = shutil.which("clickhouse-server")


def is_listening(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class RealClickHouse:
    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        (folder / "config.xml").write_text(CONFIGURATION.format(folder=folder, port=self.port))
        (folder / "users.xml").write_text(USERS)
        command = [BINARY, f"--config-file={folder}/config.xml"]
        self.process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={"TZ": "UTC"}
        )
        self.url = f"http://127.0.0.1:{self.port}"
        until(lambda: is_listening(self.port))

    def ask(self, query):
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        headers = {"X-ClickHouse-User": "audit", "X-ClickHouse-Key": SECRET}
        connection.request("POST", f"/?{urlencode({'query': query})}", headers=headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        assert answer.status == 200, text
        return [line.split("\t") for line in text.splitlines()]

    def stop(self):
        self.process.terminate()
        self.process.wait(60)


@pytest.mark.skipif(BINARY is None, reason="needs clickhouse-server (Debian: clickhouse-server)")
def test_a_real_server_keeps_every_row_once(tmp_path):
    server = RealClickHouse(tmp_path)
    try:
        sink = sink_for(server, database="nat")
        sink.open()
        sink.open()  # what is there stays
        for _ in range(2):  # at least once: the answer was lost
            sink.deliver(batch_of(1000))
        sink.deliver(batch_of(500, 1000))
        names = "pri_port, nat_port, bytes_from_vpc, pkts_from_pub, start_time, end_time, session, number"
        found = server.ask(f"SELECT {names} FROM nat.session_log FINAL ORDER BY number")
        expected = [row for part in (batch_of(1000), batch_of(500, 1000)) for row in part.rows(local=True)]
        assert found == [[str(row[name]) for name in names.split(", ")] for row in expected]
        texts = "instance, vpc_id, run, kind, IPv4NumToString(pri_ip), IPv4NumToString(nat_ip), IPv4NumToString(eip)"
        found = server.ask(f"SELECT {texts} FROM nat.session_log FINAL ORDER BY number")
        assert found == [
            [
                row["instance"],
                row["vpc_id"],
                row["run"],
                row["kind"],
                row["pri_ip"],
                row["nat_ip"],
                row["eip"] or "0.0.0.0",
            ]
            for row in expected
        ]
        server.ask("DROP TABLE nat.session_log")
        with pytest.raises(DeliveryError) as raised:
            sink.deliver(batch_of(1))
        assert (raised.value.code, raised.value.action) == ("UNKNOWN_TABLE", "unavailable")
        with pytest.raises(DeliveryError, match=r"WRONG_PASSWORD|AUTHENTICATION_FAILED"):
            ClickHouseSink(server.url, user="audit", password="wrong").open()
    finally:
        server.stop()


def test_the_stand_in_is_strict(tmp_path):
    made = ClickHouse(tmp_path)
    try:
        sink = made.make()
        sink.open()
        made.server.tables["nat.session_log"]["flags"] = "UInt64"
        with pytest.raises(DeliveryError):
            sink.deliver(batch_of(1))
    finally:
        made.close()

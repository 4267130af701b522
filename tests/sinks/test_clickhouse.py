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

from natcore import ConfigurationError, DeliveryError, Error
from natcore.dtypes import CREATE, END, WINDOW
from natcore.log.encode_rowbinary import ROW_BYTES, encode_rows
from natcore.sinks import Batch, ClickHouseSink
from natcore.sinks.clickhouse import COLUMNS, ERRORS
from natcore.who.clickhouse import ClickHouseSource
from natcore.who.source import Sought
from natcore.who.table_source import FOREVER
from support.log_fakes import make_records
from support.netns import until
from support.receivers import SECRET
from support.receivers_more import ClickHouse, Dripping, FakeClickHouse
from support.zookeeper import IS_HERE, ZooKeeper


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
        (good, {"create": 1.5}), (good, {"timeout": 0}), (good, {"batch_rows": 0}), (good, {"cluster": "`"}),
        (good, {"replication_path": "x"}), (good, {"replication_path": "/x'"}), (good, {"replica": None}),
        (good, {"sharding_key": "nat_ip"}), (good, {"sharding_key": "1; DROP", "cluster": "c"}),
        (good, {"insert_quorum": 0}),
    ):  # fmt: skip
        with pytest.raises(ConfigurationError, match=" must ") as raised:
            ClickHouseSink(url, **more)
        assert "secret" not in str(raised.value)


CLUSTER = {
    "cluster": "nat", "replication_path": "/clickhouse/tables/{shard}/nat/session_log", "database": "nat",
    "sharding_key": "cityHash64(nat_ip, protocol, nat_port)",
}  # fmt: skip


def test_a_cluster_has_replicated_tables_under_a_distributed_one():
    plain, clustered = ClickHouseSink("http://h", database="nat"), ClickHouseSink("http://h", **CLUSTER)
    made, table = plain.definitions((24, 8))
    assert made == "CREATE DATABASE IF NOT EXISTS `nat`" and table == plain.table_definition((24, 8))
    assert clustered.definitions((24, 8)) == [
        "CREATE DATABASE IF NOT EXISTS `nat` ON CLUSTER `nat`",
        table.replace("`session_log`", "`session_log_local` ON CLUSTER `nat`")
        .replace(
            "ReplacingMergeTree()",
            "ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/nat/session_log', '{replica}')",
        )
        .replace("non_replicated_dedup", "replicated_dedup"),
        "CREATE TABLE IF NOT EXISTS `nat`.`session_log` ON CLUSTER `nat` AS `nat`.`session_log_local` "
        "ENGINE = Distributed(`nat`, `nat`, `session_log_local`, cityHash64(nat_ip, protocol, nat_port))",
    ]
    assert clustered.destination == plain.destination  # what is asked, and written to


@pytest.mark.parametrize("version", [(24, 8), (20, 1)])
def test_clickhouse_s_own_parser_takes_the_statements(version):
    session = pytest.importorskip("chdb", reason="needs chdb (PyPI)")
    for more in ({}, CLUSTER, {"cluster": "nat"}, {"replication_path": "/x/{shard}", "replica": "{replica}-2"}):
        for statement in ClickHouseSink("http://h", keep_days=30, **more).definitions(version):
            tree = session.query(f"EXPLAIN AST {statement}", "TabSeparated").bytes().decode()
            assert tree.startswith("CreateQuery")


def test_a_server_that_answers_for_each_of_a_cluster_is_heard(server):
    server.of_cluster = "h1\t9000\t0\t\t0\t0\n"
    sink = sink_for(server, cluster="nat", replication_path="/x/{shard}", insert_quorum=2)
    sink.open()
    sink.deliver(batch_of(3))
    assert server.settings["insert_quorum"] == ["2"] and len(server.rows) == 3
    server.of_cluster = "Code: 159. DB::Exception: Watching task /clickhouse/task_queue/ddl/query-1 takes too long"
    with pytest.raises(DeliveryError, match="Watching task"):
        sink.open()


CONFIGURATION = """<?xml version="1.0"?>
<yandex>
  <logger><level>warning</level><log>{folder}/log</log><errorlog>{folder}/errors</errorlog></logger>
  <listen_host>127.0.0.1</listen_host>
  <http_port>{port}</http_port>
  <path>{folder}/data/</path> <tmp_path>{folder}/tmp/</tmp_path>
  <tcp_port>{tcp_port}</tcp_port> {more}
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


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class RealClickHouse:
    def __init__(self, folder: Path, tcp_port: int | None = None, more: str = "") -> None:
        self.port = free_port()
        configuration = CONFIGURATION.format(folder=folder, port=self.port, tcp_port=tcp_port or free_port(), more=more)
        (folder / "config.xml").write_text(configuration)
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


@pytest.mark.skipif(BINARY is None, reason="needs clickhouse-server (Debian: clickhouse-server)")
def test_a_distributed_table_keeps_a_row_on_one_shard_once(tmp_path):
    """Of two real servers, without replication."""
    ports = (free_port(), free_port())
    shards = "".join(
        f"<shard><replica><host>127.0.0.1</host><port>{port}</port><user>audit</user><password>{SECRET}</password>"
        "</replica></shard>"
        for port in ports
    )
    servers = []
    try:
        for number, port in enumerate(ports):
            (tmp_path / str(number)).mkdir()
            more = f"<remote_servers><nat>{shards}</nat></remote_servers>"
            servers.append(RealClickHouse(tmp_path / str(number), port, more))
        options = {name: CLUSTER[name] for name in ("cluster", "database", "sharding_key")}
        for server in servers:
            for statement in ClickHouseSink(server.url, **options).definitions((18, 16)):
                server.ask(statement.replace(" ON CLUSTER `nat`", ""))
        sink = sink_for(servers[0], **options, create=False)
        sink.open()
        for _ in range(2):  # the answer was lost
            sink.deliver(batch_of(1000))
        numbers = [
            [int(number) for (number,) in server.ask("SELECT number FROM nat.session_log_local FINAL")]
            for server in servers
        ]
        assert all(numbers) and sorted(numbers[0] + numbers[1]) == list(range(1000))
        assert servers[1].ask("SELECT count() FROM nat.session_log FINAL") == [["1000"]]
        source = ClickHouseSource(servers[1].url, database="nat", user="audit", password=SECRET)
        (part,) = source.parts()
        assert part.footer.ranges == ((0, 999),)
        for row in batch_of(1000).rows(local=True):
            if row["number"] % 250 == 1:  # a question of an endpoint
                sought = Sought(row["eip"] or row["nat_ip"], row["nat_port"], row["protocol"])
                (found,) = {each.row for each in source.find(sought, [part], 0, FOREVER)}
                assert (found.number, found.pri_ip) == (row["number"], row["pri_ip"])
        servers[0].stop()
        with pytest.raises(
            Error, match="connection tries failed"
        ):  # a shard that does not answer is no gap, and no answer
            ClickHouseSource(servers[1].url, database="nat", user="audit", password=SECRET).parts()
    finally:
        for server in servers:
            server.stop()


@pytest.mark.skipif(BINARY is None or not IS_HERE, reason="needs clickhouse-server and libzookeeper-java (Debian)")
def test_replicas_have_what_a_quorum_was_delivered_to(tmp_path):
    """Two real servers, one ZooKeeper: tables by ON CLUSTER, a Distributed table over both replicas, insert_quorum."""
    ports = (free_port(), free_port())
    replicas = "".join(
        f"<replica><host>127.0.0.1</host><port>{port}</port><user>audit</user><password>{SECRET}</password></replica>"
        for port in ports
    )
    keeper, servers = ZooKeeper(tmp_path), []

    def start(number):
        folder = tmp_path / str(number)
        folder.mkdir(exist_ok=True)
        more = (
            f"<remote_servers><nat><shard><internal_replication>true</internal_replication>{replicas}</shard></nat>"
            f"</remote_servers><zookeeper><node><host>127.0.0.1</host><port>{keeper.port}</port></node></zookeeper>"
            f"<macros><shard>1</shard><replica>{number}</replica></macros>"
            f"<interserver_http_host>127.0.0.1</interserver_http_host><interserver_http_port>{free_port()}"
            "</interserver_http_port><distributed_ddl><path>/clickhouse/ddl</path></distributed_ddl>"
        )
        return RealClickHouse(folder, ports[number], more)

    def numbers(server, table):
        return [int(number) for (number,) in server.ask(f"SELECT number FROM nat.{table} FINAL ORDER BY number")]

    try:
        servers = [start(0), start(1)]
        sink = sink_for(servers[0], **CLUSTER, insert_quorum=2)
        sink.open()
        sink.open()  # what is there stays
        for _ in range(2):  # the answer was lost
            sink.deliver(batch_of(1000))
        for server in servers:
            assert numbers(server, "session_log_local") == numbers(server, "session_log") == list(range(1000))
        servers[1].stop()
        with pytest.raises(DeliveryError) as raised:
            sink.deliver(batch_of(10, 1000))
        assert raised.value.action == "backoff"
        assert set(numbers(servers[0], "session_log")) >= set(range(1000))  # one replica answers
        servers[1] = start(1)
        until(lambda: numbers(servers[1], "session_log_local")[:1000] == list(range(1000)))
        _deliver_at_last(sink, batch_of(10, 1000))
        assert numbers(servers[1], "session_log_local") == list(range(1010))
    finally:
        for server in servers:
            server.stop()
        keeper.close()


def _deliver_at_last(sink, batch):
    """As a log does: again until it is delivered."""

    def is_delivered():
        try:
            sink.deliver(batch)
        except DeliveryError:
            return False
        return True

    until(is_delivered)


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

"""Syslog, Kafka and ClickHouse as destinations of the common suite: strict stand-ins on loopback."""

from __future__ import annotations

import ctypes
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from natcore.dtypes import format_ipv4
from natcore.sinks import Batch, ClickHouseSink, KafkaSink, Sink, SyslogSink
from support.receivers import SECRET, Destination, Row, TcpReceiver

_MESSAGE = re.compile(
    r"<(?P<pri>\d{1,3})>1 (?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) (?P<hostname>[!-~]+) (?P<app>[!-~]+) "
    r"(?P<procid>[!-~]+) (?P<msgid>[!-~]+) \[natcore@32473(?P<data>(?: \w+=\"(?:[^\"\\\]]|\\[\"\\\]])*\")+)\]"
)
_TEXTS = {"instance", "vpc_id", "label", "pri_ip", "pub_ip", "nat_ip", "eip"}


def read_message(text: str) -> Row:
    """A message of RFC 5424 that holds structured data of natcore and nothing else."""
    match = _MESSAGE.fullmatch(text)
    assert match is not None, text
    row: Row = {"header": (match["pri"], match["time"], match["hostname"], match["app"]), "eip": None}
    for name, value in re.findall(r' (\w+)="((?:[^"\\\]]|\\["\\\]])*)"', match["data"]):
        row[name] = re.sub(r"\\(.)", r"\1", value) if name in _TEXTS else int(value)
    return row | {"run": match["procid"], "kind": match["msgid"]}


def parse_frames(waiting: bytearray) -> Iterator[Row]:
    """Octet-counted: MSG-LEN SP SYSLOG-MSG (RFC 6587, 3.4.1)."""
    while match := re.match(rb"([1-9]\d*) ", waiting):
        end = match.end() + int(match[1])
        if len(waiting) < end:
            return
        yield read_message(waiting[match.end() : end].decode())
        del waiting[:end]


class Syslog(Destination):
    toml = 'sink = "syslog"\nhost = "127.0.0.1"\nport = 6514'
    fails = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.receiver = TcpReceiver(lambda: parse_frames)

    def make(self) -> Sink:
        return SyslogSink("127.0.0.1", self.receiver.port, hostname="here")

    def rows(self, count: int) -> list[Row]:
        rows = [dict(row) for row in self.receiver.wait(count)]
        for row in rows:
            assert row.pop("header")[0::2] == ("110", "here")
        return rows

    def take_away(self) -> None:
        self.receiver.close()

    def bring_back(self) -> None:
        self.receiver.listen()

    def close(self) -> None:
        self.receiver.close()


class MockCluster:
    """librdkafka's own mock of a Kafka cluster, by its C interface: Python's has no way to take a broker down."""

    def __init__(self) -> None:
        import confluent_kafka

        folder = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
        library = ctypes.CDLL(str(next(folder.glob("librdkafka-*.so*"))))
        for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
            getattr(library, name).restype = ctypes.c_void_p
        library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        self.library, error = library, ctypes.create_string_buffer(512)
        self.handle = ctypes.c_void_p(library.rd_kafka_new(0, ctypes.c_void_p(library.rd_kafka_conf_new()), error, 512))
        assert self.handle, error.value
        self.cluster = ctypes.c_void_p(library.rd_kafka_mock_cluster_new(self.handle, 1))
        self.bootstrap_servers: str = library.rd_kafka_mock_cluster_bootstraps(self.cluster).decode()

    def set_down(self, is_down: bool) -> None:
        call = self.library.rd_kafka_mock_broker_set_down if is_down else self.library.rd_kafka_mock_broker_set_up
        assert call(self.cluster, 1) == 0

    def fail_produce(self, *codes: int) -> None:
        """The next Produce requests are answered so: Kafka's error codes."""
        self.library.rd_kafka_mock_push_request_errors(
            self.cluster, ctypes.c_int16(0), ctypes.c_size_t(len(codes)), *(ctypes.c_int(code) for code in codes)
        )

    def close(self) -> None:
        self.library.rd_kafka_mock_cluster_destroy(self.cluster)
        self.library.rd_kafka_destroy(self.handle)


def read_topic(bootstrap_servers: str, topic: str, count: int) -> list[Any]:
    """At least `count` messages, all that is there, in the order of their partitions."""
    from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "test", "enable.partition.eof": True})
    try:
        partitions = consumer.list_topics(topic, timeout=60).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
        found: list[Any] = []
        ends = 0
        while ends < len(partitions) or len(found) < count:
            message = consumer.poll(60)
            assert message is not None, f"{len(found)} of {count}"
            if message.error():
                ends += 1  # of a partition
            else:
                found.append(message)
        return found
    finally:
        consumer.close()


class Kafka(Destination):
    toml = 'sink = "kafka"\nbootstrap_servers = "127.0.0.1:9"\ntopic = "t"\nusername = "u"\npassword_file = "{0}"'
    toml += "\n[log.config]\n'ssl.ca.location' = \"/etc/ca.pem\""
    fails = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.cluster = MockCluster()

    def make(self) -> Sink:
        return KafkaSink(self.cluster.bootstrap_servers, "sessions", timeout=5)

    def rows(self, count: int) -> list[Row]:
        messages = read_topic(self.cluster.bootstrap_servers, "sessions", count)
        rows = [json.loads(message.value()) for message in messages]
        for row, message in zip(rows, messages, strict=True):
            assert message.key().decode() == f"{row['run']}/{row['session']}"
        return sorted(rows, key=lambda row: row["number"])

    def take_away(self) -> None:
        self.cluster.set_down(True)

    def bring_back(self) -> None:
        self.cluster.set_down(False)

    def close(self) -> None:
        self.cluster.close()


def _read_number(form: str, data: bytes, at: int) -> tuple[Any, int]:
    return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)


_READERS: dict[str, Callable[[bytes, int], tuple[Any, int]]] = {
    **{
        name: partial(_read_number, form)
        for name, form in {
            "UInt8": "<B", "UInt16": "<H", "UInt32": "<I", "UInt64": "<Q", "Int64": "<q", "Enum8": "<b",
            "DateTime64": "<q",
        }.items()
    },
    "IPv4": lambda data, at: (format_ipv4(struct.unpack_from("<I", data, at)[0]), at + 4),
}  # fmt: skip


def _read_string(data: bytes, at: int) -> tuple[str, int]:
    size = shift = 0
    while True:
        size |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return data[at : at + size].decode(), at + size


class FakeClickHouse:
    """Tables by their CREATE statements, RowBinary read by their types, users; a strict few of ClickHouse's queries."""

    def __init__(self, version: str = "24.8.1.1", password: str = SECRET) -> None:
        self.version, self.password = version, password
        self.databases = {"default"}
        self.of_cluster = ""  # what it answers to a statement ON CLUSTER
        self.tables: dict[str, dict[str, str]] = {}
        self.rows: list[Row] = []
        self.fault: tuple[int, str | None, str] | None = None
        self.in_chunks = ""  # "whole" or "cut"
        self.queries: list[str] = []
        self.settings: dict[str, list[str]] = {}  # of the last INSERT
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                status, code, body = outer.answer(self)
                self.close_connection = True
                self.send_response(status)
                if code:
                    self.send_header("X-ClickHouse-Exception-Code", code)
                if outer.in_chunks:  # as a server that does not wait for a query's end
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    for part in filter(None, (body[:7].encode(), body[7:].encode())):
                        self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
                    self.wfile.write(b"0\r\n\r\n" if outer.in_chunks == "whole" else b"")
                    return
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format: str, *args: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def answer(self, request: BaseHTTPRequestHandler) -> tuple[int, str | None, str]:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        settings = parse_qs(urlsplit(request.path).query)
        (query,) = settings.pop("query")
        self.queries.append(query)
        if query.startswith("INSERT"):
            self.settings = settings
        if self.fault:
            return self.fault
        if (request.headers["X-ClickHouse-User"], request.headers["X-ClickHouse-Key"]) != ("audit", self.password):
            return 403, "516", "Code: 516. DB::Exception: audit: Authentication failed"
        return self._run(query, body)

    def _run(self, query: str, body: bytes) -> tuple[int, str | None, str]:
        if query == "SELECT version()":
            return 200, None, self.version + "\n"
        answer = self.of_cluster if " ON CLUSTER `" in query else ""
        query = re.sub(r" ON CLUSTER `[\w.-]+`", "", query)
        if match := re.fullmatch(r"CREATE DATABASE IF NOT EXISTS `(\w+)`", query):
            self.databases.add(match[1])
            return 200, None, answer
        if match := re.fullmatch(r"CREATE TABLE IF NOT EXISTS `(\w+)`\.`(\w+)` \((.*)\) ENGINE = Repl.*", query):
            assert match[1] in self.databases
            told = re.split(r", (?=INDEX |PROJECTION )", match[3])[0]
            columns = re.findall(r"(\w+) (\w+(?:\([^()]*\))?)(?: CODEC\(.*?\)\))?(?:, |$)", told)
            self.tables.setdefault(f"{match[1]}.{match[2]}", dict(columns))
            return 200, None, answer
        match = re.fullmatch(r"INSERT INTO `(\w+)`\.`(\w+)` \(([\w, ]+)\) FORMAT RowBinary", query)
        assert match is not None, query
        table = self.tables.get(f"{match[1]}.{match[2]}")
        if table is None:
            return 404, "60", "Code: 60. DB::Exception: Table default.x does not exist"
        self.rows += self._read(body, {name: table[name] for name in match[3].split(", ")})
        return 200, None, ""

    @staticmethod
    def _read(body: bytes, columns: dict[str, str]) -> Iterator[Row]:
        at = 0
        while at < len(body):
            row: Row = {}
            for name, kind in columns.items():
                reader = _read_string if "String" in kind else _READERS[kind.split("(")[0]]
                row[name], at = reader(body, at)
                if kind.startswith("Enum8"):
                    row[name] = {int(n): word for word, n in re.findall(r"'(\w+)' = (\d+)", kind)}[row[name]]
            yield row
        assert at == len(body)

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


class Answering:
    """Whatever is asked, the same bytes, then the end of the connection."""

    def __init__(self, answer: bytes = b"") -> None:
        self.answer = answer
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.accepted = 0
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Answering:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.accepted += 1
            with connection, suppress(OSError):
                self.serve(connection)

    def serve(self, connection: socket.socket) -> None:
        waiting = b""
        while b"\r\n\r\n" not in waiting:
            waiting += connection.recv(65_536)
        head, _, body = waiting.partition(b"\r\n\r\n")
        size = re.search(rb"(?i)content-length: (\d+)", head)
        left = int(size[1]) - len(body) if size else 0
        while left > 0:
            left -= len(connection.recv(65_536))
        connection.sendall(self.answer)


class Dripping(Answering):
    """An answer that begins at once and goes on without an end."""

    def serve(self, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"1\r\nx\r\n")


class ClickHouse(Destination):
    toml = 'sink = "clickhouse"\nurl = "http://127.0.0.1:8123"\nuser = "audit"\npassword_file = "{0}"'
    fails = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.server = FakeClickHouse()

    def make(self) -> Sink:
        return ClickHouseSink(self.server.url, user="audit", password=SECRET, database="nat")

    def rows(self, count: int) -> list[Row]:
        return list(self.server.rows)

    def expected(self, batch: Batch) -> list[Row]:
        return [row | {"eip": row["eip"] or "0.0.0.0"} for row in batch.rows(local=True)]

    def take_away(self) -> None:
        self.server.fault = 500, "252", "Code: 252. DB::Exception: Too many parts (300)"

    def bring_back(self) -> None:
        self.server.fault = None

    def close(self) -> None:
        self.server.close()

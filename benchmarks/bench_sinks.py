"""Sinks: rows encoded a second by each format, and rows delivered a second to a local Simple Log Service."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from natcore.log.encode_ipfix import encode_messages
from natcore.log.encode_rowbinary import encode_rows
from natcore.sinks import Batch, SlsSink, SyslogSink
from natcore.sinks.ipfix import _DETAILS, _NAT_EVENTS
from support.log_fakes import make_records
from timing import seconds_of

ROWS = 4096  # of a batch, as SlsSink sends them
BATCHES = 49  # of a round; five rounds are a million rows
pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")


@pytest.fixture
def batch() -> Batch:
    return Batch("ngw-1", "vpc-1", "run1", make_records(ROWS))


def encoders(batch: Batch) -> dict[str, Callable[[], object]]:
    """By format: what encodes the batch."""
    pytest.importorskip("aliyun.log", reason="the extra natcore[sls] is not installed")
    data = batch.records.view("u1")
    sls = SlsSink("http://h", "p", "l", access_key_id="i", access_key_secret="s")
    syslog = SyslogSink("h", hostname="h")
    return {
        "sls": lambda: sls.encode(batch),
        "ipfix": lambda: encode_messages(data, 0, 1, 0, 1400, _NAT_EVENTS, _DETAILS),
        "syslog": lambda: syslog.encode(batch),
        "rowbinary": lambda: encode_rows(data, b"\5ngw-1\5vpc-1", b"\4run1"),
    }


@pytest.mark.parametrize("name", ["sls", "ipfix", "syslog", "rowbinary"])
def bench_encode(benchmark: BenchmarkFixture, batch: Batch, name: str) -> None:
    benchmark.pedantic(encoders(batch)[name], rounds=200, iterations=2, warmup_rounds=5)
    benchmark.extra_info["million_rows_a_second"] = round(ROWS / seconds_of(benchmark).median / 1e6, 2)


@pytest.fixture
def server() -> Iterator[subprocess.Popen[str]]:
    """`natcore sls-server`: a process of its own, as a cloud is."""
    pytest.importorskip("aliyun.log", reason="the extra natcore[sls] is not installed")
    command = [sys.executable, "-m", "natcore.cli.main", "sls-server", "--port", "0", "--logstore", "p/l", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def bench_delivery_of_a_million_rows_to_sls(
    benchmark: BenchmarkFixture, batch: Batch, server: subprocess.Popen[str]
) -> None:
    assert server.stdout is not None
    endpoint = json.loads(server.stdout.readline())["endpoint"]
    sink = SlsSink(endpoint, "p", "l", region="r", access_key_id="id", access_key_secret="secret")
    sink.open()

    def deliver() -> None:
        for _ in range(BATCHES):
            sink.deliver(batch)

    benchmark.pedantic(deliver, rounds=5, warmup_rounds=0)
    server.send_signal(signal.SIGTERM)
    assert json.loads(server.stdout.readline())["logs"] == {"p/l": 5 * BATCHES * ROWS}
    benchmark.extra_info["thousand_rows_a_second"] = round(BATCHES * ROWS / seconds_of(benchmark).min / 1e3)

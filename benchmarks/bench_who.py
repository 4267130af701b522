"""Writing a day's rows with ParquetSink, and asking who had a port: in the library, warm; on the command line, cold.

Every answer is compared with the life that made the rows. For figures to quote: pytest benchmarks/bench_who.py
--rows 10000000; on a machine that others use too: --benchmark-timer=time.process_time (the work, without the waiting).
"""

from __future__ import annotations

import itertools
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from day import Day
from natcore.sinks import ParquetSink
from natcore.sinks.compaction import compact
from natcore.who.query import Store, who
from timing import seconds_of

QUESTIONS = 40
COLD = 3


@dataclass
class Written:
    day: Day
    folder: Path
    rows: int


@pytest.fixture(scope="module", params=["as written", "compacted"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    day = Day(request.config.getoption("--rows"))
    folder = tmp_path_factory.mktemp("day")
    sink = ParquetSink(folder)
    sink.open()
    rows = 0
    for batch in day.batches():
        sink.deliver(batch)
        rows += len(batch)
    sink.close()
    if request.param == "compacted":
        compact(folder)  # of fewer than about ten million rows there is no hour with several files
    yield Written(day, folder, rows)
    for path in folder.iterdir():
        path.unlink()


def bench_parquet_sink(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """A full batch, made durable."""
    batches = list(itertools.islice(Day(600_000).batches(), 4))
    sink = ParquetSink(tmp_path)
    sink.open()
    numbers = itertools.count()

    def next_batch() -> tuple[tuple[object, ...], dict[str, object]]:
        return (batches[next(numbers) % len(batches)],), {}

    receipt = benchmark.pedantic(sink.deliver, setup=next_batch, rounds=12)
    assert receipt.wire_bytes > 0 and len(list(tmp_path.glob("*.parquet"))) == 12
    benchmark.extra_info["million_rows_a_second"] = round(len(batches[0]) / seconds_of(benchmark).median / 1e6, 2)
    benchmark.extra_info["bytes_a_row"] = round(receipt.wire_bytes / len(batches[0]), 1)


@pytest.mark.parametrize("status", ["exact", "held-idle", "unused"])
def bench_who_warm(benchmark: BenchmarkFixture, written: Written, status: str) -> None:
    store = Store(written.folder)
    questions = list(itertools.islice((each for each in written.day.questions() if each[1] == status), QUESTIONS))
    asked = itertools.count()

    def ask() -> None:
        arguments, _, host = questions[next(asked) % QUESTIONS]
        answer = who(store, **arguments)
        assert (answer.status, answer.subscriber) == (status, IPv4Address(host) if host else None), arguments

    benchmark.pedantic(ask, warmup_rounds=2, rounds=QUESTIONS)
    benchmark.extra_info["rows"] = written.rows
    benchmark.extra_info["files"] = len(list(written.folder.glob("*.parquet")))


def bench_who_cold(benchmark: BenchmarkFixture, written: Written) -> None:
    """A process of its own for each question, as a person asks."""
    questions = list(itertools.islice(written.day.questions(), COLD))
    asked = itertools.count()

    def ask() -> None:
        arguments, status, host = questions[next(asked) % COLD]
        endpoint = f"{IPv4Address(arguments['address'])}:{arguments['port']}"
        moment = arguments["at"].isoformat()
        command = ["who", endpoint, "--protocol", str(arguments["protocol"]), "--at", moment, "--log", written.folder]
        done = subprocess.run([sys.executable, "-m", "natcore.cli.main", *command], capture_output=True, text=True)
        assert done.stdout.startswith(status) and (host is None or str(IPv4Address(host)) in done.stdout), done

    before = _children_seconds()
    benchmark.pedantic(ask, rounds=COLD)
    benchmark.extra_info["processor_seconds"] = round((_children_seconds() - before) / COLD, 2)


def _children_seconds() -> float:
    """Processor time of the processes that ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime

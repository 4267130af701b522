"""What a log costs at any size: bytes a row, rows a second of processor time, and a question's work, in Parquet and ClickHouse.

    python benchmarks/scale.py --rows 1000000 --files 25000

ClickHouse is its own engine in this process (chdb), and the processor's time of the whole process is counted. --files: how many
files a folder is told to have when a question looks for its own: a question lists the folder, whatever it has.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import day as days
from day import MIDNIGHT, Day
from natcore.log.encode_rowbinary import encode_rows
from natcore.sinks import Batch, ClickHouseSink, ParquetSink, SlsSink
from natcore.sinks.base import join
from natcore.sinks.compaction import compact
from natcore.who.clickhouse import ClickHouseSource
from natcore.who.query import Store, who
from natcore.who.source import Source

QUESTIONS = 20
FULL = 131_072  # rows of a batch
HOUR = 3_600_000_000
YEAR = 10**11  # rows


def processor_seconds(action: Callable[[], Any]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def batches_of(day: Day) -> Iterator[Batch]:
    """Full batches, with a cover row a minute or so among the rows, as a gateway writes them."""
    waiting: list[Batch] = []
    for batch in day.batches():
        waiting.append(batch)
        if sum(map(len, waiting)) >= FULL:
            yield replace(batch, records=join([each.records for each in waiting]))
            waiting = []
    if waiting:
        yield replace(waiting[0], records=join([each.records for each in waiting]))


def deliver(sink: Any, day: Day) -> float:
    """Processor seconds of the deliveries."""
    sink.open()
    return sum(processor_seconds(partial(sink.deliver, batch)) for batch in batches_of(day))


def asked(source: Source, day: Day) -> dict[str, float]:
    """Milliseconds of processor time of a question, by its answer; the first one of an hour apart."""
    taken: dict[str, list[float]] = {}
    for question, status, host in itertools.islice(day.questions(), QUESTIONS):
        for again in (False, True):
            start = time.process_time()
            answer = who(source, **question)
            spent = (time.process_time() - start) * 1e3
            assert answer.status == status and (host is None or int(answer.subscriber or 0) == host), (question, answer)
            taken.setdefault(f"{status}, warm" if again else f"{status}, first of its time", []).append(spent)
    return {name: round(statistics.median(each), 1) for name, each in sorted(taken.items())}


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.parquet"))


def in_parquet(folder: Path, day: Day, rows: int) -> dict[str, Any]:
    sink = ParquetSink(folder)
    spent = deliver(sink, day)
    sink.close()
    told: dict[str, Any] = {
        "rows a processor second": round(rows / spent), "bytes a row": round(size_of(folder) / rows, 1),
        "question, ms": asked(Store(folder), day),
    }  # fmt: skip
    spent = processor_seconds(lambda: compact(folder))
    told["compacted"] = {
        "rows a processor second": round(rows / spent), "bytes a row": round(size_of(folder) / rows, 1),
        "question, ms": asked(Store(folder), day),
    }  # fmt: skip
    return told


def in_clickhouse(day: Day, rows: int) -> dict[str, Any]:
    from support.chdb_server import ChdbServer

    with ChdbServer() as server:
        spent = deliver(ClickHouseSink(server.url, table="scale"), day)
        server.ask("OPTIMIZE TABLE scale FINAL")
        [parts] = server.ask(
            "SELECT sum(data_compressed_bytes) FROM system.parts WHERE table = 'scale' AND active"
        ).split()
        [projections] = server.ask(
            "SELECT sum(data_compressed_bytes) FROM system.projection_parts WHERE table = 'scale' AND active"
        ).split()
        return {
            "rows a processor second": round(rows / spent), "bytes a row": round(int(parts) / rows, 1),
            "bytes a row of the projection": round(int(projections) / rows, 1),
            "question, ms": asked(ClickHouseSource(server.url, table="scale"), day),
        }  # fmt: skip


def in_sls(day: Day) -> dict[str, Any]:
    """What is sent: no service is asked."""
    import lz4.block

    told: dict[str, Any] = {}
    batch = next(batches_of(day))
    both: tuple[Literal["contract", "all"], ...] = ("contract", "all")
    for rows in both:
        sink = SlsSink("http://127.0.0.1:1", "p", "l", rows=rows, access_key_id="id", access_key_secret="secret")
        few = Batch(batch.instance, batch.vpc_id, batch.run, batch.records[:4096])
        start = time.process_time()
        data = sink.encode(few)
        spent = time.process_time() - start
        told[rows] = {
            "rows a processor second, encoded": round(len(few) / spent), "bytes a row": round(len(data) / len(few)),
            "bytes a row, lz4": round(len(lz4.block.compress(data)) / len(few)),
        }  # fmt: skip
    return told


def listing(folder: Path, files: int) -> dict[str, Any]:
    """A folder with so many names, of a year: what a question of an hour spends to find its files."""
    step = 365 * 24 * HOUR // files
    for number in range(files):
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime((MIDNIGHT + number * step) / 1e6))
        (folder / f"{stamp}-0123456789abcdef-{number * 4_000_000:012d}.parquet").touch()
    store = Store(folder)
    at = MIDNIGHT + files // 2 * step
    looks = [processor_seconds(lambda: store.parts(at, at + HOUR)) for _ in range(3)]
    return {"files": files, "ms": round(min(looks) * 1e3, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=25_000, help="10^11 rows in files of 4 million")
    arguments = parser.parse_args()
    days.BATCH = max(64, arguments.rows // 1440)
    day = Day(arguments.rows)
    rows = sum(len(batch) for batch in batches_of(day))
    batch = next(batches_of(day))
    spent = processor_seconds(lambda: encode_rows(batch.records.view("u1"), b"", b""))
    told: dict[str, Any] = {"rows": rows, "RowBinary rows a processor second": round(len(batch) / spent)}
    with tempfile.TemporaryDirectory() as folder:
        told["Parquet"] = in_parquet(Path(folder), day, rows)
    with tempfile.TemporaryDirectory() as folder:
        told["listing"] = listing(Path(folder), arguments.files)
    told["ClickHouse"] = in_clickhouse(day, rows)
    told["Simple Log Service"] = in_sls(day)
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()

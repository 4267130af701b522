"""One suite over all sinks, and what each does by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from natcore import ConfigurationError, DeliveryError
from natcore.dtypes import CREATE, END, GAP, WINDOW
from natcore.sinks import Batch, JsonLinesSink, MemorySink, ParquetSink
from natcore.sinks.base import CONTRACT
from support.log_fakes import FakeClock, make_records

FIELDS = ["instance", "vpc_id", "protocol", "pri_ip", "pri_port", "pub_ip", "pub_port", "nat_ip", "nat_port",
          "bytes_from_pub", "pkts_from_pub", "bytes_from_vpc", "pkts_from_vpc", "start_time", "end_time"]  # fmt: skip


def batch_of(count, first=0, run="run1", **more):
    return Batch("ngw-1", "vpc-1", run, make_records(count, first, **more))


def read_json_lines(folder: Path):
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


def read_parquet(folder: Path):
    columns = "* REPLACE (epoch_us(start_time) AS start_time, epoch_us(end_time) AS end_time)"
    with duckdb.connect() as connection:
        relation = connection.sql(f"SELECT {columns} FROM '{folder}/*.parquet' ORDER BY run, number")
        rows = [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]
    assert all(row.pop("label") is None for row in rows)
    return rows


class Kind:
    """How the suite makes a sink and reads it back."""

    def __init__(self, make, read):
        self.make, self.read = make, read


KINDS = {
    "memory": Kind(lambda folder, **more: MemorySink(), lambda sink: sink.rows(local=True)),
    "jsonlines": Kind(
        lambda folder, **more: JsonLinesSink(folder / "log", **more), lambda s: read_json_lines(s.folder)
    ),
    "parquet": Kind(lambda folder, **more: ParquetSink(folder / "log", **more), lambda s: read_parquet(s.folder)),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def test_contract_fields_in_their_order():
    assert list(CONTRACT) == FIELDS
    (row,) = batch_of(1).rows()
    assert list(row) == FIELDS
    assert row["nat_ip"] == "203.0.113.1" and row["start_time"] == 1_700_000_000 and row["end_time"] == 1_700_000_600


def test_every_row_comes_back_as_it_was(kind, tmp_path):
    sink = kind.make(tmp_path)
    sink.open()
    batches = [batch_of(100), batch_of(1, 100), batch_of(50, 101, kind=CREATE), batch_of(50, 151, kind=END)]
    for batch in batches:
        receipt = sink.deliver(batch)
        assert receipt.raw_bytes > 0 and receipt.wire_bytes > 0
    sink.close()
    assert kind.read(sink) == [row for batch in batches for row in batch.rows(local=True)]


def test_what_is_delivered_can_be_read_before_the_sink_is_closed(kind, tmp_path):
    sink = kind.make(tmp_path)
    sink.open()
    for number in range(5):
        sink.deliver(batch_of(10, 10 * number))
        assert [row["number"] for row in kind.read(sink)] == list(range(10 * number + 10))


def test_a_sink_says_what_it_is(kind, tmp_path):
    sink = kind.make(tmp_path)
    assert sink.delivery_type in KINDS and sink.events and sink.region is None
    assert set(sink.destination) <= {"folder"}


@pytest.mark.parametrize("name", ["jsonlines", "parquet"])
def test_files_are_private_in_private_folders(name, tmp_path):
    previous = os.umask(0)
    try:
        sink = KINDS[name].make(tmp_path / "a" / "b")
        sink.open()
        sink.deliver(batch_of(3))
    finally:
        os.umask(previous)
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "a", tmp_path / "a" / "b", sink.folder)] == [0o700] * 3
    assert {path.stat().st_mode & 0o777 for path in sink.folder.iterdir()} == {0o600}


@pytest.mark.parametrize("name", ["jsonlines", "parquet"])
def test_files_are_rolled_by_size_and_by_time(name, tmp_path):
    clock = FakeClock()
    sink = KINDS[name].make(tmp_path, roll_bytes=20_000, roll_seconds=60.0, clock=clock)
    sink.open()
    sink.deliver(batch_of(10))
    sink.deliver(batch_of(10, 10))
    clock.now += 60
    sink.deliver(batch_of(5000, 20))
    sink.deliver(batch_of(10, 5020))
    sink.deliver(batch_of(10, 5030))
    names = sorted(path.name for path in sink.folder.iterdir() if path.suffix in (".jsonl", ".parquet"))
    firsts = [name.split("-")[2].split(".")[0] for name in names]
    small = ["000000005030"] if name == "parquet" else []  # those of a time are put together when it is over
    assert firsts == ["000000000000", "000000000020", "000000005020", *small]
    assert [row["number"] for row in KINDS[name].read(sink)] == list(range(5040))


@pytest.mark.parametrize("name", ["jsonlines", "parquet"])
@pytest.mark.parametrize("call", ["fsync", "write"])
def test_a_batch_that_failed_leaves_nothing_and_can_be_sent_again(name, call, tmp_path, monkeypatch):
    sink = KINDS[name].make(tmp_path)
    sink.open()
    sink.deliver(batch_of(10))
    if name == "parquet" and call == "write":
        monkeypatch.setattr("natcore.sinks._parquet_folder.write_table", _raise)
    else:
        monkeypatch.setattr(os, call, _raise)
    with pytest.raises(OSError, match="no space"):
        sink.deliver(batch_of(10, 10))
    monkeypatch.undo()
    assert len(KINDS[name].read(sink)) == 10
    assert not [path for path in sink.folder.iterdir() if path.name.startswith(".")]
    sink.deliver(batch_of(10, 10))
    assert [row["number"] for row in KINDS[name].read(sink)] == list(range(20))


def _raise(*arguments, **more):
    raise OSError(28, "no space")


@pytest.mark.parametrize("name", ["jsonlines", "parquet"])
def test_the_same_batch_from_a_process_that_died_is_written_over(name, tmp_path):
    """Delivered, but not acknowledged before the end: at least once, and still each row once."""
    for _ in range(2):
        sink = KINDS[name].make(tmp_path)
        sink.open()
        sink.deliver(batch_of(10))
    assert len(KINDS[name].read(sink)) == 10


def test_parquet_holds_one_run_a_file_and_says_in_the_footer_what_it_holds(tmp_path):
    sink = ParquetSink(tmp_path)
    sink.open()
    sink.deliver(batch_of(5))
    sink.deliver(batch_of(5, 5))
    sink.deliver(batch_of(5, 3, run="run2"))
    first, second = sorted(tmp_path.glob("*.parquet"), key=lambda path: path.name.split("-")[1])
    metadata = {key.decode(): value.decode() for key, value in pq.read_metadata(first).metadata.items()}
    assert metadata.items() >= {
        "natcore_format": "2", "instance": "ngw-1", "vpc_id": "vpc-1", "run": "run1",
        "first_number": "0", "last_number": "9",
    }.items()  # fmt: skip
    assert pq.read_metadata(second).metadata[b"run"] == b"run2"
    column = pq.ParquetFile(first).metadata.row_group(0).column(0)
    assert column.compression == "ZSTD"


def test_parquet_drafts_of_a_process_that_died_are_removed(tmp_path):
    (tmp_path / ".x.parquet.draft").write_bytes(b"half")
    ParquetSink(tmp_path).open()
    assert [path.name for path in tmp_path.iterdir()] == ["owner"]


def test_parquet_columns_are_what_people_ask_for(tmp_path):
    sink = ParquetSink(tmp_path)
    sink.open()
    sink.deliver(batch_of(1000))
    with duckdb.connect() as connection:
        found = connection.sql(
            f"SELECT pri_ip, pri_port, kind, eip FROM '{tmp_path}/*.parquet' WHERE nat_ip = '203.0.113.1' AND "
            "nat_port = 2051 AND protocol = 17 AND TIMESTAMPTZ '2023-11-14 22:20:00Z' BETWEEN start_time AND end_time"
        ).fetchall()
        assert found == [("10.0.0.3", 1027, "window", None)]
        types = dict(
            connection.sql(f"SELECT column_name, column_type FROM (DESCRIBE FROM '{tmp_path}/*.parquet')").fetchall()
        )
    assert types["start_time"] == "TIMESTAMP WITH TIME ZONE" and types["bytes_from_pub"] == "UBIGINT"


def test_every_address_is_dotted_alike_everywhere(tmp_path):
    records = make_records(4)
    records["pub_ip"] = [0, 0xFFFFFFFF, 0x0A00FF01, 0x7F000001]
    sink = ParquetSink(tmp_path)
    sink.open()
    batch = Batch("i", "v", "r", records)
    sink.deliver(batch)
    assert [row["pub_ip"] for row in read_parquet(tmp_path)] == [row["pub_ip"] for row in batch.rows()]
    assert [row["pub_ip"] for row in batch.rows()] == ["0.0.0.0", "255.255.255.255", "10.0.255.1", "127.0.0.1"]


def test_memory_keeps_the_newest_rows():
    sink = MemorySink(capacity=25)
    for number in range(10):
        sink.deliver(batch_of(10, 10 * number))
    assert sink.records["number"].tolist() == list(range(70, 100))
    sink.clear()
    assert sink.records.shape == (0,) and sink.records.dtype == make_records(1).dtype


def test_bad_arguments_are_refused(tmp_path):
    for make in (lambda: ParquetSink(tmp_path, roll_bytes=0), lambda: JsonLinesSink(tmp_path, roll_seconds=0),
                 lambda: MemorySink(capacity=0)):  # fmt: skip
        with pytest.raises(ConfigurationError, match=" must "):
            make()


def test_sinks_are_imported_late():
    code = (
        "import natcore, natcore.sinks, sys; print([m for m in ('pyarrow', 'duckdb', 'msgspec') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    import natcore.sinks

    assert set(natcore.sinks.__all__) <= set(dir(natcore.sinks))
    with pytest.raises(AttributeError, match="NoSuchSink"):
        _ = natcore.sinks.NoSuchSink


def test_window_rows_are_marked():
    assert {row["kind"] for row in batch_of(2, kind=WINDOW).rows(local=True)} == {"window"}
    assert np.all(batch_of(2).records["number"] == [0, 1])


@pytest.mark.parametrize("torn", [b"", b'{"instance": "ngw-1", "numb'])
def test_json_lines_that_were_written_but_not_acknowledged_are_not_written_twice(tmp_path, torn):
    """SIGKILL between the sync and the acknowledgement: the spool sends the batch again, cut elsewhere perhaps."""
    sink = JsonLinesSink(tmp_path)
    sink.deliver(batch_of(100))
    sink.deliver(batch_of(50, 100))
    sink.close()
    (path,) = tmp_path.glob("*.jsonl")
    with path.open("ab") as file:
        file.write(torn)
    again = JsonLinesSink(tmp_path)
    for first, count in ((60, 30), (90, 61), (151, 10)):
        again.deliver(batch_of(count, first))
    assert [row["number"] for row in read_json_lines(tmp_path)] == list(range(161))


def test_a_json_lines_gap_row_that_was_there_comes_once_and_takes_no_rows_place(tmp_path):
    batch = batch_of(10)
    batch.records.base["kind"][4] = GAP
    JsonLinesSink(tmp_path).deliver(batch)
    again = batch_of(12)
    again.records.base["kind"][4] = GAP
    JsonLinesSink(tmp_path).deliver(again)
    assert [(row["number"], row["kind"] == "gap") for row in read_json_lines(tmp_path)] == [
        (n, n == 4) for n in range(12)
    ]


def test_a_removed_json_lines_file_takes_no_rows(tmp_path):
    sink = JsonLinesSink(tmp_path)
    sink.deliver(batch_of(10))
    for path in tmp_path.glob("*.jsonl"):
        path.unlink()
    sink.deliver(batch_of(10, 10))
    assert [row["number"] for row in read_json_lines(tmp_path)] == list(range(10, 20))


def test_a_json_lines_file_removed_while_it_is_written_is_no_delivery(tmp_path, monkeypatch):
    sink = JsonLinesSink(tmp_path)
    sink.deliver(batch_of(10))

    def sync(descriptor):
        for path in tmp_path.glob("*.jsonl"):
            path.unlink()

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sync)
        with pytest.raises(DeliveryError, match="FileRemoved"):
            sink.deliver(batch_of(10, 10))
    sink.deliver(batch_of(10, 10))
    assert [row["number"] for row in read_json_lines(tmp_path)] == list(range(10, 20))


def test_one_log_writes_to_a_folder_of_json_lines(tmp_path):
    first = JsonLinesSink(tmp_path)
    first.open()
    with pytest.raises(DeliveryError, match="FolderInUse"):
        JsonLinesSink(tmp_path).open()
    first.close()
    JsonLinesSink(tmp_path).open()

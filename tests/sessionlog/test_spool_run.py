"""Heartbeats, the end mark, and the gap row of a run that had none."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from natcore.dtypes import GAP, GAP_DIED, GAP_RING
from natcore.sessionlog.collector import Collector
from natcore.sessionlog.heartbeat import ROUND_BEATS, Beat, OldestWindow
from natcore.sessionlog.ledger import Ledger
from natcore.sessionlog.spool.format import BEAT_BYTES, Identity, decode_beats, encode_beat
from natcore.sessionlog.spool.run import GAP_NUMBER, read_run
from natcore.sessionlog.spool.spool import Spool
from natcore.sinks import ParquetSink
from natcore.who.verify import verify
from support.log_fakes import FakeClock, FakeCore, ScriptedSink, assert_adds_up, make_records

SECOND = 1_000_000  # microseconds


class Table:
    """Open windows by part, each the second in which it began."""

    def __init__(self, parts):
        self.parts = parts
        self.now_ns = 0
        self.looked = []

    def oldest(self):
        return min([self.now_ns, *itertools.chain(*self.parts)])

    def oldest_window(self, part):
        self.looked.append(part)
        return min([*self.parts[part], self.now_ns]), len(self.parts)


@given(st.lists(st.tuples(st.integers(0, 19), st.booleans(), st.booleans()), max_size=200), st.integers(1, 20))
@example(
    [(0, False, False), (0, True, True), (2, False, False), (0, False, True)], 3
)  # two parts came between two looks
def test_the_oldest_window_is_never_told_later_than_it_is(steps, parts):
    """Windows open and close in any part, the table grows; what is told is at most the oldest, and once around it is."""
    table = Table([[]])
    oldest = OldestWindow(table)
    for part, closes, looks in steps:
        table.now_ns += 1
        while len(table.parts) < min(part + 1, parts):
            table.parts.append([])
        at = part % len(table.parts)
        if closes and table.parts[at]:
            table.parts[at].pop(0)
        else:
            table.parts[at].append(table.now_ns)
        if looks:
            assert oldest.look() <= table.oldest()
    for _ in range(1 + ROUND_BEATS):
        told = oldest.look()
    assert told == table.oldest()


def test_a_large_table_is_looked_at_in_turns():
    table = Table([[] for _ in range(81)])
    oldest = OldestWindow(table)
    oldest.look()
    table.looked.clear()
    oldest.look()
    assert table.looked[0] == 0 and len(table.looked) == 1 + -(-80 // ROUND_BEATS)


def test_a_beat_survives_half_a_write():
    old, new = Beat(1, 2, 3, 4), Beat(-5, 6, 7, 8, True)
    slots = encode_beat(8, old) + encode_beat(9, new)
    assert len(slots) == 2 * BEAT_BYTES and decode_beats(slots) == (9, new)
    assert decode_beats(slots[:-1] + b"\xff") == (8, old)
    assert decode_beats(b"") is None and decode_beats(bytes(2 * BEAT_BYTES)) is None


def open_spool(folder, run):
    ledger = Ledger()
    return Spool(folder, Identity("ngw-1", "vpc-1", run), bound_bytes=1 << 30, ledger=ledger), ledger


def die(spool):
    """Nothing is closed in order; the kernel lets the lock go."""
    os.close(spool._lock_descriptor)


def test_a_run_without_its_end_mark_leaves_a_gap_row_in_its_name(tmp_path):
    spool, ledger = open_spool(tmp_path, "run1")
    assert not spool.begin_run(Beat(0, 0, 0, 0))
    ledger.accept(10)
    spool.append(make_records(10, 40))
    spool.note(Beat(7 * SECOND, 9 * SECOND, 1000 * SECOND, 45))
    die(spool)
    spool, ledger = open_spool(tmp_path, "run2")
    assert spool.begin_run(Beat(0, 0, 1060 * SECOND, 0))
    ledger.accept(3)
    spool.append(make_records(3))
    batch = spool.take(100)
    assert batch.run == "run1" and len(batch) == 10
    spool.acknowledge()
    batch = spool.take(100)
    (gap,) = batch.records
    assert batch.run == "run1" and (gap["kind"], gap["flags"], gap["session"]) == (GAP, GAP_DIED, 0)
    assert gap["number"] == GAP_NUMBER + 45  # behind every row that the run can have had
    # From the oldest open window to this start: the gateway's clock may have stood still at the last heartbeat.
    assert (gap["start_time"], gap["end_time"]) == (7 * SECOND, 1060 * SECOND)
    spool.acknowledge()
    batch = spool.take(100)
    assert batch.run == "run2" and len(batch) == 3
    counters = ledger.counters()
    assert (counters["recovered"], counters["gaps"]) == (10, 1)
    assert_adds_up(counters)


@pytest.mark.parametrize("wall, end", [(1000, 2001), (1010, 2010), (10, 2001), (3000, 4000)])
def test_a_gap_of_a_gateway_ahead_of_the_machines_clock_ends_by_the_last_beat_and_the_time_since(tmp_path, wall, end):
    spool, _ = open_spool(tmp_path, "run1")
    spool.begin_run(Beat(5 * SECOND, 2000 * SECOND, 1000 * SECOND, 3))
    die(spool)
    spool, _ = open_spool(tmp_path, "run2")
    assert spool.begin_run(Beat(0, 0, wall * SECOND, 0))
    gap = spool.take(1).records[0]
    assert (gap["start_time"], gap["end_time"], gap["number"]) == (5 * SECOND, end * SECOND, GAP_NUMBER + 3)


def test_an_orderly_end_leaves_no_gap_and_a_second_death_leaves_a_second(tmp_path):
    spool, _ = open_spool(tmp_path, "run1")
    spool.begin_run(Beat(0, 0, 0, 0))
    spool.end_run()
    spool.close()
    for number, gaps in ((2, 0), (3, 1), (4, 2)):
        spool, ledger = open_spool(tmp_path, f"run{number}")
        spool.begin_run(Beat(0, 0, number * SECOND, 0))
        assert spool.rows == gaps and ledger.counters()["spooled"] == gaps
        die(spool)


def test_a_damaged_run_file_is_told_and_stops_nothing(tmp_path, caplog):
    (tmp_path / "run").write_bytes(b"NATCRUN1 but not really")
    spool, _ = open_spool(tmp_path, "run1")
    assert not spool.begin_run(Beat(0, 0, 0, 0)) and "damaged" in caplog.text
    assert read_run(tmp_path) == (Identity("ngw-1", "vpc-1", "run1"), Beat(0, 0, 0, 0))


class Bench:
    def __init__(self, folder, run="run1", wall=1000.0):
        self.core, self.wall, self.folder = FakeCore(), FakeClock(wall), folder
        self.collector = Collector(
            self.core, instance="i", vpc_id="v", run=run, threads=False, clock=FakeClock(), wall=self.wall
        )
        self.sink = ScriptedSink(events=True)
        self.sink.gaps = True

    def start(self):
        return self.collector.start(self.sink, name="log", spool=self.folder)

    def beat_of(self):
        return read_run(self.folder / "log")[1]


def test_a_heartbeat_covers_what_is_in_the_spool_and_no_more(tmp_path):
    bench = Bench(tmp_path)
    log = bench.start()
    bench.core.now_ns, bench.core.oldest_ns = 30 * 10**9, 20 * 10**9
    bench.core.produce(5)
    bench.wall.now = 1030.0
    bench.collector.beat()
    assert bench.beat_of() == Beat(0, 0, 1000 * SECOND, 0, made=-1, swept=-1)  # the rows are in memory
    log._persist()
    told = 30 * SECOND - 1  # in that microsecond more may come
    expected = Beat(20 * SECOND, 30 * SECOND, 1030 * SECOND, 5, made=told, swept=told)
    assert replace(bench.beat_of(), facts=0) == expected
    bench.collector.stop(log)
    assert bench.beat_of().ended


def test_a_disk_that_takes_no_rows_gets_no_heartbeat_and_no_end_mark(tmp_path, monkeypatch):
    bench = Bench(tmp_path)
    log = bench.start()
    bench.core.produce(5)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("natcore.sessionlog.spool.spool.write_all", full)
        bench.sink.answer = lambda batch, attempt: full()
        bench.core.now_ns = 10**9
        bench.collector.beat()
        assert not log._persist()
        assert bench.beat_of().now == 0
        assert bench.collector.stop(log, timeout=0) == 5
    assert log.counters()["lost_shutdown"] == 5 and not bench.beat_of().ended
    after = Bench(tmp_path, "run2", 1001.0)
    log = after.start()
    assert log.counters()["gaps"] == 1
    log._send()
    assert after.sink.taken[0].records["kind"].tolist() == [GAP] and after.sink.taken[0].run == "run1"


def no_space(*_):
    raise OSError(28, "No space left on device")


def test_the_gap_row_of_a_run_with_a_broken_spool_has_no_number_of_a_delivered_row(tmp_path, monkeypatch):
    bench = Bench(tmp_path)
    log = bench.start()
    bench.core.produce(5)
    bench.collector.beat()
    assert log._persist()
    with monkeypatch.context() as patch:
        patch.setattr("natcore.sessionlog.spool.spool.write_all", no_space)
        bench.core.produce(5)
        bench.collector.beat()
        assert not log._persist()
        while log._send() == 0.0:
            pass
    assert bench.sink.numbers == [*range(10)] and bench.beat_of().next_number == 5
    die(log._spool)
    after = Bench(tmp_path, "run2", 1001.0)
    log = after.start()
    log._send()
    (gap,) = after.sink.taken[0].records
    assert (gap["kind"], gap["flags"]) == (GAP, GAP_DIED) and gap["number"] not in bench.sink.numbers


def test_a_run_that_goes_on_behind_a_gap_row_of_its_own_loses_no_row_in_parquet(tmp_path, monkeypatch):
    """A log that could not end in order is started again in its process."""
    monkeypatch.setattr(Spool, "end_run", lambda spool: None)
    folder = tmp_path / "parquet"
    bench = Bench(tmp_path / "spool")
    for rows in (5, 3, 4):
        bench.sink = ParquetSink(folder)
        log = bench.start()
        bench.core.produce(rows)
        bench.collector.step()
        assert log._persist()
        while log._send() == 0.0:
            pass
        bench.collector.stop(log)
    tables = [pq.read_table(path, columns=["kind", "number"]) for path in folder.glob("*.parquet")]
    rows = [tuple(row.values()) for table in tables for row in table.to_pylist() if row["kind"] in ("window", "gap")]
    assert sorted(rows) == [("gap", GAP_NUMBER), ("gap", GAP_NUMBER + 5), *(("window", number) for number in range(12))]
    assert not verify(folder).findings


def test_rows_that_found_the_ring_full_leave_a_gap_row_in_every_log_and_their_numbers_missing(tmp_path):
    bench = Bench(tmp_path)
    bench.core.capacity = 100
    log = bench.start()
    other = ScriptedSink()  # takes none
    without = bench.collector.start(other, name="other")
    bench.core.now_ns = 40 * 10**9
    bench.core.oldest_ns = 25 * 10**9
    bench.collector.beat()
    bench.core.now_ns = 50 * 10**9
    bench.core.produce(130)
    bench.collector.step()
    bench.core.produce(1)
    bench.collector.step()
    log._persist()
    for each in (log, without):
        while each._send() == 0.0:
            pass
        assert_adds_up(each.counters())
    gap = next(row for batch in bench.sink.taken for row in batch.records if row["kind"] == GAP)
    assert bench.sink.numbers == [*range(100), 129, 130]
    assert (gap["number"], gap["session"], gap["flags"]) == (129, 30, GAP_RING)
    assert (gap["start_time"], gap["end_time"]) == (25 * SECOND, 50 * SECOND)
    assert other.numbers == [*range(100), 130] and without.counters()["gaps"] == 1
    assert bench.collector.counters()["lost_ring"] == 30

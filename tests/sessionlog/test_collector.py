"""The collector: rows once to every log, the identities, R1 and R10 at start and stop, R6."""

from __future__ import annotations

import threading

import pytest

from natcore import ConfigurationError, DeliveryPolicy
from natcore.dtypes import CREATE, END, WINDOW
from natcore.sessionlog.collector import Collector
from natcore.sinks import MemorySink
from support.log_fakes import FakeClock, FakeCore, ScriptedSink, assert_adds_up


def make(core, **more):
    return Collector(core, instance="ngw-1", vpc_id="vpc-1", run="run1", threads=False, clock=FakeClock(), **more)


def test_nothing_is_taken_while_no_log_runs():
    core = FakeCore()
    collector = make(core)
    core.produce(10)
    assert not collector.active and collector.step() == 0 and core.waiting == 10
    assert collector.counters() == {"produced": 0, "accepted": 0, "lost_ring": 0, "unclaimed": 0, "clock_changes": 0}


def test_several_logs_get_the_same_rows_with_the_same_numbers():
    core, one, two = FakeCore(), ScriptedSink(events=True), ScriptedSink(events=True)
    collector = make(core)
    logs = [collector.start(sink) for sink in (one, two)]
    core.produce_sessions(100)
    assert collector.step() == 300
    for log in logs:
        log._send()
        log._send()
        assert_adds_up(log.counters())
    assert one.numbers == two.numbers == list(range(300))
    assert {(batch.instance, batch.vpc_id, batch.run) for batch in one.taken} == {("ngw-1", "vpc-1", "run1")}
    assert [log.name for log in logs] == ["scripted", "scripted-2"]


def test_a_sink_without_events_gets_the_window_rows_alone():
    core, sink = FakeCore(), ScriptedSink()
    collector = make(core)
    log = collector.start(sink)
    core.produce(90, (CREATE, WINDOW, END))
    collector.step()
    log._send()
    log._send()
    assert sink.numbers == list(range(1, 90, 3))
    counters = log.counters()
    assert (counters["accepted"], counters["withheld"]) == (30, 60)
    assert collector.counters()["accepted"] == 90


def test_R1_a_log_that_starts_counts_from_its_start():
    core, early, late = FakeCore(), ScriptedSink(), ScriptedSink()
    collector = make(core)
    core.produce(7)  # before any log: they are not taken
    first = collector.start(early)
    core.produce(5)
    core.open_windows = 3
    second = collector.start(late)
    assert core.open_windows == 3  # they stay open for the first log
    core.produce(2)
    collector.step()
    for log in (first, second):
        log._send()
        log._send()
    assert len(early.numbers) == 5 + 2 and len(late.numbers) == 2
    assert collector.counters() == {"produced": 7, "accepted": 7, "lost_ring": 0, "unclaimed": 7, "clock_changes": 0}


def test_produced_is_accepted_and_lost_in_the_ring():
    core = FakeCore(capacity=100)
    core.produce(150)  # 50 lost before a log runs: not the log's
    collector = make(core)
    log = collector.start(ScriptedSink())
    core.produce(130)
    collector.step()
    assert collector.counters() == {
        "produced": 130,
        "accepted": 100,
        "lost_ring": 30,
        "unclaimed": 100,
        "clock_changes": 0,
    }
    collector.stop(log, timeout=0)
    core.produce(200)  # no log: not counted
    assert collector.counters()["produced"] == 130
    collector.start(ScriptedSink())
    core.produce(101)
    collector.step()
    assert collector.counters() == {
        "produced": 231,
        "accepted": 200,
        "lost_ring": 31,
        "unclaimed": 200,
        "clock_changes": 0,
    }


def test_R10_stop_closes_open_windows_and_delivers_them_though_the_ring_is_small():
    core, sink = FakeCore(capacity=64), ScriptedSink()
    collector = make(core)
    log = collector.start(sink)
    core.open_windows = 1000
    assert collector.stop(log, timeout=1.0) == 0
    assert len(sink.numbers) == 1000 and core.journal_lost == 0
    assert log.status == "Disabled" and sink.closed == 1 and not collector.active
    assert collector.stop(log) == 0  # idempotent


def test_more_rows_than_fit_into_one_drain():
    core, sink = FakeCore(capacity=200_000), ScriptedSink()
    collector = make(core)
    log = collector.start(sink, delivery=DeliveryPolicy(batch=50_000))
    core.produce(150_000)
    assert collector.step() == 150_000
    while log._send() == 0.0:
        pass
    assert sink.numbers == list(range(150_000))


class LockedCore(FakeCore):
    """A core for a collector with its thread: `drained` is set by each drain that took rows."""

    def __init__(self, capacity):
        super().__init__(capacity)
        self.lock, self.drained = threading.Lock(), threading.Event()

    def produce(self, count, kinds=(WINDOW,)):
        with self.lock:
            super().produce(count, kinds)

    def drain(self, records):
        with self.lock:
            taken = super().drain(records)
        if taken:
            self.drained.set()
        return taken


def test_a_ring_that_fills_is_emptied_before_its_time():
    core = LockedCore(capacity=800)
    clock = FakeClock()  # it stands still: after the first one no drain is due
    collector = Collector(core, instance="i", vpc_id="v", clock=clock)
    log = collector.start(ScriptedSink())
    for _ in range(20):
        core.drained.clear()
        core.produce(100)
        assert core.drained.wait(60)
    clock.now += 1.0
    core.drained.clear()
    core.produce(1)  # it does not fill; its time has come
    assert core.drained.wait(60)
    collector.stop(log)
    assert collector.counters()["accepted"] == 2001 and core.journal_lost == 0


def test_R6_refused_for_a_pay_by_specification_gateway():
    with pytest.raises(ConfigurationError, match=r"billing must be 'by-usage' .*, got 'by-specification'"):
        make(FakeCore(), billing="by-specification").start(MemorySink())


def test_R6_refused_where_gateway_and_project_are_in_different_regions():
    collector = make(FakeCore(), region="cn-hangzhou")
    with pytest.raises(ConfigurationError, match=r"sink.region must be 'cn-hangzhou'.*, got 'cn-beijing'"):
        collector.start(ScriptedSink(region="cn-beijing"))
    collector.start(ScriptedSink(region="cn-hangzhou"))
    for nowhere in (None, ""):
        with pytest.raises(ConfigurationError, match=r"region must be 'cn-hangzhou', where the sink is, got ''"):
            make(FakeCore(), region=nowhere).start(ScriptedSink(region="cn-hangzhou"))
    collector.start(ScriptedSink())


def test_bad_arguments_name_what_is_expected(tmp_path):
    collector = make(FakeCore())
    sink = ScriptedSink()
    collector.start(sink, name="audit")
    with pytest.raises(ConfigurationError, match="deliver"):
        collector.start(object())
    with pytest.raises(ConfigurationError, match=r"name must .*, got 'audit'"):
        collector.start(ScriptedSink(), name="audit")
    with pytest.raises(ConfigurationError, match=r"name must .*, got '\.\./x'"):
        collector.start(ScriptedSink(), name="../x")
    with pytest.raises(ConfigurationError, match="sink must be used by one session log"):
        collector.start(sink, name="other")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="spool must be a writable folder"):
        collector.start(ScriptedSink(), spool=tmp_path / "file", on_failure="refuse")
    foreign = make(FakeCore()).start(ScriptedSink())
    with pytest.raises(ConfigurationError, match="of this gateway"):
        collector.stop(foreign)


def test_close_stops_every_log_and_is_idempotent():
    core, sinks = FakeCore(), [ScriptedSink(), ScriptedSink(events=True)]
    collector = make(core)
    logs = [collector.start(sink) for sink in sinks]
    core.produce(10)
    assert collector.close() == 0
    assert [len(sink.numbers) for sink in sinks] == [10, 10]
    assert {log.status for log in logs} == {"Disabled"}
    assert collector.close() == 0

"""SessionLog: its account under every kind of failure, R2, R3, R9, D1 to D6 end to end, threads, hung sinks, change."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import threading

import pytest

from natcore import ConfigurationError, DeliveryError, DeliveryPolicy
from natcore.dtypes import GAP, GAP_LOST, RECORD
from natcore.sessionlog.collector import Collector
from natcore.sinks import BaseSink, Batch, Receipt
from support.log_fakes import FakeClock, FakeCore, ScriptedSink, assert_adds_up, make_records

POLICY = DeliveryPolicy(batch=100)


class Bench:
    """A collector, a core and a clock without threads."""

    def __init__(self, **more):
        self.core, self.clock = FakeCore(), FakeClock()
        self.collector = Collector(
            self.core, instance="ngw-1", vpc_id="vpc-1", threads=False, clock=self.clock, wall=self.clock,
            chance=random.Random(1), **more,
        )  # fmt: skip

    def start(self, sink, policy=POLICY, **more):
        sink.clock = self.clock
        return self.collector.start(sink, delivery=policy, **more)

    def run(self, log, seconds, tick=1.0):
        """Virtual time: at each tick what the threads would do."""
        until = self.clock.now + seconds
        while True:
            self.collector.step()
            if log._spool is not None:
                log._persist()
            while log._send() == 0.0:
                pass
            assert_adds_up(log.counters())
            if self.clock.now >= until:
                return
            self.clock.now += tick


def fail(code, action="backoff", retry_after=None):
    raise DeliveryError(code, f"{code} it says", action, retry_after)


def test_R9_statuses():
    bench = Bench()
    sink = ScriptedSink(lambda batch, attempt: fail("ServerBusy") if attempt == 1 else None)
    log = bench.start(sink)
    assert (log.status, log.delivery_status.state, log.delivery_type) == ("Enabled", "Modifying", "scripted")
    log._send()
    assert log.delivery_status.state == "Success" and sink.opened == 1
    bench.core.produce(5)
    bench.run(log, 0)
    status = log.delivery_status
    assert (status.state, status.code, status.message) == ("Failed", "ServerBusy", "ServerBusy it says")
    assert status.since == bench.clock.now
    bench.run(log, 5)
    assert log.delivery_status.state == "Success" and log.delivery_status.code == ""
    bench.collector.stop(log)
    assert log.status == "Disabled"


def test_rows_wait_to_fill_a_batch_but_no_longer_than_the_linger():
    bench = Bench()
    sink = ScriptedSink(batch_seconds=None)
    log = bench.start(sink, DeliveryPolicy(batch=100, linger=2.0))
    log._send()
    bench.core.produce(30)
    bench.collector.step()
    assert log._send() == 2.0 and not sink.taken
    bench.core.produce(80)
    bench.collector.step()
    assert log._send() == 0.0
    assert log._send() == 2.0
    bench.clock.now += 2.0
    log._send()
    assert [len(batch) for batch in sink.taken] == [100, 10]


def test_a_batch_that_failed_is_sent_again_with_the_same_rows():
    """Its answer alone may have been lost: a receiver knows rows by the batch's first number and their position."""
    bench = Bench()
    sent: list[list[int]] = []

    def answer(batch, attempt):
        sent.append(batch.records["number"].tolist())
        if attempt < 4:
            fail("LogRequestError")

    log = bench.start(ScriptedSink(answer))
    for _ in range(10):
        bench.core.produce(30)
        bench.run(log, 1)
    assert sent[:4] == [list(range(30))] * 4 and len(sent[4]) == 90


@pytest.mark.parametrize("with_spool", [False, True])
def test_a_batch_of_many_small_pieces_has_the_records_layout(tmp_path, with_spool):
    bench = Bench()
    sink = ScriptedSink(batch_seconds=None, events=True)
    log = bench.start(sink, DeliveryPolicy(batch=1000, linger=10), spool=tmp_path if with_spool else None)
    for _ in range(10):
        bench.core.produce_sessions(10)
        bench.run(log, 0)
    bench.run(log, 10)
    (batch,) = sink.taken
    assert batch.records.dtype == RECORD and batch.records.itemsize == 96 and len(batch) == 300
    assert sink.numbers == list(range(300))


def test_R3_any_other_exception_is_backoff_and_logged_once_with_its_traceback(caplog):
    bench = Bench()
    sink = ScriptedSink(lambda batch, attempt: 1 / 0 if attempt < 5 else None)
    log = bench.start(sink)
    bench.core.produce(20)
    bench.run(log, 30)
    assert sink.numbers == list(range(20))
    assert [record.exc_info[0] for record in caplog.records] == [ZeroDivisionError]


ENDS = [asyncio.CancelledError, SystemExit, KeyboardInterrupt, GeneratorExit]


@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize("method", ["open", "deliver"])
def test_what_would_end_a_thread_is_backoff_as_any_other_exception(kind, method, caplog):
    bench, tries = Bench(), itertools.count(1)

    def fail_thrice(*_):
        if next(tries) < 4:
            raise kind("out of here")

    sink = ScriptedSink(fail_thrice if method == "deliver" else lambda batch, attempt: None)
    if method == "open":
        sink.open = fail_thrice
    log = bench.start(sink)
    bench.core.produce(20)
    bench.run(log, 0)
    assert (log.delivery_status.state, log.delivery_status.code) == ("Failed", kind.__name__)
    bench.run(log, 30)
    assert sink.numbers == list(range(20)) and log.delivery_status.state == "Success"
    assert [record.exc_info[0] for record in caplog.records] == [kind]


@pytest.mark.parametrize("with_spool", [False, True])
def test_a_delivery_thread_that_fails_is_told_and_goes_on(tmp_path, caplog, monkeypatch, with_spool):
    """Whatever ended it: no row is lost, the status says Failed meanwhile, and a traceback tells once."""
    monkeypatch.setattr("natcore.sessionlog.session_log._THREAD_RETRY_SECONDS", 0.0)
    core, sink, states = FakeCore(), ScriptedSink(), []
    collector = Collector(core, instance="i", vpc_id="v")
    log = collector.start(sink, spool=tmp_path if with_spool else None, delivery=DeliveryPolicy(backoff_min=0.01))
    assert log.wait(60)
    dispose, failures = log._sender._dispose, itertools.count()

    def fail_twice(*arguments):
        if next(failures) < 2:
            raise SystemExit("the thread ends")
        states.append(log.delivery_status.code)
        dispose(*arguments)

    monkeypatch.setattr(log._sender, "_dispose", fail_twice)
    core.produce(20)
    assert log.wait(60)
    collector.close()
    assert set(sink.numbers) == set(range(20)) and log.counters()["delivered"] == 20
    assert [record.exc_info[0] for record in caplog.records] == [SystemExit, SystemExit]
    assert "delivery thread" in caplog.records[0].message
    assert_adds_up(log.counters())


def test_a_spool_thread_that_fails_is_told_and_goes_on(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("natcore.sessionlog.session_log._THREAD_RETRY_SECONDS", 0.0)
    core, sink = FakeCore(), ScriptedSink()
    collector = Collector(core, instance="i", vpc_id="v")
    log = collector.start(sink, spool=tmp_path)
    append, failures = log._spool.append, itertools.count()

    def fail_once(*arguments):
        if next(failures) == 0:
            raise MemoryError
        append(*arguments)

    monkeypatch.setattr(log._spool, "append", fail_once)
    core.produce(20)
    assert log.wait(60)
    core.produce(20)
    assert log.wait(60)
    collector.close()
    assert sorted(sink.numbers) == list(range(40)) and log.counters()["delivered"] == 40
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [MemoryError]


def test_rows_refused_as_bad_are_lost_and_counted_where_there_is_no_spool():
    bench = Bench()
    log = bench.start(ScriptedSink(lambda batch, attempt: fail("PostBodyInvalid", "reject") if attempt == 1 else None))
    bench.core.produce(150)
    bench.run(log, 3)
    counters = log.counters()
    assert (counters["delivered"], counters["lost_rejected"], counters["dead_letter"]) == (50, 100, 0)


def test_rows_refused_as_bad_go_to_the_dead_letter_file(tmp_path):
    bench = Bench()
    log = bench.start(
        ScriptedSink(lambda batch, attempt: fail("InvalidKey", "reject") if attempt == 1 else None),
        name="audit", spool=tmp_path,
    )  # fmt: skip
    bench.core.produce(150)
    bench.run(log, 3)
    assert (log.counters()["delivered"], log.counters()["dead_letter"]) == (50, 100)
    path = tmp_path / "audit" / "dead-letter.jsonl"
    lines = path.read_text().splitlines()
    assert len(lines) == 100 and '"code":"InvalidKey"' in lines[0] and '"number":0' in lines[0]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_batch_too_large_is_halved_and_every_row_arrives_in_order():
    bench = Bench()
    sink = ScriptedSink(lambda batch, attempt: fail("PostBodyTooLarge", "split") if len(batch) > 30 else None)
    log = bench.start(sink)
    bench.core.produce(100)
    bench.run(log, 1)
    assert sink.numbers == list(range(100)) and max(len(batch) for batch in sink.taken) <= 30


@pytest.mark.parametrize("gaps", [False, True])
def test_memory_is_bounded_the_oldest_rows_go_first_and_a_gap_row_says_so(monkeypatch, gaps):
    monkeypatch.setattr("natcore.sessionlog.session_log._MEMORY_ROWS", 1000)
    bench = Bench()
    sink = ScriptedSink(lambda batch, attempt: fail("ServerBusy") if bench.clock.now < 2000 else None)
    sink.gaps = gaps
    log = bench.start(sink)
    for _ in range(30):
        bench.core.produce(100)
        bench.run(log, 1)
    assert log.counters()["lost_queue_full"] == 2000 and log.counters()["queued"] == 1000 + 1  # the gap row
    bench.clock.now = 2000
    bench.run(log, 100)
    assert sink.numbers == list(range(1999 if gaps else 2000, 3000))
    assert log.counters()["delivered"] == 1000 + gaps and log.counters()["gaps"] == 1
    if gaps:
        gap, lost = sink.taken[0].records[0], make_records(2000)
        assert (gap["kind"], gap["session"], gap["flags"]) == (GAP, 2000, GAP_LOST)
        assert (gap["start_time"], gap["end_time"]) == (lost["start_time"].min(), lost["end_time"].max())


CODES = [("ProjectNotExist", "unavailable"), ("LogStoreNotExist", "unavailable"), ("ProjectForbidden", "unavailable"),
         ("Unauthorized", "unavailable"), ("InvalidAccessKeyId", "backoff"), ("WriteQuotaExceed", "backoff"),
         ("ShardWriteQuotaExceed", "backoff"), ("InternalServerError", "backoff")]  # fmt: skip


@pytest.mark.parametrize("manner", ["once", "an hour", "intermittent"])
@pytest.mark.parametrize("code, action", CODES)
def test_each_error_for_an_hour_of_virtual_time_loses_nothing(tmp_path, code, action, manner):
    bench, chance = Bench(), random.Random(code)

    def answer(batch, attempt):
        failing = {"once": attempt == 1, "an hour": bench.clock.now < 4600, "intermittent": chance.random() < 0.5}
        if failing[manner]:
            fail(code, action)

    sink = ScriptedSink(answer)
    log = bench.start(sink, name="audit", spool=tmp_path)
    for _ in range(360):
        bench.core.produce(20)
        bench.run(log, 10, tick=5.0)
    bench.run(log, 24 * 3600, tick=60.0)
    assert sink.numbers == list(range(7200))
    assert log.counters()["delivered"] == 7200 and log.counters()["lost"] == 0
    if action == "unavailable" and manner != "intermittent":
        failures = [at for at, _ in sink.tries[: len(sink.tries) - len(sink.taken)]]
        assert all(later - earlier >= 300 for earlier, later in itertools.pairwise(failures))
        assert len(failures) == (1 if manner == "once" else 12)


def test_D6_two_logs_of_one_destination_make_one_test_between_them():
    bench = Bench()

    def answer(batch, attempt):
        if bench.clock.now < 2000:
            fail("LogStoreNotExist", "unavailable")

    one, two = ScriptedSink(answer, target="p/l"), ScriptedSink(answer, target="p/l")
    logs = [bench.start(sink) for sink in (one, two)]
    bench.core.produce(10)
    for _ in range(1500):
        for log in logs:
            bench.run(log, 0)
        bench.clock.now += 1
    tries = sorted(at for at, _ in one.tries + two.tries)
    before = [at for at in tries if at < 2000]
    assert len(before) == 4 and all(b - a >= 300 for a, b in itertools.pairwise(before))
    assert one.numbers == two.numbers == list(range(10))
    assert {log.delivery_status.state for log in logs} == {"Success"}


def test_D6_a_log_shows_what_another_has_found_out():
    bench = Bench()
    one = ScriptedSink(lambda batch, attempt: fail("ProjectForbidden", "unavailable"), target="q/l")
    two = ScriptedSink(target="q/l")
    first, second = bench.start(one), bench.start(two)
    bench.run(first, 0)
    bench.run(second, 0)
    bench.core.produce(1)
    bench.run(first, 0)
    status = second.delivery_status
    assert (status.state, status.code, status.cause) == ("Failed", "UnavaliableTarget", "ProjectForbidden")
    bench.run(second, 299)
    assert two.tries == []


def test_change_of_destination_takes_the_waiting_rows_along():
    bench = Bench()
    bad, good = ScriptedSink(lambda batch, attempt: fail("ServerBusy")), ScriptedSink(events=True)
    log = bench.start(bad)
    bench.core.produce(250)
    bench.run(log, 3)
    log.change(good)
    assert log.delivery_status.state == "Modifying" and bad.closed == 1
    good.clock = bench.clock
    bench.run(log, 1)
    assert good.numbers == list(range(250)) and log.delivery_status.state == "Success"
    bench.collector.stop(log)
    with pytest.raises(ConfigurationError, match="has been stopped"):
        log.change(ScriptedSink())


def test_event_rows_in_the_spool_do_not_reach_a_sink_that_takes_none(tmp_path):
    bench = Bench()
    log = bench.start(ScriptedSink(lambda batch, attempt: fail("ServerBusy"), events=True), spool=tmp_path)
    bench.core.produce_sessions(50)
    bench.run(log, 2)
    plain = ScriptedSink()
    log.change(plain)
    bench.run(log, 2)
    assert plain.numbers == list(range(1, 150, 3))
    assert (log.counters()["delivered"], log.counters()["withheld"]) == (50, 100)


# With threads: nothing below waits for time to pass, only for things to happen.


class EndsWhenLookedAt:
    """A thread that has ended by the second look at it."""

    def __init__(self):
        self.looks = 0

    def is_alive(self):
        self.looks += 1
        return self.looks == 1

    def join(self, timeout):
        pass


def test_a_thread_that_ends_while_the_stop_looks_is_waited_for_no_more():
    bench = Bench()
    log = bench.start(ScriptedSink())
    log._threads = [EndsWhenLookedAt()]
    assert bench.collector.stop(log) == 0 and log.status == "Disabled"


class HangingSink(BaseSink):
    delivery_type = "hanging"
    batch_seconds = 0.0

    def __init__(self) -> None:
        self.entered, self.release = threading.Event(), threading.Event()

    def deliver(self, batch: Batch) -> Receipt | None:
        self.entered.set()
        assert self.release.wait(60)
        return None


def threaded(core):
    return Collector(core, instance="ngw-1", vpc_id="vpc-1")


def test_threads_deliver_and_wait_tells_when():
    core, sink = FakeCore(), ScriptedSink(batch_seconds=None)
    collector = threaded(core)
    log = collector.start(sink, delivery=DeliveryPolicy(linger=3600))
    core.produce(5000)
    assert log.wait(60)
    assert sink.numbers == list(range(5000)) and log.delivery_status.state == "Success"
    core.produce(100)
    assert collector.close(30) == 0
    assert len(sink.numbers) == 5100 and sink.closed == 1
    assert_adds_up(log.counters())


@pytest.mark.parametrize("with_spool", [False, True])
def test_a_hung_destination_stops_neither_other_logs_nor_the_spool_nor_shutdown(tmp_path, with_spool):
    core, hung, sink = FakeCore(), HangingSink(), ScriptedSink()
    collector = threaded(core)
    stuck = collector.start(hung, name="stuck", spool=tmp_path if with_spool else None)
    log = collector.start(sink)
    core.produce(100)
    assert log.wait(60) and hung.entered.wait(60)
    core.produce(1000)
    assert log.wait(60) and len(sink.numbers) == 1100
    assert not stuck.wait(0.01)
    assert collector.stop(stuck, timeout=0.2) == 1100
    counters = stuck.counters()
    assert (counters["spooled"], counters["lost_shutdown"]) == ((1100, 0) if with_spool else (0, 1100))
    hung.release.set()  # too late an answer changes nothing
    collector.close(30)
    assert stuck.counters() == counters
    assert_adds_up(counters)


def test_a_sink_that_hangs_can_be_changed(monkeypatch):
    monkeypatch.setattr("natcore.sessionlog.session_log._STOP_SECONDS", 0.2)
    core, hung, sink = FakeCore(), HangingSink(), ScriptedSink()
    collector = threaded(core)
    log = collector.start(hung)
    core.produce(100)
    collector.step()
    assert hung.entered.wait(60)
    log.change(sink)
    assert log.wait(60) and sink.numbers == list(range(100))
    hung.release.set()
    assert collector.close(30) == 0
    assert log.counters()["delivered"] == 100


def test_stop_does_not_wait_for_a_destination_that_will_not_be_tried_in_time(tmp_path):
    core = FakeCore()
    collector = threaded(core)
    sink = ScriptedSink(lambda batch, attempt: fail("Unauthorized", "unavailable"))
    log = collector.start(sink, spool=tmp_path)
    core.produce(10)
    assert collector.stop(log, timeout=100.0) == 10  # 300 s away: given up at once, the test's own time-out is less
    assert log.counters()["spooled"] == 10 and len(sink.tries) == 1


def test_what_one_process_leaves_in_the_spool_the_next_delivers_first(tmp_path):
    core = FakeCore()
    collector = threaded(core)
    log = collector.start(ScriptedSink(lambda batch, attempt: fail("ServerBusy")), name="audit", spool=tmp_path)
    core.produce(500)
    assert collector.close(0.3) == 500
    sink = ScriptedSink()
    core = FakeCore()
    later = threaded(core)
    log = later.start(sink, name="audit", spool=tmp_path)
    core.produce(10)
    assert log.wait(60)
    assert sink.numbers == [*range(500), *range(10)]
    assert len({batch.run for batch in sink.taken}) == 2
    assert (log.counters()["recovered"], log.counters()["delivered"]) == (500, 510)
    later.close()


def test_redaction_comes_before_the_spool_and_reaches_what_an_earlier_run_left_in_it(tmp_path):
    bench = Bench()
    log = bench.start(ScriptedSink(lambda *_: fail("ServerBusy")), name="log", spool=tmp_path)
    bench.core.produce(10)
    bench.run(log, 0)
    bench.collector.stop(log, timeout=0)
    bench = Bench()
    sink = ScriptedSink(lambda batch, attempt: fail("InvalidKey", "reject") if attempt == 1 else None)
    log = bench.start(sink, name="log", spool=tmp_path, redact_destination=True)
    bench.core.produce(10)
    bench.collector.step()
    log._persist()
    assert not any(b"\xc6\x33\x64"[::-1] in path.read_bytes() for path in sorted(tmp_path.rglob("*.segment"))[1:])
    bench.run(log, 100)
    rows = [json.loads(line) for line in (tmp_path / "log" / "dead-letter.jsonl").read_text().splitlines()]
    assert len(rows) == 10 and {row["pub_ip"] for row in rows} == {"0.0.0.0"}
    taken = sink.taken[0].records
    assert len(taken) == 10 and not taken["pub_ip"].any() and not taken["pub_port"].any() and taken["pri_ip"].all()
    assert log.redact_destination

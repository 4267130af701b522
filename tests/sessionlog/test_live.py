"""Session logs while traffic flows: started, stopped, sent elsewhere; the accounts agree whenever they are read."""

from __future__ import annotations

import random
import threading
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest

from natcore import DeliveryError, DeliveryPolicy, Gateway, Side, SnatEntry
from natcore.dtypes import GAP, WINDOW
from natcore.sinks import MemorySink
from natcore.testing.bulk import UDP, packets
from support.log_fakes import ScriptedSink, assert_adds_up
from support.netns import until

FLOWS, CALLS = 500, 150
EAGER = DeliveryPolicy(linger=0.0, backoff_min=0.001, backoff_max=0.002)
QUICK = DeliveryPolicy(linger=0.0, batch=64, backoff_min=0.001, backoff_max=0.002, spool_bytes=1 << 16)


class Live:
    """A gateway under traffic, in a thread; every packet that was sent, by inside port."""

    def __init__(self) -> None:
        self.gateway = Gateway(instance="ngw-1", vpc_id="vpc-1", seed=1, window=5.0)
        self.gateway.add(SnatEntry("10.0.0.0/8", pool="203.0.113.1"))
        self.frames, self.lengths = packets(UDP, 0x0A000001, 1024 + np.arange(FLOWS), 0xC6336407, 53)
        self.sent: Counter[int] = Counter()
        self.enough, self.ended = threading.Event(), threading.Event()

    def flow(self) -> None:
        """Until there is enough, but CALLS batches at least."""
        chance, call = random.Random(1), 0
        while call < CALLS or not self.enough.is_set():
            call += 1
            self.enough.wait(0.002)  # a pace that the sinks can keep up with
            now = call / 3
            flows = [chance.randrange(FLOWS) for _ in range(40)]
            verdicts = self.gateway.translate(self.frames[flows], self.lengths[:40].copy(), Side.INSIDE, now)
            assert (verdicts < 128).all()
            self.sent.update(1024 + flow for flow in flows)
            self.gateway.advance(now)
        self.ended.set()


@contextmanager
def in_thread(work, failures, enough):
    def run():
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def flaky(batch, attempt):
    if attempt % 3 == 0:
        raise DeliveryError("ServerBusy", "busy")
    if attempt % 11 == 0:
        raise DeliveryError("InvalidKey", "bad", "reject")


def test_the_accounts_agree_whenever_they_are_read_while_logs_come_and_go(tmp_path):
    live, failures, reads = Live(), [], []
    whole = MemorySink()
    logs = [live.gateway.start_session_log(whole, name="whole")]
    collector = live.gateway._collector

    def watch():
        while not live.ended.is_set():
            for log in list(logs):
                assert_adds_up(log.counters())
                reads.append(1)
            total = collector.counters()
            assert total["produced"] == total["accepted"] + total["lost_ring"]

    with in_thread(watch, failures, live.enough), in_thread(live.flow, failures, live.enough):
        for number in range(6):
            sink = ScriptedSink(flaky, events=number % 2 == 0)
            spool = tmp_path if number % 3 else None
            log = live.gateway.start_session_log(sink, name=f"log-{number}", spool=spool, delivery=QUICK)
            logs.append(log)
            log.change(ScriptedSink(flaky, events=number % 2 == 1))
            live.gateway.stop_session_log(log, timeout=5.0)
            assert_adds_up(log.counters())
    live.gateway.close()
    assert not failures and reads
    for log in logs:
        assert_adds_up(log.counters())
    counters = collector.counters()
    assert counters["lost_ring"] == 0 and logs[0].counters()["accepted"] == counters["accepted"]
    rows = whole.records[whole.records["kind"] == WINDOW]
    got = Counter()
    for port, count in zip(rows["pri_port"].tolist(), rows["pkts_from_vpc"].tolist(), strict=True):
        got[port] += count
    assert got == live.sent  # other logs' coming and going took nothing from this one
    assert not (whole.records["kind"] == GAP).any()
    assert whole.records["number"].tolist() == list(range(len(whole.records)))


class SlowToOpen(MemorySink):
    def __init__(self) -> None:
        super().__init__()
        self.may_open = threading.Event()

    def open(self) -> None:
        assert self.may_open.wait(60)


@pytest.mark.parametrize("with_spool", [False, True])
def test_R9_modifying_success_and_failed_while_traffic_flows(tmp_path, with_spool):
    live, failures = Live(), []
    first, second = SlowToOpen(), SlowToOpen()
    with in_thread(live.flow, failures, live.enough):
        log = live.gateway.start_session_log(first, spool=tmp_path if with_spool else None, delivery=EAGER)
        assert (log.status, log.delivery_status.state) == ("Enabled", "Modifying")
        first.may_open.set()
        assert log.wait(60) and log.delivery_status.state == "Success"
        failed = threading.Event()

        def refuse(batch, attempt):
            failed.set()
            raise DeliveryError("InvalidAccessKeyId", "no such key")

        log.change(ScriptedSink(refuse))
        assert failed.wait(60)
        # The answer is on its way to the status, which is "Success" as long as the sink was only opened.
        until(lambda: log.delivery_status.state == "Failed")
        status = log.delivery_status
        assert (status.state, status.code, log.delivery_type) == ("Failed", "InvalidAccessKeyId", "scripted")
        log.change(second)
        assert (log.delivery_status.state, log.delivery_type) == ("Modifying", "memory")
        second.may_open.set()
        assert log.wait(60) and log.delivery_status.state == "Success"
    live.gateway.close()
    assert not failures and (log.status, log.counters()["lost"]) == ("Disabled", 0)
    windows = [sink.records[sink.records["kind"] == WINDOW] for sink in (first, second) if sink.batches]
    counted = sum(int(rows["pkts_from_vpc"].sum()) for rows in windows)
    before = live.sent.total() - counted  # a log that starts counts from its start
    assert before >= 0 and counted > 0

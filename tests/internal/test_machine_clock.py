"""The clock that labels the session log: it is set, it stands still in sleep, and the log says so."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from natcore.dtypes import CLOCK
from natcore.internal import machine_clock
from natcore.internal.machine_clock import Change, ClockWatch, Readings
from natcore.sessionlog.collector import Collector
from natcore.sessionlog.facts import SUSPENDED
from support.log_fakes import FakeCore, ScriptedSink

SECOND = 1_000_000_000
START = Readings(1_700_000_000 * SECOND, 5000 * SECOND, 5000 * SECOND)
EPOCH_NS = START.real - START.monotonic  # the gateway's clock is CLOCK_MONOTONIC


def after(seconds: float, set_by: float = 0.0, slept: float = 0.0) -> Readings:
    ran, stepped, asleep = (round(each * SECOND) for each in (seconds, set_by, slept))
    return Readings(START.real + ran + asleep + stepped, START.monotonic + ran, START.boot + ran + asleep)


def test_a_clock_that_differs_by_half_a_second_is_followed() -> None:
    watch = ClockWatch(START)
    assert watch.look(after(10, set_by=0.5), EPOCH_NS, 0) is None
    assert watch.look(after(10, set_by=20.0), EPOCH_NS, 0) == Change(EPOCH_NS + 20 * SECOND, False)
    assert watch.look(after(10, set_by=-3.0), EPOCH_NS, 0) == Change(EPOCH_NS - 3 * SECOND, False)


def test_sleep_is_told_from_a_clock_that_was_set() -> None:
    watch = ClockWatch(START)
    assert watch.look(after(10, slept=600.0), EPOCH_NS, 0) == Change(EPOCH_NS + 600 * SECOND, True)
    assert watch.look(after(20, slept=600.0), EPOCH_NS + 600 * SECOND, 0) is None
    assert watch.look(after(30, slept=1200.0, set_by=50.0), EPOCH_NS + 600 * SECOND, 0) == Change(
        EPOCH_NS + 1250 * SECOND, False
    )


@dataclass
class Machine:
    now: Readings = START

    def __call__(self) -> Readings:
        return self.now


def test_a_clock_that_is_set_is_a_row_an_event_and_a_count() -> None:
    core, machine, sink = FakeCore(), Machine(), ScriptedSink(events=True)
    sink.gaps = sink.facts = True
    core.set_epoch(EPOCH_NS)
    core.now_ns = START.monotonic
    collector = Collector(
        core, instance="ngw-1", vpc_id="vpc-1", threads=False, clock_offset=lambda: 0, readings=machine
    )
    log = collector.start(sink)
    core.produce(3)
    machine.now = after(60, set_by=20.0)
    core.now_ns = machine.now.monotonic
    collector.beat()
    core.produce(2)
    collector.beat()
    while log._send() == 0.0:
        pass
    rows = np.concatenate(
        [batch.records[["kind", "number", "start_time", "end_time", "flags"]] for batch in sink.taken]
    )
    (change,) = rows[rows["kind"] == CLOCK]
    assert change["number"] == 3 and change["end_time"] - change["start_time"] == 20_000_000
    assert not change["flags"] & SUSPENDED and core.epoch_ns == EPOCH_NS + 20 * SECOND
    assert [event.reason for event in collector.take_notices()] == ["clock-set"] and collector.take_notices() == []
    assert collector.counters()["clock_changes"] == 1
    collector.close(0.0)


def test_clocks_that_were_read_with_a_pause_between_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that loses its processor for a second between two clocks sees no clock that was set."""
    clock = {"now": 5000 * SECOND, "looks": 0}

    def real() -> int:
        clock["looks"] += 1
        now = START.real + clock["now"] - START.monotonic
        if clock["looks"] == 1:
            clock["now"] += SECOND
        return now

    monkeypatch.setattr(machine_clock.time, "monotonic_ns", lambda: clock["now"])
    monkeypatch.setattr(machine_clock.time, "time_ns", real)
    monkeypatch.setattr(machine_clock.time, "clock_gettime_ns", lambda _: clock["now"])
    found = machine_clock.read()
    assert found.real - found.monotonic == START.real - START.monotonic

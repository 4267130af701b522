"""Gateways that are not closed: their logs are flushed at the program's end, and when the gateway is collected."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import warnings
import weakref
from pathlib import Path

import pytest

from natcore import DeliveryPolicy, Gateway, Side, SnatEntry
from natcore.sinks import JsonLinesSink, MemorySink
from support.frames import gateway, udp

PROGRAM = """
import os, sys, threading
sys.path.insert(0, {tests!r})
from support.frames import udp
from natcore import Gateway, Side, SnatEntry, DeliveryPolicy
from natcore.sinks import JsonLinesSink
folder, spool = sys.argv[1], sys.argv[2] or None
gateway = Gateway(instance="ngw-1")
gateway.add(SnatEntry("10.0.0.0/16", pool="203.0.113.1"))
log = gateway.start_session_log(JsonLinesSink(folder, batch_seconds=60.0), spool=spool)
def packets():
    for port in range(5000, 5050):
        gateway.translate_one(udp(sport=port), Side.INSIDE, now=1.0)
{end}
"""
ENDS = {
    "last line": "packets()",
    "sys.exit": "packets(); sys.exit(3)",
    "exception": "packets(); raise RuntimeError('out')",
    "thread": "threading.Thread(target=packets).start()",
    "sys.exit in a thread": "thread = threading.Thread(target=lambda: (packets(), sys.exit(1))); thread.start()",
    "forgotten": "packets(); del gateway, log",
    "child": "packets()\nif os.fork() == 0:\n    sys.exit(0)\nos.wait()",
}


@pytest.mark.parametrize("with_spool", [False, True])
@pytest.mark.parametrize("end", ENDS)
def test_a_program_that_ends_without_close_loses_no_row(end, with_spool, tmp_path):
    program = PROGRAM.format(tests=str(Path(__file__).parents[1]), end=ENDS[end])
    spool = str(tmp_path / "spool") if with_spool else ""
    command = [sys.executable, "-W", "default::ResourceWarning", "-c", program, str(tmp_path / "log"), spool]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    lines = [line for path in (tmp_path / "log").glob("*.jsonl") for line in path.read_text().splitlines()]
    rows = [json.loads(line) for line in lines]
    assert sorted(row["pri_port"] for row in rows if row["kind"] == "window") == list(range(5000, 5050)), done.stderr
    assert "ResourceWarning" in done.stderr and "session log" in done.stderr
    assert not [row for row in rows if row["kind"] == "gap"]


def test_a_gateway_without_references_is_collected_and_its_log_is_flushed():
    gc.collect()  # what other tests left
    before = set(threading.enumerate())
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    sink = MemorySink(batch_seconds=60.0)
    over = gateway()
    over.start_session_log(sink, delivery=DeliveryPolicy(linger=60.0))
    over.translate_one(udp(), Side.INSIDE, now=1.0)
    core = weakref.ref(over._collector)
    made = set(threading.enumerate()) - before
    assert len(made) == 2
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del over
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning]
    for thread in made:
        thread.join(60)
        assert not thread.is_alive()
    assert [int(kind) for kind in sink.records["kind"]] == [1, 0]
    del made, thread
    gc.collect()
    assert core() is None and len(list(Path("/proc/self/fd").iterdir())) <= descriptors


def test_a_gateway_that_was_closed_is_not_reported():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Gateway() as over:
            over.add(SnatEntry("10.0.0.0/16", pool="203.0.113.1"))
            over.start_session_log(MemorySink())
        del over
        gc.collect()


def test_a_log_that_was_not_stopped_and_has_no_reader_keeps_its_rows_in_the_spool(tmp_path):
    class Broken(JsonLinesSink):
        def deliver(self, batch):
            raise OSError("no")

    before = set(threading.enumerate())
    over = gateway()
    log = over.start_session_log(Broken(tmp_path / "log"), spool=tmp_path / "spool")
    over.translate_one(udp(), Side.INSIDE, now=1.0)
    made = set(threading.enumerate()) - before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        del over
        gc.collect()
    for thread in made:
        thread.join(60)
    assert log.status == "Disabled" and (log.counters()["spooled"], log.counters()["lost"]) == (2, 0)

"""Fork: a child has a gateway of its own; what was logged before, and where it goes, is its parent's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from natcore import ConfigurationError, Error, FlowLog, Side, SnatEntry, Verdict
from natcore.sessionlog.spool.run import read_run
from natcore.sinks import JsonLinesSink, MemorySink, ParquetSink
from natcore.testhooks import planted_faults
from support.frames import EIP, udp
from support.gateways import hosts_of, made
from support.interleaving import in_thread, translated, until_waited_for

INSIDE = Side.INSIDE

FORK = """
import json, os, select, sys
sys.path.insert(0, sys.argv[1])
from natcore import Gateway, Policy, Side, SnatEntry
from support.frames import udp
gateway = Gateway(workers=int(sys.argv[2]), policy=Policy(sessions_per_subscriber=40))
gateway.add(SnatEntry("10.0.0.0/8", "203.0.113.1"))
read, write = os.pipe()
child = os.fork()
ports = [int.from_bytes(gateway.translate_one(udp(sport=n), Side.INSIDE, 0.0)[1][34:36], "big") for n in range(1, 41)]
refused = gateway.translate_one(udp(sport=99), Side.INSIDE, 0.0)[0].name if child == 0 else ""
if child == 0:
    os.write(write, json.dumps([ports, refused, len(gateway.take_events()), gateway.counters()["sessions"]]).encode())
    gateway.close()
    os._exit(0)
os.waitpid(child, 0)
readable = bool(select.select([gateway.fileno()], [], [], 0)[0])
print(json.dumps([ports, json.loads(os.read(read, 65536)), readable, gateway.counters()["sessions"]]))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_parent_and_child_draw_other_ports_and_wake_only_for_their_own_events(workers: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(Path(__file__).parents[1]), str(workers)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ports, (others, refused, events, sessions), readable, own_sessions = json.loads(done.stdout)
    assert refused == "DROP_SUBSCRIBER_LIMIT" and events == 1 and sessions == own_sessions == 40
    assert sum(one == other for one, other in zip(ports, others, strict=True)) < 5
    assert not readable  # the child's refusal woke the child


def test_a_gateway_that_another_thread_was_at_is_closed_in_the_child() -> None:
    gateway = made(2)
    capsule = gateway._core.worker_capsule(1)
    host = hosts_of(gateway, 1, 1)[0]
    planted_faults.lock_worker(capsule)
    join = in_thread(lambda: translated(gateway, udp(host), INSIDE, worker=0))
    until_waited_for(capsule)
    child = os.fork()
    if child == 0:
        try:
            gateway.counters()
            gateway.add(SnatEntry("11.0.0.0/8", EIP))
        except Error as error:
            os._exit(0 if "closed" in str(error) else 1)
        os._exit(2)
    planted_faults.unlock_worker(capsule)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert join()[0] is Verdict.OUTBOUND


def in_child(run: Callable[[], object]) -> int:
    """The exit status of a forked child that calls run: 0, or 1 if the gateway is closed there. A child that waits is ended."""
    child = os.fork()
    if child == 0:
        signal.setitimer(signal.ITIMER_REAL, 120)
        try:
            run()
        except Error as error:
            os._exit(1 if "closed" in str(error) else 2)
        except BaseException:
            os._exit(3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_child_is_not_kept_waiting_by_spinlocks_of_the_parents_threads() -> None:
    gateway = made(2)
    gateway.translate_one(udp(), INSIDE, now=0.0)
    planted_faults.lock_shared(gateway._core.worker_capsule(), True)

    def use() -> None:
        assert gateway.translate_one(udp(sport=7), INSIDE, now=0.0)[0] is Verdict.OUTBOUND
        assert gateway.end_all() == 2 and len(gateway.take_records()) == 2 and gateway.counters()["ended"] == 2

    status = in_child(use)
    planted_faults.lock_shared(gateway._core.worker_capsule(), False)
    assert status == 0


def test_a_gateway_is_closed_in_the_child_if_its_flow_log_was_being_read() -> None:
    """Its rows may be half taken."""
    gateway = made(1)
    with FlowLog(gateway) as flows:
        gateway.translate_one(udp(), INSIDE, now=0.0)
        planted_faults.lock_rows(gateway._core.worker_capsule(), True)
        status = in_child(lambda: gateway.translate_one(udp(), INSIDE, now=0.0))
        planted_faults.lock_rows(gateway._core.worker_capsule(), False)
        assert status == 1
        assert in_child(lambda: gateway.translate_one(udp(), INSIDE, now=0.0)) == 0
        assert len(flows.take()) == 2


FORGOTTEN_PLANE = """
import os
from natcore.plane import plane
class Running:
    def stop(self):
        print("stopped by", "the parent" if os.getpid() == parent else "the child", flush=True)
parent, running = os.getpid(), Running()
plane._alive.add(running)
if os.fork():
    os.wait()
"""


def test_a_child_that_ends_does_not_stop_its_parents_plane() -> None:
    done = subprocess.run([sys.executable, "-c", FORGOTTEN_PLANE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "stopped by the parent\n"), done.stderr


def test_explain_does_not_wait_for_what_another_thread_locked_when_it_made_its_copy() -> None:
    gateway = made(2)
    capsule = gateway._core.worker_capsule(0)
    with FlowLog(gateway):
        planted_faults.lock_rows(capsule, True)
        assert gateway.explain(udp(), INSIDE).verdict is Verdict.OUTBOUND
        planted_faults.lock_rows(capsule, False)
    assert gateway.counters()["received"] == 0


# ---- rows --------------------------------------------------------------------------------------------------------------


def test_a_childs_flow_log_has_the_childs_packets_alone() -> None:
    gateway = made(1)
    with FlowLog(gateway, capacity=4) as flows:
        for port in (5000, 5001, 5002):
            gateway.translate_one(udp(sport=port), INSIDE, now=0.0)
        assert flows.counters() == {"rows": 4, "lost": 2, "unreadable": 0}

        def use() -> None:
            assert flows.counters() == {"rows": 0, "lost": 0, "unreadable": 0}
            gateway.translate_one(udp(sport=5003), INSIDE, now=0.0)
            assert flows.take()["srcport"][0] == 5003
            flows.close()

        assert in_child(use) == 0
        assert np.unique(flows.take()["srcport"][::2]).tolist() == [5000, 5001]


def test_what_a_closed_flow_log_has_kept_is_the_parents() -> None:
    gateway = made(1)
    with FlowLog(gateway) as flows:
        gateway.translate_one(udp(), INSIDE, now=0.0)
    assert in_child(lambda: check(len(flows.take()) == 0)) == 0
    assert len(flows.take()) == 2


def check(holds: bool) -> None:
    assert holds


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_that_wait_at_a_fork_are_taken_by_the_parent_alone(workers: int) -> None:
    gateway = made(workers, records=4)
    feed = gateway.watch_sessions()
    for port in range(5000, 5008):  # more than fit: rows are lost
        gateway.translate_one(udp(sport=port), INSIDE, now=0.0)
    gateway.end_all(now=1.0)

    def use() -> None:
        assert not len(gateway.take_records(events=True)) and not len(feed.take())
        gateway.translate_one(udp(sport=6000), INSIDE, now=2.0)
        gateway.end_all(now=3.0)
        assert gateway.take_records(events=True)["pri_port"].tolist() == [6000] * 3
        assert feed.take()["pri_port"].tolist() == [6000, 6000]

    assert in_child(use) == 0
    rows = gateway.take_records(events=True)
    assert len(rows) == 4 + 4 + 1 and rows[-1]["session"] == 8 + 16 - 8  # a gap row tells how many are missing
    assert 6000 not in rows["pri_port"] and len(feed.take()) == 16


@pytest.mark.parametrize("with_spool", [False, True])
def test_a_child_neither_delivers_nor_spools_the_rows_of_its_parents_log(with_spool: bool, tmp_path: Path) -> None:
    gateway = made(1)
    spool = tmp_path / "spool" if with_spool else None
    sink = JsonLinesSink(tmp_path / "log", batch_seconds=60.0)
    with gateway.start_session_log(sink, name="one", spool=spool) as log:
        for port in range(5000, 5010):
            gateway.translate_one(udp(sport=port), INSIDE, now=0.0)

        def use() -> None:
            with log:
                assert log.status == "Disabled" and log.counters()["accepted"] == 0 and not list(log.waiting_rows())
                assert log.wait() and log.stop() == 0 and log.delivery_status
                with pytest.raises(ConfigurationError, match="stopped"):
                    log.change(MemorySink())
            assert gateway.logs == ()
            gateway.close()

        assert in_child(use) == 0
        if spool is not None:
            last = read_run(spool / "one")
            assert last is not None and not last[1].ended
    rows = [json.loads(line) for path in (tmp_path / "log").glob("*.jsonl") for line in path.read_text().splitlines()]
    assert sorted(row["pri_port"] for row in rows if row["kind"] == "window") == list(range(5000, 5010))
    assert sorted(row["number"] for row in rows) == list(range(len(rows)))
    assert log.counters()["delivered"] == log.counters()["accepted"]


def test_a_childs_own_log_has_the_childs_packets_alone(tmp_path: Path) -> None:
    gateway = made(1)
    kept = MemorySink()
    with gateway.start_session_log(kept):
        gateway.translate_one(udp(sport=5000), INSIDE, now=0.0)

        def use() -> None:
            own = MemorySink()
            with gateway.start_session_log(own):
                gateway.translate_one(udp(sport=5000), INSIDE, now=1.0)
                gateway.translate_one(udp(sport=5001), INSIDE, now=1.0)
            windows = own.records[own.records["kind"] == 0]
            assert sorted(zip(windows["pri_port"].tolist(), windows["pkts_from_vpc"].tolist(), strict=True)) == [
                (5000, 1), (5001, 1),
            ]  # fmt: skip

        # 1: just at the fork the log's own thread had the worker locked; the gateway is closed in such a child
        assert next((status for status in (in_child(use) for _ in range(20)) if status != 1), 1) == 0
    assert kept.records["pri_port"].tolist() == [5000, 5000]


@pytest.mark.parametrize("kind", [JsonLinesSink, ParquetSink])
def test_a_child_cannot_use_its_parents_folders_and_does_not_keep_them_from_it(
    kind: type[JsonLinesSink] | type[ParquetSink], tmp_path: Path
) -> None:
    gateway = made(1)
    sink = kind(tmp_path / "log")
    log = gateway.start_session_log(sink, name="one", spool=tmp_path / "spool", on_failure="refuse")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            refused = 0
            for folder, spool in ((sink, None), (kind(tmp_path / "log"), None), (MemorySink(), tmp_path / "spool")):
                try:
                    gateway.start_session_log(folder, name="one", spool=spool, on_failure="refuse")
                except ConfigurationError:
                    refused += 1
            os.write(write, bytes([refused]))
            signal.pause()
        finally:
            os._exit(1)
    try:
        assert os.read(read, 1) == bytes([3])
        log.stop()
        again = gateway.start_session_log(
            kind(tmp_path / "log"), name="one", spool=tmp_path / "spool", on_failure="refuse"
        )
        assert again.stop() == 0
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

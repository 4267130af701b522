"""What the guide says of threads, signals and fork: every public method at once, and what is left is consistent."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from natcore import CapacityError, DnatEntry, Error, FlowLog, Gateway, Policy, Remove, Side, SnatEntry, Verdict
from natcore.plane import plane
from natcore.sinks import MemorySink
from natcore.testhooks import planted_faults
from support.frames import EIP, udp
from support.gateways import arrays, hosts_of, made
from support.interleaving import in_thread

INSIDE = Side.INSIDE


def many(calls: list[Callable[[], Any]], turns: int) -> None:
    """Each call in a thread of its own, so many times; what one of them raises is raised."""
    barrier = threading.Barrier(len(calls))

    def repeat(call: Callable[[], Any]) -> None:
        barrier.wait()
        for _ in range(turns):
            call()

    joins = [in_thread(lambda call=call: repeat(call)) for call in calls]  # type: ignore[misc]
    for join in joins:
        join()


def test_entries_that_threads_add_are_all_in_force_with_numbers_of_their_own() -> None:
    gateway = made(1)
    ports = count(1000)
    many([lambda: gateway.add(DnatEntry(EIP, next(ports), "10.0.0.9", 80, protocol="tcp"))] * 4, turns=30)
    entries = gateway.entries()
    assert len(entries) == 121 and len({entry.id for entry in entries}) == 121
    for entry in entries[1:]:
        gateway.remove(entry)
    assert len(gateway.entries()) == 1


@pytest.mark.parametrize("refused", ["nat-deliv-log", "nat-spool-log", "natcore-rows"])
def test_a_log_is_not_started_without_its_threads(
    refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = made(1)
    start = threading.Thread.start

    def start_most(thread: threading.Thread) -> None:
        if thread.name == refused:
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_most)
        with pytest.raises(CapacityError, match=f"thread {refused} did not start: can't start new thread"):
            gateway.start_session_log(MemorySink(), name="log", spool=tmp_path)
    assert not gateway._collector.active
    with gateway.start_session_log(MemorySink(), name="log", spool=tmp_path) as log:
        assert log.wait(60)
    gateway.close()


def test_threads_that_add_and_remove_leave_nothing_behind() -> None:
    gateway = made(2)
    ports = count(1000)

    def come_and_go() -> None:
        entry = gateway.add(DnatEntry(EIP, next(ports), "10.0.0.9", 80, protocol="udp"))
        gateway.replace(entry, DnatEntry(EIP, next(ports), "10.0.0.8", 80, protocol="udp"))
        gateway.remove(entry)

    many([come_and_go] * 4, turns=20)
    assert len(gateway.entries()) == 1 and not gateway.ports()["reserved"].any()


@pytest.mark.parametrize("workers", [1, 2])
def test_every_public_method_at_once(workers: int) -> None:
    """Counters, rows and sessions agree when all have come to their end."""
    gateway = Gateway(workers=workers, seed=7, records=256, max_sessions=4096, policy=Policy(hold_down=0))
    gateway.add(SnatEntry("10.0.0.0/8", EIP))
    hosts = [hosts_of(gateway, worker, 4) for worker in range(workers)]
    batches = [arrays(*(udp(host, 5000 + n) for host in hosts[w] for n in range(8))) for w in range(workers)]
    ports, clock = count(1000), count(1)
    first = gateway.start_session_log(MemorySink(), name="first")

    def traffic(worker: int) -> None:
        frames, lengths = (array.copy() for array in batches[(worker + 1) % workers])
        gateway.translate(frames, lengths, INSIDE, next(clock) / 100, worker=worker)

    def entries() -> None:
        entry = gateway.add(DnatEntry(EIP, next(ports), hosts[0][0], 80, protocol="udp"))
        try:
            gateway.apply(gateway.plan([Remove(entry)]))
        except Error:  # another thread's change came in between
            gateway.remove(entry)

    def logs() -> None:
        log = gateway.start_session_log(MemorySink(), name=f"log-{next(ports)}")
        gateway.stop_session_log(log)
        with FlowLog(gateway) as flows:
            flows.counters()
            flows.take()

    def ends() -> None:
        gateway.end(subscriber=hosts[0][1])
        gateway.advance(next(clock) / 100)

    def looks() -> None:
        gateway.counters()
        for row in gateway.sessions():
            assert row["inside_ip"] >> 24 == 10
        gateway.mappings(), gateway.ports(), gateway.blocks(), gateway.take_events(), gateway.entries(), repr(gateway)
        gateway.sessions_by_entry()

    def asks() -> None:
        gateway.take_generated()
        gateway.owner(*batches[0], INSIDE)
        gateway.set_epoch(0.0)
        gateway.explain(udp(hosts[0][0]), INSIDE)

    many([*(lambda w=w: traffic(w) for w in range(workers)), entries, logs, ends, looks, asks], turns=25)  # type: ignore[misc, list-item]
    counters = gateway.counters()
    assert counters["received"] == 25 * 32 * workers
    assert counters["received"] == counters["forwarded"] + counters["local"] + counters["dropped"] + counters["held"]
    assert counters["sessions"] == len(gateway.sessions()) == counters["created"] - counters["ended"]
    gateway.stop_session_log(first)
    gateway.close()


def test_what_the_thread_sanitizer_looks_at_calls_every_public_method() -> None:
    """A method that is new joins `make races`."""
    elsewhere = {
        "forward",
        "forward_async",
        "capsule",
        "serve_control",
    }  # a plane's turns; C callers; it calls the others
    called = set(re.findall(r"\.(\w+)", (Path(__file__).parents[1] / "runs" / "races.py").read_text()))
    public = {name for name, value in vars(Gateway).items() if not name.startswith("_") and callable(value)}
    assert "translate" in public and not public - called - elsewhere


# ---- close ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_close_waits_for_packets_under_way_and_all_that_passed_are_in_the_rows(workers: int) -> None:
    gateway = made(workers, records=1 << 16)
    host = hosts_of(gateway, workers - 1, 1)[0]
    stop = threading.Event()

    def traffic() -> int:
        passed = 0
        frames, lengths = arrays(*(udp(host, 5000 + n % 50) for n in range(500)))
        while not stop.is_set():
            rows, sizes = frames.copy(), lengths.copy()
            try:
                passed += int((gateway.translate(rows, sizes, INSIDE, 0.0, worker=0) == Verdict.OUTBOUND).sum())
            except Error:
                break
        return passed

    join = in_thread(traffic)
    while gateway.counters()["forwarded"] == 0:
        pass
    gateway.close()
    stop.set()
    passed = join()
    rows = gateway.take_records()
    assert passed == gateway.counters()["forwarded"] == rows["pkts_from_vpc"].sum()
    with pytest.raises(Error, match="closed"):
        gateway.translate(*arrays(udp(host)), INSIDE, 0.0)


def test_a_signal_handler_may_look_and_gets_an_error_when_it_changes_what_its_thread_changes() -> None:
    gateway = made(1)
    seen: list[object] = []
    settle = gateway._table.plan

    def plan(changes: Any) -> Any:
        signal.raise_signal(signal.SIGUSR1)
        return settle(changes)

    def handler(number: int, frame: object) -> None:
        seen.append(gateway.counters()["received"])
        with pytest.raises(Error, match="changing the gateway already"):
            gateway.add(DnatEntry(EIP, 81, "10.0.0.9", 80, protocol="tcp"))
        seen.append(len(gateway.entries()))

    before = signal.signal(signal.SIGUSR1, handler)
    gateway._table.plan = plan  # type: ignore[method-assign]
    try:
        gateway.add(DnatEntry(EIP, 80, "10.0.0.9", 80, protocol="tcp"))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [0, 1] and len(gateway.entries()) == 2


# ---- the C interface -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("worker", [-1, 2, 64, 2**31, 2**40])
def test_a_capsule_of_a_worker_that_is_none_is_refused(worker: int) -> None:
    with pytest.raises(Error, match="worker must be between 0 and 1, got"):
        made(2)._core.worker_capsule(worker)


def test_a_capsule_keeps_its_worker() -> None:
    capsule = made(2)._core.worker_capsule(1)
    held: list[bytes] = [bytes(4096) for _ in range(100)]  # what was freed would be used again
    assert planted_faults.waiting_for(capsule) == 0 and held
    planted_faults.lock_worker(capsule)
    planted_faults.unlock_worker(capsule)


def test_a_program_that_ends_with_gateways_says_nothing() -> None:
    program = "from natcore import Gateway\nkept = [Gateway(), Gateway()]\ndel kept[0]\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


# ---- a plane that does not start -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["Watcher", "Loops"])
def test_a_plane_that_fails_before_it_has_a_thread_leaves_the_gateway_free(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no descriptors")

    gateway = Gateway()
    gateway.add(SnatEntry("10.0.0.0/8", EIP))
    monkeypatch.setattr(plane, step, refuse)
    with pytest.raises(OSError, match="no descriptors"):
        gateway.forward("lan0", "wan0")
    assert gateway.translate_one(udp(), INSIDE, 0.0)[0] is Verdict.OUTBOUND
    gateway.close()

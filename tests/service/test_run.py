"""`natcore run`: nothing that surrounds it stops it or keeps it from stopping: readers, disks, destinations, signals."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import threading
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from natcore import ConfigurationError, DeliveryError, Gateway
from natcore.demo.namespaces import Network
from natcore.plane import kernel_bypass
from natcore.service import output
from natcore.service.output import LineWriter
from natcore.sinks import Batch, MemorySink
from support.netns import SERVER, at, needs_root, ping, until
from support.service import file as file
from support.service import run

# ---- output ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def full_pipe() -> Iterator[tuple[int, int]]:
    """A pipe without a reader, filled to the last byte: (to read, to write)."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, bytes(4096))
    except BlockingIOError:
        os.set_blocking(writing, True)
    yield reading, writing
    os.close(reading)
    os.close(writing)


def line_to(descriptor: int) -> Any:
    return lambda what, fields: (descriptor, f"{what} {fields}\n")


def test_a_full_disk_costs_lines_which_are_counted() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with LineWriter(line_to(full)) as writer:
        for number in range(10):
            writer("event", {"number": number})
    assert writer.lost == 10
    os.close(full)


def test_a_closed_pipe_costs_lines_which_are_counted() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with LineWriter(line_to(writing)) as writer:
        writer("event", {})
    assert writer.lost == 1
    os.close(writing)


def test_who_tells_never_waits_for_a_reader_and_lost_lines_are_told_once_there_is_one(
    full_pipe: tuple[int, int],
) -> None:
    reading, writing = full_pipe
    writer = LineWriter(line_to(writing), most=10)
    for number in range(1000):  # one in work, ten waiting
        writer("event", {"number": number})
    assert writer.lost >= 1000 - 11
    writer.close(timeout=0)
    os.set_blocking(reading, False)
    data = b""

    def came() -> bool:
        nonlocal data
        with suppress(BlockingIOError):
            data += os.read(reading, 1 << 16)
        return f"'lines_lost_in_all': {writer.lost}}}" in data.decode() and not writer._thread.is_alive()

    until(came)
    assert data.count(b"event") == 1000 - writer.lost


def lines_made_of(*written: str) -> tuple[list[str], int]:
    """Write these, of which "bad" cannot be told; return what a line was made of, and how many were lost."""
    told: list[str] = []

    def line(what: str, fields: dict[str, Any]) -> tuple[int, str]:
        told.append(what)
        return 1, fields["missing"] if what == "bad" else ""

    with LineWriter(line) as writer:
        for what in written:
            writer(what, {})
    return told, writer.lost


def test_what_cannot_be_told_is_lost_alone() -> None:
    assert lines_made_of("bad", "good") == (["bad", "lost", "good"], 1)


def test_a_line_that_was_lost_last_is_told_though_nothing_follows() -> None:
    assert lines_made_of("bad") == (["bad", "lost"], 1)


def test_what_is_logged_and_warned_of_is_told() -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    before = warnings.showwarning
    with output.logging_to(lambda what, fields: told.append((what, fields))):
        logging.getLogger("natcore.some").error("it %s", "failed")
        warnings.showwarning(UserWarning("beware"), UserWarning, "file", 1)
    assert warnings.showwarning is before
    assert told == [
        ("log", {"level": "error", "from": "natcore.some", "message": "it failed"}), ("warning", {"message": "beware"})
    ]  # fmt: skip


# ---- a running one ---------------------------------------------------------------------------------------------------


def forwards(network: Network) -> None:
    with at(network, "gw"):
        until(lambda: kernel_bypass.installed() == ["lan0", "wan0"])
    assert ping(network, "in", SERVER)


@needs_root
@pytest.mark.parametrize("kind", ["full disk", "closed pipe", "no reader"])
def test_run_forwards_and_stops_whatever_its_output_is(
    network: Network, file: Path, kind: str, full_pipe: tuple[int, int]
) -> None:
    if kind == "full disk":
        out = os.open("/dev/full", os.O_WRONLY)
    elif kind == "closed pipe":
        reading, out = os.pipe()
        os.close(reading)
    else:
        out = os.dup(full_pipe[1])
    process = run(network, file, stdout=out, stderr=out)
    os.close(out)
    forwards(network)
    for _ in range(3):
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGUSR1)
    assert ping(network, "in", SERVER)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    with at(network, "gw"):
        assert kernel_bypass.installed() == []


@needs_root
def test_no_signal_ends_run_by_accident(network: Network, file: Path) -> None:
    process = run(network, file, "--json", stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["happened"] == "started"
    deadly = [number for number in signal.valid_signals() if number not in _HARMLESS | _OF_FAULTS | _STOPPING]
    assert {signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGALRM, signal.SIGRTMIN} <= set(deadly)
    seen = []
    for number in sorted(deadly):
        process.send_signal(number)
        if number not in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):  # ignored
            seen.append(json.loads(process.stdout.readline()))
    assert ping(network, "in", SERVER)
    by_signal = {told.get("signal"): told for told in seen}
    assert [told["ok"] for told in seen if told["happened"] == "reload"] == [True]
    assert "has no meaning" in by_signal["SIGUSR2"]["message"]
    assert [told["forwarded"] for told in seen if told["happened"] == "counters"] == [0]
    process.send_signal(signal.SIGQUIT)
    assert json.loads(process.stdout.read().splitlines()[-1])["happened"] == "stopped"
    assert process.wait(60) == 0


_HARMLESS = {signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH}
_OF_FAULTS = {
    signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS,
}  # fmt: skip
_STOPPING = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL, signal.SIGSTOP}


@needs_root
def test_every_thread_of_run_has_a_name(network: Network, file: Path) -> None:
    process = run(network, file, "--json", stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    known = {
        "natcore", "natcore-w0", "natcore-watch", "natcore-output", "natcore-rows", "nat-deliv-audit", "nat-spool-audit",
    }  # fmt: skip

    def names() -> set[str]:
        return {(task / "comm").read_text().strip() for task in Path(f"/proc/{process.pid}/task").iterdir()}

    until(lambda: names() >= known)
    assert [name for name in names() if not name.startswith("nat")] == []
    process.terminate()
    assert process.wait(60) == 0


# ---- logs that do not work -------------------------------------------------------------------------------------------


class Hanging:
    """A destination that answers when the stop is over, or never."""

    delivery_type = "hanging"
    batch_seconds = 0.0

    def __init__(self) -> None:
        self.asked, self.stopped, self.in_time = threading.Event(), threading.Event(), True

    def deliver(self, batch: Batch) -> None:
        self.asked.set()
        self.in_time = self.stopped.wait(60)
        raise DeliveryError("Late", "too late")


class Dead:
    delivery_type = "dead"
    batch_seconds = 0.0

    def deliver(self, batch: Batch) -> None:
        raise DeliveryError("ConnectionRefused", "no server")


def frame() -> bytes:
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether

    return bytes(
        Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02")
        / IP(src="10.0.0.2", dst=SERVER)
        / UDP(sport=5, dport=53)
    )


def filled(sink: Any, tmp_path: Path) -> tuple[Gateway, Any]:
    from natcore import Side, SnatEntry

    made = Gateway()
    made.add(SnatEntry("10.0.0.0/16", pool="198.18.0.100"))
    log = made.start_session_log(sink, name="audit", spool=tmp_path / "spool")
    made.translate_one(frame(), Side.INSIDE, 1.0)
    made.end(protocol="udp")
    until(lambda: log.counters()["spooled"] > 0)
    return made, log


def test_a_stop_does_not_wait_for_a_destination_that_hangs_when_all_rows_are_in_the_spool(tmp_path: Path) -> None:
    sink = Hanging()
    made, log = filled(sink, tmp_path)
    sink.asked.wait(60)
    assert made.stop_session_log(log, timeout=1000) > 0
    sink.stopped.set()
    assert sink.in_time
    assert log.counters()["lost"] == 0
    made.close()


def test_a_stop_does_not_try_a_dead_destination_until_its_time_is_over(tmp_path: Path) -> None:
    made, log = filled(Dead(), tmp_path)
    until(lambda: log.delivery_status.state == "Failed")
    assert made.stop_session_log(log, timeout=1_000_000) > 0  # seconds
    assert log.counters()["spooled"] > 0 and log.counters()["lost"] == 0
    made.close()


def test_a_spool_that_cannot_be_used_at_the_start_is_used_as_soon_as_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from natcore import Side, SnatEntry

    (tmp_path / "spool").write_text("not a folder")
    with Gateway() as made:
        made.add(SnatEntry("10.0.0.0/16", pool="198.18.0.100"))
        with pytest.raises(ConfigurationError, match="spool must"):
            made.start_session_log(Dead(), name="audit", spool=tmp_path / "spool", on_failure="refuse")
        log = made.start_session_log(Dead(), name="audit", spool=tmp_path / "spool")
        assert "cannot be used" in caplog.text
        made.translate_one(frame(), Side.INSIDE, 1.0)
        made.end(protocol="udp")
        until(lambda: log.counters()["queued"] > 0)
        (tmp_path / "spool").unlink()
        until(lambda: log.counters()["queued"] == 0 and log.counters()["spooled"] > 0)
        assert "can be used now" in caplog.text
        made.stop_session_log(log)
        assert log.counters()["lost"] == 0


def test_a_spool_may_be_opened_by_the_logs_own_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the start does not wait for the disk; no row is lost, and none overtakes those that the spool has from before."""
    from natcore import Side, SnatEntry
    from natcore.sessionlog.session_log import SessionLog

    may_open = threading.Event()
    opens = SessionLog._open_spool

    def waits(self: SessionLog, *arguments: object) -> object:
        assert may_open.wait(60)
        return opens(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(SessionLog, "_open_spool", waits)
    sink = MemorySink()
    with Gateway() as made:
        made.add(SnatEntry("10.0.0.0/16", pool="198.18.0.100"))
        with pytest.raises(ConfigurationError, match="at_once must be True"):
            made.start_session_log(MemorySink(), name="audit", spool=tmp_path, on_failure="refuse", at_once=False)
        log = made.start_session_log(sink, name="audit", spool=tmp_path / "spool", at_once=False)
        made.translate_one(frame(), Side.INSIDE, 1.0)
        made.end(protocol="udp")
        until(lambda: log.counters()["queued"] > 0)
        assert not sink.rows()
        may_open.set()
        until(lambda: len(sink.rows()) > 0)
        made.stop_session_log(log)
        assert (log.counters()["lost"], log.counters()["queued"]) == (0, 0)


class Unopened(MemorySink):
    def open(self) -> None:
        raise DeliveryError("PermissionDenied", "no folder to write in")


def test_a_destination_that_does_not_work_at_the_start_refuses_where_it_must() -> None:
    with Gateway() as made:
        words = "on_failure='refuse': session log 'audit' does not work: PermissionDenied: no folder to write in"
        with pytest.raises(ConfigurationError, match=words):
            made.start_session_log(Unopened(), name="audit", on_failure="refuse")
        log = made.start_session_log(Unopened(), name="audit", on_failure="forward")  # the name is free again
        assert log.on_failure == "forward"
        made.start_session_log(MemorySink(), name="good", on_failure="refuse")
        with pytest.raises(ConfigurationError, match="on_failure must be 'forward' or 'refuse', got 'stop'"):
            made.start_session_log(MemorySink(), on_failure="stop")


@needs_root
def test_run_tells_of_a_log_that_does_not_work_and_forwards_or_refuses(
    network: Network, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "log").write_text("not a folder")
    process = run(network, file, "--json", stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = (json.loads(line) for line in iter(process.stdout.readline, ""))
    started = next(line for line in lines if line["happened"] == "started")
    assert started["logs"][0]["on_failure"] == "forward"
    assert next(line for line in lines if line["happened"] == "delivery")["state"] == "Failed"
    assert ping(network, "in", SERVER)
    process.terminate()
    assert process.wait(60) == 0
    file.write_text(file.read_text().replace('name = "audit"', 'name = "audit"\non_failure = "refuse"'))
    process = run(network, file, "--json", stdout=subprocess.PIPE, text=True)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75  # the destination may work later
    told = json.loads(output)
    assert told["key"] == "log[0].on_failure" and "session log 'audit' does not work" in told["error"]

"""Sessions outlive `natcore run`: an orderly restart goes on with sessions and log, a killed one with its last snapshot."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from natcore import Gateway, SnatEntry
from natcore.demo.namespaces import Network
from natcore.internal import files
from natcore.sinks import MemorySink
from natcore.who.query import who
from support.netns import SERVER, at, needs_root, ping, until
from support.service import FakePlane, Told, run, sends, service_of
from support.service import file as file


@pytest.fixture
def kept(file: Path, tmp_path: Path) -> Path:
    """A file with a state. The epoch is what a plane sets: the gateway's clock, 0, is now."""
    text = file.read_text().replace("[gateway]", f"[gateway]\nepoch = {time.time()!r}")
    file.write_text(f'{text}[state]\npath = "{tmp_path / "nat.state"}"\nsave_every = 0\n')
    return file


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Every row of the log, by its number."""
    files = sorted(map(str, folder.rglob("*.parquet")))
    table = pytest.importorskip("pyarrow.dataset").dataset(files, format="parquet").to_table().to_pydict()
    rows = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    return sorted(rows, key=lambda row: row["number"])


def life(
    file: Path, monkeypatch: pytest.MonkeyPatch, *happenings: Callable[[Gateway], object], end: int = signal.SIGTERM
) -> Told:
    """A run of the service in which these happen to its gateway, one after another."""
    plane = FakePlane()
    service, told = service_of(file, monkeypatch, plane)
    plane.happenings = [
        *(lambda each=each: each(service.gateway) for each in happenings),
        lambda: os.kill(os.getpid(), signal.SIGTERM),
    ]
    service.run()
    return told


def warned(told: Told) -> list[str]:
    return [fields["message"] for what, fields in told if what == "warning"]


def test_the_next_process_goes_on_with_every_session(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[int, int]] = []

    def look(gateway: Gateway) -> None:
        seen.append({int(row["inside_port"]): int(row["outside_port"]) for row in gateway.sessions()})

    told = life(kept, monkeypatch, sends(1, 2, 3), look)
    assert "restored" not in dict(told)
    told = life(kept, monkeypatch, look, sends(2, 4), look)
    assert dict(told)["restored"]["sessions"] == 3
    assert seen[0] == seen[1]
    assert seen[2] == {**seen[0], 4: seen[2][4]}
    assert dict(told)["stopped"]["counters"]["created"] == 4
    assert dict(told)["stopped"]["counters"]["ended"] == 0


def test_entries_that_the_file_has_no_more_end_at_the_start(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    life(kept, monkeypatch, sends(1, 2))
    kept.write_text(
        kept.read_text().replace("198.18.0.100", "198.18.0.101").replace("max_sessions = 1000", "workers = 2")
    )
    told = life(kept, monkeypatch, sends(3))
    counters = dict(told)["stopped"]["counters"]
    assert (counters["created"], counters["ended"], counters["sessions"]) == (3, 2, 1)
    assert not warned(told)


def test_the_log_of_both_runs_is_one_account(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    life(kept, monkeypatch, sends(1, 2), sends(1))
    life(kept, monkeypatch, sends(1, 3))
    life(kept, monkeypatch, lambda gateway: gateway.advance(gateway.now + 10_000))
    rows = rows_of(tmp_path / "log")
    kinds = [row["kind"] for row in rows]
    assert "gap" not in kinds
    numbers = sorted(int(row["number"]) for row in rows if row["kind"] in ("window", "create", "end"))
    assert numbers == list(range(len(numbers)))
    windows = [row for row in rows if row["kind"] == "window"]
    sums = {port: sum(int(r["pkts_from_vpc"]) for r in windows if r["pri_port"] == port) for port in (1, 2, 3)}
    assert sums == {1: 3, 2: 1, 3: 1}
    ends = {int(r["pri_port"]): int(r["pkts_from_vpc"]) for r in rows if r["kind"] == "end"}
    assert ends == sums
    assert kinds.count("create") == 3
    assert len([r for r in windows if r["pri_port"] == 1]) == 1  # the window went on over the restart


def test_who_answers_across_a_restart(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("duckdb")
    asked: list[tuple[int, datetime]] = []

    def ask(gateway: Gateway) -> None:
        [row] = [row for row in gateway.sessions() if row["inside_port"] == 2]
        asked.append((int(row["outside_port"]), datetime.fromtimestamp(gateway.epoch + gateway.now, UTC)))

    life(kept, monkeypatch, sends(1, 2, later=60.0), ask)
    life(kept, monkeypatch, sends(1, later=20.0), ask)
    life(kept, monkeypatch, lambda gateway: gateway.advance(gateway.now + 10_000))
    for port, moment in asked:
        answer = who(tmp_path / "log", "198.18.0.100", port, protocol="udp", at=moment, spool=tmp_path / "spool")
        assert answer.status in ("exact", "held-idle"), answer.reason
        assert str(answer.subscriber) == "10.0.0.1"


def test_a_killed_process_loses_what_came_since_its_snapshot_and_the_log_says_so(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    life(kept, monkeypatch, sends(1, 2))
    state = tmp_path / "nat.state"
    snapshot = b""

    def save(gateway: Gateway) -> None:
        nonlocal snapshot
        gateway.save(state)
        snapshot = state.read_bytes()

    # What a killed process leaves: its last snapshot, and a spool without the end mark.
    def die(gateway: Gateway) -> None:
        gateway.logs[0].wait(10.0)
        (tmp_path / "run").write_bytes((tmp_path / "spool" / "audit" / "run").read_bytes())

    life(kept, monkeypatch, save, sends(3), die)
    state.write_bytes(snapshot)
    (tmp_path / "spool" / "audit" / "run").write_bytes((tmp_path / "run").read_bytes())
    told = life(kept, monkeypatch, sends(1))
    assert dict(told)["restored"]["sessions"] == 2
    assert "gap" in [row["kind"] for row in rows_of(tmp_path / "log")]


def test_a_file_that_is_no_state_is_set_aside_and_told(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nat.state").write_text("no state")
    told = life(kept, monkeypatch, sends(1))
    [message] = warned(told)
    assert "is no saved state" in message
    assert (tmp_path / "nat.state.unusable").read_text() == "no state"
    assert dict(life(kept, monkeypatch, sends(1)))["restored"]["sessions"] == 1
    for number in (1, 2):  # an earlier one stays
        (tmp_path / "nat.state").write_text(f"no state either, {number}")
        life(kept, monkeypatch, sends(1))
        assert (tmp_path / f"nat.state.{number}.unusable").read_text() == f"no state either, {number}"
    assert (tmp_path / "nat.state.unusable").read_text() == "no state"


def test_snapshots_are_written_now_and_then(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.write_text(kept.read_text().replace("save_every = 0", "save_every = 1"))
    saved: list[int] = []
    save = Gateway.save

    def count(gateway: Gateway, path: Path) -> int:
        saved.append(save(gateway, path))
        return saved[-1]

    monkeypatch.setattr(Gateway, "save", count)
    life(kept, monkeypatch, sends(1), lambda gateway: until(lambda: len(saved) >= 2))
    assert saved[-1] <= (tmp_path / "nat.state").stat().st_size


def test_handing_over_twice_or_resuming_twice_is_not_possible(tmp_path: Path) -> None:
    path = tmp_path / "nat.state"
    with Gateway(max_sessions=10) as gateway:
        log = gateway.start_session_log(MemorySink())
        gateway.hand_over(path)
        assert log.status == "Disabled"
    first = Gateway.restore(path, resume=True)
    second = Gateway.restore(path, resume=True)
    sinks = [MemorySink(), MemorySink()]
    for each, sink in zip((first, second), sinks, strict=True):
        each.start_session_log(sink)
        each.close()
    runs = [{batch.run for batch in sink.batches} for sink in sinks]
    assert not runs[0] & runs[1] or not (runs[0] and runs[1])


def hand_over(path: Path, sink: MemorySink, port: int) -> int:
    """Write the state of a gateway with a log, which has sent by a session of this port; how many sessions it has."""
    with Gateway(max_sessions=10) as gateway:
        gateway.add(SnatEntry("10.0.0.0/24", "198.18.0.100"))
        gateway.start_session_log(sink)
        sends(port)(gateway)
        sessions = len(gateway.sessions())
        gateway.hand_over(path)
    return sessions


def test_a_copy_of_the_file_begins_a_run_of_its_own(tmp_path: Path) -> None:
    """Both gateways would give other rows the same names."""
    path, copy = tmp_path / "nat.state", tmp_path / "copy.state"
    first, own, copied = MemorySink(), MemorySink(), MemorySink()
    hand_over(path, first, 1)
    shutil.copy(path, copy)
    for place, sink in ((path, own), (copy, copied)):
        with Gateway.restore(place, resume=True) as again:
            again.start_session_log(sink)
            sends(2)(again)
    [before], [after], [other] = ({batch.run for batch in sink.batches} for sink in (first, own, copied))
    assert before == after != other


@pytest.mark.parametrize("copied", [False, True])
def test_a_backup_in_the_place_of_the_file_begins_a_run_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copied: bool
) -> None:
    """A file system gives an inode's number again to the next file: it was made at another time."""
    path, first, later = tmp_path / "nat.state", MemorySink(), MemorySink()
    hand_over(path, first, 1)
    with path.open("rb") as file:
        inode, born = files.identity(file.fileno())
    assert inode == path.stat().st_ino and (not born or abs(born - path.stat().st_ctime_ns) < 60e9)
    monkeypatch.setattr(files, "identity", lambda _: (inode, born + copied if born else 0))
    with Gateway.restore(path, resume=True) as again:
        again.start_session_log(later)
        sends(2)(again)
    [before], [after] = ({batch.run for batch in sink.batches} for sink in (first, later))
    assert (before == after) == (not (copied and born))


@pytest.mark.parametrize("may_remove", [True, False])
def test_a_full_disk_costs_no_session_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, may_remove: bool
) -> None:
    """The account is taken out of the file; where that cannot be written, it goes with the file, or another run begins."""
    path, first, later = tmp_path / "nat.state", MemorySink(), MemorySink()
    before = hand_over(path, first, 3)

    @contextmanager
    def full(*_: object, **__: object) -> Iterator[None]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield

    def read_only(_: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files, "replaced", full)
    if not may_remove:
        monkeypatch.setattr(Path, "unlink", read_only)
    with Gateway.restore(path, resume=True) as again:
        assert len(again.sessions()) == before
        again.start_session_log(later)
        sends(1)(again)
    assert path.exists() != may_remove
    [old], [new] = ({batch.run for batch in sink.batches} for sink in (first, later))
    assert (old == new) == may_remove


# ---- as a process, with traffic --------------------------------------------------------------------------------------


class Transfer:
    """A server that sends what a seed says, slowly enough to last, and a client that hashes what comes."""

    SIZE = 24 << 20

    def __init__(self, network: Network) -> None:
        self._data = np.random.default_rng(7).bytes(1 << 16)
        with at(network, "out"):
            self._server = socket.create_server((SERVER, 7000))
        self.sent = hashlib.sha256()
        self.got = hashlib.sha256()
        self.count = 0
        self.failed: list[BaseException] = []
        self.may_end = threading.Event()
        self._threads = [threading.Thread(target=self._serve), threading.Thread(target=self._fetch, args=(network,))]
        for thread in self._threads:
            thread.start()

    def _serve(self) -> None:
        connection, _ = self._server.accept()
        with connection:
            count = 0
            while count < self.SIZE or not self.may_end.is_set():
                connection.sendall(self._data)
                self.sent.update(self._data)
                count += len(self._data)
                self.may_end.wait(0.01)

    def _fetch(self, network: Network) -> None:
        try:
            with at(network, "in"):
                client = socket.create_connection((SERVER, 7000), timeout=60)
            with client:
                while data := client.recv(1 << 16):
                    self.got.update(data)
                    self.count += len(data)
        except OSError as error:
            self.failed.append(error)

    def finish(self) -> None:
        self.may_end.set()
        for thread in self._threads:
            thread.join(120)
        self._server.close()
        assert not self.failed
        assert self.got.digest() == self.sent.digest()


@needs_root
def test_traffic_goes_on_over_restarts_and_a_kill(network: Network, kept: Path, tmp_path: Path) -> None:
    """TCP is not reset, UDP and ping have their ports again; the log's sums are exact where nothing was killed."""
    state = tmp_path / "nat.state"
    process = run(network, kept)
    try:
        until(lambda: ping(network, "in", SERVER))
        transfer = Transfer(network)
        until(lambda: transfer.count > 1 << 20)
        with at(network, "out"):
            remote = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            remote.bind((SERVER, 5353))
            remote.settimeout(0.5)
        with at(network, "in"):
            local = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            local.bind(("", 4000))

        def seen_as() -> tuple[str, int]:
            while True:
                local.sendto(b"x", (SERVER, 5353))
                try:
                    return remote.recvfrom(100)[1]
                except TimeoutError:
                    continue

        before = seen_as()
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            assert state.exists()
            at_stop = transfer.count
            process = run(network, kept)
            until(lambda at_stop=at_stop: transfer.failed or transfer.count > at_stop + (1 << 20))  # type: ignore[misc]
            assert seen_as() == before
            assert ping(network, "in", SERVER)
        transfer.finish()
        process.kill()
        process.wait(60)
        process = run(network, kept)
        assert seen_as() == before
        local.close()
        remote.close()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)

"""The spool: what is appended comes back, in order, after any end; what does not is counted."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import natcore.sessionlog.spool.spool
from natcore import ConfigurationError
from natcore.dtypes import GAP, GAP_LOST
from natcore.sessionlog.heartbeat import Beat
from natcore.sessionlog.ledger import Ledger
from natcore.sessionlog.spool.format import (
    Identity,
    Mark,
    decode_marks,
    decode_segment_header,
    encode_frame,
    encode_mark,
)
from natcore.sessionlog.spool.recovery import recover
from natcore.sessionlog.spool.spool import Spool
from support.log_fakes import assert_adds_up, make_records

IDENTITY = Identity("ngw-1", "vpc-1", "run1")


def open_spool(folder, bound_bytes=1 << 30, identity=IDENTITY):
    ledger = Ledger()
    return Spool(folder, identity, bound_bytes=bound_bytes, ledger=ledger), ledger


def append(spool, ledger, count, first=0):
    ledger.accept(count)
    spool.append(make_records(count, first))


def acknowledge(spool, ledger, batch):
    ledger.move(len(batch), "spooled", "delivered")
    spool.acknowledge()


def take_all(spool, ledger, limit=1000):
    """The numbers of every row, each delivered."""
    numbers = []
    while (batch := spool.take(limit)) is not None:
        numbers += batch.records["number"].tolist()
        acknowledge(spool, ledger, batch)
    return numbers


def test_rows_come_back_in_order_and_are_gone_when_acknowledged(tmp_path):
    spool, ledger = open_spool(tmp_path / "spool")
    for first in range(0, 1000, 50):
        append(spool, ledger, 50, first)
    assert spool.rows == 1000 and ledger.counters()["spooled"] == 1000
    assert take_all(spool, ledger, limit=130) == list(range(1000))
    assert_adds_up(ledger.counters())
    spool.close()
    assert not list((tmp_path / "spool").glob("*.segment"))


def test_a_batch_put_back_comes_again(tmp_path):
    spool, ledger = open_spool(tmp_path)
    append(spool, ledger, 100)
    assert spool.take(60).records["number"].tolist() == list(range(60))
    assert spool.rows == 40
    spool.put_back()
    assert spool.rows == 100
    assert take_all(spool, ledger, limit=30) == list(range(100))


def test_a_restart_goes_on_behind_the_last_acknowledged_row_also_within_a_frame(tmp_path):
    spool, ledger = open_spool(tmp_path)
    append(spool, ledger, 100)
    append(spool, ledger, 100, 100)
    acknowledge(spool, ledger, spool.take(130))
    spool.take(20)  # in hand, never acknowledged
    spool.close()
    spool, ledger = open_spool(tmp_path, identity=Identity("ngw-1", "vpc-1", "run2"))
    assert ledger.counters()["recovered"] == 70
    append(spool, ledger, 10, 0)
    first = spool.take(1000)
    assert first.run == "run1" and first.records["number"].tolist() == list(range(130, 200))
    acknowledge(spool, ledger, first)
    second = spool.take(1000)
    assert second.run == "run2" and second.records["number"].tolist() == list(range(10))
    assert_adds_up(ledger.counters())


def test_files_are_private(tmp_path):
    previous = os.umask(0)
    try:
        spool, ledger = open_spool(tmp_path / "a" / "spool")
        append(spool, ledger, 10)
    finally:
        os.umask(previous)
    assert (tmp_path / "a" / "spool").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "a" / "spool").iterdir()} == {0o600}
    spool.close()


def test_one_process_holds_a_folder(tmp_path):
    spool, _ = open_spool(tmp_path)
    with pytest.raises(ConfigurationError, match="holds it"):
        open_spool(tmp_path)
    spool.close()
    spool.close()
    open_spool(tmp_path)[0].close()


def test_it_is_bounded_and_the_oldest_rows_go_first_and_are_counted(tmp_path):
    bound = 1 << 16
    spool, ledger = open_spool(tmp_path, bound)
    for first in range(0, 10_000, 50):
        append(spool, ledger, 50, first)
        assert sum(path.stat().st_size for path in tmp_path.glob("*.segment")) <= bound
        assert_adds_up(ledger.counters())
    lost = ledger.counters()["lost_spool_full"]
    assert 0 < spool.rows - 1 == 10_000 - lost
    gap = spool.take(1000).records
    assert (gap["kind"][0], gap["number"][0], gap["session"][0], gap["flags"][0]) == (GAP, lost - 1, lost, GAP_LOST)
    lost_rows = make_records(lost)
    assert (gap["start_time"][0], gap["end_time"][0]) == (lost_rows["start_time"][0], lost_rows["end_time"][-1])
    spool.put_back()
    append(spool, ledger, 50, 10_000)  # and more is lost: one gap row tells of all
    assert_adds_up(ledger.counters())
    assert ledger.counters()["gaps"] == 1
    more = ledger.counters()["lost_spool_full"]
    assert take_all(spool, ledger) == list(range(more - 1, 10_050))


def test_a_batch_in_hand_when_the_spool_overflows_is_delivered_or_counted(tmp_path):
    for outcome in ("delivered", "put back"):
        spool, ledger = open_spool(tmp_path / outcome, 1 << 16)
        append(spool, ledger, 50)
        batch = spool.take(30)
        for first in range(50, 5050, 50):
            append(spool, ledger, 50, first)
        lost = ledger.counters()["lost_spool_full"]
        if outcome == "delivered":
            acknowledge(spool, ledger, batch)
            assert (ledger.counters()["delivered"], ledger.counters()["lost_spool_full"]) == (30, lost)
        else:
            spool.put_back()
            assert (ledger.counters()["delivered"], ledger.counters()["lost_spool_full"]) == (0, lost + 30)
        assert_adds_up(ledger.counters())
        rest = take_all(spool, ledger)
        lost = ledger.counters()["lost"]
        assert (
            rest == list(range(5050 - len(rest), 5050)) and rest[0] == lost + (30 if outcome == "delivered" else 0) - 1
        )
        assert ledger.counters()["spooled"] == 0


def test_a_segment_is_removed_when_its_last_row_is_acknowledged(tmp_path):
    spool, ledger = open_spool(tmp_path, 1 << 18)
    for first in range(0, 2000, 100):
        append(spool, ledger, 100, first)
    before = len(list(tmp_path.glob("*.segment")))
    take_all(spool, ledger)
    assert before > 2 and len(list(tmp_path.glob("*.segment"))) == 1


def test_cut_at_any_byte_every_whole_frame_before_comes_back(tmp_path):
    spool, ledger = open_spool(tmp_path / "whole")
    for first in (0, 3, 6):
        append(spool, ledger, 3, first)
    data = next((tmp_path / "whole").glob("*.segment")).read_bytes()
    spool.close()
    start = decode_segment_header(data)[1]
    frame = len(encode_frame(make_records(3)))
    for cut in range(0, len(data) + 1, 7):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        (folder / "0000000001.segment").write_bytes(data[:cut])
        spool, ledger = open_spool(folder)
        whole = max(0, cut - start) // frame * 3
        assert take_all(spool, ledger) == list(range(whole)), cut
        counters = ledger.counters()
        assert_adds_up(counters)
        assert counters["delivered"] == whole and counters["lost_damaged"] in (0, 1, 2, 3)
        append(spool, ledger, 1, 9)
        assert take_all(spool, ledger) == [9]
        spool.close()


@pytest.mark.parametrize("seed", range(30))
def test_damage_anywhere_is_set_aside_and_counted_once_and_the_rest_comes_back(tmp_path, seed):
    chance = random.Random(seed)
    spool, ledger = open_spool(tmp_path)
    for first in range(0, 100, 10):
        append(spool, ledger, 10, first)
    path = next(tmp_path.glob("*.segment"))
    spool.put_back()
    os.close(spool._lock_descriptor)  # the process dies: nothing is closed
    data = bytearray(path.read_bytes())
    start = decode_segment_header(data)[1]
    for _ in range(chance.randrange(1, 5)):
        data[chance.randrange(start, len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    found = recover(tmp_path, None)
    damaged = found.damaged_rows
    assert damaged % 10 == 0 and damaged >= 10
    assert recover(tmp_path, None).damaged_rows == 0  # counted before
    assert (tmp_path / "0000000001.damaged").stat().st_size > 0
    spool, ledger = open_spool(tmp_path)
    numbers = take_all(spool, ledger)
    assert len(numbers) == 100 - damaged == sum(segment.rows_left for segment in found.segments)
    assert numbers == sorted(numbers)
    assert_adds_up(ledger.counters())
    spool.close()


def test_rows_damaged_under_a_running_process_are_counted(tmp_path):
    spool, ledger = open_spool(tmp_path)
    append(spool, ledger, 10)
    append(spool, ledger, 10, 10)
    path = next(tmp_path.glob("*.segment"))
    data = bytearray(path.read_bytes())
    data[-5 - len(encode_frame(make_records(10)))] ^= 1
    path.write_bytes(data)
    assert take_all(spool, ledger) == list(range(10, 20))
    assert ledger.counters()["lost_damaged"] == 10
    assert_adds_up(ledger.counters())


def test_a_segment_cut_short_under_a_running_process_is_passed_over_in_few_reads(tmp_path, monkeypatch):
    spool, ledger = open_spool(tmp_path)
    append(spool, ledger, 10)
    append(spool, ledger, 10, 10)
    path = next(tmp_path.glob("*.segment"))
    os.truncate(path, path.stat().st_size - len(encode_frame(make_records(10))))
    reads = []
    real = natcore.sessionlog.spool.spool.read_range
    monkeypatch.setattr(
        natcore.sessionlog.spool.spool, "read_range", lambda *arguments: reads.append(arguments) or real(*arguments)
    )
    assert take_all(spool, ledger) == list(range(10)) and len(reads) < 10
    assert ledger.counters()["lost_damaged"] == 10
    assert_adds_up(ledger.counters())


def test_a_segment_with_a_damaged_header_is_set_aside_whole(tmp_path):
    (tmp_path / "0000000001.segment").write_bytes(b"x" * 20 + encode_frame(make_records(5)))
    spool, ledger = open_spool(tmp_path)
    assert spool.rows == 0 and ledger.counters()["lost_damaged"] == 5
    assert not list(tmp_path.glob("*.segment")) and (tmp_path / "0000000001.damaged").exists()


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_rows_that_a_failing_disk_does_not_take_stay_with_the_caller(tmp_path, monkeypatch, call):
    """fsync's EIO leaves clean pages that prove nothing: the rows go to a new file, and none comes twice."""
    spool, ledger = open_spool(tmp_path)
    append(spool, ledger, 10)
    real, calls = getattr(os, call), []

    def failing(*arguments):
        calls.append(arguments)
        if call == "write":
            real(arguments[0], bytes(arguments[1])[:100])  # a part arrives
        raise OSError(5, "input/output error")

    monkeypatch.setattr(os, call, failing)
    ledger.accept(10)
    with pytest.raises(OSError, match="input/output"):
        spool.append(make_records(10, 10))
    monkeypatch.undo()
    assert (ledger.counters()["spooled"], ledger.counters()["queued"]) == (10, 10)
    spool.append(make_records(10, 10))
    assert len(list(tmp_path.glob("*.segment"))) == 2
    assert take_all(spool, ledger) == list(range(20))


def test_the_mark_survives_half_a_write():
    old, new = Mark(4, 1, 100, 7), Mark(5, 2, 64, 0)
    slots = encode_mark(old) + encode_mark(new)
    assert decode_marks(slots) == new
    assert decode_marks(slots[:-1] + b"\xff") == old
    assert decode_marks(b"") is None and decode_marks(bytes(64)) is None


CALLS = ("write", "fsync", "open", "pwrite", "close", "ftruncate", "unlink")


class Killed(BaseException):
    pass


def test_killed_at_every_system_call_no_spooled_row_is_lost(tmp_path, monkeypatch):
    """The process ends at its nth call, for every n: it starts again, with each row spooled and not delivered."""
    for nth in range(1, 10_000):
        folder = tmp_path / str(nth)
        finished = _live_until(folder, nth, monkeypatch)
        spool, ledger = open_spool(folder)
        had_begun = (folder / "run").exists()
        has_died = spool.begin_run(Beat(9000, 9000, 9000, 0))
        assert not (finished["spooled"] and not had_begun) and (has_died or not had_begun or finished["spooled"])
        assert not (finished["marked"] and has_died)
        gaps = ledger.counters()["gaps"]
        assert gaps == has_died
        numbers = take_all(spool, ledger)
        if has_died:
            gap = numbers.pop()
            assert gap > max([*numbers, *finished["spooled"]], default=-1)  # its number is its own
        assert set(finished["spooled"]) - set(finished["delivered"]) <= set(numbers), nth
        assert numbers == sorted(set(numbers)), nth
        assert_adds_up(ledger.counters())
        spool.close()
        if finished["ended"]:
            assert nth > 50
            return


def _live_until(folder: Path, nth: int, monkeypatch) -> dict:
    """Appends, takes, acknowledges, overflows nothing; what it had been told was done when it ended."""
    done: dict = {"spooled": [], "delivered": [], "marked": False, "ended": False}
    calls, opened, close = [0], set(), os.close

    def counted(real):
        def call(*arguments, **more):
            if calls[0] >= nth:
                raise Killed
            calls[0] += 1
            result = real(*arguments, **more)
            if real.__name__ == "open":
                opened.add(result)
            elif real.__name__ == "close":
                opened.discard(arguments[0])
            return result

        return call

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            spool, ledger = open_spool(folder, 1 << 17)
            spool.begin_run(Beat(100, 200, 300, 0))
            for first in range(0, 700, 100):
                append(spool, ledger, 100, first)
                done["spooled"] += range(first, first + 100)
                spool.note(Beat(100 + first, 200 + first, 300 + first, first + 100))
                done["oldest"] = 100 + first
                if first % 200:
                    batch = spool.take(130)
                    done["delivered"] += batch.records["number"].tolist()
                    acknowledge(spool, ledger, batch)
            spool.end_run()
            done["marked"] = True
            spool.close()
            done["ended"] = True
        except Killed:
            pass
    for descriptor in opened:  # what the kernel does for a dead process
        with suppress(OSError):  # a file object closed it on its way out
            close(descriptor)
    return done


CHILD = """
import sys
from support.log_fakes import make_records
from natcore.sessionlog.ledger import Ledger
from natcore.sessionlog.spool.spool import Spool
from natcore.sessionlog.spool.format import Identity
ledger = Ledger()
spool = Spool(sys.argv[1], Identity("i", "v", sys.argv[2]), bound_bytes=1 << 30, ledger=ledger)
first = 0
while True:
    ledger.accept(50)
    spool.append(make_records(50, first))
    print("spooled", first + 50, flush=True)
    first += 50
    if first % 200 == 0:
        batch = spool.take(120)
        print("acknowledging", batch.run, int(batch.records["number"][-1]) + 1, flush=True)
        spool.acknowledge()
"""


def test_sigkill_loses_no_spooled_row(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    expected: dict[str, list[int]] = {}  # run -> [about to be acknowledged, spooled]
    for number in range(5):
        run = f"run{number}"
        command = [sys.executable, "-c", CHILD, str(tmp_path), run]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert child.stdout is not None
        expected[run] = [0, 0]
        for _ in range(20 + 7 * number):
            _note(child.stdout.readline(), run, expected)
        child.send_signal(signal.SIGKILL)
        for line in child.stdout:  # what it had said before it was killed
            _note(line, run, expected)
        child.wait()
        child.stdout.close()
    spool, ledger = open_spool(tmp_path)
    found: dict[str, list[int]] = {}
    while (batch := spool.take(1000)) is not None:
        found.setdefault(batch.run, []).extend(batch.records["number"].tolist())
        acknowledge(spool, ledger, batch)
    for run, (acknowledged, spooled) in expected.items():
        if acknowledged < spooled:
            numbers = found[run]
            assert numbers == list(range(numbers[0], numbers[-1] + 1))
            assert numbers[0] <= acknowledged and numbers[-1] >= spooled - 1
    spool.close()


def _note(line: str, run: str, expected: dict[str, list[int]]) -> None:
    match line.split():
        case ["spooled", count]:
            expected[run][1] = int(count)
        case ["acknowledging", of, count]:
            expected[of][0] = int(count)

"""Who had it then: answers against lives that the test knows."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import UDP

from natcore import ConfigurationError, Eip, Error, Gateway, Side, SnatEntry
from natcore.dtypes import COVER, CREATE, END, GAP, GAP_DIED, WINDOW, gap_row
from natcore.sessionlog.collector import Collector
from natcore.sessionlog.facts import STARTED, cover_row, entry_rows, removed_row
from natcore.sessionlog.heartbeat import Beat
from natcore.sessionlog.spool.format import Identity
from natcore.sessionlog.spool.run import RunFile
from natcore.sinks import Batch, ParquetSink
from natcore.sinks._parquet_folder import read_footer
from natcore.who.files import LocalFiles
from natcore.who.query import Store, answered, who
from natcore.who.question import Question
from natcore.who.usage import top
from natcore.who.waiting import Waiting
from support.frames import parsed, udp
from support.lives import ADDRESS, ANN, BOB, DNS, EPOCH, PRIVATE, Log, at, label
from support.log_fakes import FakeClock, FakeCore, ScriptedSink


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log").tick(0)


def test_a_window_that_covers_the_time_is_exact(log: Log) -> None:
    folder = log.session(7, ANN, 100, [(100, 400)], 400).tick(9000).write()
    answer = who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(200))
    assert (answer.status, str(answer.subscriber), answer.gaps) == ("exact", "10.0.0.5", ())
    (match,) = answer.matches
    assert (match.pri_port, str(match.pub_ip), match.pub_port, match.session) == (555, "198.51.100.7", 443, 7)
    assert (match.start, match.end, match.window) == (at(100), at(400), (at(100), at(400)))


@pytest.mark.parametrize("address", ["203.0.113.1", "172.16.10.13"])
def test_either_address_of_an_eip_is_known(log: Log, address: str) -> None:
    folder = log.session(7, ANN, 100, [(100, 400)], 400).tick(9000).write()
    assert who(folder, address, 4000, protocol=6, at=at(200)).status == "exact"


def test_the_key_is_address_port_and_protocol(log: Log) -> None:
    folder = log.session(7, ANN, 100, [(100, 400)], 400).tick(9000).write()
    for address, port, protocol in (
        ("203.0.113.1", 4001, "tcp"), ("203.0.113.1", 4000, "udp"),
    ):  # fmt: skip
        assert who(folder, address, port, protocol=protocol, at=at(200)).status == "unused"


def test_an_address_that_no_gateway_had_is_not_unused(log: Log) -> None:
    """A gateway with a log elsewhere, or a lost one, may have had it."""
    folder = log.session(7, ANN, 100, [(100, 400)], 400).tick(9000).write()
    answer = who(folder, "203.0.113.2", 4000, protocol="tcp", at=at(200))
    assert answer.status == "gap" and "had that address" in answer.reason


def test_a_port_held_without_traffic_is_held_idle(log: Log) -> None:
    folder = log.session(7, ANN, 100, [(100, 700), (7000, 7600)], 7600).tick(20_000).write()
    for seconds in (703, 3000, 6990):
        answer = who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(seconds))
        assert (answer.status, str(answer.subscriber)) == ("held-idle", "10.0.0.5")
        assert answer.matches[0].window is None
    assert who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(7000)).status == "exact"
    for seconds in (90, 7610):
        assert who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(seconds)).status == "unused"


def test_a_session_that_has_not_ended_yet_is_held_as_far_as_the_log_goes(log: Log) -> None:
    folder = log.session(7, ANN, 100, [(100, 700)], None).tick(3000).write()
    assert who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(2000)).status == "held-idle"
    answer = who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(4000))
    assert answer.status == "gap" and "after the log's last row" in answer.reason and "10.0.0.5" in answer.reason


def test_an_unseen_window_is_not_believed_to_be_open(log: Log) -> None:
    """Its row is not written yet: its session held the port, and of its first packet alone is a row."""
    folder = log.session(7, ANN, 100, [], None).tick(300).write()
    assert who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(250)).status == "held-idle"
    assert who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(101)).status == "exact"


def test_two_subscribers_within_the_tolerance_are_ambiguous(log: Log) -> None:
    log.session(7, ANN, 100, [(100, 400)], 400).session(8, BOB, 401, [(401, 500)], 500).tick(9000)
    folder = log.write()
    answer = who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(400.5))
    assert answer.status == "ambiguous" and answer.subscriber is None
    assert {str(match.pri_ip) for match in answer.matches} == {"10.0.0.5", "10.0.0.6"}
    assert str(who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(400.5), tolerance=0.2).status) == "unused"
    assert str(who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(401.1), tolerance=0.2).subscriber) == "10.0.0.6"


def test_the_tolerance_is_of_both_sides(log: Log) -> None:
    folder = log.session(7, ANN, 100, [(100, 400)], 400).tick(9000).write()
    for seconds, status in ((98, "exact"), (97.9, "unused"), (402, "exact"), (402.1, "unused")):
        assert who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(seconds)).status == status


def test_the_remote_decides_between_sessions_of_one_port(log: Log) -> None:
    """Ports that are shared (overload): the remote identifies the session."""
    log.session(7, ANN, 100, [(100, 400)], 400).session(8, BOB, 100, [(100, 400)], 400, pub_ip=DNS, pub_port=53)
    folder = log.tick(9000).write()

    def ask(remote: object) -> object:
        return who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(200), remote=remote)  # type: ignore[arg-type]

    assert ask(None).status == "ambiguous"
    assert str(ask("198.51.100.7").subscriber) == "10.0.0.5"
    assert str(ask(("198.51.100.53", 53)).subscriber) == "10.0.0.6"
    answer = ask(("198.51.100.53", 54))
    assert answer.status == "unused" and "10.0.0.5, 10.0.0.6 had it towards others" in answer.reason
    assert len(answer.others) == 2


def test_a_redacted_log_does_not_say_who_had_a_remote(log: Log) -> None:
    folder = log.session(7, ANN, 100, [(100, 400)], 400, pub_ip=0, pub_port=0).tick(9000).write()
    answer = who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(200), remote="198.51.100.7")
    assert answer.status == "ambiguous" and answer.matches[0].pub_ip is None
    assert who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(200)).status == "exact"


def test_missing_numbers_are_a_gap(log: Log) -> None:
    log.tick(1000)
    log.number += 5  # rows that never came
    folder = log.tick(1100).tick(9000).write()
    answer = who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(1050))
    assert answer.status == "gap" and answer.reason == "rows 2 to 6 of run run1 are missing"
    assert answer.gaps == ((at(1000), at(1100), answer.reason),)
    assert who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(1200)).status == "gap"  # idle since, perhaps
    assert who(log.tick(9300).write(), "203.0.113.1", 4000, protocol="tcp", at=at(1200)).status == "unused"


def test_missing_numbers_between_files_are_a_gap(log: Log) -> None:
    log.tick(1000).write()
    log.number += 5
    folder = log.tick(1100).tick(9000).write()
    assert who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(1050)).status == "gap"


def test_a_gap_does_not_take_a_certain_answer_away(log: Log) -> None:
    log.session(7, ANN, 100, [(100, 700)], None)
    log.number += 5
    folder = log.add(END, 100, 5000, 7, ANN).tick(9000).write()
    answer = who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(300))
    assert answer.status == "exact" and answer.gaps
    assert who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(3000)).status == "held-idle"


def test_an_end_that_may_be_missing_makes_the_holder_unsure(log: Log) -> None:
    log.session(7, ANN, 100, [(100, 700)], None).tick(1000)
    log.number += 5
    folder = log.tick(1100).tick(9000).write()
    answer = who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(2000))
    assert answer.status == "gap" and "perhaps 10.0.0.5" in answer.reason


def test_a_gap_row_is_a_gap_and_tells_why(log: Log) -> None:
    log.tick(1000)
    died = gap_row(round((EPOCH + 700) * 1e6), round((EPOCH + 1003) * 1e6), log.number, 0, GAP_DIED)
    log.rows.append(died)
    log.write()
    folder = Log(log.folder, run="run2").tick(1100).tick(9000).write()
    answer = who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(1001))
    assert answer.status == "gap" and "without its end mark" in answer.reason
    assert who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(1050)).reason.startswith(
        "that is after the log's last"
    )
    assert who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(1200)).status == "unused"


def test_before_the_log_and_after_it_nothing_is_known(log: Log) -> None:
    folder = log.tick(1000).write()
    for seconds, text in ((-10, "before the log's first row"), (1010, "after the log's last row")):
        answer = who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(seconds))
        assert answer.status == "gap" and text in answer.reason
    (folder / "empty").mkdir()
    assert who(folder / "empty", "203.0.113.1", 4000, protocol="tcp", at=at(0)).reason == "the log has no rows"


def test_rows_that_wait_in_the_spool_are_asked_too(log: Log, tmp_path: Path) -> None:
    """Some are delivered, some are in the spool, some came twice: each counts once."""
    core = FakeCore()
    collector = Collector(core, instance="ngw-1", vpc_id="vpc-1", run="run1", threads=False)

    def refuse(batch: Batch, attempt: int) -> None:
        raise OSError("no")

    sink = ScriptedSink(refuse, events=True)
    sink.gaps = sink.facts = True
    session_log = collector.start(sink, name="a", spool=tmp_path / "spool")
    log.session(7, ANN, 100, [(100, 400)], 400).tick(9000)
    rows = log.batch().records.copy()
    rows["pkts_from_vpc"][rows["kind"] >= COVER] += 1000  # behind the collector's own
    half = int(np.flatnonzero(rows["number"] == 3)[0])
    session_log._accept(rows[:half])
    session_log._persist()
    session_log._send()
    session_log._accept(rows[half:])
    waiting = np.concatenate([batch.records[["number", "kind"]] for batch in collector.waiting_rows()])
    assert waiting["number"][waiting["kind"] < GAP].tolist() == [3, 4, 0, 1, 2]
    for spool in (tmp_path / "spool", tmp_path / "spool" / "a"):
        answer = who(None, "203.0.113.1", 4000, protocol="tcp", at=at(200), spool=spool)
        assert (answer.status, len(answer.matches)) == ("exact", 1)
    collector.close(0.0)
    sink = ParquetSink(log.folder)
    sink.deliver(Batch("ngw-1", "vpc-1", "run1", rows[:half]))
    answer = who(log.folder, "203.0.113.1", 4000, protocol="tcp", at=at(200), spool=tmp_path / "spool")
    assert (answer.status, len(answer.matches), answer.gaps) == ("exact", 1, ())


def test_an_entry_that_two_logs_state_is_gone_when_one_of_them_tells_so(tmp_path: Path) -> None:
    """Each log states what is in force when it starts. The first one stops before the end, which the second one tells."""
    first = Log(tmp_path / "first").tick(0)
    second = Log(tmp_path / "second", first=first.number)
    second.facts = first.facts
    first.write()
    second.fact(cover_row(label(100), label(100), label(100), STARTED))
    for row in entry_rows(1, SnatEntry("10.0.0.0/8", pool="203.0.113.1"), [(PRIVATE, ADDRESS)]):
        second.fact(row, 100)
    second.tick(150).fact(removed_row(1), 200).tick(300).write()
    there = Waiting((second.tick(400).batch(),))
    for seconds, status in ((180, "unused"), (350, "gap")):
        question = Question("203.0.113.1", 4000, "tcp", at(seconds), None, 0.0, None)
        assert answered(question, Store(tmp_path), there).status == status


def test_an_entry_that_a_later_statement_of_all_lacks_is_gone_though_its_end_is_lost(tmp_path: Path) -> None:
    """The first log stops before the end; the second one, which would tell it, is lost until it states all anew."""
    first = Log(tmp_path / "first").tick(0)
    second = Log(tmp_path / "second", first=first.number)
    second.facts = first.facts
    first.write()
    second.fact(removed_row(1), 200).batch()
    second.fact(cover_row(label(250), label(250), label(250), STARTED))
    for row in entry_rows(2, SnatEntry("10.0.0.0/8", pool="203.0.113.2"), [(PRIVATE, ADDRESS + 1)]):
        second.fact(row, 250)
    second.tick(300).write()
    there = Waiting((second.tick(400).batch(),))
    question = Question("203.0.113.1", 4000, "tcp", at(350), None, 0.0, None)
    assert answered(question, Store(tmp_path), there).status == "gap"


def test_a_store_sees_files_that_grow_and_files_that_come(log: Log) -> None:
    sink = ParquetSink(log.folder)
    sink.deliver(log.tick(10).batch())
    store = Store(log.folder)
    assert who(store, "203.0.113.1", 4000, protocol="tcp", at=at(200)).status == "gap"
    sink.deliver(log.session(7, ANN, 100, [(100, 400)], 400).batch())
    assert who(store, "203.0.113.1", 4000, protocol="tcp", at=at(200)).status == "exact"
    sink.close()
    log.session(8, BOB, 500, [(500, 600)], 600).tick(9000).write()
    assert str(who(store, "203.0.113.1", 4000, protocol="tcp", at=at(550)).subscriber) == "10.0.0.6"
    assert len(store.parts()) == 3 and store.damaged == []


def test_what_has_not_changed_is_read_once(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    log.session(7, ANN, 100, [(100, 400)], 400).tick(9000).write()
    store, read = Store(log.folder), []
    for name in ("seal", "footer", "sha256"):
        real = getattr(LocalFiles, name)
        monkeypatch.setattr(
            LocalFiles, name, lambda self, path, real=real, name=name: read.append(name) or real(self, path)
        )
    for _ in range(3):
        assert who(store, "203.0.113.1", 4000, protocol="tcp", at=at(200)).status == "exact"
        assert who(store, "203.0.113.1", 4000, protocol="tcp", at=at(8900)).status == "unused"
    assert sorted(read) == ["footer", "seal", "sha256"]
    log.session(8, BOB, 9500, [(9500, 9600)], 9600).tick(9700).write()
    assert str(who(store, "203.0.113.1", 4000, protocol="tcp", at=at(9550)).subscriber) == "10.0.0.6"
    assert read.count("seal") == 2 and read.count("footer") == 2


def test_few_of_many_files_are_opened(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for day in range(30):
        log.tick(day * 86_400).write()
    store = Store(tmp_path)
    answer = who(store, "203.0.113.1", 4000, protocol="tcp", at=at(15 * 86_400 - 1000))
    assert answer.status == "unused" and len(store._footers) <= 12
    assert len(store.parts()) == 30


def test_what_may_not_be_asked_is_refused(log: Log, tmp_path: Path) -> None:
    folder = log.write()
    good = {"address": "203.0.113.1", "port": 4000, "protocol": "tcp", "at": at(0)}
    for change, text in (
        ({"at": datetime(2026, 1, 1)}, "time zone"),
        ({"at": "2026-01-01T00:00:00Z"}, "time zone"),
        ({"port": 65_536}, "port must .*, got 65536"),
        ({"protocol": "tpc"}, "protocol must .*, got 'tpc'"),
        ({"address": "203.0.113"}, "address must"),
        ({"remote": "x"}, "remote must .*, got 'x'"),
        ({"tolerance": -1}, "tolerance must .*, got -1"),
        ({"spool": tmp_path / "none"}, "spool must"),
    ):
        with pytest.raises(ConfigurationError, match=text):
            who(folder, **{**good, **change})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="store must"):
        who(tmp_path / "none", **good)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"store must .*, got None"):
        who(None, **good)  # type: ignore[arg-type]


def test_a_time_in_another_zone_is_the_same_time(log: Log) -> None:
    folder = log.session(7, ANN, 100, [(100, 400)], 400).tick(9000).write()
    when = at(200).astimezone(timezone(timedelta(hours=8)))
    answer = who(folder, "203.0.113.1", 4000, protocol="tcp", at=when)
    assert answer.status == "exact" and answer.as_dict()["at"] == "2023-11-14T22:16:40Z"
    assert answer.as_dict()["matches"][0]["pri_ip"] == "10.0.0.5"


def test_a_running_gateway_adds_what_it_still_has(tmp_path: Path) -> None:
    """Rows that the log has not delivered yet, sessions that live, windows that are open."""
    gateway = Gateway(instance="ngw-1", seed=1, epoch=EPOCH, max_sessions=100, max_mappings=100)
    gateway.add(SnatEntry("10.0.0.0/24", pool=[Eip("203.0.113.1", private_ip="172.16.10.13")]))
    gateway.start_session_log(ParquetSink(tmp_path / "log", batch_seconds=86_400.0))
    frame = udp("10.0.0.5", 555, "198.51.100.7", 53)
    _, translated = gateway.translate_one(frame, Side.INSIDE, now=0.0)
    port = parsed(translated)[UDP].sport
    gateway.advance(now=200.0)

    def ask(seconds: float) -> object:
        return who(None, "203.0.113.1", port, protocol="udp", at=at(seconds), gateway=gateway)

    answer = ask(150)
    assert (answer.status, str(answer.subscriber)) == ("exact", "10.0.0.5")
    assert answer.matches[0].window[0] == at(0) and answer.matches[0].end is None
    for now in (250.0, 500.0, 700.0, 750.0):
        gateway.translate_one(frame, Side.INSIDE, now=now)
        gateway.advance(now=now + 1)
    assert [ask(seconds).status for seconds in (300, 650, 720, 900)] == ["exact", "held-idle", "exact", "gap"]
    gateway.advance(now=2000.0)
    assert [ask(seconds).status for seconds in (300, 1060)] == ["exact", "unused"]
    gateway.close()
    answer = who(tmp_path / "log", "203.0.113.1", port, protocol="udp", at=at(300))
    assert (answer.status, answer.matches[0].window) == ("exact", (at(0), at(600)))
    answer = who(tmp_path / "log", "203.0.113.1", port, protocol="udp", at=at(650))
    assert (answer.status, answer.matches[0].start, answer.matches[0].end) == ("held-idle", at(0), at(1050))


def test_a_quiet_log_is_known_as_far_as_its_last_sign_of_life(log: Log, tmp_path: Path) -> None:
    """Its rows are in files; the spool is empty, and its heartbeat tells that no other row was written."""
    folder = log.session(7, ANN, 100, [(100, 400)], 400).write()
    spool = tmp_path / "spool" / "audit"
    spool.mkdir(parents=True)
    moment = label(5000)
    beat = Beat(oldest=0, now=moment, wall=0, next_number=log.number, made=moment, swept=moment, facts=log.facts)
    RunFile(spool, Identity("ngw-1", "vpc-1", "run1"), beat).close()

    def ask(seconds: float) -> str:
        return who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(seconds), spool=tmp_path / "spool").status

    assert [ask(seconds) for seconds in (200, 4000, 5010)] == ["exact", "unused", "gap"]
    RunFile(spool, Identity("ngw-1", "vpc-1", "run1"), replace(beat, next_number=log.number + 1)).close()
    assert ask(4000) == "gap"  # a row was written that is nowhere


# Lives of one port: (gap before, seconds of traffic, idle seconds, traffic again or 0); rows are lost where `lost` says.
LIVES = st.lists(
    st.tuples(st.integers(1, 900), st.integers(1, 599), st.integers(0, 3000), st.sampled_from([0, 60])), max_size=5
)


@settings(max_examples=25, deadline=None)
@given(lives=LIVES, moments=st.lists(st.integers(0, 12_000), min_size=4, max_size=5), lost=st.sets(st.integers(1, 20)))
def test_an_answer_is_right_or_says_that_it_cannot_know(lives: list[tuple[int, int, int, int]], moments: list[int],
                                                         lost: set[int], tmp_path_factory: Any) -> None:  # fmt: skip
    """Against every life: never the wrong host, and "unused" only where no host was, whatever rows are lost."""
    log = Log(tmp_path_factory.mktemp("lives")).tick(0)
    rows: list[tuple[float, tuple[Any, ...]]] = [
        (time, (kind, time, time, 9999, BOB)) for time in range(0, 26_000, 500) for kind in (WINDOW, COVER)
    ]
    truth, now = [], 0
    for number, (before, lively, idle, again) in enumerate(lives):
        start, host = now + before, ANN + number
        quiet = start + lively
        back = quiet + idle if again else 0
        end = back + again if again else quiet + idle
        windows = [(start, quiet), *([(back, end)] if again else [])]
        truth.append((start, end, host, windows))
        rows += [(start, (CREATE, start, start, number, host)), (end + 0.5, (END, start, end, number, host))]
        rows += [(last + 0.2, (WINDOW, first, last, number, host)) for first, last in windows]
        now = end
    for _, (kind, start, end, session, host) in sorted(rows, key=lambda row: row[0]):
        if kind == COVER:
            log.fact(cover_row(label(start), label(start - 0.5), label(start)))
        elif log.number in lost:
            log.number += 1
        else:
            log.add(kind, start, end, session, host, port=1 if session == 9999 else 4000)
    store = Store(log.write())
    for moment in moments:
        answer = who(store, "203.0.113.1", 4000, protocol="tcp", at=at(moment), tolerance=0)
        holders = {host: windows for start, end, host, windows in truth if start <= moment <= end}
        hosts = {IPv4Address(host) for host in holders}
        found = {match.pri_ip for match in answer.matches}
        if answer.status == "unused":
            assert not hosts
        elif answer.status == "gap":
            assert answer.gaps and (lost or moment == 0)
        else:
            assert found <= hosts and (answer.status == "ambiguous") == (len(found) > 1)
        if answer.status == "exact":
            assert any(first <= moment <= last for windows in holders.values() for first, last in windows)
        if not lost:
            assert found == hosts or (answer.status == "exact" and found < hosts)


@pytest.mark.parametrize("part", ["rows", "footer", "all"])
def test_a_damaged_file_is_a_gap(log: Log, part: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its neighbours' numbers tell what is missing; figures over it are refused, and the file is named."""
    sink = ParquetSink(log.folder, batch_rows=1)
    sink.deliver(log.tick(100).batch())
    sink.deliver(log.session(7, ANN, 1000, [(1000, 1300)], 1300).batch())
    sink.deliver(log.tick(9000).batch())
    path = sorted(log.folder.glob("*.parquet"))[1]
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[-8:-4], "little")
    damage = {
        "rows": slice(4, len(data) - 8 - length),
        "footer": slice(len(data) - 8 - length, len(data) - 8),
        "all": slice(0, None),
    }
    data[damage[part]] = bytes(each ^ 0x5A for each in data[damage[part]])
    path.write_bytes(data)
    store = Store(log.folder)
    answer = who(store, "203.0.113.1", 4000, protocol="tcp", at=at(1100))
    assert answer.status == "gap" and "are missing" in answer.reason and store.damaged == [str(path)]
    assert ("not as it was written" in caplog.text) == (part == "rows")
    with pytest.raises(Error, match=path.name):
        top(Store(log.folder))


def test_a_bit_that_flipped_in_a_file_never_names_anybody(log: Log) -> None:
    """Whichever it is: the rows of the file are a gap."""
    sink = ParquetSink(log.folder, batch_rows=1)
    sink.deliver(log.tick(100).batch())
    sink.deliver(log.session(7, ANN, 1000, [(1000, 1300)], 1300).tick(1400).batch())
    for path in sorted(log.folder.glob("*.parquet")):  # one that another names, and the newest
        data = path.read_bytes()
        for place in range(0, len(data), max(1, len(data) // 40)):
            path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
            answer = who(log.folder, "203.0.113.1", 4000, protocol="tcp", at=at(1100))
            assert answer.status in (
                "gap",
                "exact" if path.name < sorted(log.folder.glob("*.parquet"))[1].name else "gap",
            )
            assert answer.status == "gap" or answer.subscriber == IPv4Address(ANN)
        path.write_bytes(data)
    assert who(log.folder, "203.0.113.1", 4000, protocol="tcp", at=at(1100)).status == "exact"


def test_files_that_are_put_together_while_they_are_read_cost_no_answer(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    sink = ParquetSink(log.folder, roll_seconds=60.0, clock=clock)
    sink.deliver(log.tick(100).batch())
    sink.deliver(log.session(7, ANN, 1000, [(1000, 1300)], 1300).tick(1400).batch())
    store = Store(log.folder)
    read = Store.rows
    more = [log.tick(1500).batch()]

    def read_late(self: Store, *arguments: Any) -> Any:
        if more:
            clock.now += 60
            sink.deliver(more.pop())
        return read(self, *arguments)

    monkeypatch.setattr(Store, "rows", read_late)
    assert who(store, "203.0.113.1", 4000, protocol="tcp", at=at(1100)).status == "exact" and not more


def test_a_file_that_a_damaged_one_alone_knows_stays_believed(log: Log) -> None:
    """The damaged one's footer tells its SHA-256, at the second question too."""
    folder = log.session(7, ANN, 100, [(100, 400)], 400).write()
    log.tick(500).write()
    log.tick(600).write()
    last = max(folder.glob("*.parquet"))
    data = bytearray(last.read_bytes())
    data[8] ^= 1
    last.write_bytes(data)
    store = Store(folder)
    looked = [[file.name for file in store.parts()] for _ in range(3)]
    assert looked[0] == looked[1] == looked[2] and len(looked[0]) == 2 and store.damaged == [str(last)]


def test_a_footer_that_is_no_text_is_damage(log: Log) -> None:
    """Arrow reads names of columns as text; a bit that flips in one is no exception."""
    folder = log.session(7, ANN, 100, [(100, 400)], 400).write()
    (path,) = folder.glob("*.parquet")
    data = path.read_bytes()
    read = []
    for match in re.finditer(rb"nat_port|pri_port", data):
        last = match.end() - 1
        path.write_bytes(data[:last] + b"\xe4" + data[last + 1 :])
        read.append(read_footer(path))
    assert None in read


def test_a_folder_that_vanishes_is_an_error_and_one_below_it_a_gap(log: Log, tmp_path: Path, monkeypatch) -> None:
    folder = log.session(7, ANN, 100, [(100, 400)], 400).write()
    store = Store(folder.parent)
    scan = os.scandir

    def vanish(path: str) -> object:
        if os.fspath(path) == os.fspath(folder):
            raise FileNotFoundError(2, "No such file or directory", path)
        return scan(path)

    monkeypatch.setattr("natcore.who.files.os.scandir", vanish)
    assert store.parts() == []
    monkeypatch.undo()
    shutil.rmtree(folder.parent)
    with pytest.raises(Error, match="not there any more"):
        store.parts()

"""What `who` may conclude at the seams: between gateways, beside gaps, over clocks that were set, of what has no rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natcore import DnatEntry, Gateway, NoNatEntry, Policy, Side, SnatEntry, Timeouts
from natcore.dtypes import GAP_DIED, gap_row
from natcore.sessionlog.collector import Collector
from natcore.sessionlog.facts import EMPTY, STARTED, cover_row, entry_rows, removed_row
from natcore.sessionlog.file_metadata import Footer
from natcore.sinks import Batch, MemorySink, ParquetSink
from natcore.testing import craft
from natcore.who.conclude import FOREVER, Asked, Known, Row, Run, Static, conclude
from natcore.who.query import Answer, Store, what, who
from support.lives import ANN, EPOCH, Log, at, label
from support.log_fakes import FakeCore

HOUR = 3_600_000_000
REMOTE = ("198.51.100.7", 53)
POLICY = Policy(port_ranges=((4000, 4000),), hold_down=0.0)  # one port


def gateway(instance: str, pool: str | None = "203.0.113.1", **more: object) -> Gateway:
    made = Gateway(instance=instance, vpc_id="vpc-1", epoch=EPOCH, seed=1, max_sessions=64, framing="ip",
                   **{"policy": POLICY, **more})  # type: ignore[arg-type]  # fmt: skip
    if pool is not None:
        made.add(SnatEntry("10.0.0.0/24", pool=pool))
    return made


def send(by: Gateway, host: str, now: float, remote: tuple[str, int] = REMOTE) -> None:
    assert by.translate_one(craft.udp((host, 5000), remote, b"x"), Side.INSIDE, now)[1] is not None


def ask(store: Path | Store | None, seconds: float, tolerance: float = 0.0, address: str = "203.0.113.1", port: int = 4000,
        **more: object) -> Answer:  # fmt: skip
    arguments = {"protocol": "udp", "at": at(seconds), "tolerance": tolerance, **more}
    return who(store, address, port, **arguments)  # type: ignore[arg-type]


def die(of: Gateway) -> None:
    """The process is about to end: no row that comes from now on reaches a file."""
    collector = of._collector
    assert collector is not None
    for log in collector.logs:
        log._sender.abandon()
        log._buffer.clear()
        log.sink.close()  # type: ignore[attr-defined]
    collector._logs = ()


def test_an_address_that_moved_to_a_gateway_that_died_is_not_unused(tmp_path: Path) -> None:
    one, other = gateway("ngw-a"), gateway("ngw-b", None)
    log_of_a = one.start_session_log(ParquetSink(tmp_path / "a", batch_seconds=0.0))
    log_of_b = other.start_session_log(ParquetSink(tmp_path / "b", batch_seconds=0.0))
    one.advance(100.0)
    one.remove(one.entries()[0], now=100.0)
    other.advance(100.0)
    other.add(SnatEntry("10.0.0.0/24", pool="203.0.113.1"))
    assert log_of_b.wait(60.0)
    die(other)
    send(other, "10.0.0.5", 200.0)
    one.advance(20_000.0)
    one.close()
    assert log_of_a.counters()["lost"] == 0
    assert ask(tmp_path, 200.0).status == "gap" and ask(tmp_path, 50.0).status == "unused"


def test_an_entry_that_ended_is_still_told_where_files_are_put_together() -> None:
    rows = np.concatenate([
        *entry_rows(1, SnatEntry("10.0.0.0/24", pool="203.0.113.1"), [(0xCB007101, 0)]), removed_row(1), cover_row(300, 300, 0),
    ])  # fmt: skip
    rows["pkts_from_vpc"] = [1, 2, 3]
    rows["start_time"] = [100, 200, 300]
    first = Footer.of(Batch("ngw-a", "vpc-1", "r", rows[:2]))
    later = Footer.of(Batch("ngw-a", "vpc-1", "r", rows[2:]), first.facts.carried())
    joined = first.joined(later).facts
    assert [(each.since, each.until) for each in joined.entries] == [(100, 200)] and joined.sequence == 3
    assert first.joined(later).joined(later).facts == joined


def test_an_address_that_two_gateways_may_have_had_is_not_unused() -> None:
    known = (Known(0, 9 * HOUR, 9 * HOUR, 0, 9, whole=True),)
    run = Run("ngw-a", "r", 0, FOREVER, known, HOUR, HOUR, True, True)
    for had, status in (
        (((0, FOREVER),), "unused"),
        (((0, 5), (6, FOREVER)), "unused"),
        (((0, 5),), "gap"),
        ((), "gap"),
    ):
        answer = conclude(Asked(5, 10), [replace(run, had=had)], [], [], 0, 10)
        assert answer.status == status, had


def test_a_session_that_the_machine_slept_through_had_its_port_before(tmp_path: Path) -> None:
    """Its clock stood still for 600 s: what it labels after it woke is 600 s late."""
    live = gateway("ngw-a", timeouts=Timeouts(udp=5000.0))
    live.start_session_log(ParquetSink(tmp_path))
    send(live, "10.0.0.5", 100.0)
    live.advance(150.0)
    assert live._collector is not None
    live._collector.set_epoch((EPOCH + 600) * 10**9, suspended=True)
    live.advance(160.0)
    answers = [ask(None, seconds, gateway=live) for seconds in (99.0, 120.0, 755.0)]
    assert [answer.status for answer in answers] == ["unused", "exact", "exact"]
    live.close()


def test_a_time_out_is_known_from_the_log(tmp_path: Path) -> None:
    """Idle for five hours, and alive."""
    live = gateway("ngw-a", timeouts=Timeouts(udp=86_400.0))
    live.start_session_log(ParquetSink(tmp_path))
    send(live, "10.0.0.5", 100.0)
    live.advance(100.0 + 5 * 3600)
    live.translate_one(craft.udp(("10.0.0.9", 1), REMOTE, b"x"), Side.INSIDE, 101.0 + 5 * 3600)
    live.close()
    answer = ask(tmp_path, 4 * 3600.0)
    assert (answer.status, str(answer.subscriber)) == ("held-idle", "10.0.0.5")


def test_what_has_no_rows_by_contract_is_static(tmp_path: Path) -> None:
    live = gateway("ngw-a")
    live.start_session_log(ParquetSink(tmp_path))
    live.advance(100.0)
    dnat = live.add(DnatEntry("203.0.113.1", 8443, "10.0.0.7", 443, protocol="tcp"))
    live.add(DnatEntry("203.0.113.9", "any", "10.0.0.8", "any", protocol="any"))
    live.add(NoNatEntry("192.0.2.0/24", "198.51.100.0/24"))
    live.advance(500.0)
    live.remove(dnat, now=500.0)
    live.advance(1000.0)
    live.close()
    answer = ask(tmp_path, 200.0, port=8443, protocol="tcp")
    assert (answer.status, str(answer.subscriber)) == ("static", "10.0.0.7") and "DNAT entry 2" in answer.reason
    assert ask(tmp_path, 50.0, port=8443, protocol="tcp").status == "unused"
    assert ask(tmp_path, 700.0, port=8443, protocol="tcp").status == "unused"
    assert str(ask(tmp_path, 200.0, address="203.0.113.9", port=1).subscriber) == "10.0.0.8"
    assert ask(tmp_path, 200.0, address="192.0.2.5", port=1).status == "static"
    assert ask(tmp_path, 200.0, address="192.0.2.5", port=1, remote="8.8.8.8").status != "static"


def test_deterministic_ports_are_computed_where_the_log_has_a_gap(tmp_path: Path) -> None:
    policy = Policy(ports="deterministic", port_ranges=((4000, 4015),), block_size=4)
    live = gateway("ngw-a", None, policy=policy)
    live.add(SnatEntry("10.0.0.4/30", pool="203.0.113.1"))
    log = live.start_session_log(ParquetSink(tmp_path))
    send(live, "10.0.0.5", 10.0)
    live.advance(9000.0)
    live.stop_session_log(log)
    live.advance(9500.0)
    live.start_session_log(ParquetSink(tmp_path))
    live.advance(9600.0)
    live.stop_session_log(live._collector.logs[0])  # type: ignore[union-attr]
    answer = ask(tmp_path, 9550.0, port=4009)
    assert (answer.status, str(answer.subscriber)) == ("static", "10.0.0.6")
    assert ask(tmp_path, 9250.0, port=4009).status == "gap"  # no log ran: the entry may have been another
    live.close()


def test_an_entry_that_went_while_no_log_ran_is_not_believed_in_force(tmp_path: Path) -> None:
    live = gateway("ngw-a")
    entry = live.add(DnatEntry("203.0.113.1", 8443, "10.0.0.7", 443))
    log = live.start_session_log(ParquetSink(tmp_path))
    live.advance(100.0)
    live.stop_session_log(log)
    live.remove(entry, now=150.0)
    live.advance(200.0)
    live.start_session_log(ParquetSink(tmp_path))
    live.advance(20_000.0)
    live.close()
    statuses = [ask(tmp_path, seconds, port=8443, protocol="tcp").status for seconds in (50.0, 120.0, 10_000.0)]
    assert statuses == ["static", "ambiguous", "unused"]


def test_a_file_that_is_lost_beside_a_gap_row_is_a_gap(tmp_path: Path) -> None:
    log = Log(tmp_path / "log").tick(0)
    log.write()
    log.session(7, ANN, 100, [(100, 400)], None).write()
    lost = max(log.folder.glob("*.parquet"))
    died = gap_row(label(420), label(430), log.number, 0, GAP_DIED)
    log.rows.append(died)
    log.write()
    Log(log.folder, run="run2").tick(500).tick(20_000).write()
    lost.unlink()
    answer = who(log.folder, "203.0.113.1", 4000, protocol="tcp", at=at(200), tolerance=0)
    assert answer.status == "gap"


def test_rows_of_a_redacted_log_name_no_host_for_a_remote(tmp_path: Path) -> None:
    """Rows that wait in the redacted log count for the endpoint, and not for whom it talked to."""
    live = gateway("ngw-a")
    live.start_session_log(ParquetSink(tmp_path / "a"), name="a", redact_destination=True)
    send(live, "10.0.0.5", 100.0)
    live.advance(200.0)
    live.end_all()  # nothing is live, and rows wait in the redacted log alone
    asked = {"gateway": live}
    assert ask(None, 100.0, **asked).status == "exact"
    assert ask(None, 100.0, remote=("198.51.100.99", 1), **asked).status == "ambiguous"
    live.close()


def test_a_running_gateway_is_no_proof_that_a_stopped_log_is_complete(tmp_path: Path) -> None:
    live = gateway("ngw-a")
    log = live.start_session_log(ParquetSink(tmp_path))
    live.advance(10.0)
    live.stop_session_log(log)
    send(live, "10.0.0.5", 100.0)
    live.advance(2000.0)
    for tolerance in (0.0, 2.0, 60.0):
        assert ask(tmp_path, 100.0, tolerance, gateway=live).status in ("gap", "ambiguous")
    live.close()


def test_an_orderly_stop_ends_every_session(tmp_path: Path) -> None:
    live = gateway("ngw-a")
    live.start_session_log(ParquetSink(tmp_path))
    send(live, "10.0.0.5", 100.0)
    live.advance(150.0)
    live.close()
    answer = ask(tmp_path, 140.0)
    assert (answer.status, answer.matches[0].end, answer.gaps) == ("exact", at(150), ())


@pytest.mark.filterwarnings("ignore:Timeouts")
def test_no_answer_rests_on_times_of_both_sides_of_a_clock_that_was_set(tmp_path: Path) -> None:
    """20 s slow at first, then right; two hosts on one port, 20 s apart."""
    live = gateway("ngw-a", timeouts=Timeouts(udp=5.0, unreplied=5.0))
    live.set_epoch(EPOCH - 20.0)
    live.start_session_log(ParquetSink(tmp_path))
    send(live, "10.0.0.5", 1000.0)  # called 980
    live.advance(1010.0)
    send(live, "10.0.0.6", 1020.0)  # called 1000
    live.advance(1030.0)
    live.set_epoch(EPOCH)
    live.advance(20_000.0)
    live.close()
    for seconds in (1002.0, 1022.0, 982.0):
        answer = ask(tmp_path, seconds, 2.0)
        assert (
            answer.status in ("ambiguous", "gap")
            or str(answer.subscriber) == {1002.0: "10.0.0.5", 1022.0: "10.0.0.6"}[seconds]
        )


def test_a_clock_that_was_set_back_leaves_no_time_known_that_has_not_come(tmp_path: Path) -> None:
    """40 s fast at first, and set right; then it dies: the labels of the fast clock tell of no time after the death."""
    live = gateway("ngw-a")
    live.set_epoch(EPOCH + 40.0)
    log = live.start_session_log(ParquetSink(tmp_path, batch_seconds=0.0))
    send(live, "10.0.0.5", 100.0)
    live.advance(100.0)
    assert live._collector is not None
    live._collector.beat()
    live.set_epoch(EPOCH)
    send(live, "10.0.0.5", 100.5, ("198.51.100.8", 53))
    live.advance(101.0)
    live._collector.beat()
    assert log.wait(60.0)
    die(live)
    assert ask(tmp_path, 110.0, port=4000).status in ("ambiguous", "gap")


@pytest.mark.filterwarnings("ignore:Timeouts")
def test_a_session_that_a_fast_clock_saw_begin_was_not_there_before(tmp_path: Path) -> None:
    """40 s fast at first, and set right: the row of its begin is called later than its window, and beyond what is searched."""
    minute = dict.fromkeys(("udp", "tcp_established", "tcp_transitory", "icmp", "other", "unreplied"), 60.0)
    live = gateway("ngw-a", timeouts=Timeouts(**minute), window=10.0)
    live.set_epoch(EPOCH + 40.0)
    send(live, "10.0.0.6", 1.0)  # what there was before the log is not known
    log = live.start_session_log(ParquetSink(tmp_path, batch_seconds=0.0))
    live.advance(2000.0)
    send(live, "10.0.0.5", 2040.0)
    live.advance(2041.0)
    assert log.wait(60.0)
    live.set_epoch(EPOCH)
    live.advance(20_000.0)
    live.close()
    listing = what(tmp_path, "10.0.0.5", at=at(1990), until=at(2000))
    assert not listing.matches
    assert [str(each.pri_ip) for each in what(tmp_path, "10.0.0.5", at=at(2030), until=at(2050)).matches] == [
        "10.0.0.5"
    ]


@pytest.mark.filterwarnings("ignore:Timeouts")
def test_what_the_machine_slept_through_began_before_though_the_clock_stood_at_its_first_packet(tmp_path: Path) -> None:
    """The gateway's clock moves with packets: at the sleep it may say the moment of the last one."""
    timeouts = Timeouts(
        **dict.fromkeys(("udp", "tcp_established", "tcp_transitory", "icmp", "other", "unreplied"), 300.0)
    )
    live = gateway("ngw-a", timeouts=timeouts)
    live.start_session_log(ParquetSink(tmp_path))
    send(live, "10.0.0.5", 100.0)
    assert live._collector is not None
    live._collector.set_epoch((EPOCH + 600) * 10**9, suspended=True)
    for seconds in range(110, 5000, 10):
        live.advance(float(seconds))
    live.close()
    statuses = [ask(tmp_path, seconds).status for seconds in (99.0, 101.0, 300.0, 699.0)]
    assert statuses == ["unused", "exact", "exact", "exact"]


@pytest.mark.filterwarnings("ignore:Timeouts")
def test_a_clock_that_changes_while_no_log_runs_is_told_by_the_next_and_of_a_running_gateway(tmp_path: Path) -> None:
    """The session began before the log; after the sleep the gateway labels its beginning 600 s late."""
    timeouts = Timeouts(
        **dict.fromkeys(("udp", "tcp_established", "tcp_transitory", "icmp", "other", "unreplied"), 300.0)
    )
    live = gateway("ngw-a", timeouts=timeouts, window=10.0)
    send(live, "10.0.0.5", 10.0)
    log = live.start_session_log(ParquetSink(tmp_path))
    for seconds in range(10, 1000, 10):
        send(live, "10.0.0.5", float(seconds)) if seconds in (200, 400, 600, 800) else live.advance(float(seconds))
    live.stop_session_log(log)
    assert live._collector is not None
    live._collector.set_epoch((EPOCH + 600) * 10**9, suspended=True)
    assert ask(tmp_path, 15.0, gateway=live).status == "held-idle"
    live.start_session_log(ParquetSink(tmp_path))
    for seconds in range(1000, 5000, 10):
        live.advance(float(seconds))
    live.close()
    assert [ask(tmp_path, seconds).status for seconds in (15.0, 1500.0)] == ["held-idle", "held-idle"]


def test_what_came_between_the_end_of_a_sleep_and_its_being_noticed_is_in_doubt_by_the_sleep(tmp_path: Path) -> None:
    """A packet in the second before the collector looks at the clocks is labelled as if it came before the sleep."""
    live = gateway("ngw-a")
    live.start_session_log(ParquetSink(tmp_path))
    live.advance(100.0)  # the machine sleeps for 600 s, and wakes
    send(live, "10.0.0.5", 100.5)  # at 700.5
    live.advance(101.0)
    assert live._collector is not None
    live._collector.set_epoch((EPOCH + 600) * 10**9, suspended=True, right_us=label(100))
    live.advance(20_000.0)
    live.close()
    assert ask(tmp_path, 50.0).status == "unused"
    statuses = [ask(tmp_path, seconds, tolerance=0.2).status for seconds in (100.5, 400.0, 700.5)]
    assert statuses == ["ambiguous", "ambiguous", "exact"]


def test_an_entry_that_a_later_log_omits_is_not_in_force_over_a_gap() -> None:
    """Its removal is among the facts that are missing before the later log's start."""
    rows = np.concatenate([
        cover_row(90, 90, 90, STARTED | EMPTY), *entry_rows(1, SnatEntry("10.0.0.0/24", pool="203.0.113.1"), [(0xCB007101, 0)]),
        cover_row(200, 200, 200), cover_row(400, 400, 400, STARTED),
    ])  # fmt: skip
    rows["pkts_from_vpc"] = [0, 1, 2, 9]
    rows["start_time"][1] = 100
    (entry,) = Footer.of(Batch("ngw-a", "vpc-1", "r", rows)).facts.entries
    assert (entry.until, entry.perhaps_until) == (200, 400)
    rows["pkts_from_vpc"] = [0, 1, 2, 3]
    (entry,) = Footer.of(Batch("ngw-a", "vpc-1", "r", rows)).facts.entries
    assert entry.until_sequence == -1


# ---- the pure function ------------------------------------------------------------------------------------------------

RUN = Run("g", "r", 0, FOREVER, (Known(0, 100 * HOUR, 100 * HOUR, 0, 1000, whole=True),), HOUR, HOUR // 6, True, True)
WINDOW_ROW = Row(
    "g", "v", "r", 5, "window", 17, "10.0.0.5", 1, "198.51.100.7", 53, "203.0.113.1", 4000, None, HOUR, HOUR + 9, 1
)
READ = (0, 100 * HOUR)


def test_a_row_that_covers_the_moment_is_exact_and_nothing_else_is() -> None:
    assert conclude(Asked(HOUR, HOUR), [RUN], [], [WINDOW_ROW], *READ).status == "exact"
    assert conclude(Asked(HOUR + 10, HOUR + 10), [RUN], [], [WINDOW_ROW], *READ).status == "held-idle"
    create = WINDOW_ROW._replace(kind="create", end=HOUR, number=4)
    assert conclude(Asked(HOUR + 5, HOUR + 5), [RUN], [], [create], *READ).status == "held-idle"


def test_a_gap_reaches_as_far_as_the_longest_idle_time() -> None:
    known = Known(10 * HOUR, 12 * HOUR, 12 * HOUR, 0, 1000)
    run = replace(RUN, known=(known,))
    assert (
        conclude(Asked(10 * HOUR + 1, 10 * HOUR + 1), [run], [], [], *READ).status == "unused"
    )  # the host would have sent since
    assert conclude(Asked(11 * HOUR, 11 * HOUR), [run], [], [], *READ).status == "unused"
    short = replace(RUN, known=(replace(known, made=11 * HOUR, swept=11 * HOUR),))
    assert conclude(Asked(10 * HOUR + 1, 10 * HOUR + 1), [short], [], [], *READ).status == "gap"


def test_a_row_of_after_what_was_read_does_not_say_since_when_its_session_was_there() -> None:
    run = replace(RUN, known=(Known(0, 100 * HOUR, 100 * HOUR, 0, 1000),))  # what was before it is not told
    waiting = WINDOW_ROW._replace(start=3 * HOUR, end=3 * HOUR + 9)  # its create row lies in a file that is not read
    assert conclude(Asked(2 * HOUR, 2 * HOUR), [run], [], [waiting], 0, 2 * HOUR + 9).status == "unused"
    create = waiting._replace(kind="create", end=3 * HOUR, number=4)
    assert conclude(Asked(2 * HOUR, 2 * HOUR), [run], [], [create, waiting], 0, 4 * HOUR).status == "unused"


@pytest.mark.parametrize("known", [(), (Known(0, HOUR // 2, HOUR // 2, 0, 9, whole=True),)])
def test_an_unknown_gateway_that_may_have_had_the_address_rules_no_host_out(known: tuple[Known, ...]) -> None:
    other = replace(RUN, instance="h", known=known)
    assert conclude(Asked(HOUR, HOUR), [RUN, other], [], [], *READ).status == "gap"
    assert conclude(Asked(HOUR, HOUR), [RUN, replace(other, holds=False)], [], [], *READ).status == "unused"


def test_labels_in_doubt_must_agree() -> None:
    doubtful = WINDOW_ROW._replace(early=-20, late=0)
    assert conclude(Asked(HOUR + 5, HOUR + 5), [RUN], [], [doubtful], *READ).status == "held-idle"
    long = doubtful._replace(end=HOUR + 100)
    assert conclude(Asked(HOUR + 50, HOUR + 50), [RUN], [], [long], *READ).status == "exact"


def test_a_rival_is_idle_where_its_window_would_have_been_told_by_now() -> None:
    """Without endpoints of one subscriber alone: another one held it too, and has no row with traffic."""
    overload = replace(RUN, exclusive=False)
    rival = WINDOW_ROW._replace(kind="create", pri_ip="10.0.0.6", start=HOUR // 2, end=HOUR // 2, number=3, session=2)
    rows = [WINDOW_ROW, rival]
    assert conclude(Asked(HOUR, HOUR), [overload], [], rows, *READ).status == "exact"
    early = (replace(overload.known[0], made=HOUR + 1, swept=HOUR + 1),)
    assert conclude(Asked(HOUR, HOUR), [replace(overload, known=early)], [], rows, *READ).status == "ambiguous"


def test_a_rival_is_not_idle_where_its_window_may_have_been_then() -> None:
    """Its labels are in doubt: for one of them its traffic is among what is asked for."""
    overload = replace(RUN, exclusive=False)
    create = WINDOW_ROW._replace(
        kind="create", pri_ip="10.0.0.6", start=HOUR - 500, end=HOUR - 500, number=3, session=2
    )
    window = create._replace(kind="window", start=HOUR - 500, end=HOUR - 400, number=4)
    assert conclude(Asked(HOUR, HOUR), [overload], [], [WINDOW_ROW, create, window], *READ).status == "exact"
    rows = [WINDOW_ROW, create, window._replace(late=450)]
    assert conclude(Asked(HOUR, HOUR), [overload], [], rows, *READ).status == "ambiguous"


def test_an_entry_without_rows_and_a_session_at_once_are_ambiguous() -> None:
    static = Static("an entry", ("g", "v", "10.0.0.9"), 0, FOREVER, 0, FOREVER)
    assert conclude(Asked(HOUR, HOUR), [RUN], [static], [], *READ).status == "static"
    assert conclude(Asked(HOUR, HOUR), [RUN], [static], [WINDOW_ROW], *READ).status == "ambiguous"


def test_a_sink_without_rows_about_the_log_counts_as_before() -> None:
    core, sink = FakeCore(), MemorySink()
    collector = Collector(core, instance="g", vpc_id="v", threads=False)
    log = collector.start(sink)
    core.produce(5)
    collector.beat()
    while log._send() == 0.0:
        pass
    assert sink.records["number"].tolist() == [0, 1, 2, 3, 4] and log.counters()["facts"] == 0
    collector.close(0.0)


def test_a_row_that_ended_before_what_was_read_says_nothing() -> None:
    """It waits beside the files, and the file with its session's end was not read: that session ended long ago."""
    old = WINDOW_ROW._replace(kind="window")
    assert conclude(Asked(8 * HOUR, 8 * HOUR), [RUN], [], [old], 6 * HOUR, 9 * HOUR).status == "unused"
    assert conclude(Asked(8 * HOUR, 8 * HOUR), [RUN], [], [old], 0, 9 * HOUR).status == "held-idle"


@pytest.mark.filterwarnings("ignore:Timeouts")
def test_a_session_is_idle_for_longer_where_the_machine_slept_meanwhile(tmp_path: Path) -> None:
    """A time-out of 300 s, and 600 s asleep: it lives from 100 to 1000, and has no row from 120 to 1000."""
    names = ("udp", "tcp_established", "tcp_transitory", "icmp", "other", "unreplied")
    timeouts = Timeouts(**dict.fromkeys(names, 300.0))
    live = gateway("ngw-a", timeouts=timeouts, window=10.0)
    live.start_session_log(ParquetSink(tmp_path))
    send(live, "10.0.0.5", 100.0)
    live.advance(150.0)
    assert live._collector is not None
    live._collector.set_epoch((EPOCH + 600) * 10**9, suspended=True)
    for seconds in range(160, 5000, 10):
        live.advance(float(seconds))
    live.close()
    statuses = [ask(tmp_path, seconds).status for seconds in (99.0, 140.0, 700.0, 900.0, 990.0, 1010.0)]
    assert statuses == ["unused", *["held-idle"] * 4, "unused"]


IDLE, WINDOW, STEP_AT, WORLD_END = 20, 10, 500, 1000


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[tuple[str, int, list[int], int]], int, int]:
    """Sessions on one port, one after another: (host, start, packets, end); by how much the clock is set at STEP_AT; and
    since when it was wrong."""
    sessions, at = [], 0
    while at < WORLD_END - 100 and len(sessions) < 12:
        at += draw(st.integers(1, 150))
        packets = [at]
        for pause in draw(st.lists(st.integers(1, IDLE - 1), max_size=5)):
            packets.append(packets[-1] + pause)
        sessions.append((f"10.0.0.{draw(st.integers(1, 3))}", at, packets, packets[-1] + IDLE))
        at = sessions[-1][3]
    return sessions, draw(st.integers(-80, 80)), draw(st.integers(0, STEP_AT))


@given(worlds(), st.integers(40, WORLD_END), st.sampled_from([0, 2, 30]))
def test_no_answer_is_wrong_beside_a_clock_that_is_set(
    world: tuple[list[tuple[str, int, list[int], int]], int, int], at: int, tolerance: int
) -> None:
    """Rows before the change are labelled by a clock that was right at first, wrong then; doubt spans both."""
    sessions, change, wrong_since = world
    doubt = {"early": min(0, change), "late": max(0, change)}
    told = []
    for session, (host, start, packets, end) in enumerate(sessions):
        told.append(("create", host, start, start, start, session))
        opened = -WINDOW
        for packet in packets:
            if packet >= opened + WINDOW:
                opened = packet
                closes = min(opened + WINDOW, end)
                told.append(("window", host, opened, closes, closes, session))
        told.append(("end", host, start, end, end, session))
    rows = []
    for number, (kind, host, start, end, emitted, session) in enumerate(sorted(told, key=lambda row: row[4])):
        is_before = emitted < STEP_AT
        off = -change if is_before and emitted >= wrong_since else 0
        rows.append(WINDOW_ROW._replace(
            number=number, kind=kind, pri_ip=host, start=start + off, end=end + off, session=session,
            **(doubt if is_before else {}),
        ))  # fmt: skip
    asked = Asked(at - tolerance, at + tolerance)
    since, until = asked.start - IDLE - WINDOW - abs(change), asked.end + WINDOW + abs(change)
    run = Run("g", "r", 0, FOREVER, (Known(0, 9999, 9999, 0, len(rows), whole=True),), IDLE, WINDOW, True, True)
    found = conclude(asked, [run], [], [row for row in rows if since <= row.end <= until], since, until)
    holders = {host for host, start, _, end in sessions if start <= asked.end and end >= asked.start}
    surely = {host for host, start, _, end in sessions if start < asked.end and end > asked.start}
    if found.status in ("exact", "held-idle"):
        assert found.matches[0].row.pri_ip in holders
        assert found.status == "exact" or surely <= {found.matches[0].row.pri_ip}
    elif found.status == "unused":
        assert not surely
    assert found.status != "gap"
    if not change:
        assert found.status in ("exact", "held-idle") or len(holders) != 1

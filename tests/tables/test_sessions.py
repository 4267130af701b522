"""natcore/tables/sessions.pyx and natcore/workers/expiry.pyx: identity, expiry, windows and their rows (contract R1)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natcore import RECORD, Gateway, Policy, Side, SnatEntry, Timeouts, Verdict
from natcore.dtypes import GAP, GAP_RING
from natcore.testhooks import wrappers
from support.arrays import arrays
from support.frames import HOST, REMOTE, Talk, counted, echo, gateway, one_port, udp

WINDOW, CREATE, END = 0, 1, 2
US = 1_000_000
PACKET = 33  # bytes of frames.udp()'s IPv4 packet


def rows_of(over: Gateway, events: bool = True) -> list[tuple[int, int, float, float, int, int]]:
    """(kind, session, start, end, packets from inside, packets from outside), seconds of the gateway's clock."""
    return [
        (int(row["kind"]), int(row["session"]), row["start_time"] / US, row["end_time"] / US,
         int(row["pkts_from_vpc"]), int(row["pkts_from_pub"])) for row in over.take_records(events=events)
    ]  # fmt: skip


# ---- identity


def test_numbers_count_from_one_in_order_of_creation() -> None:
    over = gateway()
    for sport in range(5):
        over.translate_one(udp(sport=sport + 1), Side.INSIDE, 0.0)
    over.end_all()
    over.translate_one(udp(sport=9), Side.INSIDE, 0.0)
    assert over.sessions()["session"].tolist() == [6]
    assert (over.counters()["created"], over.counters()["ended"]) == (6, 5)


def test_a_session_s_row_says_all_of_it() -> None:
    over = gateway()
    made = Talk(over)
    made.now = 1.5
    made.out()
    made.now = 2.25
    made.back()
    row = made.session()
    assert (row["inside_ip"], row["remote_ip"], row["outside_ip"]) == (0x0A000005, 0xC6336407, 0xCB007101)
    assert (row["inside_port"], row["remote_port"], row["outside_port"]) == (5000, 443, made.outside[1])
    assert (row["protocol"], row["entry"], row["state"], row["opened_outside"]) == (17, 1, 0, 0)
    assert (row["birth_ns"], row["last_seen_ns"], row["deadline_ns"]) == (1_500_000_000, 2_250_000_000, 302_250_000_000)
    assert (row["packets_out"], row["bytes_out"], row["packets_in"], row["bytes_in"]) == (1, PACKET, 1, PACKET)


def test_an_echo_s_row_has_ids_for_ports_and_zero_for_the_remote() -> None:
    over = gateway()
    over.translate_one(echo(ident=77), Side.INSIDE, 0.0)
    row, record = over.sessions()[0], over.take_records(events=True)[0]
    assert (row["inside_port"], row["remote_port"], row["protocol"]) == (77, 0, 1)
    assert (record["pri_port"], record["pub_port"], record["nat_port"]) == (77, 0, row["outside_port"])


# ---- expiry


@pytest.mark.parametrize("frame, timeout", [(udp(), 300.0), (echo(), 60.0)])
def test_dead_at_exactly_the_time_out(frame: bytes, timeout: float) -> None:
    over = gateway()
    over.translate_one(frame, Side.INSIDE, 1.0)
    over.advance(1.0 + timeout - 0.001)
    assert len(over.sessions()) == 1
    over.advance(1.0 + timeout)
    assert len(over.sessions()) == 0
    assert rows_of(over)[-1][:4] == (END, 1, 1.0, 1.0 + timeout)


def test_idle_times_are_whole_milliseconds() -> None:
    """Last seen in ms 1, dead when 300,000 ms later begins."""
    over = gateway()
    over.translate_one(udp(), Side.INSIDE, 0.0019)
    over.advance(300.0009999)
    assert len(over.sessions()) == 1
    over.advance(300.001)
    assert rows_of(over)[-1][:4] == (END, 1, 0.0019, 300.001)


def test_a_dead_session_is_dead_for_its_next_packet() -> None:
    over = gateway()
    over.translate_one(udp(), Side.INSIDE, 0.0)
    over.translate_one(udp(), Side.INSIDE, 1000.0)
    assert rows_of(over) == [
        (CREATE, 1, 0.0, 0.0, 0, 0), (WINDOW, 1, 0.0, 300.0, 1, 0), (END, 1, 0.0, 300.0, 1, 0),
        (CREATE, 2, 1000.0, 1000.0, 0, 0),
    ]  # fmt: skip


def test_inbound_refreshes_by_policy() -> None:
    for refresh in (True, False):
        made = Talk(gateway(policy=Policy(inbound_refresh=refresh)))
        made.out()
        made.now = 200.0
        made.back()
        assert made.session()["deadline_ns"] == (500_000_000_000 if refresh else 300_000_000_000)


def test_one_opened_from_outside_lives_shorter_until_the_inside_answers() -> None:
    made = Talk(gateway(timeouts=Timeouts(unreplied=30)))
    made.out()
    made.remote = "198.51.100.99"
    made.back()
    (row,) = [row for row in made.gateway.sessions() if row["opened_outside"]]
    assert row["deadline_ns"] == 30_000_000_000
    made.out()
    (row,) = [row for row in made.gateway.sessions() if row["opened_outside"]]
    assert row["deadline_ns"] == 300_000_000_000


def test_ends_come_in_order_of_deadline_then_slot() -> None:
    over = gateway()
    for sport, now in ((1, 0.0), (2, 0.0), (3, 0.0), (4, 0.0), (1, 2.0), (3, 1.0 + 1.0)):
        over.translate_one(udp(sport=sport), Side.INSIDE, now)
    over.advance(1000.0)
    ends = [row for row in rows_of(over) if row[0] == END]
    assert [(row[1], row[3]) for row in ends] == [(2, 300.0), (4, 300.0), (1, 302.0), (3, 302.0)]


def test_the_clock_does_not_go_back() -> None:
    over = gateway()
    over.translate_one(udp(), Side.INSIDE, 100.0)
    with counted(over, clock_backward=2):
        over.translate_one(udp(), Side.INSIDE, 50.0)
        over.advance(99.0)
    assert over.sessions()["last_seen_ns"].tolist() == [100_000_000_000]


def test_each_element_of_an_array_that_goes_back_is_counted() -> None:
    over = gateway()
    frames = np.zeros((6, 64), np.uint8)
    frames[:, : len(udp())] = np.frombuffer(udp(), np.uint8)
    now = np.array([5.0, 4.0, 4.0, 4.0, 6.0, 5.0])
    with counted(over, clock_backward=4):
        over.translate(frames, np.full(6, len(udp()), np.uint32), Side.INSIDE, now)


def test_looking_does_not_move_the_clock() -> None:
    """Seconds as a float do not hold nanoseconds of a Unix time."""
    over = gateway()
    for step in range(50):
        over.translate_one(udp(), Side.INSIDE, 1.7e9 + step / 7)
        before = over._core.now_ns
        assert over.counters()["clock_backward"] == 0 and over._core.now_ns == before


# ---- windows


def test_a_packet_at_exactly_the_window_s_end_belongs_to_the_next() -> None:
    made = Talk(gateway(window=10.0))
    for now in (0.25, 10.249999999, 10.25, 20.249):
        made.now = now
        made.out()
    made.gateway.advance(10_000.0)
    assert rows_of(made.gateway, events=False) == [(WINDOW, 1, 0.25, 10.25, 2, 0), (WINDOW, 1, 10.25, 20.25, 2, 0)]


def test_a_window_opens_with_the_first_packet_after_the_last_one_closed() -> None:
    made = Talk(gateway(window=10.0))
    for now in (0.0, 35.5, 40.0):
        made.now = now
        made.out()
    made.gateway.advance(1000.0)
    assert rows_of(made.gateway, events=False) == [(WINDOW, 1, 0.0, 10.0, 1, 0), (WINDOW, 1, 35.5, 45.5, 2, 0)]


def test_a_window_s_row_is_due_at_its_end_though_nothing_comes() -> None:
    made = Talk(gateway(window=10.0))
    made.out()
    made.gateway.advance(9.999)
    assert rows_of(made.gateway, events=False) == []
    made.gateway.advance(10.0)
    assert rows_of(made.gateway, events=False) == [(WINDOW, 1, 0.0, 10.0, 1, 0)]


def test_25_minutes_of_steady_traffic_are_3_rows() -> None:
    """A row for each window (contract R1); their sums equal the session's counters."""
    made = Talk(gateway())
    for second in range(0, 1500, 20):
        made.now = float(second)
        made.out()
        made.back()
    counted_by_session = made.session()
    made.gateway.end_all(now=1500.0)
    rows = made.gateway.take_records()
    assert rows["start_time"].tolist() == [0, 600 * US, 1200 * US]
    assert rows["end_time"].tolist() == [600 * US, 1200 * US, 1500 * US]
    for field, counter in (("pkts_from_vpc", "packets_out"), ("bytes_from_vpc", "bytes_out"),
                           ("pkts_from_pub", "packets_in"), ("bytes_from_pub", "bytes_in")):  # fmt: skip
        assert rows[field].sum() == counted_by_session[counter] > 0


def test_dropped_packets_are_neither_counted_nor_refresh() -> None:
    made = Talk(gateway())
    made.out()
    made.now = 10.0
    assert made.out(ttl=1) is Verdict.DROP_TTL
    row = made.session()
    assert (row["packets_out"], row["last_seen_ns"]) == (1, 0)


def test_times_are_labelled_by_the_epoch_and_rounded_down() -> None:
    over = gateway(epoch=1_700_000_000.5)
    over.translate_one(udp(), Side.INSIDE, 0.0000019)
    assert over.take_records(events=True)["start_time"].tolist() == [1_700_000_000_500_001]
    over.set_epoch(-10.0)
    over.translate_one(udp(sport=2), Side.INSIDE, 0.0000019)
    assert over.take_records(events=True)["start_time"].tolist() == [-9_999_999]


def worker_of_host(over: Gateway) -> object:
    """The capsule of the worker that has the host of `udp`."""
    frames, lengths = arrays(udp())
    [worker] = over.owner(frames, lengths, Side.INSIDE)
    return over._core.worker_capsule(int(worker))


@pytest.mark.parametrize("direction", [0, 1])
def test_counters_carry_past_32_bits_without_closing_the_window(direction: int) -> None:
    made = Talk(gateway())
    made.out()
    made.back()
    near = (1 << 32) - 1
    for _ in range(3):  # three times around
        wrappers.preset_counters(worker_of_host(made.gateway), 0, direction, near, near)
        made.out()
        made.back()
    row = made.session()
    ways = ("packets_out", "bytes_out", "packets_in", "bytes_in")
    assert [int(row[name]) for name in ways[2 * direction : 2 * direction + 2]] == [3 << 32, (3 << 32) + PACKET - 1]
    made.gateway.advance(600.0)
    (record,) = made.gateway.take_records()
    fields = ("pkts_from_vpc", "bytes_from_vpc", "pkts_from_pub", "bytes_from_pub")
    assert [int(record[name]) for name in fields] == [int(row[name]) for name in ways]


# ---- long times

DAY = 86_400.0


@pytest.mark.parametrize("days", [0.4, 1, 20, 49.71, 49.72, 100, 1000])
def test_a_long_step_ends_what_it_outlived(days: float) -> None:
    """Seconds are kept modulo 2^16 and milliseconds modulo 2^32 (49.7 days): no step may be mistaken for a short one."""
    over = gateway(policy=one_port())
    over.translate_one(udp(), Side.INSIDE, 0.0)
    over.advance(days * DAY + 100)
    assert len(over.sessions()) == 0
    assert rows_of(over) == [
        (CREATE, 1, 0.0, 0.0, 0, 0), (WINDOW, 1, 0.0, 300.0, 1, 0), (END, 1, 0.0, 300.0, 1, 0),
    ]  # fmt: skip
    assert (
        over.translate_one(udp(HOST, 9), Side.INSIDE, days * DAY + 200)[0] is Verdict.OUTBOUND
    )  # no hold-down is left


@pytest.mark.parametrize("step", [3600.0, 30_000.0, 36_000.0, 50_000.0, 65_536.0, 66_000.0, 200_000.0])
@pytest.mark.parametrize("by", ["packet", "advance"])
def test_a_session_that_lives_long_keeps_its_windows_apart(by: str, step: float) -> None:
    over = gateway(timeouts=Timeouts(udp=1_000_000.0))
    for turn in range(4):
        over.translate_one(udp(), Side.INSIDE, turn * step)
        if by == "advance":
            over.advance((turn + 1) * step - 1)
    over.advance(4 * step)
    windows = [row for row in rows_of(over) if row[0] == WINDOW]
    assert windows == [(WINDOW, 1, turn * step, turn * step + 600, 1, 0) for turn in range(4)]


def test_times_far_out_still_fit_their_records() -> None:
    over = gateway(epoch=4.6e9)
    over.translate_one(udp(), Side.INSIDE, 4.6e9)
    (row,) = over.take_records(events=True)
    assert row["start_time"] == 9_200_000_000 * US


# ---- slices of the sweep

EVERYTHING = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 40_000)), min_size=1, max_size=30)


@settings(max_examples=40)
@given(EVERYTHING)
def test_tick_slices_write_the_rows_of_advance(packets: list[tuple[int, int]]) -> None:
    """In another order, since each slice ends what it meets."""
    by_advance, by_ticks = gateway(window=20.0), gateway(window=20.0)
    capsule, now = worker_of_host(by_ticks), 0
    for sport, step in packets:
        for at in range(now + 500, now + step, 500):  # a loop's ticks, in ms
            wrappers.tick_worker(capsule, at * 1_000_000)
        now += step
        for over in (by_advance, by_ticks):
            over.translate_one(udp(sport=sport), Side.INSIDE, now / 1000)
    for at in range(now, now + 330_000, 500):
        wrappers.tick_worker(capsule, at * 1_000_000)
    by_advance.advance((now + 330_000) / 1000)
    assert by_ticks._core.inspection.counters()[1]["sessions"] == 0
    assert sorted(rows_of(by_ticks)) == sorted(rows_of(by_advance))


def test_the_sweep_comes_round_within_8_seconds() -> None:
    over = gateway(max_sessions=20_000, records=100_000)
    frames = np.zeros((10_000, 64), np.uint8)
    frames[:, : len(udp())] = np.frombuffer(udp(), np.uint8)
    frames[:, 34] = np.arange(10_000) >> 8
    frames[:, 35] = np.arange(10_000) & 0xFF
    over.translate(frames, np.full(10_000, len(udp()), np.uint32), Side.INSIDE, 0.0)
    capsule = worker_of_host(over)
    for tick in range(1, 8001):
        wrappers.tick_worker(capsule, (300_000 + tick) * 1_000_000)
    assert over._core.inspection.counters()[1]["sessions"] == 0


# ---- a journal that is full


def test_what_finds_no_room_is_lost_and_counted_and_a_gap_row_and_an_event_tell() -> None:
    over = gateway(records=4, epoch=1000.0)
    for sport in range(1, 7):
        over.translate_one(udp(sport=sport), Side.INSIDE, 0.0)
    assert over.counters()["journal_lost"] == 2
    rows = over.take_records(events=True)
    assert rows["number"].tolist() == [0, 1, 2, 3, 5] and rows["kind"].tolist() == [CREATE] * 4 + [GAP]
    assert (rows[4]["session"], rows[4]["flags"]) == (2, GAP_RING)
    assert [(event.reason, event.count) for event in over.take_events()] == [("records-lost", 2)]
    over.advance(1000.0)  # 6 rows of each kind for 4 places, and no log to drain them
    assert over.counters()["journal_lost"] == 6
    rows = over.take_records(events=True)
    assert rows["number"].tolist() == [*range(6, 14), 17]
    gap = rows[8]
    assert (gap["session"], gap["start_time"], gap["end_time"]) == (4, 1_000_000_000, 1_300_000_000)
    assert len(over.take_records(events=True)) == 0 == len(over.take_records())


def test_rows_that_were_not_asked_for_push_out_none_that_were() -> None:
    over = gateway(records=100)
    for sport in range(1, 101):
        over.translate_one(udp(sport=sport), Side.INSIDE, 0.0)
    for sport in range(101, 301):  # create rows that do not fit, and windows that do
        over.translate_one(udp(sport=sport), Side.INSIDE, 0.0)
        if sport == 200:
            over.end_all()
            assert over.take_records()["kind"].tolist() == [WINDOW] * 100 + [GAP]
    over.end_all()
    assert over.take_records()["kind"].tolist() == [WINDOW] * 100


@pytest.mark.parametrize("many", [False, True])
def test_a_window_s_row_is_there_within_a_minute_without_advance(many: bool) -> None:
    """Contract R2: a log's rows do not wait for a call that an embedder may not know of."""
    over = gateway(window=10.0)
    over.translate_one(udp(sport=1), Side.INSIDE, 0.0)
    for second in range(1, 71):
        if many:
            frames = np.frombuffer(udp(sport=2) * 3, np.uint8).reshape(3, -1).copy()
            over.translate(frames, np.full(3, frames.shape[1], np.uint32), Side.INSIDE, float(second))
        else:
            over.translate_one(udp(sport=2), Side.INSIDE, float(second))
    rows = np.zeros(over._core.log_rows.journal_waiting, RECORD)
    over._core.log_rows.drain(rows)  # take_records() looks at what is there as well
    (row,) = [row for row in rows if row["kind"] == WINDOW and row["session"] == 1]
    assert row["end_time"] == 10_000_000


def test_the_sweep_between_batches_waits_for_a_reader_to_make_room() -> None:
    over = gateway(records=8)
    for sport in range(1, 7):
        over.translate_one(udp(sport=sport), Side.INSIDE, 0.0)
    over._core.log_rows.is_read = True  # a log takes rows, though not just now
    capsule = worker_of_host(over)
    taken = []
    for second in range(50, 301, 50):  # a loop that sweeps
        wrappers.tick_worker(capsule, second * 1_000_000_000)
    for second in range(301, 401, 10):
        wrappers.tick_worker(capsule, second * 1_000_000_000)
        if second > 350:
            taken += over.take_records(events=True)["session"].tolist()
        else:
            assert (
                over._core.inspection.counters()[1]["sessions"] == 3
            )  # three sessions' two rows: a quarter of the ring is left to packets
    assert Counter(taken) == dict.fromkeys(range(1, 7), 3)  # create, window, end
    assert over.counters()["journal_lost"] == 0
    over._core.log_rows.is_read = False


# ---- remaining life


@pytest.mark.parametrize("filtering", ["endpoint-independent", "address-dependent", "address-and-port-dependent"])
@settings(max_examples=30)
@given(data=st.data())
def test_everything_comes_and_goes_and_leaves_nothing(filtering: str, data: Any) -> None:
    """Any packets at any time: in the end every session has ended, every port is free, every row adds up."""
    over = Gateway(seed=3, max_sessions=12, policy=Policy(filtering=filtering, port_ranges=((1, 6),), hold_down=7.0))
    over.add(SnatEntry("10.0.0.0/8", pool=["203.0.113.1", "203.0.113.2"]))
    now, forwarded = 0.0, 0
    for _ in range(data.draw(st.integers(0, 40))):
        now += data.draw(st.sampled_from([0.0, 1.0, 31.0, 299.0, 300.0]))
        inside = data.draw(st.booleans())
        host, sport, port = (data.draw(st.integers(1, n)) for n in (4, 3, 6))
        frame = (
            udp(f"10.0.0.{host}", sport, data.draw(st.sampled_from([REMOTE, "198.51.100.8", "203.0.113.1"])), port)
            if inside
            else udp(data.draw(st.sampled_from([REMOTE, "198.51.100.8"])), sport, f"203.0.113.{1 + host % 2}", port)
        )
        verdict, _ = over.translate_one(frame, Side.INSIDE if inside else Side.OUTSIDE, now)
        forwarded += (verdict in (Verdict.OUTBOUND, Verdict.INBOUND)) + 2 * (verdict is Verdict.HAIRPIN)
        assert over.counters()["ports_used"] == over.counters()["mappings"] == len(over.mappings())
        assert over.mappings()["sessions"].sum() == len(over.sessions())
    over.advance(now + 400)
    counters = over.counters()
    assert counters["created"] == counters["ended"]
    assert (counters["sessions"], counters["mappings"], counters["ports_used"]) == (0, 0, 0)
    over.advance(now + 800)
    assert set(over.ports()["free"]) == {6} and set(over.ports()["held_down"]) == {0}
    rows = over.take_records(events=True)
    ends = rows[rows["kind"] == END]
    for field in ("pkts_from_vpc", "bytes_from_vpc", "pkts_from_pub", "bytes_from_pub"):
        assert ends[field].sum() == rows[rows["kind"] == WINDOW][field].sum()
    assert ends["pkts_from_vpc"].sum() + ends["pkts_from_pub"].sum() <= forwarded

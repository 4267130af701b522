"""What one packet may cost: a refusal looks at a bounded number of sessions, and at no other subscriber's or mapping's."""

from __future__ import annotations

from ipaddress import IPv4Address

import numpy as np
import pytest

from natcore import DnatEntry, Gateway, Policy, Side, SnatEntry, Timeouts, Verdict
from natcore.dtypes import END, RECORD, WINDOW
from natcore.internal.counters import tally
from natcore.testing import bulk
from support.frames import EIP, gateway, udp

EXAMINED_MOST, LINES = 128, 2048  # sessions of a list, and lines of the tables, for one packet
CARRIED = 16  # lines of the sweep, and sessions that end, for one packet where no loop sweeps
CAP = 1024  # sessions opened from outside of a mapping
HOST = "10.1.0.1"
SHORT = Timeouts(udp=300.0, unreplied=300.0)


def many(over: Gateway, count: int, now: float = 0.0, first: int = 0) -> None:
    """Sessions of other hosts, sixteen each."""
    numbers = np.arange(first, first + count, dtype=np.uint64)
    hosts, ports = np.divmod(numbers, np.uint64(16))
    frames, lengths = bulk.packets(bulk.UDP, 0x0A000001 + hosts, 20_000 + ports, 0xC6336401, 53)
    assert set(over.translate(frames, lengths, Side.INSIDE, now=now)) == {Verdict.OUTBOUND}


def said(over: Gateway, now: float, port: int = 5000, remote: str = "198.51.100.7", host: str = HOST) -> Verdict:
    return over.translate_one(udp(host, port, remote, 53), Side.INSIDE, now)[0]


def ended(over: Gateway) -> int:
    """Without the expiry that comes before anything is shown."""
    return tally(*over._core.inspection.counters(-1))["ended"]


def outside_port(over: Gateway, host: str = HOST, port: int = 5000) -> int:
    rows = over.mappings()
    [row] = rows[(rows["inside_ip"] == int(IPv4Address(host))) & (rows["inside_port"] == port)]
    return int(row["outside_port"])


def strangers(over: Gateway, port: int, count: int, now: float, first: int = 0) -> set[int]:
    numbers = np.arange(first, first + count, dtype=np.uint64)
    frames, lengths = bulk.packets(bulk.UDP, 0xC6330000 + numbers, 9, int(IPv4Address(EIP)), port)
    return set(over.translate(frames, lengths, Side.OUTSIDE, now=now))


def test_a_stranger_at_a_mapping_s_cap_ends_nothing_of_others() -> None:
    over = gateway(max_sessions=20_000, timeouts=SHORT, seed=1)
    many(over, 5000)
    assert said(over, 200.0) is Verdict.OUTBOUND
    port = outside_port(over)
    assert strangers(over, port, CAP, 200.0) == {Verdict.INBOUND}
    over.advance(299.0)  # rows are not late: nothing makes a packet sweep
    before = ended(over)
    for now in (301.0, 302.0, 303.0):  # the others' are dead
        assert strangers(over, port, 1, now, first=5000) == {Verdict.DROP_OUTSIDE_LIMIT}
    assert ended(over) == before


def test_a_stranger_gets_the_place_of_a_dead_stranger() -> None:
    over = gateway(max_sessions=20_000, timeouts=SHORT, seed=1)
    assert said(over, 0.0) is Verdict.OUTBOUND
    port = outside_port(over)
    assert strangers(over, port, 1, 0.0) == {Verdict.INBOUND}
    assert strangers(over, port, CAP - 1, 150.0, first=1) == {Verdict.INBOUND}
    assert said(over, 150.0) is Verdict.OUTBOUND
    looks = [strangers(over, port, 1, 301.0, first=5000 + n) for n in range(CAP // EXAMINED_MOST + 2)]
    assert {Verdict.INBOUND} in looks  # the dead one is met when the list has been gone round
    assert ended(over) == 1


@pytest.mark.parametrize("quota", ["sessions_per_subscriber", "ports_per_subscriber"])
def test_a_quota_ends_the_subscriber_s_own_dead_sessions_and_no_others(quota: str) -> None:
    over = gateway(max_sessions=20_000, timeouts=SHORT, seed=1, policy=Policy(**{quota: 50}))
    many(over, 3000)
    assert {said(over, 0.0, 5000 + n) for n in range(25)} == {Verdict.OUTBOUND}
    assert {said(over, 200.0, 5025 + n) for n in range(25)} == {Verdict.OUTBOUND}
    over.advance(299.0)
    assert said(over, 299.0, 6000) is Verdict.DROP_SUBSCRIBER_LIMIT
    assert ended(over) == 0
    assert said(over, 301.0, 6000) is Verdict.OUTBOUND
    assert ended(over) == 25


def test_a_subscriber_of_very_many_sessions_is_looked_at_part_by_part() -> None:
    over = gateway(max_sessions=20_000, timeouts=SHORT, seed=1, policy=Policy(sessions_per_subscriber=1000))
    assert said(over, 0.0, 5000) is Verdict.OUTBOUND
    assert {said(over, 150.0, 5001 + n % 7, f"198.51.{100 + n // 200}.{1 + n % 200}") for n in range(999)} == {
        Verdict.OUTBOUND
    }
    assert Verdict.OUTBOUND in [said(over, 301.0, 7000) for _ in range(1000 // EXAMINED_MOST + 2)]
    assert ended(over) == 1


def test_a_full_table_of_the_dead_gives_one_place_after_another() -> None:
    over = gateway(max_sessions=10_000, timeouts=SHORT, seed=1)
    many(over, 10_000)
    over.advance(299.0)
    for n in range(3):
        before = ended(over)
        assert said(over, 301.0, 5000 + n) is Verdict.OUTBOUND
        assert ended(over) - before <= EXAMINED_MOST


def test_the_one_dead_session_of_a_full_table_is_found_within_a_round() -> None:
    over = gateway(max_sessions=10_000, timeouts=SHORT, seed=1)
    many(over, 9_999)
    assert said(over, 0.0) is Verdict.OUTBOUND
    many(over, 9_999, 150.0)  # all but one go on
    rounds = [said(over, 301.0 + n / 1000, 7000 + n) for n in range(10_000 // LINES + 2)]
    assert Verdict.OUTBOUND in rounds
    assert ended(over) == 1


def test_a_table_of_few_lines_refuses_no_packet_because_of_dead_sessions() -> None:
    over = gateway(max_sessions=LINES, timeouts=SHORT, seed=1)
    many(over, LINES - 1)
    assert said(over, 0.0) is Verdict.OUTBOUND
    many(over, LINES - 1, 150.0)
    assert said(over, 300.0 - 0.001, 7000) is Verdict.DROP_SESSION_LIMIT
    assert said(over, 300.0, 7000) is Verdict.OUTBOUND


def test_a_mapping_of_very_many_dead_sessions_is_wound_up_part_by_part_and_its_inside_keeps_it() -> None:
    over = gateway(max_sessions=20_000, timeouts=SHORT, seed=1)
    remotes = [f"198.51.{n // 200}.{1 + n % 200}" for n in range(1000)]
    assert {said(over, 0.0, remote=remote) for remote in remotes} == {Verdict.OUTBOUND}
    port = outside_port(over)
    over.advance(299.0)
    assert said(over, 301.0, remote="192.0.2.1") is Verdict.OUTBOUND
    assert ended(over) == EXAMINED_MOST
    assert outside_port(over) == port
    over.advance(401.0)
    assert ended(over) == 1000


def test_strangers_do_not_pass_a_mapping_of_very_many_dead_sessions() -> None:
    over = gateway(max_sessions=20_000, timeouts=SHORT, seed=1)
    assert {said(over, 0.0, remote=f"198.51.{n // 200}.{1 + n % 200}") for n in range(1000)} == {Verdict.OUTBOUND}
    port = outside_port(over)
    over.advance(299.0)
    for n in range(1000 // EXAMINED_MOST + 2):
        before = ended(over)
        assert strangers(over, port, 1, 301.0, first=n) == {Verdict.DROP_NO_MAPPING}
        assert ended(over) - before <= EXAMINED_MOST
    assert ended(over) == 1000


def test_after_a_long_silence_each_packet_carries_a_few_lines_of_the_sweep() -> None:
    over = gateway(max_sessions=20_000, timeouts=SHORT, seed=1, records=40_000)
    many(over, 10_000)
    before, packets = 0, 0
    while ended(over) < 10_000:
        assert said(over, 400.0, 5000) is Verdict.OUTBOUND
        assert ended(over) - before <= CARRIED
        before, packets = ended(over), packets + 1
    assert packets <= 10_000 // CARRIED + 2
    rows = np.zeros(over._core.log_rows.journal_waiting, RECORD)
    over._core.log_rows.drain(rows)  # take_records() is not asked: nothing else looks
    assert len(rows[rows["kind"] == WINDOW]) == len(rows[rows["kind"] == END]) == 10_000
    assert set(rows[rows["kind"] == END]["end_time"]) == {300_000_000}


def test_a_batch_carries_as_much_of_the_sweep_as_its_packets_would() -> None:
    over = gateway(max_sessions=20_000, timeouts=SHORT, seed=1)
    many(over, 10_000)
    frames, lengths = bulk.packets(bulk.UDP, 0x0A800000 + np.arange(20, dtype=np.uint64), 9, 0xC6336401, 53)
    over.translate(frames, lengths, Side.INSIDE, now=400.0)
    assert ended(over) == 20 * CARRIED


def test_the_packets_of_one_worker_carry_the_sweep_of_another_that_gets_none() -> None:
    over = Gateway(max_sessions=2_000, timeouts=SHORT, seed=1, workers=2)
    over.add(SnatEntry("10.0.0.0/8", pool=EIP))
    many(over, 1_000)
    own = sum(over.owner(*one_frame(host), Side.INSIDE)[0] == 0 for host in range(0x0A000001, 0x0A000001 + 63))
    assert 0 < own < 63
    for _ in range(2 * 1_000 // CARRIED + 2):
        over.translate(*one_frame(0x0A000001 + 100), Side.INSIDE, now=400.0, worker=0)
    assert ended(over) == 1_000


def one_frame(host: int) -> tuple[np.ndarray, np.ndarray]:
    return bulk.packets(bulk.UDP, np.array([host], dtype=np.uint64), 9, 0xC6336401, 53)


def test_a_pool_with_gaps_gives_its_own_addresses_to_the_last_port() -> None:
    """Numbers of two pools' addresses lie between each other; many are looked at by words."""
    over = Gateway(max_sessions=20_000, seed=1, policy=Policy(port_ranges=((4000, 4001),), pooling="arbitrary"))
    for n in range(300):
        over.add(DnatEntry(f"192.0.{n >> 8}.{n & 255}", 1, "10.200.0.1", 1))  # an address each
    odd = [f"192.0.{n >> 8}.{n & 255}" for n in range(300) if n % 3]
    over.add(SnatEntry("10.0.0.0/16", pool=odd))
    verdicts = [said(over, 0.0, 5000 + n, host=f"10.0.0.{1 + n % 5}") for n in range(2 * len(odd) + 3)]
    assert verdicts == [Verdict.OUTBOUND] * (2 * len(odd)) + [Verdict.DROP_PORTS_EXHAUSTED] * 3
    assert {str(IPv4Address(int(ip))) for ip in over.mappings()["outside_ip"]} == set(odd)


def test_the_port_of_a_mapping_rests_from_the_last_of_its_ends_whatever_their_order() -> None:
    over = gateway(
        max_sessions=20_000, timeouts=SHORT, seed=1, policy=Policy(port_ranges=((4000, 4000),), hold_down=120.0)
    )
    remotes = [f"198.51.{n // 200}.{1 + n % 200}" for n in range(300)]
    for n, remote in enumerate(remotes):  # the newest, which is ended first, is the one that died last
        assert said(over, n / 10, remote=remote) is Verdict.OUTBOUND
    last = 29.9 + 300.0
    assert strangers(over, 4000, 1, last + 1) == {Verdict.DROP_NO_MAPPING}
    assert strangers(over, 4000, 1, last + 1) == {Verdict.DROP_NO_MAPPING}
    assert strangers(over, 4000, 1, last + 1) == {Verdict.DROP_NO_MAPPING}
    assert ended(over) == 300
    assert said(over, last + 119.9, host="10.9.0.1") is Verdict.DROP_PORTS_EXHAUSTED
    assert said(over, last + 120.1, host="10.9.0.1") is Verdict.OUTBOUND


@pytest.mark.parametrize("filtering", ["endpoint-independent", "address-dependent"])
def test_strangers_do_not_keep_a_mapping_with_a_silent_inside_host(filtering: str) -> None:
    """`inbound_refresh=False` (RFC 4787 REQ-6): a session that the inside has not answered keeps nothing open."""
    over = gateway(
        timeouts=Timeouts(udp=120.0, unreplied=100.0), seed=1, policy=Policy(inbound_refresh=False, filtering=filtering)
    )
    assert said(over, 0.0) is Verdict.OUTBOUND
    port = outside_port(over)
    verdicts = []
    for n in range(20):
        stranger = udp("198.51.100.7", 1000 + n, EIP, port)
        verdicts.append(over.translate_one(stranger, Side.OUTSIDE, 90.0 + 20.0 * n)[0])
    assert verdicts == [Verdict.INBOUND] * 2 + [Verdict.DROP_NO_MAPPING] * 18


def test_a_stranger_whom_the_inside_answered_keeps_the_mapping_open_as_long_as_it_is_answered() -> None:
    over = gateway(timeouts=Timeouts(udp=120.0, unreplied=100.0), seed=1, policy=Policy(inbound_refresh=False))
    assert said(over, 0.0) is Verdict.OUTBOUND
    port = outside_port(over)
    assert over.translate_one(udp("198.51.100.9", 1, EIP, port), Side.OUTSIDE, 90.0)[0] is Verdict.INBOUND
    assert over.translate_one(udp(HOST, 5000, "198.51.100.9", 1), Side.INSIDE, 100.0)[0] is Verdict.OUTBOUND
    assert over.translate_one(udp("198.51.100.10", 1, EIP, port), Side.OUTSIDE, 200.0)[0] is Verdict.INBOUND
    assert over.translate_one(udp("198.51.100.11", 1, EIP, port), Side.OUTSIDE, 221.0)[0] is Verdict.DROP_NO_MAPPING

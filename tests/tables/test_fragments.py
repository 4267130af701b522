"""Fragments that are refused, that wait too long, that are too many: bounds in bytes, number and time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from natcore import Gateway, Link, Side, Timeouts, Verdict
from natcore.internal.counters import tally
from natcore.testing import craft
from support.fragment_frames import LOAD, adds_up, sent
from support.frames import (
    EIP,
    HOST,
    IP,
    REMOTE,
    Ether,
    Raw,
    echo,
    ether,
    fragments,
    gateway,
    ip,
    reassembled,
    tcp,
    udp,
    verdict_of,
)

INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE


# ---- what is refused


@pytest.mark.parametrize(
    "size, verdict", [(8, Verdict.DROP_FRAGMENT), (16, Verdict.DROP_FRAGMENT), (24, Verdict.OUTBOUND)]
)
def test_a_first_fragment_holds_the_whole_tcp_header(size: int, verdict: Verdict) -> None:
    """RFC 1858: a shorter one would hide from every rule. Its datagram is lost."""
    over = gateway()
    pieces = fragments(tcp("S", load=LOAD), size)
    assert verdict_of(over, pieces[0]) is verdict
    assert verdict_of(over, pieces[9]) is verdict


@pytest.mark.parametrize("make", [udp, echo])
def test_eight_bytes_are_the_header_of_udp_and_icmp(make: Any) -> None:
    pieces = fragments(make(load=LOAD), 8)
    verdicts, left = sent(gateway(), pieces)
    assert set(verdicts) == {Verdict.OUTBOUND} and reassembled(left)


def test_tcp_options_belong_to_the_header() -> None:
    whole = tcp("S", load=LOAD)
    packet = Ether(whole)[IP]
    packet["TCP"].options = [("MSS", 1460), ("NOP", None), ("NOP", None)]
    del packet["TCP"].dataofs, packet["TCP"].chksum, packet.len, packet.chksum
    over = gateway()
    assert verdict_of(over, fragments(ether(packet), 24)[0]) is Verdict.DROP_FRAGMENT
    assert verdict_of(gateway(), fragments(ether(packet), 32)[0]) is Verdict.OUTBOUND


@pytest.mark.parametrize("offset", [8, 16])
def test_no_tcp_fragment_begins_within_the_header(offset: int) -> None:
    """RFC 1858 section 3.2, RFC 3128: the header that was looked at could be overwritten."""
    over = gateway()
    first, *others = fragments(tcp("S", load=LOAD), 800)
    assert verdict_of(over, first) is Verdict.OUTBOUND
    assert verdict_of(over, ether(ip(proto=6, frag=offset // 8, flags="MF") / Raw(bytes(8)))) is Verdict.DROP_FRAGMENT
    assert [verdict_of(over, other) for other in others] == [Verdict.DROP_FRAGMENT] * 3


@pytest.mark.parametrize("fields, size", [
    ({"flags": "MF"}, 12), ({"flags": "MF"}, 0), ({"frag": 8}, 0), ({"frag": 8191}, 16), ({"frag": 8189}, 24)
])  # fmt: skip
def test_what_no_datagram_has(fields: dict[str, Any], size: int) -> None:
    """Lengths that are no multiples of eight, empty ones, and an end beyond 65,535 bytes."""
    over = gateway()
    assert verdict_of(over, ether(ip(proto=17, **fields) / Raw(bytes(size)))) is Verdict.DROP_MALFORMED


@pytest.mark.parametrize("begin, end", [(1600, 2400), (1608, 1616), (1592, 1608), (2392, 2408), (800, 3000)])
@pytest.mark.parametrize("first_here", [True, False])
def test_an_overlap_ends_the_datagram(begin: int, end: int, first_here: bool) -> None:
    """RFC 5722's rule: whoever sends other bytes for the same place wants two receivers to read two things."""
    over = gateway()
    pieces = fragments(udp(load=LOAD), 800)
    bad = ether(ip(proto=17, frag=begin // 8, flags="MF") / Raw(bytes((end - begin) // 8 * 8)))
    order = [*([pieces[0]] if first_here else []), pieces[2]]
    known = Verdict.OUTBOUND if first_here else Verdict.HELD
    assert [over.translate_one(piece, INSIDE, 0.0)[0] for piece in order] == [known] * len(order)
    rest = [bad, pieces[1], pieces[3], pieces[0]]
    assert [over.translate_one(piece, INSIDE, 0.0)[0] for piece in rest] == [Verdict.DROP_FRAGMENT] * 4
    adds_up(over, held=0, forwarded=2 if first_here else 0)
    assert over.take_generated() == []


def test_two_ends_are_an_overlap() -> None:
    over = gateway()
    pieces = fragments(udp(load=LOAD), 800)
    assert verdict_of(over, pieces[-1]) is Verdict.HELD
    beyond = ether(ip(proto=17, frag=500, flags="MF") / Raw(bytes(8)))
    assert over.translate_one(beyond, INSIDE, 0.0)[0] is Verdict.DROP_FRAGMENT
    adds_up(over, held=0, dropped_fragment=2)
    over = gateway()
    verdict_of(over, pieces[1])
    early = ether(ip(proto=17, frag=10) / Raw(bytes(8)))  # the last, it says, before one that came
    assert over.translate_one(early, INSIDE, 0.0)[0] is Verdict.DROP_FRAGMENT


def test_an_icmp_error_in_fragments_cannot_be_verified() -> None:
    over = gateway()
    over.translate_one(udp(load=LOAD[:1000]), INSIDE, 0.0)
    error = echo(REMOTE, EIP, kind=3, load=LOAD)
    assert verdict_of(over, fragments(error, 800)[0], OUTSIDE) is Verdict.DROP_FRAGMENT


# ---- time


def test_what_waits_too_long_is_dropped() -> None:
    over = gateway()
    first, second, third = fragments(udp(load=LOAD), 1200)
    over.translate_one(second, INSIDE, 0.0)
    over.translate_one(third, INSIDE, 2.0)
    over.advance(4.999)
    adds_up(over, held=2, dropped=0)
    over.advance(5.0)
    adds_up(over, held=0, dropped_fragment=2)
    assert verdict_of(over, first, now=5.0) is Verdict.OUTBOUND
    assert over.take_generated() == []


def test_a_datagram_s_fragments_expire() -> None:
    over = gateway(timeouts=Timeouts(fragment=2.5))
    first, second, third = fragments(udp(load=LOAD), 1200)
    over.translate_one(first, INSIDE, 1.0)
    assert verdict_of(over, second, now=3.499) is Verdict.OUTBOUND
    assert verdict_of(over, third, now=3.5) is Verdict.HELD


# ---- bounds: the figures of natcore/tables/fragments.pxd


def orphan(number: int, size: int = 8, source: str | None = None) -> bytes:
    """A fragment without its first one, of a host of its own unless given."""
    host = source or f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    return craft.ether(craft.ipv4(17, host, REMOTE, bytes(size), fragment=0x2000 | 100, identification=number & 0xFFFF))


def flood(over: Gateway, count: int, size: int, now: float, source: str | None = None) -> int:
    """So many orphans in batches; how many are held then."""
    for start in range(0, count, 2000):
        frames = [orphan(n, size, source) for n in range(start, min(start + 2000, count))]
        rows = np.frombuffer(b"".join(frames), np.uint8).reshape(len(frames), -1).copy()
        over.translate(rows, np.full(len(frames), rows.shape[1], np.uint32), INSIDE, now)
    return over.counters()["held"]


def test_a_flood_of_orphans_stays_at_the_cap_and_in_order_traffic_passes() -> None:
    over = gateway()
    assert flood(over, 4000, 8, 0.0) == 1000  # datagrams
    verdicts, left = sent(over, fragments(udp(load=LOAD), 1200))
    assert verdicts == [Verdict.OUTBOUND] * 3 and reassembled(left)
    adds_up(over, held=1000, dropped_fragment=3000)
    over.advance(5.0)
    adds_up(over, held=0, dropped_fragment=4000)


def test_bytes_that_wait_are_bounded() -> None:
    over = gateway()
    held = flood(over, 2000, 8000, 0.0)
    assert held == 2500 // (
        -(-8034 // 772)
    )  # chunks of 772 bytes and their number, as natcore/tables/fragments.pxd has them
    verdicts, _ = sent(over, fragments(udp(load=LOAD), 1200))
    assert verdicts == [Verdict.OUTBOUND] * 3


def test_one_source_has_its_share() -> None:
    over = gateway()
    assert flood(over, 1000, 8, 0.0, "10.0.0.9") == 1000 // 16
    verdicts, left = sent(over, fragments(udp(load=LOAD), 1200)[::-1])
    assert verdicts[-1] is Verdict.OUTBOUND and reassembled(left)


def orphans_from_outside(over: Gateway, count: int, *, first: bool = False) -> None:
    """Fragments of as many strangers as there are datagrams, later ones or first ones."""
    port = int(over.sessions()["outside_port"][0])
    for number in range(count):
        source, data = f"198.51.{number >> 8 & 255}.{number & 255}", bytes(2) + port.to_bytes(2, "big") + b"\0\xff\0\0"
        fragment = 0x2000 | (0 if first else 100)
        piece = craft.ipv4(17, source, EIP, data, fragment=fragment, identification=number & 0xFFFF)
        over.translate_one(craft.ether(piece), OUTSIDE, 0.0)


@pytest.mark.parametrize("first", [False, True])
def test_fragments_from_outside_take_no_space_of_the_inside(first: bool) -> None:
    over = gateway(max_sessions=20_000)
    verdict_of(over, udp())
    mine = fragments(udp(load=LOAD, id=9), 1200)
    late = fragments(udp(load=LOAD, id=10), 1200)
    assert [over.translate_one(piece, INSIDE, 0.0)[0] for piece in (mine[0], *late[1:])] == [
        Verdict.OUTBOUND, Verdict.HELD, Verdict.HELD
    ]  # fmt: skip
    orphans_from_outside(over, 2100, first=first)
    verdicts, left = sent(over, [*mine[1:], late[0]])
    assert verdicts == [Verdict.OUTBOUND] * 3 and len(left) == 5
    assert over.counters()["fragments_evicted"] == (100 if first else 0)


def test_a_source_that_sends_many_first_fragments_evicts_its_own() -> None:
    over = gateway()
    mine = fragments(udp(load=LOAD), 1200)
    assert verdict_of(over, mine[0]) is Verdict.OUTBOUND
    for number in range(3000):
        piece = craft.ipv4(17, "10.0.0.9", REMOTE, bytes([1] * 8), fragment=0x2000, identification=number)
        assert over.translate_one(craft.ether(piece), INSIDE, 0.0)[0] is Verdict.OUTBOUND
    assert [verdict_of(over, piece) for piece in mine[1:]] == [Verdict.OUTBOUND] * 2
    assert over.counters()["fragments_evicted"] == 3000 - 250


def test_one_fragment_ends_a_bounded_number_of_dead_datagrams_and_believes_none() -> None:
    over = gateway()
    for number in range(250):
        piece = craft.ipv4(17, "10.9.9.9", REMOTE, bytes([1] * 8), fragment=0x2000, identification=number)
        over.translate_one(craft.ether(piece), INSIDE, 0.0)
    assert flood(over, 900, 8, 0.0) == 900
    before = tally(*over._core.inspection.counters(-1))["held"]
    for turn in (1, 2, 3):
        over.translate_one(orphan(70_000 + turn), INSIDE, 6.0)  # 250 first ones, the oldest, hold nothing
        assert tally(*over._core.inspection.counters(-1))["held"] == before + turn
    assert over.translate_one(orphan(5), INSIDE, 6.0)[0] is Verdict.HELD  # its datagram had died
    later = craft.ipv4(17, "10.9.9.9", REMOTE, bytes(8), fragment=100, identification=249)
    assert over.translate_one(craft.ether(later), INSIDE, 6.0)[0] is Verdict.HELD  # so had that of a first fragment
    for turn in range(60):
        over.translate_one(orphan(80_000 + turn), INSIDE, 6.0)
    counters = over.counters()
    assert (counters["held"], counters["dropped_fragment"], counters["fragments_evicted"]) == (65, 900, 0)


# ---- duplicates


@pytest.mark.parametrize(
    "order", [[0, 1, 1, 2], [0, 0, 1, 2], [1, 1, 0, 2], [2, 1, 2, 0], [0, 2, 2, 1], [1, 0, 0, 1, 2]]
)
def test_an_exact_duplicate_is_dropped_alone(order: list[int]) -> None:
    """RFC 8200 section 4.5; a network that repeats a packet costs no datagram, nor the next one of the same ID."""
    over = gateway()
    pieces = fragments(udp(load=LOAD), 1200)
    for _ in range(2):
        verdicts, left = sent(over, [pieces[number] for number in order])
        again = [at for at, number in enumerate(order) if number in order[:at]]
        assert [at for at, verdict in enumerate(verdicts) if verdict is Verdict.DROP_FRAGMENT] == again
        assert len(left) == 3 and bytes(reassembled(left).payload)[8:] == LOAD
    adds_up(over, held=0, dropped_fragment=2 * (len(order) - 3))


@pytest.mark.parametrize("at", [1, 0])
def test_other_bytes_in_the_same_place_end_the_datagram(at: int) -> None:
    over = gateway()
    pieces = fragments(udp(load=LOAD), 1200)
    other = fragments(udp(load=LOAD[:1800] + b"X" + LOAD[1801:] if at else b"X" + LOAD[1:]), 1200)[at]
    verdicts, _ = sent(over, [pieces[0], pieces[1], other, pieces[2]])
    assert verdicts == [Verdict.OUTBOUND] * 2 + [Verdict.DROP_FRAGMENT] * 2


def test_the_held_fragments_of_a_datagram_are_bounded() -> None:
    over = gateway()
    pieces = fragments(udp(load=bytes(8 * 200)), 8)
    verdicts = [over.translate_one(piece, INSIDE, 0.0)[0] for piece in pieces[1:]]
    assert verdicts == [Verdict.HELD] * 128 + [Verdict.DROP_FRAGMENT] * 72


def test_known_datagrams_make_room_for_newer_ones() -> None:
    """First fragments alone, more than fit: those that come in order always pass."""
    over = gateway()
    for number in range(4100):
        for offset in (0, 1):
            piece = craft.ipv4(17, HOST, REMOTE, bytes([1] * 8), fragment=0x2000 | offset, identification=number)
            assert over.translate_one(craft.ether(piece), INSIDE, 0.0)[0] is Verdict.OUTBOUND
    adds_up(over, held=0, dropped=0)


def test_released_fragments_that_find_no_room_to_leave_are_dropped() -> None:
    """Generated frames are not taken: it is counted, and nothing grows."""
    over = gateway(inside=Link(mtu=65535), outside=Link(mtu=65535))
    for number in range(100):
        pieces = fragments(udp(load=bytes(60_000), id=number), 30_000)
        for piece in pieces[::-1]:
            over.translate_one(piece, INSIDE, 0.0)
    counters = over.counters()
    assert counters["held"] == 0 and counters["dropped_fragment"] > 0
    adds_up(over)

"""What the gateway says itself: ICMP errors about what it refuses, replies to echo requests."""

from __future__ import annotations

from typing import Any

import pytest

from natcore import Gateway, Link, Policy, Side, SnatEntry, Verdict
from support.frames import (
    EIP,
    HOST,
    ICMP,
    IP,
    MACS,
    REMOTE,
    Ether,
    Raw,
    Talk,
    assert_checksums,
    echo,
    ether,
    gateway,
    ip,
    one_port,
    tcp,
    udp,
    verdict_of,
)  # fmt: skip

OTHER = "10.0.0.6"
INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE


def generated(over: Gateway) -> tuple[Ether, Side, Verdict]:
    (one,) = over.take_generated()
    assert over.take_generated() == []
    return Ether(one.frame), one.send_to, one.cause


@pytest.mark.parametrize("side", Side)
def test_time_exceeded(side: Side) -> None:
    over = gateway(inside=Link(address="10.0.0.1"), outside=Link(address="198.51.100.1"))
    over.translate_one(udp(), INSIDE, 0.0)
    endpoint = (EIP, int(over.sessions()["outside_port"][0]))
    frame = udp(ttl=1, load=bytes(700)) if side is INSIDE else udp(REMOTE, 53, *endpoint, ttl=1, load=bytes(700))
    assert over.translate_one(frame, side, 0.0) == (Verdict.DROP_TTL, None)
    answer, send_to, cause = generated(over)
    assert (send_to, cause) == (side, Verdict.DROP_TTL)
    assert (answer.dst, answer.src) == (MACS["src"], MACS["dst"])
    assert_checksums(answer[IP])
    assert (answer[IP].src, answer[IP].dst) == (("10.0.0.1", HOST) if side is INSIDE else ("198.51.100.1", REMOTE))
    assert (answer[ICMP].type, answer[ICMP].code, answer[IP].ttl, answer[IP].len) == (11, 0, 64, 576)
    assert bytes(answer)[14 + 28 :] == frame[14 : 14 + 548]  # the quote, as it came


def test_a_small_packet_is_quoted_whole_without_its_padding() -> None:
    over = gateway()
    over.translate_one(udp(ttl=1) + bytes(20), INSIDE, 0.0)
    answer, _, _ = generated(over)
    assert bytes(answer)[14 + 28 :] == udp(ttl=1)[14:]
    assert answer[IP].src == "192.0.0.8"  # RFC 7600: it has no address of its own


def test_fragmentation_needed() -> None:
    over = gateway(outside=Link(mtu=1400), inside=Link(mtu=1300))
    over.translate_one(udp(load=bytes(1400), flags="DF"), INSIDE, 0.0)
    answer, _, _ = generated(over)
    assert (answer[ICMP].type, answer[ICMP].code, answer[ICMP].nexthopmtu) == (3, 4, 1400)
    assert_checksums(answer[IP])
    over.translate_one(udp(), INSIDE, 0.0)
    port = int(over.sessions()["outside_port"][0])
    over.translate_one(udp(REMOTE, 53, EIP, port, load=bytes(1300), flags="DF"), OUTSIDE, 0.0)
    answer, send_to, _ = generated(over)
    assert (answer[ICMP].nexthopmtu, send_to) == (1300, OUTSIDE)
    assert over.translate_one(udp(load=bytes(1400)), INSIDE, 0.0)[0] is Verdict.OUTBOUND
    (other,) = over.take_generated()
    assert other.cause is Verdict.OUTBOUND  # without DF it is fragmented instead


@pytest.mark.parametrize("limit", [{"max_sessions": 1}, {"policy": one_port()}])
def test_no_room_is_told_to_the_inside(limit: dict[str, Any]) -> None:
    over = gateway(**limit)
    over.translate_one(udp(), INSIDE, 0.0)
    over.translate_one(udp(OTHER), INSIDE, 0.0)
    answer, send_to, _ = generated(over)
    assert (answer[IP].dst, answer[ICMP].type, answer[ICMP].code, send_to) == (OTHER, 3, 1, INSIDE)


def test_host_unreachable_can_be_switched_off_and_time_exceeded_stays() -> None:
    over = gateway(max_sessions=1, policy=Policy(icmp_unreachable=False))
    over.translate_one(udp(), INSIDE, 0.0)
    over.translate_one(udp(OTHER), INSIDE, 0.0)
    assert over.take_generated() == []
    over.translate_one(udp(ttl=1), INSIDE, 0.0)
    assert len(over.take_generated()) == 1


def test_errors_are_bound_by_their_rate_a_second() -> None:
    over = gateway(policy=Policy(icmp_rate=2))
    for now, waiting in ((0.0, 1), (0.5, 2), (0.999, 2), (1.0, 3)):
        over.translate_one(udp(ttl=1), INSIDE, now)
        assert over.counters()["generated"] == waiting
    assert len(over.take_generated()) == 3


def too_long(load: int = 1480) -> bytes:
    return udp(load=bytes(load), flags="DF")


def test_strangers_take_no_icmp_error_of_the_inside_nor_of_path_mtu_discovery() -> None:
    over = gateway(outside=Link(mtu=1400))
    over.translate_one(udp(), INSIDE, 0.0)
    port = int(over.sessions()["outside_port"][0])
    for number in range(400):  # of so many strangers
        over.translate_one(udp(f"198.51.100.{number % 250}", 53, EIP, port, ttl=1), OUTSIDE, 0.0)
        over.translate_one(udp(f"10.0.1.{number % 250}", ttl=1), INSIDE, 0.0)
    counters = over.counters()
    assert (counters["generated"], counters["generated_withheld"]) == (200, 600)
    over.take_generated()
    over.translate_one(too_long(), INSIDE, 0.5)
    answer, send_to, _ = generated(over)
    assert (answer[ICMP].type, answer[ICMP].code, send_to) == (3, 4, INSIDE)


def test_a_source_takes_a_quarter_of_its_side_s_errors() -> None:
    over = gateway(outside=Link(mtu=1400))
    for frame in (udp(ttl=1), too_long()):
        for _ in range(40):
            over.translate_one(frame, INSIDE, 0.0)
        assert len(over.take_generated()) == 25
    over.translate_one(udp(OTHER, ttl=1), INSIDE, 0.0)
    assert generated(over)[0][IP].dst == OTHER
    over.translate_one(udp(ttl=1), INSIDE, 1.0)
    assert generated(over)[0][IP].dst == HOST
    assert over.counters()["generated_withheld"] == 30


def test_replies_to_strangers_leave_room_for_the_inside_s_fragments() -> None:
    over = gateway(outside=Link(mtu=1400))
    for _ in range(3000):
        over.translate_one(echo(REMOTE, EIP, load=bytes(1000)), OUTSIDE, 0.0)
    assert over.counters()["generated_lost"] > 0
    assert over.translate_one(udp(load=bytes(1450)), INSIDE, 0.0)[0] is Verdict.OUTBOUND


def test_no_error_about_an_error_or_to_no_host() -> None:
    over = gateway()
    over.translate_one(echo(kind=3, ttl=1), INSIDE, 0.0)
    over.translate_one(udp("255.255.255.255", ttl=1), INSIDE, 0.0)
    assert over.take_generated() == []


def test_errors_that_find_no_room_are_counted() -> None:
    over = gateway(policy=Policy(icmp_rate=1_000_000))
    for _ in range(600):
        over.translate_one(udp(ttl=1, load=bytes(600)), INSIDE, 0.0)
    counters = over.counters()
    assert counters["generated"] == len(over.take_generated()) > 400
    assert counters["generated"] + counters["generated_lost"] == 600


@pytest.mark.parametrize("side, source, destination", [
    (INSIDE, HOST, "10.0.0.1"), (INSIDE, HOST, EIP), (INSIDE, "192.168.7.7", EIP),
    (OUTSIDE, REMOTE, "198.51.100.1"), (OUTSIDE, REMOTE, EIP),
])  # fmt: skip
def test_echo_requests_to_the_gateway_are_answered(side: Side, source: str, destination: str) -> None:
    over = gateway(inside=Link(address="10.0.0.1"), outside=Link(address="198.51.100.1"), policy=Policy(icmp_rate=0))
    frame = echo(source, destination, load=b"odd load", ttl=1)
    assert verdict_of(over, frame, side) is Verdict.LOCAL
    answer, send_to, cause = generated(over)
    assert (send_to, cause, answer[IP].ttl) == (side, Verdict.LOCAL, 64)
    assert_checksums(answer[IP])
    assert (answer[IP].src, answer[IP].dst) == (destination, source)
    assert (answer[ICMP].type, answer[ICMP].id, answer[ICMP].seq, answer[Raw].load) == (0, 77, 3, b"odd load")


def test_other_packets_to_the_gateway_s_own_address_are_local() -> None:
    over = gateway(inside=Link(address="10.0.0.1"), outside=Link(address="198.51.100.1"))
    for frame, side in (
        (tcp("S", destination="10.0.0.1"), INSIDE),
        (ether(ip(HOST, "10.0.0.1", proto=89) / Raw(bytes(20))), INSIDE),
        (echo(HOST, "10.0.0.1", kind=14), INSIDE),
        (udp(REMOTE, 53, "198.51.100.1", 53), OUTSIDE),
    ):
        assert verdict_of(over, frame, side) is Verdict.LOCAL
    assert over.take_generated() == []


def test_a_link_address_in_the_pool_is_translated() -> None:
    over = Gateway(seed=1, max_sessions=10, outside=Link(address=EIP))
    over.add(SnatEntry("10.0.0.0/8", pool=EIP))
    made = Talk(over)
    assert made.out() is Verdict.OUTBOUND and made.back() is Verdict.INBOUND

"""natcore/nat/unsolicited_syn: SYNs from outside that nothing lets in, answered after 6 s or never (RFC 5382 REQ-4)."""

from __future__ import annotations

from typing import Any

import pytest

from natcore import ConfigurationError, Gateway, Link, Policy, Side, Verdict
from natcore.testhooks import wrappers
from support.frames import EIP, HOST, ICMP, IP, REMOTE, TCP, Ether, Talk, ether, gateway, one_port, tcp, udp, verdict_of

INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE
SYN_BYTES = 40


def answering(**policy: Any) -> Gateway:
    return gateway(policy=one_port(**{"unsolicited_syn": "icmp", **policy}))


def syn(flags: str = "S", source: str = REMOTE, **fields: Any) -> bytes:
    return tcp(flags, source, 443, EIP, 4000, **fields)


def told(over: Gateway) -> list[tuple[int, int, Verdict]]:
    """(type, code, cause) of what the gateway has to say."""
    return [(Ether(g.frame)[ICMP].type, Ether(g.frame)[ICMP].code, g.cause) for g in over.take_generated()]


def test_after_six_seconds_it_is_told_port_unreachable_about_its_own_packet() -> None:
    over = gateway(policy=one_port(unsolicited_syn="icmp"), outside=Link(address="198.51.100.1"))
    assert verdict_of(over, syn(seq=77, id=4711), OUTSIDE, 1.0) is Verdict.DROP_NO_MAPPING
    over.advance(6.999999999)
    assert over.take_generated() == []
    over.advance(7.0)
    (answer,) = over.take_generated()
    packet = Ether(answer.frame)[IP]
    assert (answer.send_to, answer.cause) == (OUTSIDE, Verdict.DROP_NO_MAPPING)
    assert (packet.src, packet.dst, packet[ICMP].type, packet[ICMP].code) == ("198.51.100.1", REMOTE, 3, 3)
    assert bytes(packet[ICMP])[8:] == syn(seq=77, id=4711)[14:]
    assert over.counters()["generated"] == 1
    over.advance(100.0)
    assert over.take_generated() == []


def test_what_the_filter_refuses_is_answered_as_well() -> None:
    over = answering(filtering="address-and-port-dependent")
    Talk(over, dport=80).out("S")
    assert verdict_of(over, syn(), OUTSIDE) is Verdict.DROP_FILTERED
    over.advance(6.0)
    assert told(over) == [(3, 3, Verdict.DROP_FILTERED)]


def test_the_inside_s_syn_meanwhile_silences_it() -> None:
    """A simultaneous open, of which the outside's SYN came first (RFC 5382 REQ-4)."""
    over = answering(filtering="address-and-port-dependent")
    assert verdict_of(over, syn(), OUTSIDE, 0.0) is Verdict.DROP_NO_MAPPING
    talk = Talk(over)
    talk.now = 5.9
    assert talk.out("S") is Verdict.OUTBOUND and talk.outside == (EIP, 4000)
    over.advance(6.0)
    over.advance(100.0)
    assert over.take_generated() == []


def test_a_connection_that_was_open_in_time_silences_it_though_it_is_long_over() -> None:
    over = answering()
    over.translate_one(syn(), OUTSIDE, 0.0)
    Talk(over).out("S")
    over.advance(1000.0)
    assert over.take_generated() == [] and over.counters()["sessions"] == 0


def test_another_connection_of_the_inside_does_not() -> None:
    over = answering()
    over.translate_one(syn(), OUTSIDE, 0.0)
    Talk(over, dport=80).out("S")
    over.advance(6.0)
    assert told(over) == [(3, 3, Verdict.DROP_NO_MAPPING)]


@pytest.mark.parametrize("frame", [
    syn("SA"), syn("A"), syn("R"), syn("SF"), syn("SR"), udp(REMOTE, 443, EIP, 4000),
    tcp("S", REMOTE, 443, "192.0.2.77", 4000),  # not for us
    tcp("S", EIP, 443, EIP, 4000),  # spoofed
], ids=["syn-ack", "ack", "rst", "syn-fin", "syn-rst", "udp", "elsewhere", "spoofed"])  # fmt: skip
def test_nothing_else_is_answered(frame: bytes) -> None:
    over = answering()
    assert over.translate_one(frame, OUTSIDE, 0.0)[0].is_drop
    over.advance(6.0)
    assert over.take_generated() == []


def test_a_syn_from_inside_that_finds_nothing_is_not_answered() -> None:
    over = answering(hairpin=True)
    assert over.translate_one(tcp("S", HOST, 5000, EIP, 9), INSIDE, 0.0)[0].is_drop
    over.advance(6.0)
    assert over.take_generated() == []


def test_silent_is_the_default_and_never_answers() -> None:
    over = gateway(policy=one_port())
    over.translate_one(syn(), OUTSIDE, 0.0)
    over.advance(1000.0)
    assert over.take_generated() == []


def test_a_tick_answers_what_is_due() -> None:
    over = answering()
    over.translate_one(syn(), OUTSIDE, 0.0)
    wrappers.tick_worker(over._core.worker_capsule(), 5_999_999_999)
    assert over.take_generated() == []
    wrappers.tick_worker(over._core.worker_capsule(), 6_200_000_000)
    assert told(over) == [(3, 3, Verdict.DROP_NO_MAPPING)]


def test_answers_keep_to_the_rate_of_errors() -> None:
    over = answering(icmp_rate=3)
    for _ in range(5):
        over.translate_one(syn(), OUTSIDE, 0.0)
    over.advance(6.0)
    assert len(over.take_generated()) == 3


def test_too_many_are_silent_and_counted() -> None:
    over = answering(icmp_rate=10_000)
    for n in range(1030):
        over.translate_one(syn(source=f"198.51.100.{n % 10}"), OUTSIDE, 0.0)
    assert over.counters()["unsolicited_lost"] == 6
    over.advance(6.0)
    assert len(over.take_generated()) == 1024
    over.translate_one(syn(), OUTSIDE, 6.0)
    over.advance(12.0)
    assert len(over.take_generated()) == 1


def test_a_source_takes_a_quarter_of_the_places_however_many_it_sends() -> None:
    over = answering(icmp_rate=10_000)
    frame = syn(source="198.51.100.66")
    for _ in range(2000):
        over.translate_one(frame, OUTSIDE, 0.0)
    assert over.counters()["unsolicited_lost"] == 2000 - 256
    over.translate_one(syn(), OUTSIDE, 1.0)
    over.advance(6.0)  # the first ones leave: their source has places again
    assert len(over.take_generated()) == 256
    over.translate_one(frame, OUTSIDE, 6.5)
    over.advance(7.0)
    assert [Ether(answer.frame)[IP].dst for answer in over.take_generated()] == [REMOTE]
    over.advance(13.0)
    assert len(over.take_generated()) == 1


def test_a_large_one_in_a_tagged_frame_is_quoted_as_far_as_errors_quote() -> None:
    over = answering()
    packet = IP(src=REMOTE, dst=EIP) / TCP(sport=443, dport=4000, flags="S") / bytes(range(256)) / bytes(1000)
    over.translate_one(ether(packet, 7, 8), OUTSIDE, 0.0)
    over.advance(6.0)
    (answer,) = over.take_generated()
    assert len(answer.frame) == 14 + 8 + 576
    assert bytes(Ether(answer.frame)[ICMP])[8:] == bytes(packet)[:548]


def test_another_answer_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"Policy\.unsolicited_syn must .*, got 'reset'"):
        Policy(unsolicited_syn="reset")


def test_a_connection_that_is_busy_when_the_six_seconds_are_looked_at_silences_it() -> None:
    over = answering()
    over.translate_one(syn(), OUTSIDE, 0.0)
    talk = Talk(over)
    for talk.now in (1.0, 9.0):  # no sweep comes by between
        talk.out("S")
    over.advance(10.0)
    assert over.take_generated() == []


def test_a_connection_that_is_opened_too_late_does_not() -> None:
    over = answering()
    over.translate_one(syn(), OUTSIDE, 0.0)
    talk = Talk(over)
    talk.now = 9.0
    talk.out("S")
    over.advance(10.0)
    assert told(over) == [(3, 3, Verdict.DROP_NO_MAPPING)]

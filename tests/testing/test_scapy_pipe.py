"""A gateway in scapy's pipes."""

from __future__ import annotations

from typing import Any

from scapy.layers.inet import ICMP
from scapy.pipetool import CLIFeeder, CLIHighFeeder, PipeEngine, QueueSink

from natcore import Gateway, SnatEntry, Verdict
from natcore.testing import GatewayDrain
from support.frames import IP, TCP, UDP, Ether, assert_checksums, gateway, ip

LINK = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01")


def piped(drain: GatewayDrain) -> tuple[PipeEngine, CLIFeeder, CLIFeeder, QueueSink, QueueSink]:
    """inside > drain > outside, outside >> drain >> inside."""
    inside, outside, to_outside, to_inside = CLIFeeder(), CLIHighFeeder(), QueueSink(), QueueSink()
    inside > drain > to_outside  # noqa: B015
    outside >> drain >> to_inside
    return PipeEngine(inside, outside), inside, outside, to_outside, to_inside


def test_packets_go_through_a_gateway_both_ways() -> None:
    drain = GatewayDrain(gateway())
    engine, inside, outside, to_outside, to_inside = piped(drain)
    engine.start()
    try:
        asked = LINK / ip() / TCP(sport=5000, dport=443, flags="S")
        inside.send(asked)
        left = to_outside.recv(timeout=10)
        assert left is not None and (left[IP].src, left[IP].dst) == ("203.0.113.1", asked[IP].dst)
        assert left.time == asked.time
        answer = LINK / IP(src=asked[IP].dst, dst="203.0.113.1") / TCP(sport=443, dport=left[TCP].sport, flags="SA")
        outside.send(answer)
        back = to_inside.recv(timeout=10)
        assert back is not None and (back[IP].dst, back[TCP].dport) == (asked[IP].src, 5000)
        assert_checksums(back[IP])
    finally:
        engine.stop()
    assert drain.verdicts == {Verdict.OUTBOUND: 1, Verdict.INBOUND: 1}


def test_what_the_gateway_itself_sends_leaves_by_the_side_that_it_is_for() -> None:
    out: list[Any] = []
    back: list[Any] = []
    drain = GatewayDrain(gateway(), clock=lambda _: 7.0)
    drain._send, drain._high_send = out.append, back.append  # type: ignore[method-assign]
    drain.push(LINK / ip(ttl=1) / UDP(sport=5000, dport=53))
    assert not out and drain.verdicts == {Verdict.DROP_TTL: 1}
    assert back[0][ICMP].type == 11 and back[0][IP].dst == "10.0.0.5"


def test_bare_packets_have_their_own_times() -> None:
    left: list[Any] = []
    with Gateway(framing="ip", seed=1) as made:
        made.add(SnatEntry("10.0.0.0/16", "203.0.113.1"))
        drain = GatewayDrain(made)
        drain._send = left.append  # type: ignore[method-assign]
        for seconds in (1000.0, 1400.0):  # the first session is dead by the second packet
            packet = ip() / UDP(sport=5000, dport=53)
            packet.time = seconds
            drain.push(packet)
        assert made.counters()["created"] == 2 and made.now == 400.0
    assert [type(each) for each in left] == [IP, IP]

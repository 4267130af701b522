"""Hairpinning in all its forms: to a mapping, a DNAT entry, a 1:1 host, oneself, one of several targets; TTL, no loops."""

from __future__ import annotations

from typing import Any

import pytest

from natcore import DnatEntry, Gateway, Policy, Side, Verdict
from support.frames import EIP, HOST, ICMP, IP, UDP, Ether, Raw, echo, ether, gateway, ip, parsed, tcp, udp, verdict_of

INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE
OTHER, SERVER, WHOLE, OWN = "10.0.0.6", "10.0.0.80", "203.0.113.9", "203.0.113.10"


def serving(**settings: Any) -> Gateway:
    """A gateway with a DNAT entry for each protocol, and two hosts that have an outside address each."""
    over = gateway(**settings)
    over.add(DnatEntry(EIP, 443, SERVER, 8443))
    over.add(DnatEntry(EIP, 53, SERVER, 5353, protocol="udp"))
    over.add(DnatEntry(WHOLE, "any", "10.0.0.90", "any", protocol="any"))
    over.add(DnatEntry(OWN, "any", "10.0.0.91", "any", protocol="any"))
    return over


def passed(over: Gateway, frame: bytes, now: float = 0.0) -> IP:
    """What a frame from inside became, back inside: its checksums right, its TTL one less."""
    verdict, sent = over.translate_one(frame, INSIDE, now)
    assert verdict is Verdict.HAIRPIN
    packet = parsed(sent)
    assert packet.ttl == Ether(frame)[IP].ttl - 1
    return packet


def there_and_back(over: Gateway, source: tuple[str, int], to: tuple[str, int], target: tuple[str, int],
                   make: Any = udp) -> tuple[str, int]:  # fmt: skip
    """A packet and its answer, each seen by either end as from the other's outside endpoint; the source's one."""
    there = passed(over, make(*source, *to))
    outside = (there.src, there.sport)
    assert (there.dst, there.dport) == target
    back = passed(over, make(*target, *outside))
    assert (back.src, back.sport, back.dst, back.dport) == (*to, *source)
    again = passed(over, make(*source, *to))
    assert (again.src, again.sport) == outside
    return outside


def syn(*ends: Any) -> bytes:
    return tcp("S", *ends)


@pytest.mark.parametrize("make, port, inner", [(udp, 53, 5353), (syn, 443, 8443)], ids=["udp", "tcp"])
@pytest.mark.parametrize("source", [HOST, SERVER], ids=["another", "oneself"])
def test_to_a_dnat_entry(make: Any, port: int, inner: int, source: str) -> None:
    outside = there_and_back(serving(), (source, 5000), (EIP, port), (SERVER, inner), make)
    assert outside[0] == EIP and outside[1] >= 1024


@pytest.mark.parametrize("make", [udp, syn], ids=["udp", "tcp"])
def test_to_a_host_with_an_outside_address_of_its_own(make: Any) -> None:
    over = serving()
    outside = there_and_back(over, (HOST, 5000), (WHOLE, 7), ("10.0.0.90", 7), make)
    assert outside[0] == EIP
    assert there_and_back(over, ("10.0.0.91", 5000), (WHOLE, 7), ("10.0.0.90", 7), make) == (OWN, 5000)


@pytest.mark.parametrize("make", [udp, syn], ids=["udp", "tcp"])
def test_to_one_s_own_outside_endpoint(make: Any) -> None:
    over = gateway()
    over.translate_one(make(HOST, 5000), INSIDE, 0.0)
    (row,) = over.sessions()
    own = (EIP, int(row["outside_port"]))
    for _ in range(2):
        packet = passed(over, make(HOST, 5000, *own))
        assert (packet.src, packet.sport, packet.dst, packet.dport) == (*own, HOST, 5000)
    row = over.sessions()[1]
    assert (row["packets_out"], row["packets_in"]) == (2, 0)  # whoever speaks to himself is both ends; it was sent once


def test_to_the_outside_endpoint_of_another_host() -> None:
    over = gateway()
    verdict, sent = over.translate_one(udp(OTHER, 6000), INSIDE, 0.0)
    assert verdict is Verdict.OUTBOUND
    there_and_back(over, (HOST, 5000), (EIP, parsed(sent).sport), (OTHER, 6000))


def test_one_of_several_targets_is_kept() -> None:
    over = gateway(pool=["203.0.113.1", "203.0.113.2", "203.0.113.3"], policy=Policy(pooling="arbitrary"))
    over.add(DnatEntry("203.0.113.77", 80, [("10.0.0.80", 1), ("10.0.0.81", 3), ("10.0.0.82", 1)], 8080))
    targets = set()
    for sport in range(5000, 5030):
        there = passed(over, syn(HOST, sport, "203.0.113.77", 80))
        back = passed(over, syn(there.dst, 8080, there.src, there.sport))
        assert (back.src, back.sport, back.dst, back.dport) == ("203.0.113.77", 80, HOST, sport)
        assert passed(over, syn(HOST, sport, "203.0.113.77", 80)).dst == there.dst
        targets.add((there.src, there.dst))
    assert len(targets) == len({source for source, _ in targets})  # an outside address has one target


@pytest.mark.parametrize("source, seen", [(HOST, EIP), ("10.0.0.91", OWN)], ids=["snat", "1:1"])
def test_an_echo_to_a_host_with_an_outside_address_of_its_own(source: str, seen: str) -> None:
    """RFC 5508 REQ-7a."""
    over = serving()
    for _ in range(2):
        there = passed(over, echo(source, WHOLE, ident=77))
        assert (there.src, there.dst, there[ICMP].type) == (seen, "10.0.0.90", 8)
        back = passed(over, echo("10.0.0.90", there.src, kind=0, ident=there[ICMP].id))
        assert (back.src, back.dst, back[ICMP].type, back[ICMP].id) == (WHOLE, source, 0, 77)
    assert over.take_generated() == []


def test_two_hosts_with_one_echo_id_are_told_apart() -> None:
    over = serving()
    ids = {source: passed(over, echo(source, WHOLE, ident=77))[ICMP].id for source in (HOST, OTHER)}
    assert len(set(ids.values())) == 2
    for source, ident in ids.items():
        assert passed(over, echo("10.0.0.90", EIP, kind=0, ident=ident)).dst == source


def test_an_error_about_a_hairpinned_echo_reaches_its_sender() -> None:
    over = serving()
    there = passed(over, echo(HOST, WHOLE, ident=77))
    error = ether(ip("10.0.0.90", there.src) / ICMP(type=3, code=10) / Raw(bytes(there)))
    verdict, sent = over.translate_one(error, INSIDE, 0.0)
    assert verdict is Verdict.HAIRPIN and sent is not None
    outer, quoted = Ether(sent)[IP], IP(sent[42:])
    assert (outer.src, outer.dst) == (WHOLE, HOST)
    assert (quoted.src, quoted.dst, quoted[ICMP].type, quoted[ICMP].id) == (HOST, WHOLE, 8, 77)


def test_an_echo_to_another_address_of_the_pool_is_the_gateway_s() -> None:
    over = serving()
    assert verdict_of(over, echo(HOST, EIP)) is Verdict.LOCAL
    assert [Ether(g.frame)[ICMP].type for g in over.take_generated()] == [0]
    assert verdict_of(serving(policy=Policy(hairpin=False)), echo(HOST, WHOLE)) is Verdict.LOCAL


@pytest.mark.parametrize("frame", [udp(HOST, 5000, EIP, 53), tcp("S", HOST, 5000, EIP, 443), udp(HOST, 5000, WHOLE, 7)])
def test_hairpinning_may_be_off(frame: bytes) -> None:
    over = serving(policy=Policy(hairpin=False))
    assert verdict_of(over, frame) is Verdict.DROP_UNSUPPORTED
    assert over.counters()["sessions"] == 0


@pytest.mark.parametrize("make", [
    lambda ttl: udp(HOST, 5000, EIP, 53, ttl=ttl),
    lambda ttl: udp(HOST, 5000, WHOLE, 7, ttl=ttl),
    lambda ttl: echo(HOST, WHOLE, ttl=ttl),
], ids=["dnat", "1:1", "echo"])  # fmt: skip
def test_the_time_to_live_ends_it(make: Any) -> None:
    for over in (serving(), serving()):
        assert verdict_of(over, make(1)) is Verdict.DROP_TTL
        assert over.counters()["sessions"] == 0
        assert [Ether(g.frame)[ICMP].type for g in over.take_generated()] == [11]
        passed(over, make(2))
        assert verdict_of(over, make(1)) is Verdict.DROP_TTL


def test_what_was_hairpinned_never_goes_round() -> None:
    """Its source is the pool's: it comes from nowhere then."""
    over = serving()
    _, sent = over.translate_one(udp(HOST, 5000, EIP, 53), INSIDE, 0.0)
    assert sent is not None
    for side in (INSIDE, OUTSIDE):
        assert over.translate_one(sent, side, 0.0)[0].is_drop
    for side in (INSIDE, OUTSIDE):
        assert verdict_of(over, udp(EIP, 53, EIP, 53), side) is Verdict.DROP_SPOOFED


def test_a_responder_s_answer_from_outside_is_spoofed() -> None:
    over = serving()
    there = passed(over, udp(HOST, 5000, EIP, 53))
    assert verdict_of(over, udp(EIP, 53, there.src, there.sport), OUTSIDE) is Verdict.DROP_SPOOFED


def test_only_the_initiator_s_session_is_logged() -> None:
    over = serving()
    there_and_back(over, (HOST, 5000), (EIP, 53), (SERVER, 5353))
    over.advance(1000.0)
    assert {int(row["pri_ip"]) for row in over.take_records(events=True)} == {0x0A000005}


def test_a_packet_to_one_s_own_outside_endpoint_is_counted_once() -> None:
    """One session is both the initiator's and the responder's: what it sent is what came from the inside, nothing else."""
    over = gateway()
    _, sent = over.translate_one(udp(HOST, 5000, "198.51.100.7", 53), INSIDE, 0.0)
    own = Ether(sent)[UDP].sport
    frame = udp(HOST, 5000, EIP, own)
    for _ in range(3):
        verdict, back = over.translate_one(frame, INSIDE, 1.0)
        assert verdict is Verdict.HAIRPIN and back is not None
        assert (Ether(back)[IP].src, Ether(back)[IP].dst) == (EIP, HOST)
    over.advance(1000.0)
    (row,) = [row for row in over.take_records() if row["pub_port"] == own]
    assert (row["pkts_from_vpc"], row["pkts_from_pub"]) == (3, 0)
    assert (row["bytes_from_vpc"], row["bytes_from_pub"]) == (3 * Ether(frame)[IP].len, 0)

"""RFC 5508, NAT behaviour for ICMP, requirement by requirement; nat/test_icmp_errors.py goes into each case."""

from __future__ import annotations

import pytest

from natcore import DnatEntry, Gateway, Policy, Side, Verdict
from support.frames import EIP, HOST, ICMP, IP, REMOTE, Ether, Raw, Talk, echo, ether, fragments, gateway, parsed, udp

INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE


def about(talk: Talk, kind: int = 3, code: int = 1, *, outward: bool = False) -> bytes:
    """An error about a packet of the talk: from a router outside, or from the host inside."""
    if outward:
        quoted = Ether(udp(talk.remote, talk.dport, talk.host, talk.sport))[IP]
        return ether(IP(src=talk.host, dst=talk.remote) / ICMP(type=kind, code=code) / Raw(bytes(quoted)))
    quoted = Ether(udp(*talk.outside, talk.remote, talk.dport))[IP]
    return ether(IP(src="192.0.2.1", dst=EIP) / ICMP(type=kind, code=code) / Raw(bytes(quoted)))


def opened() -> tuple[Gateway, Talk]:
    over = gateway()
    talk = Talk(over)
    talk.out()
    return over, talk


def test_rfc5508_req1_queries_pass_with_one_id_for_every_destination() -> None:
    over = gateway()
    sent = [over.translate_one(echo(destination=remote), INSIDE, 0.0)[1] for remote in (REMOTE, "198.51.100.8")]
    ids = {Ether(frame)[ICMP].id for frame in sent if frame is not None}
    assert len(ids) == 1
    verdict, back = over.translate_one(echo(REMOTE, EIP, kind=0, ident=ids.pop()), OUTSIDE, 0.0)
    assert verdict is Verdict.INBOUND and back is not None and Ether(back)[ICMP].id == 77


@pytest.mark.parametrize("ask, answer", [(8, 0), (13, 14), (15, 16), (17, 18)])
def test_rfc5508_req1_every_kind_of_query_passes(ask: int, answer: int) -> None:
    over = gateway()
    verdict, sent = over.translate_one(echo(kind=ask), INSIDE, 0.0)
    assert verdict is Verdict.OUTBOUND and sent is not None
    ident = Ether(sent)[ICMP].id
    verdict, back = over.translate_one(echo(REMOTE, EIP, kind=answer, ident=ident), OUTSIDE, 0.0)
    assert verdict is Verdict.INBOUND and back is not None
    packet = parsed(back)
    assert (packet[ICMP].type, packet[ICMP].id, packet.dst) == (answer, 77, HOST)
    error = ether(IP(src="192.0.2.1", dst=EIP) / ICMP(type=11) / Raw(sent[14:]))
    verdict, back = over.translate_one(error, OUTSIDE, 0.0)
    assert verdict is Verdict.INBOUND and back is not None and IP(back[42:])[ICMP].id == 77


@pytest.mark.parametrize("ask, answer", [(13, 14), (15, 16), (17, 18)])
def test_rfc5508_req10_a_policy_refuses_other_queries_than_echo(ask: int, answer: int) -> None:
    over = gateway(policy=Policy(icmp_queries="echo"))
    over.add(DnatEntry("203.0.113.9", "any", "10.0.0.9", "any", protocol="any"))
    assert over.translate_one(echo(), INSIDE, 0.0)[0] is Verdict.OUTBOUND
    ident = int(over.sessions()["outside_port"][0])
    for frame, side in ((echo(kind=ask), INSIDE), (echo(REMOTE, EIP, kind=answer, ident=ident), OUTSIDE),
                        (echo(REMOTE, "203.0.113.9", kind=ask), OUTSIDE)):  # fmt: skip
        assert over.translate_one(frame, side, 0.0)[0] is Verdict.DROP_UNSUPPORTED


@pytest.mark.parametrize("ask, answer", [(13, 14), (15, 16), (17, 18)])
def test_rfc5508_req7a_other_queries_hairpin_to_one_to_one_hosts_too(ask: int, answer: int) -> None:
    over = gateway()
    over.add(DnatEntry("203.0.113.9", "any", "10.0.0.9", "any", protocol="any"))
    assert over.translate_one(echo(REMOTE, "203.0.113.9", kind=ask), OUTSIDE, 0.0)[0] is Verdict.INBOUND
    assert over.translate_one(echo("10.0.0.9", REMOTE, kind=answer), INSIDE, 0.0)[0] is Verdict.OUTBOUND
    verdict, there = over.translate_one(echo(HOST, "203.0.113.9", kind=ask), INSIDE, 0.0)
    assert verdict is Verdict.HAIRPIN and there is not None
    reply = echo("10.0.0.9", EIP, kind=answer, ident=Ether(there)[ICMP].id)
    assert over.translate_one(reply, INSIDE, 0.0)[0] is Verdict.HAIRPIN
    assert over.translate_one(echo(HOST, EIP, kind=ask), INSIDE, 0.0)[0] is Verdict.DROP_UNSUPPORTED  # no host's


def test_rfc5508_req1_every_kind_of_query_in_fragments_passes() -> None:
    over = gateway()
    pieces = fragments(echo(kind=13, load=bytes(100)), 48)
    assert [over.translate_one(piece, INSIDE, 0.0)[0] for piece in pieces] == [Verdict.OUTBOUND] * 3
    assert over.explain(echo(kind=13), INSIDE).verdict is Verdict.OUTBOUND


def test_rfc5508_req2_a_query_lives_a_minute() -> None:
    over = gateway()
    over.translate_one(echo(), INSIDE, 0.0)
    over.advance(59.999)
    assert len(over.sessions()) == 1
    over.advance(60.0)
    assert len(over.sessions()) == 0


@pytest.mark.parametrize("at", [14 + 20 + 2, 14 + 28 + 10])
def test_rfc5508_req3_a_bad_checksum_is_dropped(at: int) -> None:
    over, talk = opened()
    frame = bytearray(about(talk))
    frame[at] ^= 0x55
    assert over.translate_one(bytes(frame), OUTSIDE, 0.0)[0] is Verdict.DROP_CHECKSUM


def test_rfc5508_req4_an_error_from_outside() -> None:
    over, talk = opened()
    verdict, sent = over.translate_one(about(talk, 3, 1), OUTSIDE, 0.0)
    assert verdict is Verdict.INBOUND and sent is not None
    packet = Ether(sent)[IP]
    assert (packet.dst, packet[ICMP].type, packet[ICMP].code, IP(sent[42:]).src) == (HOST, 3, 1, HOST)
    over.advance(300.0)
    assert over.translate_one(about(talk), OUTSIDE, 300.0)[0] is Verdict.DROP_NO_MAPPING


def test_rfc5508_req5_an_error_from_inside() -> None:
    over, talk = opened()
    verdict, sent = over.translate_one(about(talk, outward=True), INSIDE, 0.0)
    assert verdict is Verdict.OUTBOUND and sent is not None
    assert (Ether(sent)[IP].src, IP(sent[42:]).dst, IP(sent[42:]).dport) == (EIP, *talk.outside)


def test_rfc5508_req6_an_error_neither_refreshes_nor_ends() -> None:
    over, talk = opened()
    before = over.sessions().tobytes()
    over.translate_one(about(talk), OUTSIDE, 200.0)
    over.translate_one(about(talk, outward=True), INSIDE, 200.0)
    assert over.sessions().tobytes() == before


def test_rfc5508_req7_hairpinned_errors() -> None:
    over, talk = opened()
    other = Talk(over, host="10.0.0.6", sport=6000)
    other.out()
    verdict, sent = over.translate_one(udp(talk.host, talk.sport, *other.outside), INSIDE, 0.0)
    assert verdict is Verdict.HAIRPIN and sent is not None
    error = ether(IP(src=other.host, dst=EIP) / ICMP(type=3, code=3) / Raw(sent[14:]))
    verdict, back = over.translate_one(error, INSIDE, 0.0)
    assert verdict is Verdict.HAIRPIN and back is not None
    outer, quoted = Ether(back)[IP], IP(back[42:])
    assert (outer.src, outer.dst) == (EIP, talk.host)
    assert (quoted.src, quoted.sport, quoted.dst, quoted.dport) == (talk.host, talk.sport, *other.outside)


def test_rfc5508_req7a_hairpinned_queries_for_basic_nat() -> None:
    over = gateway()
    over.add(DnatEntry("203.0.113.9", "any", "10.0.0.9", "any", protocol="any"))
    verdict, there = over.translate_one(echo(HOST, "203.0.113.9"), INSIDE, 0.0)
    assert verdict is Verdict.HAIRPIN and there is not None
    assert (Ether(there)[IP].src, Ether(there)[IP].dst) == (EIP, "10.0.0.9")
    reply = echo("10.0.0.9", EIP, kind=0, ident=Ether(there)[ICMP].id)
    verdict, back = over.translate_one(reply, INSIDE, 0.0)
    assert verdict is Verdict.HAIRPIN and back is not None
    assert (Ether(back)[IP].src, Ether(back)[IP].dst, Ether(back)[ICMP].id) == ("203.0.113.9", HOST, 77)


def test_rfc5508_req9_a_policy_says_which_errors_are_sent() -> None:
    for policy, said in ((Policy(), 1), (Policy(icmp_unreachable=False), 0), (Policy(icmp_rate=0), 0)):
        over = gateway(policy=policy)
        over.translate_one(echo("192.168.0.1"), INSIDE, 0.0)
        assert len(over.take_generated()) == said


def test_rfc5508_req8_no_session_can_be_made() -> None:
    over = gateway()
    assert over.translate_one(echo("192.168.0.1"), INSIDE, 0.0)[0] is Verdict.DROP_NO_SNAT_ENTRY
    (told,) = over.take_generated()
    assert (Ether(told.frame)[ICMP].type, Ether(told.frame)[ICMP].code) == (3, 13)


@pytest.mark.parametrize("kind, code", [*((3, code) for code in range(16)), (11, 0), (11, 1), (12, 0)])
def test_rfc5508_req10_unreachable_and_time_exceeded_pass_both_ways(kind: int, code: int) -> None:
    over, talk = opened()
    for side, verdict in ((OUTSIDE, Verdict.INBOUND), (INSIDE, Verdict.OUTBOUND)):
        got, sent = over.translate_one(about(talk, kind, code, outward=side is INSIDE), side, 0.0)
        assert got is verdict and sent is not None
        assert (Ether(sent)[ICMP].type, Ether(sent)[ICMP].code) == (kind, code)


@pytest.mark.parametrize("kind", [4, 5, 9, 10, 19, 30, 40])
def test_rfc5508_req11_other_messages_are_dropped_and_counted(kind: int) -> None:
    over, talk = opened()
    for side in (OUTSIDE, INSIDE):
        assert (
            over.translate_one(about(talk, kind, 0, outward=side is INSIDE), side, 0.0)[0] is Verdict.DROP_UNSUPPORTED
        )
    assert over.counters()["dropped_unsupported"] == 2

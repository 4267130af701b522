"""RFC 5508, NAT behaviour for ICMP, requirement by requirement; test_quoted.py goes into each case."""

from __future__ import annotations

import pytest

from frames import EIP, HOST, ICMP, IP, REMOTE, Ether, Raw, Talk, echo, ether, gateway, udp
from natcore import Gateway, Side, Verdict

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


def test_rfc5508_req8_no_session_can_be_made() -> None:
    over = gateway()
    assert over.translate_one(echo("192.168.0.1"), INSIDE, 0.0)[0] is Verdict.DROP_NO_SNAT_ENTRY
    (told,) = over.take_generated()
    assert (Ether(told.frame)[ICMP].type, Ether(told.frame)[ICMP].code) == (3, 13)


@pytest.mark.parametrize("kind", [3, 11])
def test_rfc5508_req9_unreachable_and_time_exceeded_pass(kind: int) -> None:
    over, talk = opened()
    assert over.translate_one(about(talk, kind, 0), OUTSIDE, 0.0)[0] is Verdict.INBOUND


def test_rfc5508_req11_other_messages_are_dropped() -> None:
    over, talk = opened()
    assert over.translate_one(about(talk, 5, 0), OUTSIDE, 0.0)[0] is Verdict.DROP_UNSUPPORTED

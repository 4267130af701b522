"""RFC 5382, NAT behaviour for TCP, requirement by requirement."""

from __future__ import annotations

import pytest

from natcore import Behaviour, Policy, Side, Verdict
from support.frames import EIP, ICMP, IP, REMOTE, Ether, Raw, Talk, ether, gateway, one_port, tcp


def established(talk: Talk) -> Talk:
    assert [talk.out("S"), talk.back("SA"), talk.out("A")] == [Verdict.OUTBOUND, Verdict.INBOUND, Verdict.OUTBOUND]
    return talk


def test_rfc5382_req1_the_same_endpoint_for_every_destination() -> None:
    over = gateway()
    talks = [Talk(over, dport=port) for port in (1, 2, 3)]
    assert {talk.out("S") for talk in talks} == {Verdict.OUTBOUND}
    assert len({talk.outside for talk in talks}) == 1


def test_rfc5382_req2_simultaneous_open() -> None:
    talk = Talk(gateway())
    assert [talk.out("S"), talk.back("S"), talk.out("SA"), talk.back("SA")] == [Verdict.OUTBOUND, Verdict.INBOUND] * 2
    talk.now = 7439.0
    assert talk.out("A") is Verdict.OUTBOUND and talk.back("A") is Verdict.INBOUND


SEQUENCES = {  # of segments, those from outside in capitals
    "handshake": "s SA a A pa A",
    "simultaneous open": "s S sa SA a A",
    "simultaneous open, acknowledged apart": "s S a A",
    "a lost SYN": "s s SA a",
    "a lost answer": "s SA s SA a",
    "half closed by the inside": "s SA a fa A PA a PA a FA a",
    "half closed by the outside": "s SA a FA a pa A pa A fa A",
    "both close at once": "s SA a fa FA a A",
    "reset while opening": "s RA",
    "reset by the inside": "s SA a r",
    "reset by the outside": "s SA a RA",
    "urgent, pushed, without an acknowledgement": "s SA a pau PAU pf F",
    "opened again after its end": "s SA a fa FA a s SA a",
    "data in the SYN": "s SA pa A",
}


@pytest.mark.parametrize("sequence", SEQUENCES.values(), ids=SEQUENCES)
def test_rfc5382_req2_every_valid_sequence_passes(sequence: str) -> None:
    talk = Talk(gateway(policy=Policy(filtering="address-and-port-dependent")))
    inside, outside = 1000, 9000  # the next sequence number of each end
    for number, flags in enumerate(sequence.split()):
        talk.now = float(number)
        length = ("p" in flags.lower()) * 10
        load, moved = bytes(length), length + ("s" in flags.lower()) + ("f" in flags.lower())
        if flags.islower():
            assert talk.out(flags.upper(), seq=inside, ack=outside, load=load) is Verdict.OUTBOUND
            inside += moved
        else:
            assert talk.back(flags, seq=outside, ack=inside, load=load) is Verdict.INBOUND
            outside += moved
    assert len(talk.gateway.mappings()) == 1


def test_rfc5382_req2_a_simultaneous_open_with_a_first_syn_that_came_too_early() -> None:
    """The outside's SYN meets nothing and is not answered; its retransmission meets the inside's (REQ-4)."""
    talk = Talk(gateway(policy=one_port(filtering="address-and-port-dependent", unsolicited_syn="icmp")))
    talk.outside = (EIP, 4000)
    assert talk.back("S") is Verdict.DROP_NO_MAPPING
    talk.now = 1.0
    assert [talk.out("S"), talk.back("S"), talk.out("SA"), talk.back("SA")] == [Verdict.OUTBOUND, Verdict.INBOUND] * 2
    talk.gateway.advance(100.0)
    assert talk.gateway.take_generated() == []


def test_rfc5382_req3_filtering_apart_from_udp() -> None:
    over = gateway(policy=Policy(tcp=Behaviour(filtering="address-and-port-dependent")))
    for flags, verdict in (("S", Verdict.DROP_FILTERED), ("", Verdict.INBOUND)):
        talk = Talk(over)
        talk.out(flags)
        assert talk.back(flags, sport=9) is verdict


def test_rfc5382_req4_an_unsolicited_syn_is_not_answered() -> None:
    over = gateway()
    assert over.translate_one(tcp("S", REMOTE, 9, EIP, 4000), Side.OUTSIDE, 0.0)[0] is Verdict.DROP_NO_MAPPING
    over.advance(5.999)
    assert over.take_generated() == []


def test_rfc5382_req4a_then_port_unreachable_if_the_policy_says_so() -> None:
    for answer, said in (("silent", []), ("icmp", [(3, 3)])):
        over = gateway(policy=Policy(unsolicited_syn=answer))
        over.translate_one(tcp("S", REMOTE, 9, EIP, 4000), Side.OUTSIDE, 0.0)
        over.advance(6.0)
        assert [(Ether(g.frame)[ICMP].type, Ether(g.frame)[ICMP].code) for g in over.take_generated()] == said


def test_rfc5382_req5_idle_times() -> None:
    one, other = established(Talk(gateway())), Talk(gateway())
    other.out("S")
    for talk, life in ((one, 7440.0), (other, 240.0)):
        talk.gateway.advance(life - 0.001)
        assert len(talk.gateway.sessions()) == 1
        talk.gateway.advance(life)
        assert len(talk.gateway.sessions()) == 0


def test_rfc5382_req6_no_gateway_of_an_application_touches_a_payload() -> None:
    """FTP, with a PORT command that names the inside endpoint: it goes as it is, and opens nothing."""
    talk = established(Talk(gateway(), dport=21))
    frame = tcp("PA", talk.host, talk.sport, talk.remote, 21, load=b"PORT 10,0,0,5,19,137\r\n")
    verdict, sent = talk.gateway.translate_one(frame, Side.INSIDE, 0.0)
    assert verdict is Verdict.OUTBOUND and sent is not None and bytes(Ether(sent)[Raw]) == b"PORT 10,0,0,5,19,137\r\n"
    assert len(talk.gateway.mappings()) == 1


def test_rfc5382_req7_no_two_endpoints_share_a_port() -> None:
    over = gateway(policy=Policy(port_ranges=((4000, 4049),)))
    talks = [Talk(over, sport=5000 + n, dport=80 + n) for n in range(50)]
    assert {talk.out("S") for talk in talks} == {Verdict.OUTBOUND} and len({talk.outside for talk in talks}) == 50


def test_rfc5382_req8_hairpin() -> None:
    over = gateway()
    one, other = Talk(over), Talk(over, host="10.0.0.6")
    one.out("S")
    other.out("S")
    verdict, sent = over.translate_one(tcp("S", one.host, one.sport, *other.outside), Side.INSIDE, 0.0)
    assert verdict is Verdict.HAIRPIN and sent is not None
    assert (Ether(sent)[IP].src, Ether(sent)[IP].sport) == one.outside


def test_rfc5382_req9_an_error_is_translated() -> None:
    talk = established(Talk(gateway()))
    quoted = bytes(Ether(tcp("A", *talk.outside, REMOTE, talk.dport, 1))[IP])
    frame = ether(IP(src="192.0.2.1", dst=EIP) / ICMP(type=3, code=1) / Raw(quoted))
    verdict, sent = talk.gateway.translate_one(frame, Side.OUTSIDE, 0.0)
    assert verdict is Verdict.INBOUND and sent is not None
    assert IP(sent[14 + 28 :]).src == talk.host and IP(sent[14 + 28 :]).sport == talk.sport


def test_rfc5382_req10_an_error_ends_no_connection() -> None:
    talk = established(Talk(gateway()))
    quoted = bytes(Ether(tcp("A", *talk.outside, REMOTE, talk.dport, 1))[IP])
    before = talk.session()
    talk.gateway.translate_one(
        ether(IP(src="192.0.2.1", dst=EIP) / ICMP(type=3, code=3) / Raw(quoted)), Side.OUTSIDE, 9.0
    )
    assert talk.session() == before

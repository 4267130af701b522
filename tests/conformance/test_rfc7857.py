"""RFC 7857, updates to the NAT behavioural requirements, section by section."""

from __future__ import annotations

from frames import IP, Ether, Talk, gateway, one_port, udp
from natcore import Behaviour, Policy, Side, Verdict


def test_rfc7857_req2_2_a_rst_ends_nothing_and_later_traffic_brings_it_back() -> None:
    talk = Talk(gateway())
    talk.out("S", seq=100)
    talk.back("SA", seq=500, ack=101)
    talk.out("A", seq=101, ack=501)
    assert talk.back("R", seq=501) is Verdict.INBOUND and len(talk.gateway.sessions()) == 1
    talk.now = 239.0
    assert talk.out("A", seq=101, ack=501) is Verdict.OUTBOUND
    talk.now = 239.0 + 7439.0
    assert talk.back("A", seq=501, ack=101) is Verdict.INBOUND


def test_rfc7857_req4_a_full_address_is_hard_or_soft() -> None:
    for pooling, verdict in (("paired", Verdict.DROP_PORTS_EXHAUSTED), ("paired-soft", Verdict.OUTBOUND)):
        over = gateway(pool="203.0.113.0/31", policy=one_port(pooling=pooling))
        assert [Talk(over, sport=sport).out() for sport in (1, 2)] == [Verdict.OUTBOUND, verdict]


def test_rfc7857_req5_mapping_for_each_protocol() -> None:
    over = gateway(policy=Policy(tcp=Behaviour(mapping="address-and-port-dependent")))
    for flags, ports in (("", 1), ("S", 2)):
        talks = [Talk(over, dport=dport) for dport in (1, 2)]
        assert {talk.out(flags) for talk in talks} == {Verdict.OUTBOUND}
        assert len({talk.outside[1] for talk in talks}) == ports


def test_rfc7857_req6_filtering_for_each_protocol() -> None:
    talk = Talk(gateway(policy=Policy(udp=Behaviour(filtering="address-dependent"))))
    talk.out()
    assert talk.back(source="198.51.100.99") is Verdict.DROP_FILTERED


def test_rfc7857_req7_refused_packets_refresh_nothing() -> None:
    talk = Talk(gateway(policy=Policy(filtering="address-dependent")))
    talk.out()
    talk.now = 200.0
    talk.back(source="198.51.100.99")
    talk.now = 300.0
    assert talk.back() is Verdict.DROP_NO_MAPPING


def test_rfc7857_req10_the_identification_stays() -> None:
    _, sent = gateway().translate_one(udp(id=4711), Side.INSIDE, 0.0)
    assert sent is not None and Ether(sent)[IP].id == 4711

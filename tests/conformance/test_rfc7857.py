"""RFC 7857, updates to the NAT behavioural requirements, section by section."""

from __future__ import annotations

import pytest

from natcore import Behaviour, DnatEntry, Policy, Side, Timeouts, Verdict
from support.frames import EIP, HOST, ICMP, IP, REMOTE, Ether, Raw, Talk, echo, ether, gateway, one_port, tcp, udp

TRANSITORY, ESTABLISHED = 240.0, 7440.0
STATES = {  # segments, those from outside in capitals, and how long the session then lives (RFC 6146 section 3.5.2.2)
    "V4 INIT": ("s", TRANSITORY),
    "V4 INIT, data from outside": ("s A", TRANSITORY),
    "V4 INIT, reset": ("s RA", TRANSITORY),
    "ESTABLISHED": ("s SA", ESTABLISHED),
    "ESTABLISHED, data": ("s SA a PA pa", ESTABLISHED),
    "V6 FIN RCV": ("s SA a fa", ESTABLISHED),
    "V4 FIN RCV": ("s SA a FA", ESTABLISHED),
    "V4 FIN + V6 FIN RCV": ("s SA a FA fa", TRANSITORY),
    "V6 FIN + V4 FIN RCV": ("s SA a fa FA a", TRANSITORY),
    "TRANS by the outside": ("s SA a R", TRANSITORY),
    "TRANS by the inside": ("s SA a r", TRANSITORY),
    "TRANS, data": ("s SA a R pa", ESTABLISHED),
    "CLOSED, picked up": ("a", TRANSITORY),
    "CLOSED, picked up and answered": ("a A", ESTABLISHED),
}


@pytest.mark.parametrize("sequence, life", STATES.values(), ids=STATES)
def test_rfc7857_req2_the_state_machine_of_rfc6146(sequence: str, life: float) -> None:
    talk = Talk(gateway())
    inside, outside = 100, 500
    for flags in sequence.split():
        moved = ("S" in flags.upper()) + ("F" in flags.upper())
        if flags.islower():
            talk.out(flags.upper(), seq=inside, ack=outside)
            inside += moved
        else:
            talk.back(flags, seq=outside, ack=inside)
            outside += moved
    talk.gateway.advance(life - 0.001)
    assert len(talk.gateway.sessions()) == 1
    talk.gateway.advance(life)
    assert len(talk.gateway.sessions()) == 0


def test_rfc7857_req2_1_each_state_has_its_timer() -> None:
    made = gateway(timeouts=Timeouts(tcp_transitory=300, tcp_established=8000, unreplied=20))
    opening, open_, closing = Talk(made, sport=1), Talk(made, sport=2), Talk(made, sport=3)
    for talk in (opening, open_, closing):
        talk.out("S", seq=1)
    for talk in (open_, closing):
        talk.back("SA", seq=1, ack=2)
    closing.out("FA", seq=2, ack=2)
    closing.back("FA", seq=2, ack=3)
    opening.back("S", source="198.51.100.99")
    life = {(int(row["inside_port"]), int(row["remote_ip"]) & 255): row["deadline_ns"] / 1e9 for row in made.sessions()}
    assert life == {(1, 7): 300.0, (1, 99): 20.0, (2, 7): 8000.0, (3, 7): 300.0}


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


def test_rfc7857_req3_one_port_for_several_destinations() -> None:
    strict = "address-and-port-dependent"
    over = gateway(policy=one_port(ports="overload", mapping=strict, filtering=strict))
    talks = [Talk(over, sport=5000 + n, dport=80 + n) for n in range(3)]
    assert {talk.out() for talk in talks} == {Verdict.OUTBOUND} and len({talk.outside for talk in talks}) == 1
    assert {talk.back() for talk in talks} == {Verdict.INBOUND}
    assert Talk(over, sport=9, dport=80).out() is Verdict.DROP_PORTS_EXHAUSTED


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


def test_rfc7857_req7_1_outbound_resets_and_errors_refresh_nothing() -> None:
    talk = Talk(gateway())
    talk.out("S", seq=1)
    talk.now = 200.0
    assert talk.out("R", seq=2) is Verdict.OUTBOUND
    answer = Ether(tcp("SA", talk.remote, talk.dport, talk.host, talk.sport, 1))[IP]
    error = ether(IP(src=talk.host, dst=talk.remote) / ICMP(type=3, code=3) / Raw(bytes(answer)))
    assert talk.gateway.translate_one(error, Side.INSIDE, 200.0)[0] is Verdict.OUTBOUND
    talk.gateway.advance(240.0)
    assert len(talk.gateway.mappings()) == 0


def test_rfc7857_req11_an_icmp_mapping_ends_with_its_last_session() -> None:
    over = gateway()
    for now, remote in ((0.0, REMOTE), (30.0, "198.51.100.8")):
        over.translate_one(echo(destination=remote), Side.INSIDE, now)
    over.advance(60.0)
    assert (len(over.sessions()), len(over.mappings())) == (1, 1)
    over.advance(90.0)
    assert (len(over.sessions()), len(over.mappings())) == (0, 0)


def test_rfc7857_req12_hairpinned_icmp() -> None:
    over = gateway()
    over.add(DnatEntry("203.0.113.9", "any", "10.0.0.9", "any", protocol="any"))
    verdict, there = over.translate_one(echo(destination="203.0.113.9"), Side.INSIDE, 0.0)
    assert verdict is Verdict.HAIRPIN and there is not None
    error = ether(IP(src="10.0.0.9", dst=EIP) / ICMP(type=3, code=1) / Raw(there[14:]))
    verdict, back = over.translate_one(error, Side.INSIDE, 0.0)
    assert verdict is Verdict.HAIRPIN and back is not None
    assert Ether(back)[IP].dst == HOST and IP(back[42:])[ICMP].id == 77


def test_rfc7857_req8_parity_may_be_off() -> None:
    for parity, kinds in ((False, {0, 1}), (True, {0})):
        over = gateway(policy=Policy(parity=parity))
        talks = [Talk(over, sport=5000 + 2 * n) for n in range(40)]
        assert {talk.out() for talk in talks} == {Verdict.OUTBOUND}
        assert {talk.outside[1] % 2 for talk in talks} == kinds


def test_rfc7857_req9_ports_are_drawn_at_random() -> None:
    """RFC 6056: the same sessions of another gateway have other ports, all over the range."""
    drawn = []
    for seed in (1, 2):
        over = gateway(seed=seed)
        talks = [Talk(over, sport=5000 + n) for n in range(100)]
        assert {talk.out() for talk in talks} == {Verdict.OUTBOUND}
        drawn.append([talk.outside[1] for talk in talks])
    assert drawn[0] != drawn[1] and all(len({port >> 12 for port in ports}) > 12 for ports in drawn)


def test_rfc7857_req10_the_identification_is_unique_unless_df_is_set() -> None:
    """RFC 6864 section 5.3.1: as if the gateway had sent what leaves by one address to one remote."""
    over = gateway()
    sent = [
        over.translate_one(udp(host, id=4711), Side.INSIDE, 0.0)[1]
        for host in ("10.0.0.5", "10.0.0.6")
        for _ in range(9)
    ]
    assert len({Ether(frame)[IP].id for frame in sent if frame is not None}) == 18
    _, atomic = over.translate_one(udp(id=4711, flags="DF"), Side.INSIDE, 0.0)
    assert atomic is not None and Ether(atomic)[IP].id == 4711

"""What cannot come from where it came: inside addresses from outside, and ICMP errors that go elsewhere than they may."""

from __future__ import annotations

from typing import Any

import pytest

from natcore import DnatEntry, Gateway, NoNatEntry, Policy, Side, SnatEntry, Verdict
from support.frames import EIP, HOST, ICMP, IP, REMOTE, Ether, Raw, Talk, ether, gateway, parsed, tcp, udp, verdict_of

INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE
NEIGHBOUR, TARGET, PLAIN, WHOLE = "10.9.9.9", "192.168.7.1", "172.20.3.4", "192.168.7.2"


def with_entries(**policy: Any) -> tuple[Gateway, Talk]:
    """SNAT, DNAT, 1:1 and no-NAT entries, and an open mapping of HOST."""
    over = gateway(policy=Policy(**policy))
    over.add(DnatEntry("203.0.113.9", 53, TARGET, 53, protocol="udp"))
    over.add(DnatEntry("203.0.113.10", "any", WHOLE, "any", protocol="any"))
    over.add(NoNatEntry("172.20.0.0/16", "198.51.100.0/24"))
    talk = Talk(over)
    talk.out()
    return over, talk


@pytest.mark.parametrize("source", [NEIGHBOUR, HOST, TARGET, WHOLE, PLAIN])
def test_an_inside_address_opens_nothing_from_outside(source: str) -> None:
    over, talk = with_entries()
    for to in (talk.outside, ("203.0.113.9", 53), ("203.0.113.10", 9)):
        assert verdict_of(over, udp(source, 53, *to), OUTSIDE) is Verdict.DROP_SPOOFED
        assert verdict_of(over, tcp("S", source, 53, *to), OUTSIDE) is Verdict.DROP_SPOOFED
    assert len(over.sessions()) == 1


def test_a_policy_lets_networks_of_one_prefix_reach_each_other() -> None:
    over, talk = with_entries(reverse_path_filter=False)
    assert verdict_of(over, udp(NEIGHBOUR, 53, *talk.outside), OUTSIDE) is Verdict.INBOUND


def test_a_remote_with_an_inside_address_answers_whom_it_was_asked_by() -> None:
    """RFC 4787 REQ-7: prefixes may collide."""
    over, _ = with_entries()
    talk = Talk(over, remote=NEIGHBOUR)
    assert (talk.out(), talk.back()) == (Verdict.OUTBOUND, Verdict.INBOUND)
    assert talk.back(sport=9) is Verdict.DROP_SPOOFED


def test_an_entry_for_everything_says_nothing_of_what_is_inside() -> None:
    over = Gateway(max_sessions=10)
    over.add(SnatEntry("0.0.0.0/0", EIP))
    talk = Talk(over)
    talk.out()
    assert talk.back(source=NEIGHBOUR) is Verdict.INBOUND
    over.add(SnatEntry("10.0.0.0/8", EIP))
    assert talk.back(source="10.9.9.8") is Verdict.DROP_SPOOFED


def test_the_reverse_path_filter_is_explained() -> None:
    over, talk = with_entries()
    told = over.explain(udp(NEIGHBOUR, 53, *talk.outside), OUTSIDE)
    assert told.verdict is Verdict.DROP_SPOOFED and "an inside one from outside" in str(told)


@pytest.mark.parametrize("to", ["203.0.113.9", REMOTE, HOST, "203.0.113.77"])
def test_an_error_goes_only_to_who_sent_what_it_quotes(to: str) -> None:
    """RFC 1122 section 3.2.2; else anybody's address would take an error into the inside."""
    over, talk = with_entries()
    sent = Ether(udp(*talk.outside, talk.remote, talk.dport))[IP]
    error = IP(src="192.0.2.1", dst=to) / ICMP(type=3, code=1) / Raw(bytes(sent))
    assert verdict_of(over, ether(error), OUTSIDE) is Verdict.DROP_SPOOFED
    error.dst = EIP
    assert verdict_of(over, ether(error), OUTSIDE) is Verdict.INBOUND


def test_an_error_from_inside_goes_only_to_the_remote() -> None:
    over, talk = with_entries()
    got = Ether(udp(talk.remote, talk.dport, talk.host, talk.sport))[IP]
    error = IP(src=HOST, dst="8.8.8.8") / ICMP(type=3, code=3) / Raw(bytes(got))
    assert verdict_of(over, ether(error), INSIDE) is Verdict.DROP_SPOOFED
    error.dst = REMOTE
    verdict, out = over.translate_one(ether(error), INSIDE, 0.0)
    assert verdict is Verdict.OUTBOUND and parsed(out).src == EIP


def test_a_router_outside_with_an_inside_address_may_send_errors() -> None:
    """RFC 4787 REQ-12 b: providers' routers have private addresses; an error is judged by what it quotes."""
    over, talk = with_entries()
    sent = Ether(udp(*talk.outside, talk.remote, talk.dport))[IP]
    error = IP(src=NEIGHBOUR, dst=EIP) / ICMP(type=11, code=0) / Raw(bytes(sent))
    assert verdict_of(over, ether(error), OUTSIDE) is Verdict.INBOUND

"""DNAT, 1:1, no-NAT, other protocols, and the policies that a gateway draws, refuses and limits by."""

from __future__ import annotations

from collections import Counter

import pytest

from natcore import Behaviour, DnatEntry, Gateway, NoNatEntry, Policy, Side, SnatEntry, Verdict
from support.frames import EIP, HOST, ICMP, IP, REMOTE, Raw, Talk, echo, ether, gateway, ip, one_port, parsed, tcp, udp

OTHER, SECOND = "10.0.0.6", "203.0.113.2"
INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE
DEPENDENT = "address-and-port-dependent"


def into(over: Gateway, frame: bytes, now: float = 0.0) -> IP:
    verdict, sent = over.translate_one(frame, OUTSIDE, now)
    assert verdict is Verdict.INBOUND
    return parsed(sent)


# ---- entries


def test_a_port_forward_reaches_the_inside_and_its_answers_come_from_the_outside() -> None:
    over = gateway()
    over.add(DnatEntry(EIP, 8443, HOST, 443))
    assert (into(over, tcp("S", REMOTE, 9, EIP, 8443)).dst, over.sessions()["inside_port"][0]) == (HOST, 443)
    verdict, sent = over.translate_one(tcp("SA", HOST, 443, REMOTE, 9), INSIDE, 0.0)
    assert verdict is Verdict.OUTBOUND and (parsed(sent).src, parsed(sent).sport) == (EIP, 8443)
    assert len(over.take_records(events=True)) == 0  # not of the SNAT log
    assert into(over, tcp("A", REMOTE, 10, EIP, 8443)).dst == HOST  # picked up, as an inside segment is


def test_a_range_of_ports_is_forwarded_one_to_one() -> None:
    over = gateway()
    over.add(DnatEntry(EIP, (8000, 8009), HOST, (9000, 9009), protocol="udp"))
    assert [into(over, udp(REMOTE, 9, EIP, port)).dport for port in (8000, 8005, 8009)] == [9000, 9005, 9009]
    assert over.translate_one(udp(REMOTE, 9, EIP, 8010), OUTSIDE, 0.0)[0] is Verdict.DROP_NO_MAPPING


def test_targets_share_the_remotes_by_weight_and_keep_them() -> None:
    over = gateway(max_sessions=8000)  # a quarter may be opened from outside
    over.add(DnatEntry(EIP, 80, [(HOST, 3), (OTHER, 1)], 8080))
    remotes = [f"198.51.{n >> 8}.{n & 255}" for n in range(600)]
    first = [into(over, tcp("S", remote, 9, EIP, 80)).dst for remote in remotes]
    assert first == [into(over, tcp("S", remote, 10, EIP, 80)).dst for remote in remotes]
    shares = Counter(first)
    assert shares.keys() == {HOST, OTHER} and 1.5 < shares[HOST] / shares[OTHER] < 6


def test_a_dnat_port_is_never_drawn() -> None:
    over = gateway(policy=Policy(port_ranges=((4000, 4003),)))
    over.add(DnatEntry(EIP, (4001, 4002), OTHER, (1, 2), protocol="udp"))
    talks = [Talk(over, sport=5000 + n) for n in range(3)]
    assert [t.out() for t in talks] == [Verdict.OUTBOUND] * 2 + [Verdict.DROP_PORTS_EXHAUSTED]
    assert {t.outside[1] for t in talks[:2]} == {4000, 4003}


def test_a_whole_address_is_translated_both_ways() -> None:
    over = gateway()
    over.add(DnatEntry(SECOND, "any", OTHER, "any", protocol="any"))
    assert into(over, udp(REMOTE, 9, SECOND, 777)).dport == 777
    verdict, sent = over.translate_one(udp(OTHER, 5000), INSIDE, 0.0)
    assert verdict is Verdict.OUTBOUND and (parsed(sent).src, parsed(sent).sport) == (SECOND, 5000)
    request = into(over, echo(REMOTE, SECOND, ident=5))
    assert (request.dst, request[ICMP].id) == (OTHER, 5)
    verdict, sent = over.translate_one(echo(OTHER, REMOTE, kind=0, ident=5), INSIDE, 0.0)
    assert verdict is Verdict.OUTBOUND and parsed(sent).src == SECOND
    assert into(over, ether(ip(REMOTE, SECOND, proto=47) / Raw(bytes(20)))).dst == OTHER
    assert len(over.take_records(events=True)) == 0 and over.take_generated() == []


def test_no_nat_passes_untranslated_with_state_and_without_a_log() -> None:
    over = gateway()
    over.add(NoNatEntry("10.0.0.0/24", "192.168.0.0/16"))
    frame = udp(HOST, 5000, "192.168.1.1", 53)
    verdict, sent = over.translate_one(frame, INSIDE, 0.0)
    assert verdict is Verdict.UNTRANSLATED
    assert (parsed(sent).src, parsed(sent).sport, parsed(sent).ttl) == (HOST, 5000, 63)
    assert over.translate_one(udp("10.0.1.5", 5000, "192.168.1.1", 53), INSIDE, 0.0)[0] is Verdict.OUTBOUND
    verdict, sent = over.translate_one(udp("192.168.1.1", 53, HOST, 5000), OUTSIDE, 0.0)
    assert verdict is Verdict.UNTRANSLATED and parsed(sent).dst == HOST
    assert over.translate_one(udp("192.168.1.1", 54, HOST, 5000), OUTSIDE, 0.0)[0] is Verdict.DROP_NO_MAPPING
    assert {int(row["pri_port"]) for row in over.take_records(events=True)} == {5000}  # of 10.0.1.5 alone
    assert len(over.take_records(events=True)) == 0


def test_a_port_forward_that_finds_no_room_for_its_mapping_is_an_event() -> None:
    over = gateway(max_mappings=1)
    over.add(DnatEntry(EIP, 8443, HOST, 443))
    Talk(over, host=OTHER).out()
    assert over.translate_one(tcp("S", REMOTE, 9, EIP, 8443), OUTSIDE, 0.0)[0] is Verdict.DROP_SESSION_LIMIT
    (event,) = over.take_events()
    assert (event.reason, str(event.subscriber), str(event.destination)) == ("session-limit", HOST, REMOTE)


def test_a_whole_address_that_opens_again_over_a_hairpin_is_not_logged() -> None:
    over = gateway()
    over.add(DnatEntry(SECOND, "any", OTHER, "any", protocol="any"))
    over.add(DnatEntry(EIP, 8443, HOST, 443))
    for flags in ("S", "A", "FA"):
        assert over.translate_one(tcp(flags, OTHER, 9, EIP, 8443), INSIDE, 0.0)[0] is Verdict.HAIRPIN
        assert (
            over.translate_one(tcp(flags + "A" * (flags == "S"), HOST, 443, SECOND, 9), INSIDE, 0.0)[0]
            is Verdict.HAIRPIN
        )
    assert over.translate_one(tcp("S", OTHER, 9, EIP, 8443), INSIDE, 0.0)[0] is Verdict.HAIRPIN
    assert over.counters()["created"] == 4 and len(over.take_records(events=True)) == 0


# ---- protocols without ports


def test_another_protocol_is_known_by_its_addresses() -> None:
    over = gateway()
    verdict, sent = over.translate_one(ether(ip(proto=47) / Raw(b"tunnel")), INSIDE, 0.0)
    assert verdict is Verdict.OUTBOUND and parsed(sent).src == EIP
    back = into(over, ether(ip(REMOTE, EIP, proto=47) / Raw(b"tunnel")))
    assert back.dst == HOST and bytes(back.payload) == b"tunnel"
    assert over.translate_one(ether(ip(OTHER, proto=47) / Raw(b"tunnel")), INSIDE, 0.0)[0] is Verdict.DROP_CONFLICT
    assert over.translate_one(ether(ip(OTHER, proto=50) / Raw(b"tunnel")), INSIDE, 0.0)[0] is Verdict.OUTBOUND
    assert over.counters()["ports_used"] == 0


def test_another_protocol_lives_as_long_as_it_is_said() -> None:
    over = gateway()
    over.translate_one(ether(ip(proto=47) / Raw(b"x")), INSIDE, 0.0)
    over.advance(299.999)
    assert over.counters()["sessions"] == 1
    over.advance(300.0)
    assert over.counters()["sessions"] == 0


# ---- limits


def test_sessions_of_a_subscriber_are_limited_and_others_are_not_concerned() -> None:
    over = gateway(policy=Policy(sessions_per_subscriber=2))
    talks = [Talk(over, sport=5000 + n) for n in range(3)]
    assert [t.out() for t in talks] == [Verdict.OUTBOUND] * 2 + [Verdict.DROP_SUBSCRIBER_LIMIT]
    (told,) = over.take_generated()
    assert (told.frame[34], told.frame[35]) == (3, 13)
    assert Talk(over, host=OTHER).out() is Verdict.OUTBOUND
    (event,) = over.take_events()
    assert (str(event.subscriber), event.count) == (HOST, 1)
    talks[2].now = 300.0
    assert talks[2].out() is Verdict.OUTBOUND  # the dead count no more


def test_ports_of_a_subscriber_are_limited_and_its_mappings_stay_usable() -> None:
    over = gateway(policy=Policy(ports_per_subscriber=1))
    assert Talk(over).out() is Verdict.OUTBOUND
    assert Talk(over, dport=9).out() is Verdict.OUTBOUND  # over the same port
    assert Talk(over, sport=5001).out() is Verdict.DROP_SUBSCRIBER_LIMIT
    assert Talk(over, host=OTHER).out() is Verdict.OUTBOUND


def test_sessions_opened_from_outside_count_against_no_quota() -> None:
    over = gateway(policy=Policy(sessions_per_subscriber=2))
    talk = Talk(over)
    talk.out()
    for n in range(5):
        assert talk.back(sport=1000 + n) is Verdict.INBOUND
    assert Talk(over, sport=5001).out() is Verdict.OUTBOUND


def test_new_sessions_a_second_are_limited() -> None:
    over = gateway(policy=Policy(new_sessions_per_second=2))
    talks = [Talk(over, sport=5000 + n) for n in range(3)]
    assert [t.out() for t in talks] == [Verdict.OUTBOUND] * 2 + [Verdict.DROP_RATE_LIMIT]
    assert talks[0].out() is Verdict.OUTBOUND and Talk(over, host=OTHER).out() is Verdict.OUTBOUND
    talks[2].now = 1.0
    assert talks[2].out() is Verdict.OUTBOUND


# ---- mapping, ports, pooling


@pytest.mark.parametrize("mapping, ports", [("endpoint-independent", 1), (DEPENDENT, 3)])
def test_mapping(mapping: str, ports: int) -> None:
    over = gateway(policy=Policy(mapping=mapping))
    talks = [
        Talk(over, dport=dport, remote=remote) for dport, remote in ((1, REMOTE), (2, REMOTE), (1, "198.51.100.8"))
    ]
    assert {t.out() for t in talks} == {Verdict.OUTBOUND}
    assert len({t.outside for t in talks}) == ports
    assert {t.back() for t in talks} == {Verdict.INBOUND}


def test_mapping_is_set_for_each_protocol() -> None:
    over = gateway(policy=Policy(tcp=Behaviour(mapping=DEPENDENT)))
    for flags, ports in (("", 1), ("S", 2)):
        talks = [Talk(over, dport=dport) for dport in (1, 2)]
        assert {t.out(flags) for t in talks} == {Verdict.OUTBOUND}
        assert len({t.outside[1] for t in talks}) == ports


def test_a_port_is_preserved_where_it_is_free() -> None:
    over = gateway(policy=Policy(ports="preserve"))
    one, other = Talk(over), Talk(over, host=OTHER)
    assert one.out() is other.out() is Verdict.OUTBOUND
    assert one.outside == (EIP, 5000) and other.outside[1] != 5000


def test_a_port_is_preserved_after_its_hold_down() -> None:
    over = gateway(policy=Policy(ports="preserve", hold_down=10))
    Talk(over).out()
    over.advance(300.0)
    other = Talk(over, host=OTHER)
    other.now = 310.0
    assert other.out() is Verdict.OUTBOUND and other.outside[1] == 5000


def test_a_port_that_rests_is_preserved_for_whom_it_rests() -> None:
    over = gateway(policy=Policy(ports="preserve"))
    assert Talk(over).out() is Verdict.OUTBOUND
    over.end_all()
    other, same = Talk(over, host=OTHER), Talk(over)
    assert other.out() is Verdict.OUTBOUND and other.outside[1] != 5000
    assert same.out() is Verdict.OUTBOUND and same.outside[1] == 5000
    assert over.ports()["held_down"].sum() == 0


def test_parity_is_kept_while_such_a_port_is_free() -> None:
    over = gateway(policy=Policy(parity=True, port_ranges=((4000, 4003),)))
    even = [Talk(over, sport=5000 + 2 * n) for n in range(3)]
    assert [t.out() for t in even] == [Verdict.OUTBOUND] * 3
    assert {t.outside[1] for t in even[:2]} == {4000, 4002} and even[2].outside[1] % 2 == 1


@pytest.mark.parametrize("pooling, third", [
    ("paired", Verdict.DROP_PORTS_EXHAUSTED), ("paired-soft", Verdict.OUTBOUND), ("arbitrary", Verdict.OUTBOUND),
])  # fmt: skip
def test_pooling_when_the_address_is_full(pooling: str, third: Verdict) -> None:
    over = gateway(pool=[EIP, SECOND], policy=one_port(pooling=pooling))
    talks = [Talk(over, sport=5000 + n) for n in range(2)]
    assert [t.out() for t in talks] == [Verdict.OUTBOUND, third]
    assert (talks[0].outside[0] == talks[1].outside[0]) is False


def test_paired_pooling_holds_across_protocols() -> None:
    over = Gateway(seed=3, max_sessions=1000)
    over.add(SnatEntry("10.0.0.0/8", pool="203.0.113.0/28"))
    for n in range(20):
        addresses = set()
        for flags in ("", "S"):
            talk = Talk(over, host=f"10.0.0.{n + 1}", sport=6000)
            assert talk.out(flags) is Verdict.OUTBOUND
            addresses.add(talk.outside[0])
        assert len(addresses) == 1

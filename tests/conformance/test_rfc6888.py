"""RFC 6888, carrier-grade NAT, requirement by requirement."""

from __future__ import annotations

from itertools import pairwise

from natcore import NoNatEntry, Policy, Side, Verdict
from natcore.dtypes import RecordKind, format_ipv4
from natcore.sinks import MemorySink
from support.frames import EIP, ICMP, IP, Ether, Talk, gateway, one_port, udp


def test_rfc6888_req2_one_address_across_protocols() -> None:
    over = gateway(pool="203.0.113.0/28")
    one, other = Talk(over), Talk(over, sport=6000)
    one.out()
    other.out("S")
    assert one.outside[0] == other.outside[0]


def test_rfc6888_req3_a_pool_need_not_be_contiguous() -> None:
    over = gateway(pool=[EIP, "203.0.113.8-203.0.113.9", "192.0.2.16/31"], policy=one_port(pooling="arbitrary"))
    talks = [Talk(over, sport=5000 + n) for n in range(5)]
    assert {talk.out() for talk in talks} == {Verdict.OUTBOUND} and len({talk.outside[0] for talk in talks}) == 5


def test_rfc6888_req4_ports_and_new_sessions_are_limited() -> None:
    over = gateway(policy=Policy(ports_per_subscriber=2, new_sessions_per_second=3))
    verdicts = [Talk(over, sport=5000 + n).out() for n in range(3)]
    assert verdicts == [Verdict.OUTBOUND] * 2 + [Verdict.DROP_SUBSCRIBER_LIMIT]
    assert [Talk(over, dport=dport).out() for dport in (1, 2)] == [Verdict.OUTBOUND, Verdict.DROP_RATE_LIMIT]


def test_rfc6888_req5_sessions_of_a_subscriber_and_of_a_mapping_are_limited() -> None:
    over = gateway(policy=Policy(sessions_per_subscriber=2), max_sessions=8)  # a quarter may be opened from outside
    talk = Talk(over)
    assert [talk.out(), Talk(over, dport=1).out(), Talk(over, dport=2).out()] == [
        Verdict.OUTBOUND, Verdict.OUTBOUND, Verdict.DROP_SUBSCRIBER_LIMIT,
    ]  # fmt: skip
    assert [talk.back(sport=9000 + n) for n in range(3)] == [Verdict.INBOUND] * 2 + [Verdict.DROP_OUTSIDE_LIMIT]
    assert Talk(over, host="10.0.0.6").out() is Verdict.OUTBOUND


def test_rfc6888_req6_chosen_destinations_pass_untranslated() -> None:
    over = gateway()
    over.add(NoNatEntry("10.0.0.0/8", "192.168.0.0/16"))
    assert over.translate_one(udp(destination="192.168.0.1"), Side.INSIDE, 0.0)[0] is Verdict.UNTRANSLATED


def test_rfc6888_req7_filtering_is_endpoint_independent_by_default() -> None:
    talk = Talk(gateway())
    talk.out()
    assert talk.back(source="198.51.100.99", sport=9) is Verdict.INBOUND


def test_rfc6888_req8_a_freed_port_is_held_down() -> None:
    over = gateway(policy=one_port())
    Talk(over).out()
    other = Talk(over, host="10.0.0.6")
    other.now = 300.0 + 119.0
    assert other.out() is Verdict.DROP_PORTS_EXHAUSTED
    other.now = 300.0 + 121.0
    assert other.out() is Verdict.OUTBOUND


def out_of_resources() -> list[tuple[Talk, Talk, Verdict]]:
    """Gateways on which a host has all of something, another host that gets nothing, and why."""
    made = []
    for settings, verdict in (
        ({"policy": one_port()}, Verdict.DROP_PORTS_EXHAUSTED),
        ({"max_sessions": 1}, Verdict.DROP_SESSION_LIMIT),
        ({"max_mappings": 1}, Verdict.DROP_SESSION_LIMIT),
        ({"max_subscribers": 1}, Verdict.DROP_SESSION_LIMIT),
    ):
        over = gateway(**settings)
        made.append((Talk(over), Talk(over, host="10.0.0.6"), verdict))
        made[-1][0].out()
    return made


def test_rfc6888_req10_counters_tables_and_thresholds() -> None:
    over = gateway(policy=Policy(port_ranges=((4000, 4099),)))
    talks = [Talk(over, sport=5000 + n) for n in range(80)]
    assert {talk.out() for talk in talks} == {Verdict.OUTBOUND}
    (event,) = over.take_events()
    assert (event.reason, str(event.outside), event.protocol) == ("ports-threshold", EIP, 17)
    assert (over.counters()["created"], len(over.sessions()), len(over.mappings())) == (80, 80, 80)
    (row,) = (row for row in over.ports() if row["protocol"] == 17)
    assert (row["used"], row["held_down"], row["reserved"], row["free"], row["total"]) == (80, 0, 0, 20, 100)


def test_rfc6888_req11a_what_finds_no_resources_is_dropped() -> None:
    for _, other, verdict in out_of_resources():
        assert other.out() is verdict
        assert other.gateway.counters()[verdict.counter] == 1


def test_rfc6888_req11b_its_sender_is_told_host_unreachable() -> None:
    for _, other, _ in out_of_resources():
        other.out()
        (told,) = other.gateway.take_generated()
        packet = Ether(told.frame)[IP]
        assert (packet.dst, packet[ICMP].type, packet[ICMP].code) == ("10.0.0.6", 3, 1)


def test_rfc6888_req11c_the_administrator_is_told_once_with_a_count() -> None:
    for _, other, verdict in out_of_resources():
        for _ in range(3):
            other.out()
        (event,) = other.gateway.take_events()
        assert (event.reason, str(event.subscriber), event.count) == (verdict.reason, "10.0.0.6", 3)
        assert (str(event.destination), event.port) == (other.remote, other.dport)


def test_rfc6888_req11d_no_mapping_ends_to_free_a_port() -> None:
    for talk, other, _ in out_of_resources():
        talk.now = other.now = 299.0
        before = talk.gateway.mappings().tobytes()
        other.out()
        assert talk.gateway.mappings().tobytes() == before and talk.back() is Verdict.INBOUND


def test_rfc6888_req12_a_log_may_leave_destinations_out_while_another_keeps_them() -> None:
    over = gateway()
    short, whole = MemorySink(), MemorySink()
    over.start_session_log(short, redact_destination=True)
    over.start_session_log(whole)
    talk = Talk(over)
    talk.out()
    talk.back()
    over.close()
    assert len(short.records) == len(whole.records) >= 2
    assert not short.records["pub_ip"].any() and not short.records["pub_port"].any()
    assert whole.records["pub_ip"].all() and whole.records["pub_port"].all()
    for name in set(short.records.dtype.names) - {"pub_ip", "pub_port"}:
        assert (short.records[name] == whole.records[name]).all()


def test_rfc6888_req13_every_port_is_used_before_an_allocation_fails() -> None:
    """Every port of every policy that gives them out one by one; overloaded, each towards every remote endpoint."""
    strict = {"mapping": "address-and-port-dependent", "filtering": "address-and-port-dependent"}
    for ports, more, remotes in (("random", {}, 1), ("preserve", {}, 1), ("overload", strict, 3)):
        over = gateway(policy=Policy(ports=ports, port_ranges=((4000, 4031),), **more))  # type: ignore[arg-type]
        talks = [Talk(over, sport=5000 + n, dport=80 + n % remotes) for n in range(32 * remotes)]
        assert {talk.out() for talk in talks} == {Verdict.OUTBOUND}


def test_rfc6888_req14_a_log_of_blocks_has_two_rows_for_many_sessions() -> None:
    over, sink = gateway(policy=Policy(ports="block", block_size=64, hold_down=0.0)), MemorySink()
    over.start_session_log(sink, rows="blocks")
    talks = [Talk(over, sport=5000 + n, dport=80 + n) for n in range(64)]
    assert {talk.out() for talk in talks} == {Verdict.OUTBOUND}
    over.close()
    begun, ended = sink.records
    assert (begun["kind"], ended["kind"]) == (RecordKind.BLOCK_ALLOCATED, RecordKind.BLOCK_RELEASED)
    for row in (begun, ended):
        assert {format_ipv4(row["pri_ip"])} == {talk.host for talk in talks}
        assert {format_ipv4(row["nat_ip"])} == {talk.outside[0] for talk in talks}
        assert all(row["nat_port"] <= talk.outside[1] <= row["pub_port"] for talk in talks)
    computed = gateway(source="10.0.0.0/26", policy=Policy(ports="deterministic"))
    talk = Talk(computed)
    talk.out()
    assert str(computed.who(*talk.outside)) == talk.host  # no row at all


def test_rfc6888_req15_ports_are_hard_to_guess() -> None:
    """Neighbours in time are none in number, with blocks too."""
    for policy in (Policy(), Policy(ports="block")):
        over = gateway(policy=policy)
        talks = [Talk(over, sport=5000 + n) for n in range(200)]
        assert {talk.out() for talk in talks} == {Verdict.OUTBOUND}
        steps = [abs(one.outside[1] - other.outside[1]) for one, other in pairwise(talks)]
        assert sum(step < 3 for step in steps) < 20 and len(set(steps)) > 80

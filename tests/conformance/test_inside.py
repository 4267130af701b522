"""What an RFC requires and no packet shows: tables, counters, reasons, refused values."""

from __future__ import annotations

import pytest

from natcore import ConfigurationError, Policy, RfcWarning, Side, Timeouts, Verdict
from natcore.dtypes import format_ipv4
from natcore.sinks import MemorySink
from support.frames import EIP, ICMP, IP, Ether, Talk, ether, gateway, one_port, udp


def test_rfc4787_req5_a_shorter_life_is_warned_of() -> None:
    with pytest.warns(RfcWarning, match="REQ-5"):
        Timeouts(udp=119)


def test_rfc4787_req3_overloading_without_strict_filtering_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"Policy\.ports"):
        Policy(ports="overload")


def test_rfc4787_req10_a_payload_that_names_an_endpoint_makes_one_mapping() -> None:
    over = gateway()
    over.translate_one(
        udp(sport=5060, dport=5060, load=b"c=IN IP4 10.0.0.5\r\nm=audio 4000 RTP/AVP 0\r\n"), Side.INSIDE, 0.0
    )
    assert len(over.mappings()) == 1


def test_rfc5508_req11_other_messages_are_counted() -> None:
    over = gateway()
    over.translate_one(ether(IP(src="10.0.0.5", dst="198.51.100.7") / ICMP(type=9)), Side.INSIDE, 0.0)
    assert over.counters()["dropped_unsupported"] == 1


@pytest.mark.parametrize("options, verdict", [
    ({"policy": one_port()}, Verdict.DROP_PORTS_EXHAUSTED),
    ({"max_sessions": 1}, Verdict.DROP_SESSION_LIMIT),
    ({"max_mappings": 1}, Verdict.DROP_SESSION_LIMIT),
    ({"max_subscribers": 1}, Verdict.DROP_SESSION_LIMIT),
])  # fmt: skip
def test_rfc6888_req11_what_finds_no_resources_is_counted_told_and_an_event(
    options: dict[str, object], verdict: Verdict
) -> None:
    over = gateway(**options)
    talk, other = Talk(over), Talk(over, host="10.0.0.6")
    talk.out()
    before = over.mappings().tobytes()
    assert other.out() is verdict and over.counters()[verdict.counter] == 1
    (told,) = over.take_generated()
    packet = Ether(told.frame)[IP]
    assert (packet.dst, packet[ICMP].type, packet[ICMP].code) == ("10.0.0.6", 3, 1)
    (event,) = over.take_events()
    assert (event.reason, str(event.subscriber)) == (verdict.reason, "10.0.0.6")
    assert over.mappings().tobytes() == before


def test_rfc6888_req10_tables() -> None:
    over = gateway(policy=Policy(port_ranges=((4000, 4099),)))
    assert {Talk(over, sport=5000 + n).out() for n in range(80)} == {Verdict.OUTBOUND}
    assert (len(over.sessions()), len(over.mappings())) == (80, 80)
    (row,) = (row for row in over.ports() if row["protocol"] == 17)
    assert (row["used"], row["held_down"], row["reserved"], row["free"], row["total"]) == (80, 0, 0, 20, 100)


def test_rfc6888_req12_one_log_may_leave_destinations_out_while_another_keeps_them() -> None:
    over = gateway()
    short, whole = MemorySink(), MemorySink()
    over.start_session_log(short, redact_destination=True)
    over.start_session_log(whole)
    Talk(over).out()
    over.close()
    assert len(short.records) == len(whole.records) and not short.records["pub_ip"].any()
    assert {format_ipv4(row["pub_ip"]) for row in whole.records} == {"198.51.100.7"}


def test_rfc6888_req14_deterministic_ports_need_no_row() -> None:
    computed = gateway(source="10.0.0.0/26", policy=Policy(ports="deterministic"))
    talk = Talk(computed)
    talk.out()
    assert talk.outside[0] == EIP and str(computed.who(*talk.outside)) == talk.host


def test_rfc7857_req2_1_what_is_opened_from_outside_has_a_timer_until_it_is_answered() -> None:
    over = gateway(timeouts=Timeouts(tcp_transitory=300, unreplied=20))
    talk = Talk(over)
    talk.out("S", seq=1)
    talk.back("S", source="198.51.100.99")
    assert sorted(row["deadline_ns"] / 1e9 for row in over.sessions()) == [20.0, 300.0]


def test_rfc7857_req9_another_seed_draws_other_ports() -> None:
    drawn = []
    for seed in (1, 2):
        over = gateway(seed=seed)
        talks = [Talk(over, sport=5000 + n) for n in range(100)]
        assert {talk.out() for talk in talks} == {Verdict.OUTBOUND}
        drawn.append([talk.outside[1] for talk in talks])
    assert drawn[0] != drawn[1]


def test_rfc5382_req2_a_simultaneous_open_may_be_acknowledged_apart() -> None:
    """Each end answers the other's SYN with an ACK alone."""
    talk = Talk(gateway(policy=Policy(filtering="address-and-port-dependent")))
    assert [talk.out("S", seq=1), talk.back("S", seq=9), talk.out("A", seq=2, ack=10), talk.back("A", seq=10, ack=2)] == [
        Verdict.OUTBOUND, Verdict.INBOUND, Verdict.OUTBOUND, Verdict.INBOUND,
    ]  # fmt: skip

"""The oracle against the RFCs' text and against scapy: nothing of natcore's core runs here."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

from natcore.config import Behaviour, Eip, Link, Policy, SnatEntry, Timeouts
from natcore.dtypes import CREATE, END, WINDOW
from natcore.entries.changes import Modify
from natcore.testing.craft import address, ether, icmp, tcp, udp
from natcore.testing.oracle.model import Nat, Outcome
from natcore.testing.oracle.packets import ACK, ECHO_REPLY, FIN, RST, SYN, UDP, checksum, ones_sum
from natcore.testing.oracle.sessions import Tcp
from natcore.testing.oracle.tables import Choices, Event
from natcore.verdict import Side, Verdict

INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE
POOL, HOST, OTHER, SERVER, STRANGER = "203.0.113.1", "10.0.0.5", "10.0.0.6", "198.51.100.7", "198.51.100.8"


class Bench:
    """A model with ports dealt out in order, and a clock in seconds."""

    def __init__(self, **options: object) -> None:
        self.gateway = Nat([SnatEntry("10.0.0.0/8", POOL)], **options)  # type: ignore[arg-type]
        self.ports: Iterator[int] = iter(range(5000, 6000))

    def send(self, packet: bytes, side: Side = INSIDE, now: float = 0) -> Outcome:
        choices = Choices(lambda: (address(POOL), next(self.ports)), lambda entry, remote: address(HOST))
        return self.gateway.translate_one(ether(packet), side, round(now * 1e9), choices)

    def verdict(self, packet: bytes, side: Side = INSIDE, now: float = 0) -> Verdict:
        return self.send(packet, side, now)[0]

    def tcp(self) -> Tcp | None:
        return self.gateway.sessions[-1].tcp


def out(flags: int, **fields: int) -> bytes:
    return tcp((HOST, 40000), (SERVER, 80), flags, **fields)  # type: ignore[arg-type]


def back(flags: int, **fields: int) -> bytes:
    return tcp((SERVER, 80), (POOL, 5000), flags, **fields)  # type: ignore[arg-type]


def opened(bench: Bench) -> Bench:
    """A TCP session after its handshake."""
    for packet, side in (
        (out(SYN, sequence=99), INSIDE),
        (back(SYN | ACK, sequence=499, acknowledgement=100), OUTSIDE),
        (out(ACK, sequence=100, acknowledgement=500), INSIDE),
    ):
        assert not bench.verdict(packet, side).is_drop
    assert bench.tcp() is Tcp.ESTABLISHED
    return bench


def test_the_checksum_is_rfc_1071s() -> None:
    example = bytes.fromhex("0001f203f4f5f6f7")  # RFC 1071 section 3
    assert ones_sum(example) == 0xDDF2
    assert checksum(example) == 0x220D
    assert checksum(b"\x12") == checksum(b"\x12\x00")


def test_translated_packets_are_what_scapy_computes() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from scapy.layers.inet import ICMP, IP, TCP, UDP
    bench = Bench()
    for packet, layer in (
        (udp((HOST, 53), (SERVER, 53), b"odd"), UDP),
        (out(SYN, sequence=7), TCP),
        (icmp(HOST, SERVER, payload=b"ping!"), ICMP),
    ):
        _, sent = bench.send(packet)
        assert sent is not None
        expected = IP(sent[14:])
        del expected.chksum, expected[layer].chksum
        assert sent[14:] == bytes(expected)
        assert (expected.src, expected.ttl) == (POOL, 63)


def test_a_damaged_checksum_stays_as_damaged() -> None:
    _, right = Bench().send(udp((HOST, 53), (SERVER, 53), b"data"))
    _, wrong = Bench().send(udp((HOST, 53), (SERVER, 53), b"data", l4_damage=0x0001))
    assert right is not None and wrong is not None
    assert right[:-6] == wrong[:-6] and right[-4:] == wrong[-4:]
    difference = (int.from_bytes(wrong[-6:-4], "big") - int.from_bytes(right[-6:-4], "big")) % 0xFFFF
    assert difference in (1, 0xFFFE)


def test_rfc768_no_checksum_stays_none() -> None:
    _, sent = Bench().send(udp((HOST, 53), (SERVER, 53), b"data", no_checksum=True))
    assert sent is not None and sent[14 + 26 : 14 + 28] == b"\0\0"


def test_rfc4787_req1_one_mapping_for_every_destination() -> None:
    bench = Bench()
    sources = {bench.send(udp((HOST, 7), (server, 9)))[1][26:36] for server in (SERVER, STRANGER)}  # type: ignore[index]
    assert {source[:4] + source[8:] for source in sources} == {address(POOL).to_bytes(4, "big") + b"\x13\x88"}


@pytest.mark.parametrize(
    ("filtering", "same_address", "stranger"),
    [
        ("endpoint-independent", Verdict.INBOUND, Verdict.INBOUND),
        ("address-dependent", Verdict.INBOUND, Verdict.DROP_FILTERED),
        ("address-and-port-dependent", Verdict.DROP_FILTERED, Verdict.DROP_FILTERED),
    ],
)
def test_rfc4787_req8_filters(filtering: str, same_address: Verdict, stranger: Verdict) -> None:
    bench = Bench(policy=Policy(filtering=filtering))
    bench.send(udp((HOST, 7), (SERVER, 9)))
    assert bench.verdict(udp((SERVER, 9), (POOL, 5000)), OUTSIDE) is Verdict.INBOUND
    assert bench.verdict(udp((SERVER, 10), (POOL, 5000)), OUTSIDE) is same_address
    assert bench.verdict(udp((STRANGER, 9), (POOL, 5000)), OUTSIDE) is stranger
    assert bench.verdict(udp((SERVER, 9), (POOL, 5001)), OUTSIDE) is Verdict.DROP_NO_MAPPING


def test_rfc4787_req5_a_mapping_is_dead_at_exactly_its_time_out() -> None:
    for idle, verdict in ((299.999, Verdict.INBOUND), (300.0, Verdict.DROP_NO_MAPPING)):
        bench = Bench()
        bench.send(udp((HOST, 7), (SERVER, 9)), now=10)
        assert bench.verdict(udp((SERVER, 9), (POOL, 5000)), OUTSIDE, now=10 + idle) is verdict


@pytest.mark.parametrize(("refresh", "verdict"), [(True, Verdict.INBOUND), (False, Verdict.DROP_NO_MAPPING)])
def test_rfc4787_req6_inbound_refresh_is_by_policy(refresh: bool, verdict: Verdict) -> None:
    bench = Bench(policy=Policy(inbound_refresh=refresh))
    bench.send(udp((HOST, 7), (SERVER, 9)))
    bench.send(udp((SERVER, 9), (POOL, 5000)), OUTSIDE, now=200)
    assert bench.verdict(udp((SERVER, 9), (POOL, 5000)), OUTSIDE, now=400) is verdict


def test_rfc4787_req9_hairpin_shows_the_outside_endpoint() -> None:
    bench = Bench()
    bench.send(udp((OTHER, 7), (SERVER, 9)))
    verdict, sent = bench.send(udp((HOST, 8), (POOL, 5000), b"x"))
    assert verdict is Verdict.HAIRPIN and sent is not None
    assert sent[14:] == udp((POOL, 5001), (OTHER, 7), b"x", ttl=63)
    verdict, sent = bench.send(udp((OTHER, 7), (POOL, 5001), b"y"))
    assert verdict is Verdict.HAIRPIN and sent is not None
    assert sent[14:] == udp((POOL, 5000), (HOST, 8), b"y", ttl=63)
    assert [row.session for row in bench.gateway.rows] == [1, 2]  # the responder's (3) is not logged
    assert [s.total.pkts_from_pub for s in bench.gateway.sessions] == [0, 1, 1]


def test_a_refused_hairpin_makes_nothing() -> None:
    bench = Bench(policy=Policy(filtering="address-and-port-dependent"))
    bench.send(udp((OTHER, 7), (SERVER, 9)))
    assert bench.verdict(udp((HOST, 8), (POOL, 5000))) is Verdict.DROP_FILTERED
    assert bench.verdict(udp((HOST, 8), (POOL, 5999))) is Verdict.DROP_NO_MAPPING
    assert bench.gateway.counters()["sessions"] == 1


def test_rfc5382_req2_simultaneous_open() -> None:
    bench = Bench()
    bench.send(out(SYN))
    assert bench.tcp() is Tcp.INIT_OUT
    bench.send(back(SYN), OUTSIDE)
    assert bench.tcp() is Tcp.ESTABLISHED


def test_rfc6146_closing_takes_a_fin_from_both() -> None:
    bench = opened(Bench())
    bench.send(out(FIN | ACK))
    assert bench.tcp() is Tcp.FIN_OUT
    bench.send(out(FIN | ACK))
    assert bench.tcp() is Tcp.FIN_OUT
    bench.send(back(FIN | ACK), OUTSIDE)
    assert bench.tcp() is Tcp.CLOSING
    assert bench.gateway.sessions[0].timeout == 240_000


def test_rfc7857_a_blind_reset_changes_nothing() -> None:
    bench = opened(Bench())
    assert bench.verdict(back(RST, sequence=12345), OUTSIDE, now=60) is Verdict.INBOUND
    assert (bench.tcp(), bench.gateway.sessions[0].last_seen) == (Tcp.ESTABLISHED, 0)
    bench.send(back(RST, sequence=500), OUTSIDE, now=61)
    assert (bench.tcp(), bench.gateway.sessions[0].last_seen) == (Tcp.TRANS, 61_000)
    bench.send(back(ACK, sequence=500), OUTSIDE, now=62)
    assert bench.tcp() is Tcp.ESTABLISHED


def test_a_syn_after_the_end_begins_a_new_session_on_the_same_mapping() -> None:
    bench = opened(Bench())
    bench.send(out(FIN | ACK), now=1)
    bench.send(back(FIN | ACK), OUTSIDE, now=1)
    bench.send(out(SYN), now=2)
    rows = bench.gateway.rows
    assert [(row.session, row.kind) for row in rows] == [(1, CREATE), (1, WINDOW), (1, END), (2, CREATE)]
    assert len({row.nat for row in rows}) == 1 and rows[2].end == 2_000_000_000


def test_only_a_syn_opens_from_outside_and_its_session_is_short() -> None:
    bench = opened(Bench())
    stranger = (STRANGER, 9)
    for flags in (ACK, RST, SYN | RST):
        assert bench.verdict(tcp(stranger, (POOL, 5000), flags), OUTSIDE) is Verdict.DROP_FILTERED
    assert bench.verdict(tcp(stranger, (POOL, 5000), SYN), OUTSIDE) is Verdict.INBOUND
    session = bench.gateway.sessions[-1]
    assert (session.tcp, session.timeout) == (Tcp.INIT_IN, 30_000)
    bench.send(tcp((HOST, 40000), stranger, ACK))
    assert (session.tcp, session.timeout) == (Tcp.INIT_IN, 240_000)
    bench.send(tcp((HOST, 40000), stranger, SYN | ACK))
    assert session.tcp is Tcp.ESTABLISHED


def test_rfc5508_req1_echo_passes_both_ways_by_its_id() -> None:
    bench = Bench(policy=Policy(icmp=Behaviour(filtering="address-dependent")))
    verdict, sent = bench.send(icmp(HOST, SERVER, identifier=77, payload=b"abc"))
    assert verdict is Verdict.OUTBOUND and sent is not None
    assert sent[14:] == icmp(POOL, SERVER, identifier=5000, payload=b"abc", ttl=63)
    reply = icmp(SERVER, POOL, ECHO_REPLY, identifier=5000)
    assert bench.send(reply, OUTSIDE)[1] == ether(icmp(SERVER, HOST, ECHO_REPLY, identifier=77, ttl=63))
    assert bench.verdict(icmp(STRANGER, POOL, ECHO_REPLY, identifier=5000), OUTSIDE) is Verdict.DROP_FILTERED


def test_an_echo_request_for_the_gateway_is_answered() -> None:
    bench = Bench(inside=Link(address="10.0.0.1"))
    assert bench.verdict(icmp(HOST, "10.0.0.1", identifier=3, payload=b"abc")) is Verdict.LOCAL
    frame, send_to, cause = bench.gateway.generated.pop()
    assert (send_to, cause) == (INSIDE, Verdict.LOCAL)
    assert frame[14:] == icmp("10.0.0.1", HOST, ECHO_REPLY, identifier=3, payload=b"abc")
    assert frame[:12] == ether(b"")[6:12] + ether(b"")[:6]


def test_rfc1812_an_expired_packet_is_reported_with_a_quote() -> None:
    bench = Bench()
    packet = udp((HOST, 7), (SERVER, 9), bytes(1000), ttl=1)
    assert bench.verdict(packet) is Verdict.DROP_TTL
    error = bench.gateway.generated.pop().frame[14:]
    assert len(error) == 576 and error[28:] == packet[:548]
    assert error[20:22] == b"\x0b\0" and error[12:20] == bytes((192, 0, 0, 8, 10, 0, 0, 5))
    assert ones_sum(error[:20]) == ones_sum(error[20:]) == 0xFFFF


def test_icmp_errors_are_rate_limited_by_the_second() -> None:
    bench = Bench(policy=Policy(icmp_rate=2))
    for now in (0, 0.2, 0.9, 1.0):
        bench.send(udp((HOST, 7), (SERVER, 9), ttl=1), now=now)
    assert len(bench.gateway.generated) == 3


def test_rfc6888_req8_a_freed_port_rests() -> None:
    bench = Bench(policy=Policy(port_ranges=((5000, 5000),)))
    bench.ports = iter([5000] * 3)
    bench.send(udp((HOST, 7), (SERVER, 9)))
    other = udp((OTHER, 7), (SERVER, 9))
    assert bench.verdict(other, now=299.999) is Verdict.DROP_PORTS_EXHAUSTED
    assert bench.verdict(other, now=419.999) is Verdict.DROP_PORTS_EXHAUSTED
    assert bench.verdict(udp((HOST, 8), (SERVER, 9)), now=419.999) is Verdict.OUTBOUND  # the same subscriber
    event = bench.gateway.events["ports-exhausted", address(OTHER), 0]
    assert event == Event(299_999_000_000, "pool", (address(SERVER), 9), 17, count=2)
    assert [g.frame[34:36] for g in bench.gateway.generated] == [b"\x03\x01"] * 2


@pytest.mark.parametrize(
    ("choice", "complaint"),
    [(("203.0.113.2", 5000), "not in the pool"), ((POOL, 80), "out of range"), ((POOL, 6000), "is taken")],
)
def test_a_bad_choice_is_caught(choice: tuple[str, int], complaint: str) -> None:
    bench = Bench()
    bench.ports = iter((6000,))
    bench.send(udp((HOST, 7), (SERVER, 9)))
    with pytest.raises(AssertionError, match=complaint):
        choices = Choices(lambda: (address(choice[0]), choice[1]), lambda entry, remote: 0)
        bench.gateway.translate_one(ether(udp((OTHER, 7), (SERVER, 9))), INSIDE, 0, choices)


def test_windows_meet_and_their_sums_are_the_totals() -> None:
    bench = Bench(window=600, timeouts=Timeouts(udp=700))
    for now in (0, 599.999, 600, 1300):  # contract R1: a packet at exactly the end belongs to the next window
        bench.send(udp((HOST, 7), (SERVER, 9), b"12"), now=now)
    bench.gateway.advance(5_000_000_000_000)
    rows = [(row.session, row.kind, row.start // 10**9, row.end // 10**9, row.counts[3]) for row in bench.gateway.rows]
    assert rows == [
        (1, CREATE, 0, 0, 0),
        (1, WINDOW, 0, 600, 2),
        (1, WINDOW, 600, 1200, 1),
        (1, END, 0, 1300, 3),  # dead at exactly its time-out: the packet at 1300 begins a new one
        (2, CREATE, 1300, 1300, 0),
        (2, WINDOW, 1300, 1900, 1),
        (2, END, 1300, 2000, 1),
    ]


def test_the_table_has_exactly_max_sessions() -> None:
    bench = Bench(max_sessions=2, timeouts=Timeouts(udp=120))
    verdicts = [bench.verdict(udp((HOST, 7), (SERVER, n)), now=n / 10) for n in range(3)]
    assert verdicts == [Verdict.OUTBOUND] * 2 + [Verdict.DROP_SESSION_LIMIT]
    assert bench.verdict(udp((HOST, 7), (SERVER, 9)), now=120) is Verdict.OUTBOUND  # the first is dead


def test_strangers_take_a_quarter_of_the_table_at_most() -> None:
    bench = Bench(max_sessions=8)
    bench.send(udp((HOST, 7), (SERVER, 9)))
    verdicts = [bench.verdict(udp((STRANGER, n), (POOL, 5000)), OUTSIDE) for n in range(1, 4)]
    assert verdicts == [Verdict.INBOUND] * 2 + [Verdict.DROP_OUTSIDE_LIMIT]


def test_rfc6888_req4_a_connection_that_the_inside_begins_anew_counts_as_new() -> None:
    bench = opened(Bench(policy=Policy(new_sessions_per_second=1)))
    bench.send(out(FIN | ACK), now=1)
    bench.send(back(FIN | ACK), OUTSIDE, now=1)
    assert bench.verdict(out(SYN), now=1) is Verdict.OUTBOUND
    bench.send(back(SYN | ACK), OUTSIDE, now=1)
    bench.send(out(FIN | ACK), now=1)
    bench.send(back(FIN | ACK), OUTSIDE, now=1)
    assert bench.verdict(out(SYN), now=1.999) is Verdict.DROP_RATE_LIMIT
    assert bench.verdict(out(SYN), now=2) is Verdict.OUTBOUND


def test_a_refused_hairpin_counts_against_no_rate() -> None:
    bench = Bench(policy=Policy(new_sessions_per_second=1))
    assert bench.verdict(udp((HOST, 8), (POOL, 5999))) is Verdict.DROP_NO_MAPPING
    assert bench.verdict(udp((HOST, 8), (SERVER, 9))) is Verdict.OUTBOUND
    assert bench.verdict(udp((HOST, 8), (STRANGER, 9))) is Verdict.DROP_RATE_LIMIT


def test_rfc6888_req10_many_are_reported_once() -> None:
    policy = Policy(warn_at=0.02, rearm_at=0.01, port_ranges=((5000, 5099),))
    bench = Bench(policy=policy, max_sessions=100, timeouts=Timeouts(udp=120))
    told = {("sessions-threshold", 0, 0), ("ports-threshold", address(POOL), UDP)}
    for now, port, expected in ((0, 1, set()), (0, 2, told), (0, 3, set()), (500, 4, set()), (500, 5, told)):
        bench.gateway.advance(now * 10**9)
        bench.send(udp((HOST, port), (SERVER, 9)), now=now)
        assert bench.gateway.events.keys() == expected  # again only after there were few
        bench.gateway.events.clear()


def test_a_bind_mode_that_changes_ends_what_changes_on_the_wire() -> None:
    private = "172.16.0.9"
    gateway = Nat([SnatEntry("10.0.0.0/8", Eip(POOL, private_ip=private))], eip_bind_mode="MULTI_BINDED")
    wires = []
    for host in (HOST, OTHER):
        choices = Choices(lambda: (next(iter(gateway.eips)), 5000), lambda entry, remote: 0)
        verdict, sent = gateway.translate_one(ether(udp((host, 7), (SERVER, 9))), INSIDE, 0, choices)
        assert verdict is Verdict.OUTBOUND and sent is not None
        wires.append(sent[26:30])
        assert gateway.apply([Modify(eip_bind_mode="NAT")], 0) is not None
    assert [session.mapping.inside[0] for session in gateway.sessions] == [address(OTHER)]
    assert wires == [address(each).to_bytes(4, "big") for each in (POOL, private)]


def test_a_port_that_rests_for_its_host_is_preserved() -> None:
    bench = Bench(policy=Policy(ports="preserve", port_ranges=((5000, 6000),)))
    bench.ports = iter((5555, 5001, 5555, 5002))
    bench.send(udp((HOST, 5555), (SERVER, 9)))
    bench.gateway.end_matching(0, None, None, None, None)
    bench.send(udp((OTHER, 5555), (SERVER, 9)))  # it rests for another
    bench.send(udp((HOST, 5555), (SERVER, 9)))
    bench.gateway.end_matching(0, None, None, None, None)
    with pytest.raises(AssertionError, match="5555 was free to be preserved"):
        bench.send(udp((HOST, 5555), (SERVER, 9)))

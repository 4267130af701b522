"""RFC 4787, NAT behaviour for unicast UDP, requirement by requirement."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from natcore import ConfigurationError, Link, Policy, RfcWarning, Side, Timeouts, Verdict
from natcore.testing import craft
from support.frames import (
    EIP,
    HOST,
    ICMP,
    IP,
    REMOTE,
    Ether,
    Raw,
    Talk,
    echo,
    ether,
    fragments,
    gateway,
    reassembled,
    tcp,
    udp,
)


def test_rfc4787_req1_the_same_endpoint_for_every_destination() -> None:
    over = gateway()
    talks = [Talk(over, dport=port, remote=remote) for port in (1, 2) for remote in (REMOTE, "198.51.100.8")]
    assert {talk.out() for talk in talks} == {Verdict.OUTBOUND}
    assert len({talk.outside for talk in talks}) == 1


def test_rfc4787_req2_a_host_has_one_address() -> None:
    over = gateway(pool="203.0.113.0/28")
    talks = [Talk(over, sport=5000 + n) for n in range(50)]
    assert {talk.out() for talk in talks} == {Verdict.OUTBOUND}
    assert len({talk.outside[0] for talk in talks}) == 1


def test_rfc4787_req3_no_two_endpoints_share_a_port() -> None:
    over = gateway(policy=Policy(port_ranges=((4000, 4099),)))
    talks = [Talk(over, sport=5000 + n) for n in range(100)]
    assert {talk.out() for talk in talks} == {Verdict.OUTBOUND}
    assert len({talk.outside for talk in talks}) == 100


@pytest.mark.parametrize("sport", [5000, 5001])
def test_rfc4787_req4_parity(sport: int) -> None:
    talk = Talk(gateway(policy=Policy(parity=True)), sport=sport)
    talk.out()
    assert talk.outside[1] % 2 == sport % 2


def test_rfc4787_req5_five_minutes_and_configurable() -> None:
    for over, life in ((gateway(), 300.0), (gateway(timeouts=Timeouts(udp=120)), 120.0)):
        talk = Talk(over)
        talk.out()
        talk.now = life - 0.001
        over.advance(talk.now)
        assert len(over.mappings()) == 1
        over.advance(life)
        assert len(over.mappings()) == 0
    with pytest.warns(RfcWarning, match="REQ-5"):
        Timeouts(udp=119)


@pytest.mark.parametrize("inbound_refresh", [True, False])
def test_rfc4787_req6_outbound_refreshes_and_inbound_may(inbound_refresh: bool) -> None:
    talk = Talk(gateway(policy=Policy(inbound_refresh=inbound_refresh)))
    for talk.now in (0.0, 200.0):
        talk.out()
    talk.now = 499.0
    assert talk.back() is Verdict.INBOUND
    talk.now = 501.0
    assert talk.back() is (Verdict.INBOUND if inbound_refresh else Verdict.DROP_NO_MAPPING)


def test_rfc4787_req7_prefixes_that_collide() -> None:
    """Outside hosts with addresses that inside hosts have too (not the speaker's own: it would not send that), and a pool in
    the prefix."""
    over = gateway(pool="10.255.0.1")
    talk, other = Talk(over, remote="10.0.0.77"), Talk(over, host="10.0.0.77", remote="10.0.0.5")
    assert (talk.out(), other.out()) == (Verdict.OUTBOUND, Verdict.OUTBOUND)
    assert talk.outside[0] == other.outside[0] == "10.255.0.1" and talk.outside[1] != other.outside[1]
    assert (talk.back(), other.back()) == (Verdict.INBOUND, Verdict.INBOUND)


def test_rfc4787_req7_many_gateways_with_one_prefix() -> None:
    """200 of them in one process: the same inside endpoint is another host's behind each."""
    gateways = [gateway(pool=f"203.0.113.{n}", max_sessions=64) for n in range(1, 201)]
    talks = [Talk(over) for over in gateways]
    assert {talk.out() for talk in talks} == {Verdict.OUTBOUND}
    assert len({talk.outside[0] for talk in talks}) == 200
    assert {talk.back() for talk in talks} == {Verdict.INBOUND}
    assert all(len(over.sessions()) == 1 for over in gateways)


@pytest.mark.parametrize("filtering, same_host, other_host", [
    ("endpoint-independent", Verdict.INBOUND, Verdict.INBOUND),
    ("address-dependent", Verdict.INBOUND, Verdict.DROP_FILTERED),
    ("address-and-port-dependent", Verdict.DROP_FILTERED, Verdict.DROP_FILTERED),
])  # fmt: skip
def test_rfc4787_req8_filtering(filtering: str, same_host: Verdict, other_host: Verdict) -> None:
    talk = Talk(gateway(policy=Policy(filtering=filtering)))
    talk.out()
    assert talk.back() is Verdict.INBOUND
    assert (talk.back(sport=9), talk.back(source="198.51.100.8")) == (same_host, other_host)


def test_rfc4787_req9_hairpin_shows_the_external_source() -> None:
    over = gateway()
    one, other = Talk(over), Talk(over, host="10.0.0.6", sport=6000)
    one.out()
    other.out()
    verdict, sent = over.translate_one(udp(one.host, one.sport, *other.outside), Side.INSIDE, 0.0)
    assert verdict is Verdict.HAIRPIN and sent is not None
    packet = Ether(sent)[IP]
    assert (packet.src, packet.sport, packet.dst, packet.dport) == (*one.outside, "10.0.0.6", 6000)


def test_rfc4787_req11_load_changes_nothing() -> None:
    over = gateway()
    talk = Talk(over)
    talk.out()
    before = talk.outside
    for n in range(500):
        Talk(over, host=f"10.1.{n >> 8}.{n & 255}").out()
    talk.dport = 9
    assert talk.out() is Verdict.OUTBOUND and talk.outside == before


def test_rfc4787_req12_an_error_passes_and_ends_nothing() -> None:
    talk = Talk(gateway())
    talk.out()
    quoted = bytes(Ether(udp(*talk.outside, REMOTE, talk.dport))[IP])
    frame = ether(IP(src="192.0.2.1", dst=EIP) / ICMP(type=3, code=1) / Raw(quoted))
    assert talk.gateway.translate_one(frame, Side.OUTSIDE, 0.0)[0] is Verdict.INBOUND
    assert talk.back() is Verdict.INBOUND


def test_rfc4787_req13_fragmentation_needed() -> None:
    over = gateway(outside=Link(mtu=1400))
    assert over.translate_one(udp(load=bytes(1400), flags="DF"), Side.INSIDE, 0.0)[0] is Verdict.DROP_MTU
    (told,) = over.take_generated()
    message = Ether(told.frame)[ICMP]
    assert (message.type, message.code, message.nexthopmtu, told.send_to) == (3, 4, 1400, Side.INSIDE)


def test_rfc4787_req7_prefixes_may_collide() -> None:
    """Inside and outside both have 10.0.0.0/24: a remote there is another host than the inside one of that address."""
    over = gateway()
    talk, neighbour = Talk(over, remote="10.0.0.6"), Talk(over, host="10.0.0.6")
    assert talk.out() is neighbour.out() is Verdict.OUTBOUND
    assert talk.back() is neighbour.back() is Verdict.INBOUND


def test_rfc4787_req10_no_gateway_of_an_application_touches_a_payload() -> None:
    """SIP, with a payload that names the inside endpoint: it goes as it is, and opens nothing."""
    over = gateway()
    payload = b"INVITE sip:a@b SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.5:5060\r\n\r\nc=IN IP4 10.0.0.5\r\nm=audio 4000 RTP/AVP 0\r\n"
    verdict, sent = over.translate_one(udp(sport=5060, dport=5060, load=payload), Side.INSIDE, 0.0)
    assert verdict is Verdict.OUTBOUND and sent is not None and bytes(Ether(sent)[Raw]) == payload
    assert len(over.mappings()) == 1


def test_rfc4787_req13a_without_df_it_is_fragmented() -> None:
    over = gateway(outside=Link(mtu=600))
    verdict, first = over.translate_one(udp(load=bytes(1400)), Side.INSIDE, 0.0)
    others = over.take_generated()
    assert verdict is Verdict.OUTBOUND and first is not None
    assert {(other.send_to, other.cause) for other in others} == {(Side.OUTSIDE, Verdict.OUTBOUND)}
    frames = [first, *(other.frame for other in others)]
    assert [Ether(frame)[IP].len for frame in frames] == [596, 596, 276]
    packet = reassembled(frames)
    assert packet.src == EIP and len(packet.payload) == 1408


@pytest.mark.parametrize("make", [udp, lambda load: tcp("PA", load=load), lambda load: echo(load=load)])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]])
def test_rfc4787_req14_fragments_in_any_order(make: Callable[..., bytes], order: list[int]) -> None:
    """Both ways: REQ-14 speaks of both interfaces."""
    over = gateway()
    pieces = fragments(make(load=bytes(3000)), 1200)
    out = [frame for n in order if (frame := over.translate_one(pieces[n], Side.INSIDE, 0.0)[1])]
    packet = reassembled(out + [released.frame for released in over.take_generated()])
    assert packet.src == EIP and len(packet.payload) >= 3008
    answer = packet.copy()
    answer.src, answer.dst = packet.dst, packet.src
    if packet.proto == 1:
        answer[ICMP].type = 0
    else:
        answer.payload.sport, answer.payload.dport = packet.payload.dport, packet.payload.sport
    del answer.chksum, answer.payload.chksum
    pieces = fragments(ether(answer), 1200)
    back = [frame for n in order if (frame := over.translate_one(pieces[n], Side.OUTSIDE, 0.0)[1])]
    assert reassembled(back + [released.frame for released in over.take_generated()]).dst == HOST


def test_rfc4787_req14a_no_state_beyond_bounds() -> None:
    """A flood of fragments that never are a whole: it is bounded in number, bytes and time, and a source has a share."""
    over = gateway()
    for number in range(3000):
        alone = craft.ipv4(17, f"10.2.{number >> 8}.{number & 255}", REMOTE, bytes(8), fragment=0x2001)
        over.translate_one(craft.ether(alone), Side.INSIDE, 0.0)
    flooded = over.counters()
    assert flooded["held"] == 1000 and flooded["dropped_fragment"] == 2000
    pieces = fragments(udp(load=bytes(3000)), 1200)
    assert [over.translate_one(piece, Side.INSIDE, 1.0)[0] for piece in pieces] == [Verdict.OUTBOUND] * 3
    over.advance(5.0)
    assert over.counters()["held"] == 0


def test_rfc4787_req14a_no_fragment_hides_a_header() -> None:
    """RFC 1858: the tiny fragment, and the one that overwrites what was looked at."""
    tiny = fragments(tcp("S", load=bytes(100)), 8)
    assert {gateway().translate_one(piece, Side.INSIDE, 0.0)[0] for piece in tiny[:3]} == {Verdict.DROP_FRAGMENT}
    over = gateway()
    first, second = fragments(tcp("S", load=bytes(100)), 64)
    assert over.translate_one(first, Side.INSIDE, 0.0)[0] is Verdict.OUTBOUND
    over_it = craft.ipv4(6, HOST, REMOTE, bytes(16), fragment=0x2001, identification=7)
    assert over.translate_one(craft.ether(over_it), Side.INSIDE, 0.0)[0] is Verdict.DROP_FRAGMENT
    assert over.translate_one(second, Side.INSIDE, 0.0)[0] is Verdict.DROP_FRAGMENT


def test_overloading_without_strict_filtering_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"Policy\.ports"):
        Policy(ports="overload")

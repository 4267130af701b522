"""RFC 4787, NAT behaviour for unicast UDP, requirement by requirement."""

from __future__ import annotations

from itertools import product

from natcore.config import Link, Policy, Timeouts
from natcore.testing import craft
from natcore.testing.conformance.cases import case
from natcore.testing.conformance.device import (
    EIP,
    HOST,
    ICMP,
    ICMP_QUERIES,
    INSIDE,
    OTHER_HOST,
    OTHER_REMOTE,
    OUTSIDE,
    REMOTE,
    ROUTER,
    STRANGER,
    Bench,
    Talk,
    echo,
    error,
    ether,
    fragments,
    read,
    reassembled,
    tcp,
    udp,
)


@case("4787", "1")
def udp_same_endpoint_for_every_destination(bench: Bench) -> None:
    """An inside endpoint speaks to four remote ones, while another host uses the same port towards one of them."""
    device = bench.device()
    other = Talk(device, host=OTHER_HOST, dport=2)
    talks = [Talk(device, dport=port, remote=remote) for port, remote in product((1, 2), (REMOTE, OTHER_REMOTE))]
    assert [talks[0].out(), other.out()] == [True, True], "a datagram does not pass"
    assert all(talk.out() for talk in talks), "a datagram does not pass"
    found = {talk.outside for talk in talks}
    assert len(found) == 1, f"one inside endpoint has {len(found)} outside ones: {sorted(found)}"


@case("4787", "2")
def udp_host_has_one_address(bench: Bench) -> None:
    """A host opens fifty sessions, of a pool of 16 addresses."""
    device = bench.device(pool="203.0.113.0/28")
    talks = [Talk(device, sport=5000 + n) for n in range(50)]
    assert all(talk.out() for talk in talks), "a datagram does not pass"
    found = {talk.outside[0] for talk in talks}
    assert len(found) == 1, f"the host has {len(found)} outside addresses"


@case("4787", "3")
def udp_no_two_endpoints_share_a_port(bench: Bench) -> None:
    """A hundred inside endpoints, and a hundred ports."""
    device = bench.device(policy=Policy(port_ranges=((4000, 4099),)))
    talks = [Talk(device, sport=5000 + n) for n in range(100)]
    assert all(talk.out() for talk in talks), "a port is free, and a datagram does not pass"
    assert len({talk.outside for talk in talks}) == 100, "two inside endpoints share an outside endpoint"


@case("4787", "3")
def udp_no_port_is_shared_by_hosts(bench: Bench) -> None:
    """Two hosts use the same port, towards different remotes."""
    device = bench.device()
    one, other = Talk(device), Talk(device, host=OTHER_HOST, remote=OTHER_REMOTE)
    assert one.out() and other.out(), "a datagram does not pass"
    assert one.outside != other.outside, f"two hosts share the outside endpoint {one.outside}"


@case("4787", "3a")
def udp_well_known_port_stays_one(bench: Bench) -> None:
    """Ports below 1,024 leave as ports below 1,024, others as others."""
    device = bench.device()
    for sport in (500, 1023, 1024, 5000):
        talk = Talk(device, sport=sport)
        assert talk.out(), "a datagram does not pass"
        assert (talk.outside[1] < 1024) == (sport < 1024), f"port {sport} leaves as {talk.outside[1]}"


@case("4787", "4")
def udp_parity(bench: Bench) -> None:
    """An odd port for an odd one, an even one for an even one."""
    device = bench.device(policy=Policy(parity=True))
    for sport in range(5000, 5006):
        talk = Talk(device, sport=sport)
        assert talk.out(), "a datagram does not pass"
        assert talk.outside[1] % 2 == sport % 2, f"port {sport} leaves as {talk.outside[1]}"


@case("4787", "5")
def udp_mapping_lives_two_minutes(bench: Bench) -> None:
    """A mapping lets an answer in two minutes after its only packet."""
    talk = Talk(bench.device())
    assert talk.out(), "a datagram does not pass"
    talk.device.advance(120.0 - talk.device.tolerance)
    assert talk.back(), "the mapping ends before 120 s"


@case("4787", "5")
def udp_mapping_lives_five_minutes_by_default(bench: Bench) -> None:
    """RECOMMENDED: five minutes or more."""
    talk = Talk(bench.device())
    assert talk.out(), "a datagram does not pass"
    talk.device.advance(300.0 - talk.device.tolerance)
    assert talk.back(), "the mapping ends before 300 s"


@case("4787", "5")
def udp_life_of_a_mapping_is_configurable(bench: Bench) -> None:
    """Another time-out, and the mapping ends by it."""
    device = bench.device(timeouts=Timeouts(udp=130))
    early, late = Talk(device), Talk(device, sport=6000)
    assert early.out() and late.out(), "a datagram does not pass"
    device.advance(130.0 - device.tolerance)
    assert early.back(), "the mapping ends before 130 s"
    device.advance(130.0 + device.tolerance)
    assert not late.back(), "the mapping lives on after 130 s"


@case("4787", "6")
def udp_outbound_refreshes_and_inbound_may(bench: Bench) -> None:
    """An outbound packet refreshes the mapping, an inbound one as the policy says."""
    for inbound in (True, False):
        talk = Talk(bench.device(policy=Policy(inbound_refresh=inbound), timeouts=Timeouts(udp=120)))
        assert talk.out(), "a datagram does not pass"
        talk.device.advance(70.0)
        assert talk.out(), "a datagram does not pass"
        talk.device.advance(185.0)
        assert talk.back(), "an outbound packet did not refresh the mapping"
        talk.device.advance(195.0)
        passed = talk.back()
        assert passed == inbound, f"inbound_refresh={inbound}, and after an inbound packet the mapping's end is other"


@case("4787", "7")
def udp_prefixes_may_collide(bench: Bench) -> None:
    """A remote has an address that an inside host has too: it is another host."""
    device = bench.device()
    talk, neighbour = Talk(device, remote=OTHER_HOST), Talk(device, host=OTHER_HOST)
    assert talk.out(), "a datagram to a remote with an inside host's address does not pass"
    assert neighbour.out(), "a datagram of that inside host does not pass"
    assert talk.back(), "the answer of a remote with an inside host's address does not pass"
    assert neighbour.back(), "an answer to that inside host does not pass"


@case("4787", "7")
def udp_pool_within_the_inside_prefix(bench: Bench) -> None:
    """The outside address and remotes are of the inside's prefix, as behind another NAT."""
    device = bench.device(pool="10.255.0.1")
    talk, other = Talk(device, remote="10.0.0.77"), Talk(device, host="10.0.0.77", remote=HOST)
    assert talk.out() and other.out(), "a datagram does not pass"
    assert talk.outside[0] == other.outside[0] == "10.255.0.1" and talk.outside[1] != other.outside[1]
    assert talk.back() and other.back(), "an answer does not pass"


@case("4787", "7")
def udp_many_nats_with_one_prefix(bench: Bench) -> None:
    """The same inside endpoint behind twenty NATs of one machine is another host's behind each."""
    talks = [Talk(bench.device(pool=f"203.0.113.{n}")) for n in range(1, 21)]
    assert all(talk.out() for talk in talks), "a datagram does not pass"
    assert len({talk.outside[0] for talk in talks}) == 20, "two NATs use one outside address"
    assert all(talk.back() for talk in talks), "an answer does not pass"


@case("4787", "8")
def udp_filtering(bench: Bench) -> None:
    """Who may answer: the same port of the remote, another port of it, another host."""
    for filtering, port, host in (
        ("endpoint-independent", True, True),
        ("address-dependent", True, False),
        ("address-and-port-dependent", False, False),
    ):
        talk = Talk(bench.device(policy=Policy(filtering=filtering)))  # type: ignore[arg-type]
        assert talk.out() and talk.back(), "a datagram and its answer do not pass"
        passed = talk.back(sport=9), talk.back(source=OTHER_REMOTE)
        assert passed == (port, host), (
            f"{filtering}: another port of the remote {'passes' if passed[0] else 'is dropped'}, "
            f"another host {'passes' if passed[1] else 'is dropped'}"
        )


@case("4787", "9")
def udp_hairpin_shows_the_external_source(bench: Bench) -> None:
    """An inside host speaks to the outside endpoint of another one."""
    device = bench.device()
    one, other = Talk(device), Talk(device, host=OTHER_HOST, sport=6000)
    assert one.out() and other.out(), "a datagram does not pass"
    left = device.send(udp(one.host, one.sport, *other.outside), INSIDE)
    assert left.side is INSIDE, "it does not come back to the inside"
    ends = left.packet.src, left.packet.sport, left.packet.dst, left.packet.dport
    assert ends == (*one.outside, OTHER_HOST, 6000), f"it has the endpoints {ends}"


@case("4787", "10")
def udp_no_application_gateway(bench: Bench) -> None:
    """SIP, with a payload that names the inside endpoint: it goes as it is, and opens nothing."""
    device = bench.device()
    payload = b"INVITE sip:a@b SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.5:5060\r\n\r\nc=IN IP4 10.0.0.5\r\nm=audio 4000 RTP/AVP 0\r\n"
    left = device.send(udp(sport=5060, dport=5060, load=payload), INSIDE)
    assert left, "it does not pass"
    assert bytes(left.packet.payload.payload) == payload, "the payload was changed"
    media = device.send(udp(REMOTE, 4000, EIP, 4000), OUTSIDE)
    assert not media, "the endpoint that the payload names was opened"


@case("4787", "11")
def udp_load_changes_nothing(bench: Bench) -> None:
    """After five hundred other hosts an endpoint still has its outside endpoint, for a new remote too."""
    device = bench.device()
    talk = Talk(device)
    assert talk.out(), "a datagram does not pass"
    before = talk.outside
    for n in range(500):
        Talk(device, host=f"10.1.{n >> 8}.{n & 255}", dport=9).out()
    talk.dport = 9
    assert talk.out(), "a datagram does not pass"
    assert talk.outside == before, f"its outside endpoint was {before}, and is {talk.outside}"


@case("4787", "12")
def udp_error_passes_and_ends_nothing(bench: Bench) -> None:
    """A Destination Unreachable from a router reaches the host, and answers still pass."""
    talk = Talk(bench.device())
    assert talk.out(), "a datagram does not pass"
    frame = error(read(udp(*talk.outside, REMOTE, talk.dport)), ROUTER, EIP)
    assert talk.device.send(frame, OUTSIDE).side is INSIDE, "the error does not pass"
    assert talk.back(), "the error ended the mapping"


@case("4787", "13")
def udp_fragmentation_needed(bench: Bench) -> None:
    """A datagram with DF that is too big for the outside link."""
    device = bench.device(outside=Link(mtu=1400))
    left = device.send(udp(load=bytes(1400), flags="DF"), INSIDE)
    assert not left, "it passes"
    told = [(each[ICMP].type, each[ICMP].code, each[ICMP].nexthopmtu, each.dst) for each in left.errors()]
    assert told == [(3, 4, 1400, HOST)], f"its sender is told {told or 'nothing'}"


@case("4787", "13a")
def udp_without_df_it_is_fragmented(bench: Bench) -> None:
    """The same without DF leaves in fragments that fit."""
    device = bench.device(outside=Link(mtu=600))
    packets = device.send_all([udp(load=bytes(1400))], INSIDE)
    assert [packet.dst for packet in packets] == [REMOTE] * 3, f"{len(packets)} packets leave, and 3 would do"
    assert max(packet.len for packet in packets) <= 600, "a fragment is larger than the link's MTU"
    whole = reassembled(packets)
    assert whole.src == EIP and len(whole.payload) == 1408, "the datagram is another one"


@case("4787", "14")
def udp_fragments_in_any_order(bench: Bench) -> None:
    """Fragments of UDP, TCP and ICMP in each order, and their answers: REQ-14 speaks of both interfaces."""
    frames = (udp(load=bytes(3000)), tcp("S", load=bytes(3000)), echo(load=bytes(3000)))
    for frame, order in product(frames, ((0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1))):
        device = bench.device()
        pieces = fragments(frame, 1200)
        packets = device.send_all([pieces[n] for n in order], INSIDE)
        assert packets, f"fragments in the order {order} do not pass"
        packet = reassembled(packets)
        assert packet.src == EIP and len(packet.payload) >= 3008, "the datagram is another one"
        answer = packet.copy()
        answer.src, answer.dst = packet.dst, packet.src
        if packet.proto == 1:
            answer[ICMP].type = ICMP_QUERIES[8]
        else:
            answer.payload.sport, answer.payload.dport = packet.payload.dport, packet.payload.sport
        if packet.proto == 6:
            answer.payload.flags, answer.payload.ack, answer.payload.seq = "SA", packet.payload.seq + 1, 9
        del answer.chksum, answer.payload.chksum
        pieces = fragments(ether(answer), 1200)
        packets = device.send_all([pieces[n] for n in order], OUTSIDE)
        assert packets, f"an answer's fragments in the order {order} do not pass"
        assert reassembled(packets).dst == HOST, "the answer goes to another host"


@case("4787", "14a")
def udp_fragments_are_held_within_bounds(bench: Bench) -> None:
    """Fifteen hundred fragments that never are a whole: what waits is bounded, and ends."""
    device = bench.device()
    for number in range(1500):
        alone = craft.ipv4(17, f"10.2.{number >> 8}.{number & 255}", REMOTE, bytes(8), fragment=0x2001)
        assert not device.send(craft.ether(alone), INSIDE), "a later fragment passes without its first"
    device.advance(1.0)
    packets = device.send_all(fragments(udp(load=bytes(3000)), 1200), INSIDE)
    assert packets and reassembled(packets).src == EIP, "after the flood a host's fragments do not pass"
    counters = device.path.counters()
    if counters is None:
        return
    assert counters["held"] <= 1000, f"{counters['held']} fragments wait"
    device.advance(7.0)
    assert device.counters()["held"] == 0, "fragments wait for more than five seconds"


@case("4787", "14a")
def udp_no_fragment_hides_a_header(bench: Bench) -> None:
    """RFC 1858: the tiny fragment, and the one that overwrites what was looked at."""
    device = bench.device()
    tiny = fragments(tcp("S", load=bytes(100)), 8)
    device.send(tiny[0], INSIDE)
    passed = device.send_all(tiny[1:3], INSIDE)
    assert not [each for each in passed if each.proto == 6 and each.frag < 3 and len(each.payload) < 16], (
        "a tiny first fragment passes"
    )
    device = bench.device()
    frame = tcp("S", load=bytes(100))
    first, second = fragments(frame, 64)
    over_it = craft.ether(craft.ipv4(6, HOST, REMOTE, b"\xff" * 16, fragment=0x2001, identification=7))
    packets, data = device.send_all([first, over_it, second], INSIDE), bytes(read(frame).payload)
    for each in packets:
        at = each.frag * 8
        is_as_sent = not at or bytes(each.payload) == data[at : at + len(each.payload)]
        assert each.proto == 1 or is_as_sent, "what overlaps the header passes"


@case("4787", "8")
def udp_stranger_without_a_mapping_is_dropped(bench: Bench) -> None:
    """A datagram to an endpoint that no host has reaches none, whatever the filtering is."""
    device = bench.device()
    talk = Talk(device)
    assert talk.out(), "a datagram does not pass"
    left = device.send(udp(STRANGER, 9, EIP, talk.outside[1] ^ 1), OUTSIDE)
    assert left.side is not INSIDE, "it reaches an inside host"

"""RFC 7857, updates to the NAT behavioural requirements, section by section."""

from __future__ import annotations

from natcore.config import Behaviour, Policy, Timeouts
from natcore.testing.conformance.cases import case
from natcore.testing.conformance.device import (
    HOST,
    ICMP,
    INSIDE,
    OTHER_REMOTE,
    OUTSIDE,
    REMOTE,
    STRANGER,
    Bench,
    Device,
    Talk,
    echo,
    error,
    one_port,
    quoted,
    read,
    tcp,
    udp,
)
from natcore.testing.conformance.rfc5382 import play
from natcore.testing.conformance.rfc5508 import SERVER, asked, with_server

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


@case("7857", "2")
def updates_state_machine_of_rfc6146(bench: Bench) -> None:
    """In each state the session lives as long as the state's timer, and no longer."""
    for name, (sequence, life) in STATES.items():
        device = bench.device()
        early, late = Talk(device), Talk(device, sport=6000)
        for talk in (early, late):
            play(talk, sequence, name, step=0.0)
        last = device.now
        device.advance(last + life - device.tolerance)
        assert early.back("A"), f"{name}: it ends before {life:g} s"
        device.advance(last + life + device.tolerance)
        assert not late.back("A"), f"{name}: it lives on after {life:g} s"


@case("7857", "2.1")
def updates_each_state_has_its_timer(bench: Bench) -> None:
    """Opening and closing 300 s, established 8,000 s: each is configured apart."""
    device = bench.device(timeouts=Timeouts(tcp_transitory=300, tcp_established=8000))
    pairs = []
    for sport, sequence in ((1000, "s"), (2000, "s SA a fa FA"), (3000, "s SA a")):
        early, late = Talk(device, sport=sport), Talk(device, sport=sport + 1)
        pairs.append((early, late))
        for talk in (early, late):
            play(talk, sequence, sequence)
    (opening, opened), (closing, closed), (early, late) = pairs
    device.advance(299.0)
    assert opening.back("A") and closing.back("A"), "opening or closing ends before 300 s"
    device.advance(303.0)
    assert not opened.back("A") and not closed.back("A"), "opening or closing lives on after 300 s"
    device.advance(7999.0)
    assert early.back("A"), "an established connection ends before 8,000 s"
    device.advance(8003.0)
    assert not late.back("A"), "an established connection lives on after 8,000 s"


@case("7857", "2.2")
def updates_rst_ends_nothing_at_once(bench: Bench) -> None:
    """After a RST from outside the host's segments still pass."""
    talk = Talk(bench.device()).handshake()
    before = talk.outside
    assert talk.back("R"), "the RST does not pass"
    assert talk.out("A") and talk.outside == before, "the RST ended the session"
    assert talk.back("A"), "the RST ended the session for segments from outside"


@case("7857", "2.2")
def updates_later_traffic_brings_it_back(bench: Bench) -> None:
    """After a RST and four minutes of nothing but one segment the connection lives as an established one."""
    talk = Talk(bench.device()).handshake()
    assert talk.back("R"), "the RST does not pass"
    talk.device.advance(239.0)
    assert talk.out("A"), "the session is over before 240 s"
    talk.device.advance(239.0 + 7439.0)
    assert talk.back("A"), "the session was not established again"


@case("7857", "3")
def updates_one_port_for_several_destinations(bench: Bench) -> None:
    """One port, towards three remotes at once; not twice towards one."""
    strict = "address-and-port-dependent"
    policy = Policy(port_ranges=one_port(), ports="overload", mapping=strict, filtering=strict)  # type: ignore[arg-type]
    device = bench.device(policy=policy)
    talks = [Talk(device, sport=5000 + n, dport=80 + n) for n in range(3)]
    assert all(talk.out() for talk in talks), "a datagram does not pass"
    assert len({talk.outside for talk in talks}) == 1, "they have several outside endpoints"
    assert all(talk.back() for talk in talks), "an answer does not pass"
    assert not Talk(device, sport=9, dport=80).out(), "two share the port towards one remote"


@case("7857", "4")
def updates_full_address_is_hard_or_soft(bench: Bench) -> None:
    """Two addresses with a port each: a second session of a host is refused, or gets the other address."""
    for pooling, passes in (("paired", False), ("paired-soft", True)):
        device = bench.device(pool="203.0.113.0/31", policy=Policy(port_ranges=one_port(), pooling=pooling))  # type: ignore[arg-type]
        got = [Talk(device, sport=sport).out() for sport in (1, 2)]
        assert got == [True, passes], f"{pooling}: the second session {'passes' if got[1] else 'is refused'}"


@case("7857", "5")
def updates_mapping_for_each_protocol(bench: Bench) -> None:
    """TCP has an outside endpoint for each remote, UDP one for all."""
    device = bench.device(policy=Policy(tcp=Behaviour(mapping="address-and-port-dependent")))
    for flags, ports in (("", 1), ("S", 2)):
        talks = [Talk(device, dport=dport) for dport in (1, 2)]
        assert all(talk.out(flags) for talk in talks), "it does not pass"
        found = {talk.outside[1] for talk in talks}
        assert len(found) == ports, f"{'TCP' if flags else 'UDP'} has {len(found)} outside endpoints"


@case("7857", "6")
def updates_filtering_for_each_protocol(bench: Bench) -> None:
    """UDP is filtered by address, TCP is not."""
    device = bench.device(policy=Policy(udp=Behaviour(filtering="address-dependent")))
    for flags, passes in (("", False), ("S", True)):
        talk = Talk(device)
        assert talk.out(flags), "it does not pass"
        passed = talk.back(flags, source=STRANGER)
        assert passed is passes, f"a stranger's {'TCP' if flags else 'UDP'} {'passes' if passed else 'is dropped'}"


@case("7857", "7")
def updates_refused_packets_refresh_nothing(bench: Bench) -> None:
    """A packet that the filter drops does not keep the mapping alive."""
    device = bench.device(policy=Policy(filtering="address-dependent"), timeouts=Timeouts(udp=120))
    talk = Talk(device)
    assert talk.out(), "a datagram does not pass"
    device.advance(80.0)
    assert not talk.back(source=STRANGER), "a stranger's packet passes"
    device.advance(120.0 + device.tolerance)
    assert not talk.back(), "a refused packet kept the mapping alive"


def _is_over(device: Device, talk: Talk, at: float) -> None:
    device.advance(at + device.tolerance)
    assert not talk.back("SA"), "it kept the mapping alive"


@case("7857", "7.1")
def updates_outbound_rst_refreshes_nothing(bench: Bench) -> None:
    """A RST from inside, and the session ends when it would have."""
    device = bench.device()
    talk = Talk(device)
    assert talk.out("S"), "a SYN does not pass"
    device.advance(200.0)
    assert talk.out("R"), "the RST does not pass"
    _is_over(device, talk, 240.0)


@case("7857", "7.1")
def updates_outbound_error_refreshes_nothing(bench: Bench) -> None:
    """An ICMP error from inside about an answer, and the session ends when it would have."""
    device = bench.device()
    talk = Talk(device)
    assert talk.out("S"), "a SYN does not pass"
    device.advance(200.0)
    answer = read(tcp("SA", talk.remote, talk.dport, talk.host, talk.sport, 9000, talk.inside_next))
    assert device.send(error(answer, talk.host, talk.remote, 3, 3), INSIDE).side is OUTSIDE, "the error does not pass"
    _is_over(device, talk, 240.0)


@case("7857", "8")
def updates_parity_may_be_off(bench: Bench) -> None:
    """Ports of either parity for even ones, if the policy does not ask for it."""
    for parity, kinds in ((False, {0, 1}), (True, {0})):
        device = bench.device(policy=Policy(parity=parity))
        talks = [Talk(device, sport=5000 + 2 * n) for n in range(40)]
        assert all(talk.out() for talk in talks), "a datagram does not pass"
        found = {talk.outside[1] % 2 for talk in talks}
        assert found == kinds, f"parity={parity}: even ports leave as {sorted(found)} modulo 2"


@case("7857", "9")
def updates_ports_are_drawn_at_random(bench: Bench) -> None:
    """RFC 6056: a hundred ports are all over the range, and do not follow the inside's."""
    device = bench.device()
    talks = [Talk(device, sport=5000 + n) for n in range(100)]
    assert all(talk.out() for talk in talks), "a datagram does not pass"
    ports = [talk.outside[1] for talk in talks]
    assert len({port >> 12 for port in ports}) > 12, f"they lie between {min(ports)} and {max(ports)}"
    assert len({port - talk.sport for port, talk in zip(ports, talks, strict=True)}) > 90, "they follow the inside's"


@case("7857", "10")
def updates_identification_is_unique(bench: Bench) -> None:
    """RFC 6864 section 5.3.1: as if the NAT had sent what leaves by one address to one remote."""
    device = bench.device()
    found = []
    for host in ("10.0.0.5", "10.0.0.6"):
        for _ in range(9):
            left = device.send(udp(host, id=4711), INSIDE)
            assert left, "a datagram does not pass"
            found.append(left.packet.id)
    assert len(set(found)) == 18, f"18 datagrams of one outside address have {len(set(found))} identifications"


@case("7857", "10")
def updates_atomic_packets_keep_theirs(bench: Bench) -> None:
    """With DF the identification says nothing: it stays."""
    left = bench.device().send(udp(id=4711, flags="DF"), INSIDE)
    assert left, "a datagram does not pass"
    assert left.packet.id == 4711, f"it was 4711, and is {left.packet.id}"


@case("7857", "11")
def updates_icmp_mapping_ends_with_its_last_session(bench: Bench) -> None:
    """Two queries with one identifier, half a minute apart: the second session keeps the identifier, until its own end."""
    device = bench.device()
    ident = asked(device, echo())
    device.advance(30.0)
    assert asked(device, echo(destination=OTHER_REMOTE)) == ident, "it has another identifier"
    device.advance(90.0 - device.tolerance)
    left = device.send(echo(OTHER_REMOTE, "203.0.113.1", kind=0, ident=ident), OUTSIDE)
    assert left.side is INSIDE, "the second session ends before its time"
    device = bench.device()
    ident = asked(device, echo())
    device.advance(60.0 + device.tolerance)
    left = device.send(echo(REMOTE, "203.0.113.1", kind=0, ident=ident), OUTSIDE)
    assert left.side is not INSIDE, "the mapping outlives its session"


@case("7857", "12")
def updates_hairpinned_icmp(bench: Bench) -> None:
    """An error about a query that was hairpinned goes back to its sender."""
    device = with_server(bench)
    there = device.send(echo(destination="203.0.113.9"), INSIDE)
    assert there.side is INSIDE, "a query is not hairpinned"
    left = device.send(error(there.packet, SERVER, "203.0.113.1"), INSIDE)
    assert left.side is INSIDE, "the error is not hairpinned"
    assert left.packet.dst == HOST and quoted(left.packet)[ICMP].id == 77, "it goes elsewhere"

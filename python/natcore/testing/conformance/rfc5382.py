"""RFC 5382, NAT behaviour for TCP, requirement by requirement."""

from __future__ import annotations

from natcore.config import Behaviour, Policy, Timeouts
from natcore.testing.conformance.cases import case
from natcore.testing.conformance.device import (
    EIP,
    ICMP,
    INSIDE,
    OTHER_HOST,
    OTHER_REMOTE,
    OUTSIDE,
    REMOTE,
    Bench,
    Device,
    Talk,
    error,
    one_port,
    quoted,
    read,
    tcp,
)

SEQUENCES = {  # of segments, those from outside in capitals
    "handshake": "s SA a A pa A",
    "simultaneous open": "s S sa SA a A",
    "a lost SYN": "s s SA a",
    "a lost answer": "s SA s SA a",
    "half closed by the inside": "s SA a fa A PA a PA a FA a",
    "half closed by the outside": "s SA a FA a pa A pa A fa A",
    "both close at once": "s SA a fa FA a A",
    "reset while opening": "s RA",
    "reset by the inside": "s SA a r",
    "reset by the outside": "s SA a RA",
    "urgent, pushed": "s SA a pau PAU",
    "opened again after its end": "s SA a fa FA a s SA a",
}


def play(talk: Talk, sequence: str, name: str, step: float = 0.1) -> None:
    """Let segments pass one after the other, step seconds apart; AssertionError names the first that does not."""
    for number, flags in enumerate(sequence.split()):
        talk.device.advance(talk.device.now + (step if number else 0.0))
        load = bytes(("p" in flags.lower()) * 10)
        passed = talk.out(flags.upper(), load) if flags.islower() else talk.back(flags, load)
        which = "from inside" if flags.islower() else "from outside"
        assert passed, f"{name}: segment {number + 1}, {flags.upper()} {which}, does not pass"


@case("5382", "1")
def tcp_same_endpoint_for_every_destination(bench: Bench) -> None:
    """An inside endpoint speaks to three remote ones, while another host uses the same port towards one of them."""
    device = bench.device()
    other = Talk(device, host=OTHER_HOST, dport=2)
    talks = [Talk(device, dport=port) for port in (1, 2, 3)]
    assert [talks[0].out("S"), other.out("S")] == [True, True], "a SYN does not pass"
    assert all(talk.out("S") for talk in talks), "a SYN does not pass"
    found = {talk.outside for talk in talks}
    assert len(found) == 1, f"one inside endpoint has {len(found)} outside ones: {sorted(found)}"


@case("5382", "2")
def tcp_every_valid_sequence_passes(bench: Bench) -> None:
    """Handshakes, simultaneous opens, retransmissions, half closes, resets, with the strictest filter."""
    for name, sequence in SEQUENCES.items():
        play(Talk(bench.device(policy=Policy(filtering="address-and-port-dependent"))), sequence, name)


@case("5382", "2")
def tcp_simultaneous_open_establishes(bench: Bench) -> None:
    """After a simultaneous open the connection lives as an established one."""
    device = bench.device()
    talk = Talk(device)
    play(talk, "s S sa SA", "simultaneous open")
    device.advance(300.0)
    assert talk.out("A") and talk.back("A"), "after five minutes the connection is over"


@case("5382", "2")
def tcp_simultaneous_open_with_an_early_syn(bench: Bench) -> None:
    """The outside's SYN meets nothing and is not answered; its retransmission meets the inside's (REQ-4)."""
    policy = Policy(port_ranges=one_port(), filtering="address-and-port-dependent", unsolicited_syn="icmp")
    device = bench.device(policy=policy)
    talk = Talk(device, sport=4000)
    talk.outside = (EIP, 4000)
    left = device.send(tcp("S", REMOTE, talk.dport, EIP, 4000, 9000), OUTSIDE)
    assert not left and not left.others, "an unsolicited SYN passes, or is answered at once"
    device.advance(1.0)
    play(talk, "s S sa SA", "simultaneous open")
    assert device.advance(100.0) == [], "the first SYN is answered, although the connection was opened"


@case("5382", "3")
def tcp_filtering_apart_from_udp(bench: Bench) -> None:
    """TCP has the strictest filter, UDP none."""
    device = bench.device(policy=Policy(tcp=Behaviour(filtering="address-and-port-dependent")))
    for flags, passes in (("S", False), ("", True)):
        talk = Talk(device)
        assert talk.out(flags), "it does not pass"
        assert talk.back(flags, sport=9) is passes, f"{'TCP' if flags else 'UDP'} is not filtered so"


def _unsolicited(device: Device) -> list[bytes]:
    left = device.send(tcp("S", REMOTE, 9, EIP, 4000), OUTSIDE)
    assert not left, "an unsolicited SYN is answered at once, or passes"
    return [each.frame for each in left.others]


@case("5382", "4")
def tcp_unsolicited_syn_is_not_answered_for_six_seconds(bench: Bench) -> None:
    """Neither a RST nor an error within 6 s."""
    device = bench.device()
    told = [*_unsolicited(device), *(each.frame for each in device.advance(6.0 - device.tolerance))]
    assert not told, f"it is answered within 6 s: {read(told[0]).summary()}"


@case("5382", "4a")
def tcp_then_port_unreachable_if_the_policy_says_so(bench: Bench) -> None:
    """After 6 s an ICMP error, or none."""
    for answer, expected in (("silent", []), ("icmp", [(3, 3)])):
        device = bench.device(policy=Policy(unsolicited_syn=answer))  # type: ignore[arg-type]
        _unsolicited(device)
        told = [read(each.frame) for each in device.advance(6.0 + device.tolerance)]
        assert [(each[ICMP].type, each[ICMP].code) for each in told] == expected, f"with {answer!r} it is told {told}"


@case("5382", "5")
def tcp_established_lives_two_hours_and_four_minutes(bench: Bench) -> None:
    """An established connection, idle for 7,440 s."""
    device = bench.device()
    talk = Talk(device).handshake()
    device.advance(7440.0 - device.tolerance)
    assert talk.back("A"), "it ends before 7,440 s"


@case("5382", "5")
def tcp_transitory_lives_four_minutes(bench: Bench) -> None:
    """A connection that was never established."""
    device = bench.device()
    talk = Talk(device)
    assert talk.out("S"), "a SYN does not pass"
    device.advance(240.0 - device.tolerance)
    assert talk.back("SA"), "it ends before 240 s"


@case("5382", "5")
def tcp_idle_times_are_configurable(bench: Bench) -> None:
    """Others than the defaults, and a connection ends by them."""
    device = bench.device(timeouts=Timeouts(tcp_transitory=250))
    early, late = Talk(device), Talk(device, sport=6000)
    assert early.out("S") and late.out("S"), "a SYN does not pass"
    device.advance(250.0 - device.tolerance)
    assert early.back("SA"), "it ends before 250 s"
    device.advance(250.0 + device.tolerance)
    assert not late.back("SA"), "it lives on after 250 s"


@case("5382", "6")
def tcp_no_application_gateway(bench: Bench) -> None:
    """FTP, with a PORT command that names the inside endpoint: it goes as it is, and opens nothing."""
    device = bench.device()
    talk = Talk(device, dport=21).handshake()
    command = b"PORT 10,0,0,5,19,137\r\n"
    left = device.send(
        tcp("PA", talk.host, talk.sport, talk.remote, 21, talk.inside_next, talk.outside_next, load=command), INSIDE
    )
    assert left, "it does not pass"
    assert bytes(left.packet.payload.payload) == command, "the payload was changed"
    data = device.send(tcp("S", talk.remote, 20, EIP, 5001), OUTSIDE)
    assert data.side is not INSIDE, "the endpoint that the payload names was opened"


@case("5382", "7")
def tcp_no_two_endpoints_share_a_port(bench: Bench) -> None:
    """Fifty inside endpoints, fifty ports, fifty remotes."""
    device = bench.device(policy=Policy(port_ranges=((4000, 4049),)))
    talks = [Talk(device, sport=5000 + n, dport=80 + n) for n in range(50)]
    assert all(talk.out("S") for talk in talks), "a port is free, and a SYN does not pass"
    assert len({talk.outside for talk in talks}) == 50, "two inside endpoints share an outside endpoint"


@case("5382", "7")
def tcp_no_port_is_shared_by_hosts(bench: Bench) -> None:
    """Two hosts use the same port, towards different remotes."""
    device = bench.device()
    one, other = Talk(device), Talk(device, host=OTHER_HOST, remote=OTHER_REMOTE)
    assert one.out("S") and other.out("S"), "a SYN does not pass"
    assert one.outside != other.outside, f"two hosts share the outside endpoint {one.outside}"


@case("5382", "8")
def tcp_hairpin(bench: Bench) -> None:
    """An inside host opens a connection to the outside endpoint of another one."""
    device = bench.device()
    one, other = Talk(device), Talk(device, host=OTHER_HOST)
    assert one.out("S") and other.out("S"), "a SYN does not pass"
    left = device.send(tcp("S", one.host, one.sport, *other.outside, one.inside_next), INSIDE)
    assert left.side is INSIDE, "it does not come back to the inside"
    assert (left.packet.src, left.packet.sport) == one.outside, "it does not have the external source"
    assert (left.packet.dst, left.packet.dport) == (OTHER_HOST, other.sport), "it goes elsewhere"


def _error(talk: Talk, code: int) -> bytes:
    about = read(tcp("A", *talk.outside, REMOTE, talk.dport, talk.inside_next, talk.outside_next))
    return error(about, "192.0.2.1", EIP, 3, code)


@case("5382", "9")
def tcp_error_is_translated(bench: Bench) -> None:
    """The packet that it quotes has the inside endpoint."""
    talk = Talk(bench.device()).handshake()
    left = talk.device.send(_error(talk, 1), OUTSIDE)
    assert left.side is INSIDE, "it does not pass"
    inner = quoted(left.packet)
    assert (left.packet.dst, inner.src, inner.sport) == (talk.host, talk.host, talk.sport), "the quoted packet is wrong"


@case("5382", "10")
def tcp_error_ends_no_connection(bench: Bench) -> None:
    """After a Destination Unreachable segments pass both ways."""
    talk = Talk(bench.device()).handshake()
    talk.device.advance(0.5)
    talk.device.send(_error(talk, 3), OUTSIDE)
    assert talk.back("A") and talk.out("A"), "the connection is over"

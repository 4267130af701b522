"""RFC 5508, NAT behaviour for ICMP, requirement by requirement."""

from __future__ import annotations

from natcore.config import DnatEntry, Policy, Timeouts
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
    Bench,
    Device,
    Talk,
    echo,
    error,
    fragments,
    quoted,
    read,
    udp,
)

SERVER, SERVERS_ADDRESS = "10.0.0.9", "203.0.113.9"  # an inside host that has an outside address of its own


def with_server(bench: Bench, **options: object) -> Device:
    """Return a device with a host that is translated one to one (basic NAT)."""
    return bench.device(
        entries=[DnatEntry(SERVERS_ADDRESS, "any", SERVER, "any", protocol="any")],
        **options,  # type: ignore[arg-type]
    )


def opened(bench: Bench, **options: object) -> tuple[Device, Talk]:
    """Return a device, and a UDP session over it."""
    device = bench.device(**options)  # type: ignore[arg-type]
    talk = Talk(device)
    assert talk.out(), "a datagram does not pass"
    return device, talk


def asked(device: Device, frame: bytes) -> int:
    """Send a query from inside, and return its outside identifier."""
    left = device.send(frame, INSIDE)
    assert left.side is OUTSIDE, f"a query of type {read(frame)[ICMP].type} does not pass"
    return int(left.packet[ICMP].id)


@case("5508", "1")
def icmp_one_id_for_every_destination(bench: Bench) -> None:
    """A host asks two remotes with one identifier, while another host uses it towards one of them."""
    device = bench.device()
    found = {asked(device, echo())}
    asked(device, echo(OTHER_HOST, OTHER_REMOTE))
    found.add(asked(device, echo(destination=OTHER_REMOTE)))
    assert len(found) == 1, f"one identifier has {len(found)} outside ones"
    left = device.send(echo(REMOTE, EIP, kind=0, ident=found.pop()), OUTSIDE)
    assert left.side is INSIDE, "the reply does not pass"
    assert (left.packet[ICMP].id, left.packet.dst) == (77, HOST), "the reply goes elsewhere"


@case("5508", "1")
def icmp_every_kind_of_query_passes(bench: Bench) -> None:
    """Echo, timestamp, information and address mask, their answers, and errors about them."""
    for ask, answer in ICMP_QUERIES.items():
        device = bench.device()
        ident = asked(device, echo(kind=ask))
        left = device.send(echo(REMOTE, EIP, kind=answer, ident=ident), OUTSIDE)
        assert left.side is INSIDE, f"an answer of type {answer} does not pass"
        assert (left.packet[ICMP].id, left.packet.dst) == (77, HOST), f"an answer of type {answer} goes elsewhere"
        left = device.send(error(read(echo(EIP, REMOTE, kind=ask, ident=ident)), ROUTER, EIP, 11, 0), OUTSIDE)
        assert left.side is INSIDE, f"an error about a query of type {ask} does not pass"
        assert quoted(left.packet)[ICMP].id == 77, "the quoted query has another identifier"


@case("5508", "1")
def icmp_query_in_fragments_passes(bench: Bench) -> None:
    """A timestamp query that is long."""
    packets = bench.device().send_all(fragments(echo(kind=13, load=bytes(100)), 48), INSIDE)
    assert [packet.src for packet in packets] == [EIP] * 3, f"of 3 fragments {len(packets)} pass"


@case("5508", "2")
def icmp_query_lives_a_minute(bench: Bench) -> None:
    """An answer passes up to a minute after its query."""
    device = bench.device()
    ident = asked(device, echo())
    device.advance(60.0 - device.tolerance)
    left = device.send(echo(REMOTE, EIP, kind=0, ident=ident), OUTSIDE)
    assert left.side is INSIDE, "the session ends before 60 s"


@case("5508", "2")
def icmp_life_of_a_query_is_configurable(bench: Bench) -> None:
    """Another time-out, and a query's session ends by it."""
    device = bench.device(timeouts=Timeouts(icmp=70))
    ident = asked(device, echo())
    device.advance(70.0 + device.tolerance)
    left = device.send(echo(REMOTE, EIP, kind=0, ident=ident), OUTSIDE)
    assert left.side is not INSIDE, "the session lives on after 70 s"


@case("5508", "3")
def icmp_bad_checksum_is_dropped(bench: Bench) -> None:
    """Of an error, and of the packet that it quotes."""
    for at in (14 + 20 + 2, 14 + 28 + 10):
        device, talk = opened(bench)
        frame = bytearray(talk.error())
        frame[at] ^= 0x55
        assert not device.send(bytes(frame), OUTSIDE), f"byte {at} of an error's frame is wrong, and it passes"


@case("5508", "4")
def icmp_error_from_outside(bench: Bench) -> None:
    """It reaches the host, with the inside endpoint in the packet that it quotes; without a mapping it reaches none."""
    device, talk = opened(bench, timeouts=Timeouts(udp=120))
    left = device.send(talk.error(3, 1), OUTSIDE)
    assert left.side is INSIDE, "it does not pass"
    got = left.packet.dst, left.packet[ICMP].type, left.packet[ICMP].code, quoted(left.packet).src
    assert got == (HOST, 3, 1, HOST), f"it is {got}"


@case("5508", "4")
def icmp_error_without_a_mapping_is_dropped(bench: Bench) -> None:
    """An error about a packet that no host sent."""
    device, talk = opened(bench)
    talk.outside = (EIP, talk.outside[1] ^ 1)
    left = device.send(talk.error(), OUTSIDE)
    assert left.side is not INSIDE, "it reaches an inside host"


@case("5508", "5")
def icmp_error_from_inside(bench: Bench) -> None:
    """It leaves from the outside address, and quotes the outside endpoint."""
    device, talk = opened(bench)
    assert talk.back(), "a datagram from outside does not pass"
    left = device.send(talk.error(outward=True), INSIDE)
    assert left.side is OUTSIDE, "it does not pass"
    inner = quoted(left.packet)
    assert (left.packet.src, inner.dst, inner.dport) == (EIP, *talk.outside), "the quoted packet is wrong"


@case("5508", "6")
def icmp_error_does_not_refresh(bench: Bench) -> None:
    """Errors from both sides, and the mapping ends when it would have."""
    device, talk = opened(bench, timeouts=Timeouts(udp=120))
    device.advance(80.0)
    device.send(talk.error(), OUTSIDE)
    device.send(talk.error(outward=True), INSIDE)
    device.advance(120.0 + device.tolerance)
    assert not talk.back(), "an error kept the mapping alive"


@case("5508", "6")
def icmp_error_ends_nothing(bench: Bench) -> None:
    """Errors from both sides, and datagrams still pass."""
    device, talk = opened(bench)
    device.send(talk.error(), OUTSIDE)
    device.send(talk.error(outward=True), INSIDE)
    assert talk.back(), "an error ended the mapping"


@case("5508", "7")
def icmp_hairpinned_errors(bench: Bench) -> None:
    """An error of an inside host about what another one sent to its outside endpoint."""
    device, talk = opened(bench)
    other = Talk(device, host=OTHER_HOST, sport=6000)
    assert other.out(), "a datagram does not pass"
    there = device.send(udp(talk.host, talk.sport, *other.outside), INSIDE)
    assert there.side is INSIDE, "a datagram is not hairpinned"
    left = device.send(error(there.packet, other.host, EIP, 3, 3), INSIDE)
    assert left.side is INSIDE, "the error is not hairpinned"
    inner = quoted(left.packet)
    assert (left.packet.src, left.packet.dst) == (EIP, talk.host), "it goes elsewhere"
    ends = inner.src, inner.sport, inner.dst, inner.dport
    assert ends == (talk.host, talk.sport, *other.outside), f"it quotes a packet of {ends}"


@case("5508", "7a")
def icmp_hairpinned_queries_for_basic_nat(bench: Bench) -> None:
    """A host asks another one by the outside address that this has alone; the reply comes from there."""
    for ask, answer in ICMP_QUERIES.items():
        device = with_server(bench)
        there = device.send(echo(HOST, SERVERS_ADDRESS, kind=ask), INSIDE)
        assert there.side is INSIDE, f"a query of type {ask} is not hairpinned"
        assert (there.packet.src, there.packet.dst) == (EIP, SERVER), "it has not the external source"
        left = device.send(echo(SERVER, EIP, kind=answer, ident=there.packet[ICMP].id), INSIDE)
        assert left.side is INSIDE, f"an answer of type {answer} is not hairpinned"
        got = left.packet.src, left.packet.dst, left.packet[ICMP].id
        assert got == (SERVERS_ADDRESS, HOST, 77), f"the answer is {got}"


@case("5508", "8")
def icmp_no_session_can_be_made(bench: Bench) -> None:
    """A host that may not pass is told so: 3/13."""
    left = bench.device().send(echo("192.168.0.1"), INSIDE)
    assert not left, "it passes"
    told = [(each[ICMP].type, each[ICMP].code) for each in left.errors()]
    assert told == [(3, 13)], f"its sender is told {told or 'nothing'}"


@case("5508", "9")
def icmp_policy_says_which_errors_are_sent(bench: Bench) -> None:
    """Some, none, or no more than so many."""
    for policy, count in ((Policy(), 1), (Policy(icmp_unreachable=False), 0), (Policy(icmp_rate=0), 0)):
        left = bench.device(policy=policy).send(echo("192.168.0.1"), INSIDE)
        assert len(left.errors()) == count, f"{len(left.errors())} errors are sent, and {count} should be"


@case("5508", "10")
def icmp_unreachable_and_time_exceeded_pass_both_ways(bench: Bench) -> None:
    """Each code, and Parameter Problem."""
    device, talk = opened(bench)
    assert talk.back(), "a datagram from outside does not pass"
    for kind, code in [*((3, code) for code in range(16)), (11, 0), (11, 1), (12, 0)]:
        for side, to in ((OUTSIDE, INSIDE), (INSIDE, OUTSIDE)):
            left = device.send(talk.error(kind, code, outward=side is INSIDE), side)
            assert left.side is to, f"an error {kind}/{code} from {side.name.lower()} does not pass"
            assert (left.packet[ICMP].type, left.packet[ICMP].code) == (kind, code), f"{kind}/{code} is another one"


@case("5508", "10")
def icmp_policy_refuses_other_queries_than_echo(bench: Bench) -> None:
    """Timestamp, information and address mask are refused if the policy says so, both ways."""
    for ask in list(ICMP_QUERIES)[1:]:
        device = with_server(bench, policy=Policy(icmp_queries="echo"))
        asked(device, echo())
        assert not device.send(echo(kind=ask), INSIDE), f"a query of type {ask} passes"
        assert not device.send(echo(REMOTE, SERVERS_ADDRESS, kind=ask), OUTSIDE), f"type {ask} passes inbound"


@case("5508", "11")
def icmp_other_messages_are_dropped(bench: Bench) -> None:
    """Source quench, redirect, router discovery and others."""
    device, talk = opened(bench)
    for kind in (4, 5, 9, 10, 19, 30, 40):
        for side in (OUTSIDE, INSIDE):
            left = device.send(talk.error(kind, 0, outward=side is INSIDE), side)
            assert not left, f"a message of type {kind} from {side.name.lower()} passes"

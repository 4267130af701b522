"""RFC 6888, carrier-grade NAT, requirement by requirement."""

from __future__ import annotations

from itertools import pairwise

from natcore.config import NoNatEntry, Policy, Timeouts
from natcore.dtypes import RecordKind, format_ipv4
from natcore.testing.conformance.cases import case
from natcore.testing.conformance.device import (
    EIP,
    HOST,
    ICMP,
    INSIDE,
    OTHER_HOST,
    OUTSIDE,
    STRANGER,
    Bench,
    Device,
    Talk,
    one_port,
    udp,
)

ONE_PORT = one_port()


def talks_of(device: Device, count: int, remotes: int = 1) -> list[Talk]:
    """Return so many talks of one host that have passed outbound."""
    talks = [Talk(device, sport=5000 + n, dport=80 + n % remotes) for n in range(count)]
    for number, talk in enumerate(talks):
        assert talk.out(), f"datagram {number + 1} of {count} does not pass"
    return talks


@case("6888", "2")
def cgn_one_address_across_protocols(bench: Bench) -> None:
    """UDP, TCP and ICMP of a host have one outside address, of a pool of 16."""
    device = bench.device(pool="203.0.113.0/28")
    found = set()
    for n in range(8):
        one, other = Talk(device, sport=5000 + n), Talk(device, sport=6000 + n)
        assert one.out() and other.out("S"), "a datagram or a SYN does not pass"
        found |= {one.outside[0], other.outside[0]}
    assert len(found) == 1, f"the host has {len(found)} outside addresses"


@case("6888", "3")
def cgn_pool_need_not_be_contiguous(bench: Bench) -> None:
    """Five addresses in three pieces: each is used."""
    pool = [EIP, "203.0.113.8-203.0.113.9", "192.0.2.16/31"]
    device = bench.device(pool=pool, policy=Policy(port_ranges=ONE_PORT, pooling="arbitrary"))
    found = {talk.outside[0] for talk in talks_of(device, 5)}
    assert len(found) == 5, f"of 5 addresses {len(found)} are used"


@case("6888", "4")
def cgn_ports_of_a_subscriber_are_limited(bench: Bench) -> None:
    """Two ports, and a third is refused."""
    device = bench.device(policy=Policy(ports_per_subscriber=2))
    passed = [Talk(device, sport=5000 + n).out() for n in range(3)]
    assert passed == [True, True, False], f"of a limit of 2 ports {sum(passed)} are had"


@case("6888", "4")
def cgn_new_sessions_of_a_subscriber_are_limited(bench: Bench) -> None:
    """Three new sessions a second, and a fourth is refused until the next."""
    device = bench.device(policy=Policy(new_sessions_per_second=3))
    passed = [Talk(device, dport=1 + n).out() for n in range(4)]
    assert passed == [True, True, True, False], f"of 3 new sessions a second {sum(passed)} are had"
    device.advance(1.0 + device.tolerance)
    assert Talk(device, dport=9).out(), "a second later none is had"


@case("6888", "5")
def cgn_sessions_of_a_subscriber_and_of_a_mapping_are_limited(bench: Bench) -> None:
    """Two sessions of a host; of those that are opened from outside a quarter of the table; another host still has one."""
    device = bench.device(policy=Policy(sessions_per_subscriber=2), max_sessions=8)
    talk = Talk(device)
    passed = [talk.out(), Talk(device, dport=1).out(), Talk(device, dport=2).out()]
    assert passed == [True, True, False], f"of a limit of 2 sessions {sum(passed)} are had"
    inbound = [talk.back(sport=9000 + n) for n in range(3)]
    assert inbound == [True, True, False], f"strangers opened {sum(inbound)} of 8 sessions"
    assert Talk(device, host=OTHER_HOST).out(), "another host has none"


@case("6888", "6")
def cgn_chosen_destinations_pass_untranslated(bench: Bench) -> None:
    """A packet to a chosen prefix leaves with its own source."""
    device = bench.device(entries=[NoNatEntry("10.0.0.0/8", "192.168.0.0/16")])
    left = device.send(udp(destination="192.168.0.1"), INSIDE)
    assert left.side is OUTSIDE, "it does not pass"
    assert (left.packet.src, left.packet.sport) == (HOST, 5000), f"it is translated to {left.packet.src}"


@case("6888", "7")
def cgn_filtering_is_endpoint_independent_by_default(bench: Bench) -> None:
    """A stranger's packet to a mapping reaches the host."""
    talk = Talk(bench.device())
    assert talk.out(), "a datagram does not pass"
    assert talk.back(source=STRANGER, sport=9), "it is dropped"


@case("6888", "8")
def cgn_freed_port_is_held_down(bench: Bench) -> None:
    """The only port, after its mapping's end: another host has it 120 s later, and not before."""
    device = bench.device(policy=Policy(port_ranges=ONE_PORT), timeouts=Timeouts(udp=120))
    assert Talk(device).out(), "a datagram does not pass"
    other = Talk(device, host=OTHER_HOST)
    device.advance(240.0 - device.tolerance)
    assert not other.out(), "it is used again before 120 s"
    device.advance(240.0 + 2 * device.tolerance)
    assert other.out(), "it is not free after 120 s"


@case("6888", "10")
def cgn_thresholds_and_counters(bench: Bench) -> None:
    """Of a hundred ports eighty are used: the administrator is told once; the counters are right."""
    device = bench.device(policy=Policy(port_ranges=((4000, 4099),)))
    talks_of(device, 80)
    events = [(event.reason, str(event.outside), event.protocol) for event in device.events()]
    assert events == [("ports-threshold", EIP, 17)], f"events: {events}"
    counters = device.counters()
    assert (counters["created"], counters["sessions"]) == (80, 80), "the counters are other"


def out_of_resources(bench: Bench) -> list[tuple[Talk, Talk]]:
    """Return devices on which a host has all of something, by a talk of it, and a talk of a host that gets nothing."""
    made = []
    for options in (
        {"policy": Policy(port_ranges=ONE_PORT)},
        {"max_sessions": 1},
        {"max_mappings": 1},
        {"max_subscribers": 1},
    ):
        device = bench.device(**options)
        made.append((Talk(device), Talk(device, host=OTHER_HOST)))
        assert made[-1][0].out(), "a datagram does not pass"
    return made


@case("6888", "11a")
def cgn_without_resources_it_is_dropped(bench: Bench) -> None:
    """No port, session, mapping or place of a subscriber is left."""
    for _, other in out_of_resources(bench):
        assert not other.out(), "it passes"


@case("6888", "11a")
def cgn_without_a_port_it_is_dropped(bench: Bench) -> None:
    """One port, and a second host towards the same remote."""
    device = bench.device(policy=Policy(port_ranges=ONE_PORT))
    one, other = Talk(device), Talk(device, host=OTHER_HOST)
    assert one.out(), "a datagram does not pass"
    left = device.send(udp(other.host, other.sport, other.remote, other.dport), INSIDE)
    assert not left, f"it leaves from {left.packet.src}:{left.packet.sport}"


@case("6888", "11b")
def cgn_sender_is_told_host_unreachable(bench: Bench) -> None:
    """ICMP 3/1 to the host that gets no port."""
    device = bench.device(policy=Policy(port_ranges=ONE_PORT))
    assert Talk(device).out(), "a datagram does not pass"
    left = device.send(udp(OTHER_HOST, dport=443), INSIDE)
    told = [(each.dst, each[ICMP].type, each[ICMP].code) for each in left.errors()]
    assert told == [(OTHER_HOST, 3, 1)], f"it is told {told or 'nothing'}"


@case("6888", "11c")
def cgn_administrator_is_told_once_with_a_count(bench: Bench) -> None:
    """Three packets are refused, and one event says so."""
    for _, other in out_of_resources(bench):
        for _ in range(3):
            other.out()
        events = other.device.events()
        got = [(str(event.subscriber), event.count, str(event.destination), event.port) for event in events]
        assert got == [(OTHER_HOST, 3, other.remote, other.dport)], f"events: {got}"


@case("6888", "11d")
def cgn_no_mapping_ends_to_free_a_port(bench: Bench) -> None:
    """A host that gets nothing takes nothing from the one that has it."""
    for talk, other in out_of_resources(bench):
        talk.device.advance(299.0)
        other.out()
        assert talk.back(), "the mapping has ended"


@case("6888", "11d")
def cgn_no_mapping_ends_soon_to_free_a_port(bench: Bench) -> None:
    """The same at once, of ports alone."""
    device = bench.device(policy=Policy(port_ranges=ONE_PORT))
    talk, other = Talk(device), Talk(device, host=OTHER_HOST)
    assert talk.out(), "a datagram does not pass"
    other.out()
    assert talk.back(), "the mapping has ended"


@case("6888", "12")
def cgn_log_may_leave_destinations_out(bench: Bench) -> None:
    """The same sessions, logged with and without their remotes: all else is equal."""
    found = []
    for redact in (True, False):
        policy = Policy(ports="preserve")
        device = bench.device(redact_destination=redact, policy=policy, timeouts=Timeouts(udp=120))
        talk = Talk(device)
        assert talk.out() and talk.back(), "a datagram and its answer do not pass"
        device.advance(130.0)
        found.append(device.rows())
    short, whole = found
    assert len(short) == len(whole) >= 2, f"{len(short)} rows, and {len(whole)} with remotes"
    assert not short["pub_ip"].any() and not short["pub_port"].any(), "a remote is in the log"
    assert whole["pub_ip"].all() and whole["pub_port"].all(), "a remote is missing"
    for name in set(short.dtype.names or ()) - {"pub_ip", "pub_port"}:
        assert (short[name] == whole[name]).all(), f"{name} is another one"


@case("6888", "13")
def cgn_every_port_is_used_before_an_allocation_fails(bench: Bench) -> None:
    """Every port of every policy that gives them out one by one."""
    for ports in ("random", "preserve"):
        device = bench.device(policy=Policy(ports=ports, port_ranges=((4000, 4031),)))
        talks_of(device, 32)


@case("6888", "13")
def cgn_every_port_is_used_towards_every_remote(bench: Bench) -> None:
    """Overloaded, each port towards each of three remote endpoints."""
    policy = Policy(
        ports="overload", port_ranges=((4000, 4031),),
        mapping="address-and-port-dependent", filtering="address-and-port-dependent",
    )  # fmt: skip
    talks_of(bench.device(policy=policy), 96, remotes=3)


@case("6888", "14")
def cgn_log_of_blocks_has_two_rows_for_many_sessions(bench: Bench) -> None:
    """Sixty-four sessions of a host: its block's beginning and its end."""
    device = bench.device(policy=Policy(ports="block", block_size=64, hold_down=0.0), log_rows="blocks")
    talks = [Talk(device, sport=5000 + n, dport=80 + n) for n in range(64)]
    assert all(talk.out() for talk in talks), "a datagram does not pass"
    device.advance(1000.0)
    rows = device.rows()
    assert [row["kind"] for row in rows] == [RecordKind.BLOCK_ALLOCATED, RecordKind.BLOCK_RELEASED], f"rows: {rows}"
    for row in rows:
        assert format_ipv4(row["pri_ip"]) == HOST, "a row names another host"
        assert {format_ipv4(row["nat_ip"])} == {talk.outside[0] for talk in talks}, "a row names another address"
        assert all(row["nat_port"] <= talk.outside[1] <= row["pub_port"] for talk in talks), (
            "a port is not in the block"
        )


@case("6888", "14")
def cgn_blocks_keep_a_host_together(bench: Bench) -> None:
    """The ports of a host lie within a block."""
    device = bench.device(policy=Policy(ports="block", block_size=64))
    ports = [talk.outside[1] for talk in talks_of(device, 64)]
    assert max(ports) - min(ports) < 64, f"64 ports of a host lie between {min(ports)} and {max(ports)}"


@case("6888", "15")
def cgn_ports_are_hard_to_guess(bench: Bench) -> None:
    """Neighbours in time are none in number, with blocks too."""
    for policy in (Policy(), Policy(ports="block")):
        talks = talks_of(bench.device(policy=policy), 200)
        steps = [abs(one.outside[1] - other.outside[1]) for one, other in pairwise(talks)]
        assert sum(step < 3 for step in steps) < 20, "one port follows the other"
        assert len(set(steps)) > 80, "the ports have a pattern"

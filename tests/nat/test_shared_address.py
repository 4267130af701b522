"""An outside address that the host has too, frame by frame: what is left to it, and which ports are never drawn."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from natcore import ConfigurationError, DnatEntry, Gateway, OutsideInterface, Policy, Side, SnatEntry, Verdict
from natcore.dtypes import ENTRY
from natcore.internal.parts import parts_of
from natcore.plane.host_ports import ALL, ports_in
from natcore.sinks import MemorySink
from support.frames import (
    EIP,
    HOST,
    ICMP,
    IP,
    REMOTE,
    Ether,
    Raw,
    echo,
    ether,
    fragments,
    gateway,
    ip,
    tcp,
    udp,
    verdict_of,
)

INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE
HOSTS = ((0, 1023), (5000, 5999), (7000, 7000))
GATEWAYS = 64_512 - 1001


def shared(*ranges: tuple[int, int], **settings: Any) -> Gateway:
    """A gateway on a host that has these TCP and UDP ports of its address."""
    over = gateway(**settings)
    ports = ports_in(ranges or HOSTS)
    parts_of(over).follow([], {address("192.0.2.99"): (0, 0), address(EIP): (ports, ports)})
    return over


def address(text: str) -> int:
    return int.from_bytes(bytes(map(int, text.split("."))))


@pytest.mark.parametrize("make", [partial(tcp, "S"), udp], ids=["tcp", "udp"])
def test_what_is_for_a_port_of_the_hosts_is_local_and_for_the_gateways_is_not(make: Any) -> None:
    over = shared()
    for port, verdict in (
        (22, Verdict.LOCAL), (5000, Verdict.LOCAL), (5999, Verdict.LOCAL), (7000, Verdict.LOCAL),
        (1024, Verdict.DROP_NO_MAPPING), (4999, Verdict.DROP_NO_MAPPING), (6000, Verdict.DROP_NO_MAPPING),
        (7001, Verdict.DROP_NO_MAPPING), (65535, Verdict.DROP_NO_MAPPING),
    ):  # fmt: skip
        assert verdict_of(over, make(REMOTE, 443, EIP, port), OUTSIDE) is verdict, port
    assert verdict_of(over, make(HOST, 443, EIP, 22), INSIDE) is Verdict.LOCAL
    assert over.take_generated() == []


@pytest.mark.parametrize("policy", [
    Policy(), Policy(ports="preserve"), Policy(ports="block", blocks=256), Policy(ports="random", parity=True),
    Policy(ports="overload", mapping="address-and-port-dependent", filtering="address-and-port-dependent"),
], ids=lambda policy: policy.ports)  # fmt: skip
def test_all_ports_but_the_hosts_are_drawn(policy: Policy) -> None:
    over = shared((0, 1023), (1030, 65500), policy=policy)
    ours = {*range(1024, 1030), *range(65501, 65536)}
    drawn = set()
    for number in range(len(ours) + 5):
        verdict, sent = over.translate_one(udp(HOST, 2000 + number), INSIDE, 0.0)
        if verdict is Verdict.OUTBOUND:
            drawn.add(Ether(sent)["UDP"].sport)
        else:
            assert verdict in (Verdict.DROP_PORTS_EXHAUSTED, Verdict.DROP_SUBSCRIBER_LIMIT)
    assert drawn == ours
    row = next(row for row in over.ports() if row["protocol"] == 17)
    assert row["free"] == 0 and row["reserved"] == 64_512 - len(ours)


def test_a_port_in_use_is_the_hosts_once_it_is_free() -> None:
    over = gateway(policy=Policy(ports="preserve", hold_down=0))
    assert verdict_of(over, udp(HOST, 5500), INSIDE) is Verdict.OUTBOUND
    ports = ports_in(HOSTS)
    parts_of(over).follow([], {address(EIP): (ports, ports)})
    assert verdict_of(over, udp(REMOTE, 53, EIP, 5500), OUTSIDE) is Verdict.INBOUND
    over.end_all()
    parts_of(over).follow([], {address(EIP): (ports, ports)})
    assert verdict_of(over, udp(REMOTE, 53, EIP, 5500), OUTSIDE) is Verdict.LOCAL
    parts_of(over).follow([], {})
    assert verdict_of(over, udp(REMOTE, 53, EIP, 5500), OUTSIDE) is Verdict.DROP_NO_MAPPING
    assert {int(row["reserved"]) for row in over.ports()} == {0}


def test_an_entry_takes_a_port_of_the_hosts_and_gives_it_back() -> None:
    over = shared()
    assert next(row for row in over.ports() if row["protocol"] == 6)["free"] == GATEWAYS
    for port in (443, 5500):
        entry = over.add(DnatEntry(EIP, port, HOST, 443))
        assert verdict_of(over, tcp("S", REMOTE, 9, EIP, port), OUTSIDE) is Verdict.INBOUND
        assert verdict_of(over, udp(REMOTE, 9, EIP, port), OUTSIDE) is Verdict.LOCAL
        over.remove(entry)
        assert verdict_of(over, tcp("S", REMOTE, 9, EIP, port), OUTSIDE) is Verdict.LOCAL
    assert next(row for row in over.ports() if row["protocol"] == 6)["free"] == GATEWAYS


def test_icmp_is_the_gateways_where_a_session_has_it_and_else_the_hosts() -> None:
    over = shared()
    verdict, sent = over.translate_one(echo(HOST, REMOTE, ident=7), INSIDE, 0.0)
    assert verdict is Verdict.OUTBOUND
    ours = Ether(sent)[ICMP].id
    assert verdict_of(over, echo(REMOTE, EIP, kind=0, ident=ours), OUTSIDE) is Verdict.INBOUND
    assert verdict_of(over, echo(REMOTE, EIP, kind=0, ident=ours ^ 1), OUTSIDE) is Verdict.LOCAL
    assert verdict_of(over, echo(REMOTE, EIP, ident=3), OUTSIDE) is Verdict.LOCAL
    assert verdict_of(over, echo(HOST, EIP, ident=3), INSIDE) is Verdict.LOCAL
    assert over.take_generated() == []  # the host answers


@pytest.mark.parametrize("port", [22, 5000, 1024, 40000])
def test_an_icmp_error_about_no_session_is_the_hosts(port: int) -> None:
    over = shared()
    quoted = bytes(IP(src=EIP, dst=REMOTE, proto=17) / bytes([port >> 8, port & 255, 0, 53, 0, 8, 0, 0]))
    error = ether(IP(src=REMOTE, dst=EIP) / ICMP(type=3, code=3) / Raw(quoted))
    assert verdict_of(over, error, OUTSIDE) is Verdict.LOCAL
    verdict, sent = over.translate_one(udp(HOST, 4000), INSIDE, 0.0)
    assert verdict is Verdict.OUTBOUND
    error = ether(IP(src=REMOTE, dst=EIP) / ICMP(type=3, code=3) / Raw(bytes(Ether(sent)[IP])[:28]))
    assert verdict_of(over, error, OUTSIDE) is Verdict.INBOUND


@pytest.mark.parametrize("late", [False, True])
def test_fragments_go_where_the_first_one_goes(late: bool) -> None:
    over = shared()
    pieces = fragments(udp(REMOTE, 53, EIP, 5000, load=bytes(3000)), 800)
    pieces = [*pieces[1:], pieces[0]] if late else pieces
    verdicts = [over.translate_one(piece, OUTSIDE, 0.0)[0] for piece in pieces]
    assert verdicts == ([Verdict.HELD] * (len(pieces) - 1) + [Verdict.LOCAL] if late else [Verdict.LOCAL] * len(pieces))
    counters = over.counters()
    assert counters["local"] == len(pieces) and counters["held"] == 0 and over.take_generated() == []


def test_protocols_without_ports_are_the_hosts_on_a_shared_address() -> None:
    over = shared(pool=[EIP])
    packet = ether(ip(HOST, REMOTE, proto=50) / Raw(bytes(40)))
    assert verdict_of(over, packet, INSIDE) is Verdict.DROP_CONFLICT
    assert verdict_of(over, ether(ip(REMOTE, EIP, proto=50) / Raw(bytes(40))), OUTSIDE) is Verdict.LOCAL
    assert over.counters()["mappings"] == 0
    both = shared(pool=[EIP, "203.0.113.99"], policy=Policy(pooling="arbitrary"))
    verdict, sent = both.translate_one(packet, INSIDE, 0.0)
    assert verdict is Verdict.OUTBOUND and Ether(sent)[IP].src == "203.0.113.99"


def test_a_pool_that_follows_the_interface_ends_the_sessions_of_an_address_that_went() -> None:
    over = Gateway(seed=1)
    entry = over.add(SnatEntry("10.0.0.0/16", pool=[OutsideInterface(), "203.0.113.99"]))
    with pytest.raises(ConfigurationError, match="there is none before a plane has begun"):
        over.translate_one(udp(HOST), INSIDE, 0.0)
    first, second = address("203.0.113.1"), address("203.0.113.2")
    parts_of(over).follow([first], {first: (0, 0)})
    assert len(over.ports()) == 6
    parts_of(over).follow([first, second], {first: (0, 0), second: (0, 0)})
    assert len(over.ports()) == 9
    for number in range(40):
        over.translate_one(udp(f"10.0.0.{number + 1}"), INSIDE, 0.0)
    before = {int(row["outside_ip"]) for row in over.sessions()}
    assert {first, second} < before
    ended = over.counters()["ended"]
    parts_of(over).follow([second], {second: (0, 0)})
    assert {int(row["outside_ip"]) for row in over.sessions()} == before - {first}
    rows = over.take_records()
    assert {int(row["nat_ip"]) for row in rows} == {first} and len(rows) == over.counters()["ended"] - ended > 0
    told = [(event.reason, str(event.outside)) for event in over.take_events()]
    assert told == [
        ("address-added", "203.0.113.1"),
        ("address-added", "203.0.113.2"),
        ("address-removed", "203.0.113.1"),
    ]
    assert over.entries() == [entry]


def test_an_address_that_a_pool_names_and_the_interface_has_is_in_it_once() -> None:
    over = gateway(pool=[OutsideInterface(), EIP])
    parts_of(over).follow([address(EIP), address("203.0.113.2")], {})
    assert sorted({int(row["outside_ip"]) for row in over.ports()}) == [address(EIP), address("203.0.113.2")]
    parts_of(over).follow([address("203.0.113.2")], {})
    assert len(over.ports()) == 6


def test_a_dnat_entry_follows_the_interface_and_has_rows_of_its_own() -> None:
    over = gateway(pool="interface")
    entry = over.add(DnatEntry("interface", 443, HOST, 8443))
    first, second = address("203.0.113.1"), address("203.0.113.2")
    ports = ports_in(HOSTS)
    assert over.ports().size == 0

    def reached(at: str) -> Verdict:
        return over.translate_one(tcp("S", REMOTE, 9, at, 443), OUTSIDE, 0.0)[0]

    parts_of(over).follow([first, second], {first: (ports, ports), second: (ports, ports)})
    assert reached("203.0.113.1") is Verdict.INBOUND
    assert reached("203.0.113.2") is Verdict.LOCAL  # the host's: the entry has the first address
    assert over.counters()["sessions"] == 1
    parts_of(over).follow([second], {second: (ports, ports)})
    assert over.counters()["sessions"] == 0
    assert reached("203.0.113.2") is Verdict.INBOUND
    parts_of(over).follow([], {})
    assert over.counters()["sessions"] == 0 and reached("203.0.113.2") is Verdict.DROP_NO_MAPPING
    parts_of(over).follow([first], {first: (ports, ports)})
    assert reached("203.0.113.1") is Verdict.INBOUND
    over.remove(entry)
    assert reached("203.0.113.1") is Verdict.LOCAL


class WithFacts(MemorySink):
    facts = True


def test_the_session_log_tells_the_addresses_of_each_time() -> None:
    sink = WithFacts()
    over = gateway(pool="interface")
    over.add(DnatEntry("interface", 443, HOST, 8443))
    first, second = address("203.0.113.1"), address("203.0.113.2")
    with over, over.start_session_log(sink):
        parts_of(over).follow([first], {})
        parts_of(over).follow([second], {})
    rows = sink.records
    entries = rows[rows["kind"] == ENTRY]
    assert {int(row["nat_ip"]) for row in entries if row["nat_ip"]} == {first, second}


def test_a_prefix_without_an_address_lets_nothing_out_by_a_shorter_ones_pool() -> None:
    over = gateway(source="10.0.0.0/8")
    over.add(SnatEntry("10.0.0.0/16", pool="interface"))
    parts_of(over).follow([], {})
    assert verdict_of(over, udp(HOST), INSIDE) is Verdict.DROP_NO_SNAT_ENTRY
    assert verdict_of(over, udp("10.9.0.1"), INSIDE) is Verdict.OUTBOUND


def test_all_ports_of_the_hosts_and_none() -> None:
    over = shared((0, 65535))
    assert verdict_of(over, udp(HOST), INSIDE) is Verdict.DROP_PORTS_EXHAUSTED
    parts_of(over).follow([], {address(EIP): (0, ALL)})
    assert verdict_of(over, udp(HOST), INSIDE) is Verdict.DROP_PORTS_EXHAUSTED
    assert verdict_of(over, tcp("S", HOST), INSIDE) is Verdict.OUTBOUND

"""natcore/tables/mappings: an inside endpoint's outside endpoint, paired addresses, hold-down, through a gateway."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address

import pytest

from natcore import DnatEntry, Eip, Error, Gateway, Policy, Side, SnatEntry, Verdict
from support.frames import EIP, HOST, REMOTE, Talk, echo, gateway, one_port, parsed, tcp, udp

POOL = [f"203.0.113.{n}" for n in range(1, 9)]


def outside_of(over: Gateway, frame: bytes, now: float = 0.0) -> tuple[str, int]:
    verdict, sent = over.translate_one(frame, Side.INSIDE, now)
    assert verdict is Verdict.OUTBOUND
    packet = parsed(sent)
    return packet.src, packet.sport


def test_one_inside_endpoint_has_one_outside_endpoint_for_every_remote() -> None:
    """RFC 4787 REQ-1."""
    over = gateway(pool=POOL)
    ends = {outside_of(over, udp(destination=f"198.51.100.{n}", dport=1000 + n)) for n in range(1, 20)}
    assert len(ends) == 1
    (row,) = over.mappings()
    assert (str(IPv4Address(int(row["outside_ip"]))), int(row["outside_port"])) == ends.pop()
    assert (row["inside_ip"], row["inside_port"], row["protocol"], row["entry"], row["sessions"]) == (
        0x0A000005, 5000, 17, 1, 19,
    )  # fmt: skip


def test_protocols_and_ports_have_mappings_of_their_own() -> None:
    over = gateway()
    for frame in (udp(sport=1), udp(sport=2), tcp("S", sport=1), echo(ident=1)):
        assert over.translate_one(frame, Side.INSIDE, 0.0)[0] is Verdict.OUTBOUND
    assert Counter(over.mappings()["protocol"].tolist()) == {17: 2, 6: 1, 1: 1}
    assert over.counters()["mappings"] == over.counters()["ports_used"] == 4


def test_two_hosts_with_the_same_port_are_told_apart() -> None:
    over = gateway()
    assert outside_of(over, udp("10.0.0.5")) != outside_of(over, udp("10.0.0.6"))


def test_a_subscriber_s_mappings_are_on_one_address_of_the_pool() -> None:
    """RFC 4787 REQ-2, RFC 6888 REQ-2: across protocols."""
    over = gateway(pool=POOL)
    used = set()
    for host in range(1, 60):
        own = {outside_of(over, udp(f"10.0.0.{host}", sport))[0] for sport in range(1, 5)}
        own.add(outside_of(over, tcp("S", f"10.0.0.{host}"))[0])
        assert len(own) == 1
        used |= own
    assert used == set(POOL)


def test_a_full_paired_address_refuses_though_the_pool_has_others() -> None:
    """RFC 7857 section 4: 'hard'."""
    over = gateway(pool=POOL[:2], policy=one_port())
    taken = outside_of(over, udp(sport=1))
    assert over.translate_one(udp(sport=2), Side.INSIDE, 0.0)[0] is Verdict.DROP_PORTS_EXHAUSTED
    other = outside_of(over, udp("10.0.0.6"))  # another host has the other
    assert {taken[0], other[0]} == set(POOL[:2])
    assert over.translate_one(udp("10.0.0.7"), Side.INSIDE, 0.0)[0] is Verdict.DROP_PORTS_EXHAUSTED


def test_ports_are_of_the_ranges() -> None:
    over = gateway(policy=Policy(port_ranges=((7, 8), (6000, 6001))))
    assert {outside_of(over, udp(sport=sport))[1] for sport in range(1, 5)} == {7, 8, 6000, 6001}
    assert over.translate_one(udp(sport=5), Side.INSIDE, 0.0)[0] is Verdict.DROP_PORTS_EXHAUSTED


def test_a_freed_port_waits_for_others_and_not_for_its_subscriber() -> None:
    """RFC 6888 REQ-8: 120 s from the end of the last session, which is its deadline."""
    over = gateway(policy=one_port(hold_down=120.0))
    outside_of(over, udp())
    other = udp("10.0.0.6")
    assert over.translate_one(other, Side.INSIDE, 419.999)[0] is Verdict.DROP_PORTS_EXHAUSTED
    assert over.translate_one(other, Side.INSIDE, 420.0)[0] is Verdict.OUTBOUND
    own = gateway(policy=one_port(hold_down=120.0))
    outside_of(own, udp())
    assert outside_of(own, udp(sport=99), 301.0) == (EIP, 4000)


def test_a_port_in_use_is_in_no_hold_down_and_both_are_counted() -> None:
    over = gateway()
    outside_of(over, udp())
    outside_of(over, udp("10.0.0.6"))
    over.end(subscriber="10.0.0.6")
    (row,) = (row for row in over.ports() if row["protocol"] == 17)
    assert (row["used"], row["held_down"], row["free"]) == (1, 1, 64_510)
    assert over.counters()["ports_used"] == 1


def test_ports_rows_name_their_address() -> None:
    over = gateway(pool=Eip(EIP, private_ip="172.16.0.9"))
    rows = over.ports()
    assert rows["protocol"].tolist() == [6, 17, 1]
    assert {(int(row["outside_ip"]), int(row["eip"])) for row in rows} == {(0xAC100009, 0xCB007101)}


def test_the_longest_prefix_chooses_the_pool() -> None:
    over = gateway(pool=POOL[0])
    narrow = over.add(SnatEntry("10.0.0.0/24", pool=POOL[1]))
    over.add(SnatEntry("10.0.0.5/32", pool=POOL[2]))
    assert outside_of(over, udp("10.0.1.1"))[0] == POOL[0]
    assert outside_of(over, udp("10.0.0.1"))[0] == POOL[1]
    assert outside_of(over, udp("10.0.0.5"))[0] == POOL[2]
    assert over.remove(narrow) == 1
    assert outside_of(over, udp("10.0.0.1"))[0] == POOL[0]


def test_a_mapping_stays_where_it_is_when_a_longer_prefix_comes() -> None:
    over = gateway(pool=POOL[0])
    before = outside_of(over, udp())
    over.add(SnatEntry("10.0.0.5/32", pool=POOL[1]))
    assert outside_of(over, udp(dport=99)) == before
    assert outside_of(over, udp(sport=99))[0] == POOL[1]


def test_removing_an_entry_ends_its_sessions_and_frees_its_address() -> None:
    over = gateway(pool=POOL[:2])
    (entry,) = over.entries()
    made = Talk(over)
    made.out()
    assert over.remove(entry, now=5.0) == 1
    assert over.take_records(events=True)["end_time"].tolist() == [0, 5_000_000, 5_000_000]
    assert made.out() is Verdict.DROP_NO_SNAT_ENTRY and made.back() is Verdict.DROP_NO_MAPPING
    assert len(over.ports()) == 0 and over.entries() == []
    over.add(SnatEntry("10.0.0.0/8", pool=POOL[3]))
    made.out()
    assert made.outside[0] == POOL[3]


def test_an_address_of_two_entries_stays_while_one_has_it() -> None:
    over = gateway(pool=POOL[0])
    other = over.add(SnatEntry("192.168.0.0/16", pool=POOL[0]))
    made = Talk(over)
    made.out()
    over.remove(other)
    assert made.back() is Verdict.INBOUND


@pytest.mark.parametrize("gone", ["removed", "modified"])
def test_a_subscriber_of_two_entries_outlives_the_address_of_one(gone: str) -> None:
    """It was paired with that address last; it still has a mapping of the other entry."""
    over = Gateway(seed=1, max_sessions=10, eip_bind_mode="MULTI_BINDED")
    over.add(SnatEntry("10.0.0.0/8", pool=POOL[0]))
    stays = outside_of(over, udp(sport=1))
    narrow = over.add(SnatEntry("10.0.0.5/32", pool=Eip(POOL[1], private_ip="172.16.0.9")))
    assert outside_of(over, udp(sport=2))[0] == POOL[1]
    if gone == "removed":
        over.remove(narrow)
        expected = POOL[0]
    else:
        over.modify(eip_bind_mode="NAT")
        expected = "172.16.0.9"
    assert outside_of(over, udp(sport=1, dport=99)) == stays
    assert outside_of(over, udp(sport=3))[0] == expected
    assert sorted(over.mappings()["inside_port"].tolist()) == [1, 3]


def test_modifying_the_bind_mode_ends_what_changes_and_only_that() -> None:
    over = Gateway(seed=1, max_sessions=100, eip_bind_mode="MULTI_BINDED")
    over.add(SnatEntry("10.0.0.0/8", pool=[Eip(POOL[0], private_ip="172.16.0.9"), POOL[1]]))
    hosts = {f"10.0.0.{n}": outside_of(over, udp(f"10.0.0.{n}"))[0] for n in range(1, 30)}
    assert set(hosts.values()) == set(POOL[:2])
    over.modify(eip_bind_mode="NAT", now=5.0)
    assert over.eip_bind_mode == "NAT"
    assert len(over.sessions()) == sum(address == POOL[1] for address in hosts.values())
    rows = over.take_records()
    assert set(rows["nat_ip"]) == {int(IPv4Address(POOL[0]))} and set(rows["end_time"]) == {5_000_000}
    after = {outside_of(over, udp(host, sport=9))[0] for host in hosts}
    assert after == {"172.16.0.9", POOL[1]}


def test_modifying_the_bind_mode_is_a_change_of_entries_like_others() -> None:
    """What was due ended before, at its own time; what has drained is gone; a port may move within the change."""
    over = Gateway(seed=1, max_sessions=100, eip_bind_mode="MULTI_BINDED")
    over.add(SnatEntry("10.0.0.0/8", pool=Eip(POOL[0], private_ip="172.16.0.9")))
    over.add(DnatEntry("172.16.0.9", 4430, "10.0.0.7", 8443))  # not the pool's, as long as the EIP is on the wire
    drained = over.add(DnatEntry("172.16.0.9", 8000, "10.0.0.7", 8080))
    over.translate_one(tcp("S", REMOTE, 7, "172.16.0.9", 8000), Side.OUTSIDE, 0.0)
    outside_of(over, udp())
    over.remove(drained, drain=True)
    plan = over.plan([])
    over.modify(eip_bind_mode="NAT", now=400.0)
    assert over.take_records()["end_time"].tolist() == [300_000_000]
    assert len(over.sessions()) == 0 and over.ports()["reserved"].sum() == 1
    assert [int(row["outside_ip"]) for row in over.ports()] == [int(IPv4Address("172.16.0.9"))] * 3
    with pytest.raises(Error, match="have changed"):
        over.apply(plan)


@pytest.mark.parametrize("kind, mode, pool, wire, eip", [
    ("internet", "NAT", Eip(EIP, private_ip="172.16.0.9"), "172.16.0.9", EIP),
    ("internet", "NAT", EIP, EIP, EIP),
    ("internet", "MULTI_BINDED", Eip(EIP, private_ip="172.16.0.9"), EIP, EIP),
    ("vpc", "NAT", "10.9.0.1", "10.9.0.1", None),
])  # fmt: skip
def test_the_address_on_the_wire_and_its_eip(kind: str, mode: str, pool: object, wire: str, eip: str | None) -> None:
    """Frames carry the address of contract, field 8; events name the EIP too."""
    over = gateway(pool=pool, source="10.0.0.0/16", kind=kind, eip_bind_mode=mode)
    assert outside_of(over, udp(HOST, 5000, REMOTE))[0] == wire
    (row,) = over.take_records(events=True)
    assert row["nat_ip"] == int(IPv4Address(wire))
    assert row["eip"] == (int(IPv4Address(eip)) if eip else 0)

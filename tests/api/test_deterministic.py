"""Computed ports (RFC 7422): who has which needs no log, and what is computed is what the gateway draws."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natcore import ConfigurationError, DnatEntry, Eip, Gateway, Policy, SnatEntry, Verdict, deterministic
from support.frames import EIP, HOST, Talk, gateway

OUTBOUND = Verdict.OUTBOUND


def computed(**more: Any) -> Policy:
    return Policy(ports="deterministic", **{"block_size": 4, "port_ranges": ((4000, 4009), (5000, 5007)), **more})


def test_a_share_follows_from_the_prefix_the_pool_and_the_ranges() -> None:
    """Four blocks an address: 4000, 4004, 5000, 5004."""
    entries = [SnatEntry("10.0.0.0/29", pool=["203.0.113.9", "203.0.113.1"])]
    shares = [deterministic.ports_of(entries, computed(), f"10.0.0.{host}") for host in range(8)]
    assert [(str(s.outside.address), s.first_port, s.last_port) for s in shares if s] == [
        (address, first, first + 3) for address in ("203.0.113.9", "203.0.113.1") for first in (4000, 4004, 5000, 5004)
    ]
    assert deterministic.ports_of(entries, computed(), "10.0.0.8") is None


@given(
    prefix=st.integers(24, 32), size=st.integers(1, 700), start=st.integers(1, 60_000), count=st.integers(700, 5000),
    host=st.integers(0, 255), offset=st.integers(0, 699),
)  # fmt: skip
def test_who_is_the_inverse_of_ports_of(prefix: int, size: int, start: int, count: int, host: int, offset: int) -> None:
    policy = Policy(ports="deterministic", block_size=size, port_ranges=((start, start + count),))
    entry = SnatEntry(f"10.0.0.0/{prefix}", pool="203.0.113.0/24")
    inside = IPv4Address("10.0.0.0") + host % (1 << (32 - prefix))
    share = deterministic.ports_of([entry], policy, inside)
    assert share is not None
    port = share.first_port + offset % size
    assert deterministic.who([entry], policy, share.outside.address, port) == inside == share.inside


def test_what_is_drawn_is_what_is_computed() -> None:
    over = Gateway(seed=1, policy=computed(), max_sessions=1000)
    over.add(SnatEntry("10.0.0.0/28", pool=[f"203.0.113.{n}" for n in (7, 3, 5, 9)]))
    over.add(SnatEntry("10.0.0.8/31", pool="203.0.113.77"))  # the longer prefix has its own
    for host in range(16):
        inside = f"10.0.0.{host}"
        share = over.ports_of(inside)
        assert share is not None
        for flags in ("", "S"):
            talks = [Talk(over, sport=6000 + n, host=inside) for n in range(5)]
            assert [t.out(flags) for t in talks] == [OUTBOUND] * 4 + [Verdict.DROP_SUBSCRIBER_LIMIT]
            assert {t.outside for t in talks[:4]} == {
                (str(share.outside.address), share.first_port + n) for n in range(4)
            }
            assert {over.who(*t.outside) for t in talks[:4]} == {IPv4Address(inside)}
    assert len(over.ports()) == 15 and over.ports()["used"].sum() == 16 * 8


def test_its_own_ports_are_at_hand_during_their_hold_down() -> None:
    over = gateway(source="10.0.0.0/30", policy=computed())
    for now in (0.0, 310.0, 620.0):
        talks = [Talk(over, sport=int(now) + n + 1) for n in range(5)]
        for talk in talks:
            talk.host, talk.now = "10.0.0.1", now
        assert [talk.out() for talk in talks] == [OUTBOUND] * 4 + [Verdict.DROP_SUBSCRIBER_LIMIT]


def test_what_does_not_fit_is_refused_with_the_numbers() -> None:
    over = Gateway(policy=computed())
    with pytest.raises(ConfigurationError, match=r"pool must have at least 4 addresses, got 2: "
                       r"8 blocks of 4 ports \(4 an address\) are fewer than "
                       r"the 16 addresses of 10\.0\.0\.0/28"):  # fmt: skip
        over.add(SnatEntry("10.0.0.0/28", pool="203.0.113.0/31"))
    assert over.entries() == []
    with pytest.raises(ConfigurationError, match=r"Policy\.pooling must be 'paired' .*, got 'arbitrary'"):
        Policy(ports="deterministic", pooling="arbitrary")


def test_two_entries_have_no_address_in_common() -> None:
    over = gateway(source="10.0.0.0/30", policy=computed())
    with pytest.raises(ConfigurationError, match=rf"got {EIP} in entry 2 \(10\.1\.0\.0/30\) and in entry 1"):
        over.add(SnatEntry("10.1.0.0/30", pool=EIP))


@pytest.mark.parametrize("by, kept", [
    (SnatEntry("10.0.0.0/30", pool=EIP, name="other"), 1), (SnatEntry("10.0.0.0/31", pool=EIP), 0),
    (SnatEntry("10.0.0.0/30", pool=["203.0.113.2", EIP]), 0),
])  # fmt: skip
def test_another_prefix_or_pool_ends_what_had_other_ports(by: SnatEntry, kept: int) -> None:
    over = gateway(source="10.0.0.0/30", policy=computed())
    Talk(over, host="10.0.0.1").out()
    over.replace(over.entries()[0], by)
    assert len(over.sessions()) == kept


def test_who_knows_eips_and_port_forwards() -> None:
    entries = [
        SnatEntry("10.0.0.0/30", pool=Eip(EIP, private_ip="172.16.0.9")),
        DnatEntry(EIP, 4001, "10.0.0.77", 443),
        DnatEntry(EIP, 4002, [("10.0.0.78", 1), ("10.0.0.79", 1)], 443, protocol="udp"),
    ]

    def ask(*question: Any) -> str:
        return str(deterministic.who(entries, computed(), *question))

    assert {ask(EIP, 4000), ask("172.16.0.9", 4000), ask(EIP, 4001, "udp")} == {"10.0.0.0"}
    assert {ask(EIP, 4001), ask("172.16.0.9", 4001, "tcp")} == {"10.0.0.77"}
    assert {ask(EIP, 4008), ask(EIP, 80), ask("203.0.113.2", 4000)} == {"None"}
    with pytest.raises(ConfigurationError, match=r"port must .*, got 4002: .* 10\.0\.0\.78, 10\.0\.0\.79"):
        ask(EIP, 4002)


def test_a_private_address_is_no_name_where_it_is_not_on_the_wire() -> None:
    """Contract, field 8: in bind mode MULTI_BINDED the EIP itself is, and the private address may be another host's."""
    over = Gateway(seed=1, policy=computed(), max_sessions=100, eip_bind_mode="MULTI_BINDED")
    over.add(SnatEntry("10.0.0.0/30", pool=Eip(EIP, private_ip="172.16.0.9")))
    assert (over.who(EIP, 4000), over.who("172.16.0.9", 4000)) == (IPv4Address("10.0.0.0"), None)
    over.add(DnatEntry("172.16.0.9", 4001, "10.0.0.77", 443))
    assert (over.who(EIP, 4001), over.who("172.16.0.9", 4001)) == (IPv4Address("10.0.0.0"), IPv4Address("10.0.0.77"))
    over.modify(eip_bind_mode="NAT")
    assert {over.who(EIP, 4001), over.who("172.16.0.9", 4001)} == {IPv4Address("10.0.0.77")}
    assert {over.who(EIP, 4000), over.who("172.16.0.9", 4000)} == {IPv4Address("10.0.0.0")}


def test_a_port_forward_is_at_one_of_the_private_addresses_of_its_eip() -> None:
    """Two pools name the EIP, each with another address on the wire: the entry's is the first one's."""
    entries = [
        SnatEntry("10.0.0.0/28", pool="203.0.113.1"),
        SnatEntry("10.0.1.0/28", pool=[Eip("203.0.113.1", private_ip="172.31.0.1")]),
        DnatEntry("203.0.113.1", (2000, 2049), "10.0.2.2", (20000, 20049)),
    ]
    policy = Policy(ports="deterministic", port_ranges=((2000, 2255),), block_size=16)
    assert deterministic.who(entries, policy, "203.0.113.1", 2000, "tcp") == IPv4Address("10.0.2.2")
    assert deterministic.who(entries, policy, "172.31.0.1", 2000, "tcp") == IPv4Address("10.0.1.0")


def test_other_policies_are_not_computed() -> None:
    with pytest.raises(ConfigurationError, match=r"Policy\.ports must be 'deterministic', got 'random'; .*session log"):
        gateway().who(EIP, 4000)
    with pytest.raises(ConfigurationError, match=r"Policy\.ports must be 'deterministic', got 'random'"):
        gateway().ports_of(HOST)


def test_an_icmp_id_has_no_host_by_a_port_forward() -> None:
    entries = [SnatEntry("10.0.0.0/26", pool=EIP), DnatEntry(EIP, 1030, "10.0.0.77", 443, protocol="any")]
    policy = Policy(ports="deterministic")
    assert str(deterministic.who(entries, policy, EIP, 1030, "udp")) == "10.0.0.77"
    assert str(deterministic.who(entries, policy, EIP, 1030, "icmp")) == "10.0.0.0"

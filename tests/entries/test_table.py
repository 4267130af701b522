"""Entries as a gateway holds them: what it refuses to hold together, and what goes on the wire."""

from __future__ import annotations

import pytest

from natcore import ConfigurationError, Eip, Gateway, SnatEntry
from natcore.config import expand_pool
from natcore.entries.table import Rulebook
from support.frames import EIP, gateway

PRIVATE = Eip(EIP, private_ip="172.16.0.9")


def test_handles_count_from_one_and_are_never_used_again() -> None:
    over = Gateway(max_sessions=10)
    first = over.add(SnatEntry("10.0.0.0/8", pool=EIP, name="all"))
    over.remove(first)
    second = over.add(SnatEntry("10.0.0.0/8", pool=EIP))
    assert (first.id, second.id) == (1, 2)
    assert over.entries() == [second] and second.entry == SnatEntry("10.0.0.0/8", pool=EIP)
    assert first.describe() == "entry 1 'all' (10.0.0.0/8)"


def test_the_same_prefix_twice_is_refused() -> None:
    over = gateway()
    with pytest.raises(ConfigurationError, match=r"source must be in one entry, got '10\.0\.0\.0/8'.*entry 1"):
        over.add(SnatEntry("10.0.0.0/8", pool="203.0.113.9"))
    assert len(over.entries()) == 1 and len(over.ports()) == 3


def test_two_eips_with_one_private_address_are_refused() -> None:
    over = gateway(pool=PRIVATE)
    with pytest.raises(ConfigurationError, match=r"one EIP.*172\.16\.0\.9.*203\.0\.113\.7.*203\.0\.113\.1"):
        over.add(SnatEntry("192.168.0.0/16", pool=Eip("203.0.113.7", private_ip="172.16.0.9")))
    with pytest.raises(ConfigurationError, match="one EIP"):
        Gateway(max_sessions=10).add(
            SnatEntry("10.0.0.0/8", pool=[PRIVATE, Eip("203.0.113.7", private_ip="172.16.0.9")])
        )


def test_entries_may_share_an_eip() -> None:
    over = gateway(pool=PRIVATE)
    over.add(SnatEntry("192.168.0.0/16", pool=[PRIVATE, "203.0.113.7"]))
    assert len(set(over.ports()["outside_ip"])) == 2


def test_a_vpc_gateway_refuses_a_private_address() -> None:
    with pytest.raises(ConfigurationError, match=r"without private_ip.*172\.16\.0\.9"):
        gateway(pool=PRIVATE, kind="vpc")


@pytest.mark.parametrize("entry", [None, "10.0.0.0/8", 7])
def test_only_entries_are_added(entry: object) -> None:
    with pytest.raises(ConfigurationError, match="entry must"):
        gateway().add(entry)  # type: ignore[arg-type]


def test_only_a_gateway_s_own_entries_are_removed() -> None:
    one, other = gateway(), gateway()
    (entry,) = one.entries()
    for wrong in (None, 1, *other.entries()):
        with pytest.raises(ConfigurationError, match="entry must be in force in this gateway"):
            one.remove(wrong)  # type: ignore[arg-type]
    one.remove(entry)
    with pytest.raises(ConfigurationError, match="entry must be in force in this gateway"):
        one.remove(entry)


def test_the_bind_mode_goes_one_way() -> None:
    """The bind mode changes from MULTI_BINDED to NAT only (contract R7)."""
    over = gateway()
    over.modify(eip_bind_mode="NAT")
    with pytest.raises(ConfigurationError, match=r"must stay 'NAT'.*, got 'MULTI_BINDED'"):
        over.modify(eip_bind_mode="MULTI_BINDED")
    with pytest.raises(ConfigurationError, match="eip_bind_mode must be 'NAT' or 'MULTI_BINDED', got 'x'"):
        over.modify(eip_bind_mode="x")


def test_a_bind_mode_that_makes_eips_meet_is_refused_and_changes_nothing() -> None:
    over = gateway(pool=PRIVATE, eip_bind_mode="MULTI_BINDED")
    over.add(SnatEntry("192.168.0.0/16", pool=Eip("203.0.113.7", private_ip="172.16.0.9")))
    with pytest.raises(ConfigurationError, match="one EIP"):
        over.modify(eip_bind_mode="NAT")
    assert over.eip_bind_mode == "MULTI_BINDED" and len(set(over.ports()["outside_ip"])) == 2


@pytest.mark.parametrize("kind, mode, expected", [
    ("internet", "NAT", [(0xAC100009, 0xCB007101), (0xCB007102, 0xCB007102)]),
    ("internet", "MULTI_BINDED", [(0xCB007101, 0xCB007101), (0xCB007102, 0xCB007102)]),
])  # fmt: skip
def test_wire_addresses(kind: str, mode: str, expected: list[tuple[int, int]]) -> None:
    assert Rulebook(kind, mode).wire_addresses(expand_pool([PRIVATE, "203.0.113.2"])) == expected
    assert Rulebook("vpc", mode).wire_addresses(expand_pool("203.0.113.2")) == [(0xCB007102, 0)]

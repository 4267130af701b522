"""Port blocks: a subscriber draws from its own only, gets another when they are full, and gives them back."""

from __future__ import annotations

from collections import defaultdict
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natcore import ConfigurationError, DnatEntry, Gateway, Policy, Side, SnatEntry, Verdict
from support.frames import EIP, HOST, Talk, gateway, udp

OTHER, THIRD = "10.0.0.6", "10.0.0.7"
OUTBOUND = Verdict.OUTBOUND


def blocks(size: int = 4, number: int = 2, last: int = 4015, **more: Any) -> Policy:
    """Ports 4000 to last in blocks."""
    return Policy(ports="block", block_size=size, blocks=number, port_ranges=((4000, last),), **more)


def opened(over: Gateway, host: str, count: int, first: int = 5000, flags: str = "", now: float = 0.0) -> list[Verdict]:
    talks = [Talk(over, sport=first + n, host=host) for n in range(count)]
    for talk in talks:
        talk.now = now
    return [talk.out(flags) for talk in talks]


def ports_of(over: Gateway, host: str, protocol: int = 17) -> set[int]:
    rows = over.mappings()
    return set(rows["outside_port"][(rows["inside_ip"] == int(IPv4Address(host))) & (rows["protocol"] == protocol)])


def held_by(over: Gateway, host: str) -> list[tuple[int, int]]:
    rows = over.blocks()
    return sorted(
        (int(row["first_port"]), int(row["last_port"])) for row in rows[rows["inside_ip"] == int(IPv4Address(host))]
    )


def test_a_subscriber_draws_from_its_own_blocks_until_they_are_full() -> None:
    over = gateway(policy=blocks())
    assert opened(over, HOST, 9) == [OUTBOUND] * 8 + [Verdict.DROP_SUBSCRIBER_LIMIT]
    own = held_by(over, HOST)
    assert len(own) == 2 and all(first % 4 == 0 and last == first + 3 for first, last in own)
    assert ports_of(over, HOST) == {port for first, last in own for port in range(first, last + 1)}
    assert opened(over, OTHER, 1) == [OUTBOUND]
    assert not set(held_by(over, OTHER)) & set(own)
    (event,) = over.take_events()
    assert (event.reason, str(event.subscriber), event.count) == ("subscriber-limit", HOST, 1)


def test_a_block_is_for_all_protocols() -> None:
    over = gateway(policy=blocks(number=1))
    assert opened(over, HOST, 4) == [OUTBOUND] * 4 == opened(over, HOST, 4, flags="S")
    assert ports_of(over, HOST, 17) == ports_of(over, HOST, 6) and len(over.blocks()) == 1
    assert over.blocks()["ports"].tolist() == [8]


def test_no_block_left_is_no_port_left() -> None:
    over = gateway(policy=blocks(last=4007))
    assert [*opened(over, HOST, 1), *opened(over, OTHER, 1)] == [OUTBOUND] * 2
    assert opened(over, THIRD, 1) == [Verdict.DROP_PORTS_EXHAUSTED]
    assert over.take_events()[0].reason == "ports-exhausted"
    assert opened(over, HOST, 4, first=5001) == [OUTBOUND] * 3 + [
        Verdict.DROP_PORTS_EXHAUSTED
    ]  # it may have a second one


def test_a_block_is_its_owner_s_until_the_last_hold_down_is_over() -> None:
    over = gateway(policy=blocks(last=4003))
    assert opened(over, HOST, 2) == [OUTBOUND] * 2
    assert opened(over, HOST, 1, now=200.0) == [OUTBOUND]  # one goes on
    assert opened(over, OTHER, 1, now=619.999) == [Verdict.DROP_PORTS_EXHAUSTED]  # 200 + 300 + 120
    assert held_by(over, HOST) == [(4000, 4003)] and over.blocks()["ports"].tolist() == [1]
    assert opened(over, OTHER, 1, now=620.0) == [OUTBOUND]
    assert held_by(over, HOST) == [] and held_by(over, OTHER) == [(4000, 4003)]


def test_an_owner_that_comes_back_has_its_block_still() -> None:
    over = gateway(pool="203.0.113.0/28", policy=blocks(last=4063))
    for host in range(1, 9):
        assert opened(over, f"10.0.0.{host}", 1) == [OUTBOUND]
    names = ["outside_ip", "inside_ip", "first_port"]
    before = over.blocks()
    for host in range(1, 9):
        assert opened(over, f"10.0.0.{host}", 1, first=6000, now=310.0) == [OUTBOUND]
    after = over.blocks()
    assert before[names].tolist() == after[names].tolist()
    assert after["ports"].tolist() == [2] * 8  # one held down, one in use


def test_a_block_counts_no_more_after_its_hold_down_without_a_sweep() -> None:
    over = gateway(policy=blocks(number=1, hold_down=0.5))
    assert opened(over, HOST, 1) == [OUTBOUND]
    over.end_all(now=100.1)  # its port rests until 100.6
    over.add(SnatEntry(f"{HOST}/32", pool="203.0.113.2"))
    assert opened(over, HOST, 1, now=100.2) == [Verdict.DROP_SUBSCRIBER_LIMIT]  # expiry is complete for this second
    assert opened(over, HOST, 1, now=100.599) == [Verdict.DROP_SUBSCRIBER_LIMIT]
    assert opened(over, HOST, 1, now=100.6) == [OUTBOUND]


def test_its_own_ports_that_are_held_down_come_before_another_block() -> None:
    over = gateway(policy=blocks())
    opened(over, HOST, 4)
    over.advance(310.0)
    assert opened(over, HOST, 4, first=6000, now=310.0) == [OUTBOUND] * 4
    assert len(over.blocks()) == 1 and over.ports()["held_down"].tolist() == [0, 0, 0]


def test_the_limit_holds_over_all_addresses_of_the_pool() -> None:
    over = gateway(pool="203.0.113.0/30", policy=blocks(pooling="arbitrary"))
    assert opened(over, HOST, 20).count(OUTBOUND) == 8
    assert len(over.blocks()) == 2


def test_soft_pooling_takes_a_block_of_another_address() -> None:
    for pooling, verdict in (("paired", Verdict.DROP_PORTS_EXHAUSTED), ("paired-soft", OUTBOUND)):
        over = gateway(pool="203.0.113.0/31", policy=blocks(last=4003, pooling=pooling))
        assert opened(over, HOST, 5) == [OUTBOUND] * 4 + [verdict]


def test_parity_is_kept_within_a_block() -> None:
    over = gateway(policy=blocks(parity=True))
    opened(over, HOST, 2)
    talks = {int(row["inside_port"]): int(row["outside_port"]) for row in over.mappings()}
    assert all(inside % 2 == outside % 2 for inside, outside in talks.items())


def test_ports_and_blocks_are_hard_to_guess() -> None:
    """Which block, and which port of it, differ from seed to seed."""
    firsts, offsets = set(), set()
    for seed in range(40):
        over = gateway(policy=Policy(ports="block"), seed=seed)
        opened(over, HOST, 1)
        (row,) = over.mappings()
        firsts.add((int(row["outside_port"]) - 1024) // 512)
        offsets.add((int(row["outside_port"]) - 1024) % 512)
    assert len(firsts) > 25 and len(offsets) > 25


def test_a_block_that_dnat_entries_have_whole_is_no_block_to_draw_from() -> None:
    over = gateway(policy=blocks(last=4011, number=3))
    over.add(DnatEntry(EIP, (4004, 4008), OTHER, (4004, 4008), protocol="udp"))
    assert opened(over, HOST, 8) == [OUTBOUND] * 7 + [Verdict.DROP_PORTS_EXHAUSTED]
    assert not ports_of(over, HOST) & set(range(4004, 4009))
    assert [(row["used"], row["reserved"], row["free"]) for row in over.ports() if row["protocol"] == 17] == [(7, 5, 0)]


def test_ranges_are_cut_to_whole_blocks() -> None:
    policy = Policy(ports="block", block_size=100, port_ranges=((1024, 1300), (2000, 2050), (3000, 3099)))
    assert policy.drawn_ranges == ((1024, 1223), (3000, 3099))
    assert gateway(policy=policy).ports()["total"].tolist() == [300] * 3
    with pytest.raises(ConfigurationError, match=r"Policy\.block_size must be at most .*, got 300"):
        Policy(ports="block", block_size=300, port_ranges=((1024, 1300),))


def test_removing_the_entry_gives_all_blocks_back() -> None:
    over = gateway(policy=blocks())
    opened(over, HOST, 5)
    opened(over, OTHER, 1)
    over.remove(over.entries()[0])
    assert len(over.blocks()) == 0
    over.add(SnatEntry("10.0.0.0/8", pool=EIP))
    assert opened(over, HOST, 8) == [OUTBOUND] * 8


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 11), st.booleans(), st.sampled_from((0, 0, 1, 40, 130))),
        max_size=80,
    )
)
def test_blocks_are_exclusive_and_account_for_every_port(turns: list[tuple[int, int, bool, int]]) -> None:
    """(host, inside port, ends its sessions instead, seconds before): what is shown agrees with the mappings."""
    over = gateway(policy=blocks(hold_down=60.0, last=4019), max_sessions=200)
    now = 0.0
    for host, port, ends, step in turns:
        now += step
        address = f"10.0.0.{host + 1}"
        if ends:
            over.end(subscriber=address, now=now)
        else:
            over.translate_one(udp(address, 5000 + port), Side.INSIDE, now)
        over.advance(now)
        owners = {
            port: int(row["inside_ip"])
            for row in over.blocks()
            for port in range(row["first_port"], row["last_port"] + 1)
        }
        used: dict[int, list[int]] = defaultdict(list)
        for row in over.mappings():
            assert owners[int(row["outside_port"])] == row["inside_ip"]
            used[int(row["inside_ip"])].append(int(row["outside_port"]))
        assert all(len(set(ports)) == len(ports) <= 8 for ports in used.values())
        shown = over.blocks()
        (ports,) = over.ports()[over.ports()["protocol"] == 17]
        assert shown["ports"].sum() == ports["used"] + ports["held_down"] and (shown["ports"] > 0).all()
        assert ports["used"] + ports["held_down"] + ports["reserved"] + ports["free"] == ports["total"] == 20

"""Ports are hard to guess however full it is (RFC 6056): each free one is as likely as another, by a chi-square test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from natcore import DnatEntry, Gateway, Policy, Side, Timeouts, Verdict
from natcore.testhooks.ports import PortTable
from natcore.testing import bulk
from support.frames import gateway

SHORT = Timeouts(udp=120.0)


def assert_even(drawn: Iterable[int], possible: Sequence[int]) -> None:
    """The chi-square of even odds is within six standard deviations: of a thousand million fair runs all pass."""
    counts = Counter(drawn)
    assert set(counts) <= set(possible)
    expected = counts.total() / len(possible)
    assert expected >= 5, "too few draws to judge"
    chi = sum((counts[port] - expected) ** 2 / expected for port in possible)
    freedom = len(possible) - 1
    assert chi < freedom + 6 * (2 * freedom) ** 0.5, f"chi-square {chi:.0f} of {freedom} degrees of freedom"


def filled(table: PortTable, number: int, ports: Iterable[int], wanted: set[int]) -> None:
    """Takes every port, and gives those back that are wanted."""
    for _ in ports:
        assert table.draw(number, 0, 1, 0) is not None
    assert table.draw(number, 0, 2, 0) is None
    for port in sorted(wanted):
        table.release(number, 0, port, 1, 0, 0)


@pytest.mark.parametrize("share", [0.9, 0.99])
@pytest.mark.parametrize("gaps", ["scattered", "clustered"])
def test_the_free_ports_of_a_nearly_full_address_are_drawn_evenly(share: float, gaps: str) -> None:
    ports = range(20_000, 24_000)
    count = round(len(ports) * (1 - share))
    random = np.random.default_rng(5)
    if gaps == "scattered":
        wanted = {int(port) for port in random.choice(ports, count, replace=False)}
    else:  # an attacker that holds all the others chooses where the gaps are
        wanted = {*range(20_000, 20_000 + count - 1), 23_999}
    table = PortTable(1, [(20_000, 23_999)])
    number = table.add(1)
    filled(table, number, ports, wanted)
    drawn = []
    for _ in range(20 * count):
        port = table.draw(number, 0, 3, 0)
        drawn.append(port)
        table.release(number, 0, port, 3, 0, 0)
    assert_even(drawn, sorted(wanted))


def test_ports_that_rest_for_their_owner_are_drawn_evenly() -> None:
    table = PortTable(1, [(20_000, 20_999)])
    number = table.add(1)
    filled(table, number, range(1000), set())
    wanted = [20_000 + n * n % 997 for n in range(40)]
    for port in wanted:
        table.release(number, 0, port, 7, 1000, 0)
    drawn = []
    for _ in range(400):
        port = table.draw(number, 0, 7, 0)
        drawn.append(port)
        table.release(number, 0, port, 7, 1000, 0)
    assert_even(drawn, sorted(set(wanted)))


def first_ports(over: Gateway, rounds: int, each: int, host: int, port: int = 5000) -> list[tuple[int, int]]:
    """Outside endpoints of sessions that come and go, `each` of them at a time from one host (even source ports)."""
    drawn: list[tuple[int, int]] = []
    for turn in range(rounds):
        now = 1000.0 + turn * 121.0
        frames, lengths = bulk.packets(bulk.UDP, host, port + 2 * np.arange(each, dtype=np.uint64), 0xC6336401, 53)
        assert set(over.translate(frames, lengths, Side.INSIDE, now=now)) == {Verdict.OUTBOUND}
        drawn += [(int(a), int(p)) for a, p in zip(*bulk.endpoints(frames, "source"), strict=True)]
        over.advance(now + 120.5)
    return drawn


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("policy", [
    Policy(port_ranges=((3000, 3255),), hold_down=0.0),
    Policy(port_ranges=((3000, 3255),), hold_down=0.0, ports="preserve"),
    Policy(ports="block", block_size=256, blocks=1, port_ranges=((3000, 3255),), hold_down=0.0),
    Policy(ports="deterministic", block_size=256, port_ranges=((3000, 3255),), hold_down=0.0),
    Policy(ports="overload", mapping="address-and-port-dependent", filtering="address-and-port-dependent",
           port_ranges=((3000, 3255),)),
], ids=["random", "preserve", "block", "deterministic", "overload"])  # fmt: skip
def test_every_policy_draws_the_ports_that_are_left_evenly(policy: Policy, workers: int) -> None:
    """A DNAT entry has the first 200 of 256 ports, so that an allocation of the nearest free one would favour one."""
    if workers == 2 and policy.ports in ("random", "preserve", "overload"):
        pytest.skip("each worker has words of 64 ports of its own before the others'")
    over = gateway(source="10.0.0.7/32", timeouts=SHORT, seed=3, policy=policy, workers=workers)
    over.add(DnatEntry("203.0.113.1", (3000, 3199), "10.0.0.9", (3000, 3199), protocol="udp"))
    drawn = first_ports(over, 150, 4, 0x0A000007, 50_000)
    assert_even([port for _, port in drawn], range(3200, 3256))


def test_parity_draws_the_even_ports_that_are_left_evenly() -> None:
    over = gateway(timeouts=SHORT, seed=3, policy=Policy(port_ranges=((3000, 3255),), hold_down=0.0, parity=True))
    over.add(DnatEntry("203.0.113.1", (3000, 3199), "10.0.0.9", (3000, 3199), protocol="udp"))
    drawn = first_ports(over, 150, 2, 0x0A000007, 50_000)
    assert_even([port for _, port in drawn], range(3200, 3256, 2))


def test_the_addresses_of_a_pool_that_have_a_port_left_are_drawn_evenly() -> None:
    """The first 20 of 24 addresses are full."""
    over = gateway(pool="203.0.113.1-203.0.113.24", timeouts=SHORT, seed=3,
                   policy=Policy(port_ranges=((3000, 3007),), hold_down=0.0, pooling="arbitrary"))  # fmt: skip
    for n in range(1, 21):
        over.add(DnatEntry(f"203.0.113.{n}", (3000, 3007), "10.0.0.9", (3000, 3007), protocol="udp"))
    drawn = first_ports(over, 150, 2, 0x0A000007, 50_000)
    assert_even([address - 0xCB007100 for address, _ in drawn], range(21, 25))


def test_the_last_port_of_a_large_pool_is_found_and_then_none() -> None:
    over = gateway(pool="203.0.112.0-203.0.113.255", timeouts=SHORT, seed=3, max_sessions=5000,
                   policy=Policy(port_ranges=((3000, 3003),), hold_down=0.0, pooling="arbitrary"))  # fmt: skip
    numbers = np.arange(512 * 4 + 3, dtype=np.uint64)
    frames, lengths = bulk.packets(bulk.UDP, 0x0A000001 + numbers, 7, 0xC6336401, 53)
    verdicts = over.translate(frames, lengths, Side.INSIDE, now=1.0)
    assert list(verdicts) == [Verdict.OUTBOUND] * (512 * 4) + [Verdict.DROP_PORTS_EXHAUSTED] * 3
    assert (
        len(set(zip(*(map(int, part) for part in bulk.endpoints(frames[: 512 * 4], "source")), strict=True))) == 512 * 4
    )


def test_a_large_pool_in_which_everything_rests_gives_what_is_over_at_once() -> None:
    over = gateway(pool="203.0.112.0-203.0.113.255", timeouts=SHORT, seed=3, max_sessions=5000,
                   policy=Policy(port_ranges=((3000, 3003),), hold_down=50.0, pooling="arbitrary"))  # fmt: skip
    numbers = np.arange(512 * 4, dtype=np.uint64)
    frames, lengths = bulk.packets(bulk.UDP, 0x0A000001 + numbers, 7, 0xC6336401, 53)
    assert set(over.translate(frames, lengths, Side.INSIDE, now=1.0)) == {Verdict.OUTBOUND}
    over.advance(130.0)
    other = bulk.packets(bulk.UDP, 0x0A100000, 7, 0xC6336401, 53)
    assert set(over.translate(*other, Side.INSIDE, now=170.9)) == {Verdict.DROP_PORTS_EXHAUSTED}
    assert set(over.translate(*bulk.packets(bulk.UDP, 0x0A100000, 7, 0xC6336401, 53), Side.INSIDE, now=171.0)) == {
        Verdict.OUTBOUND
    }

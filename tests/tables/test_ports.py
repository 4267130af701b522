"""natcore/tables/ports: every port is given once, at random, and refused only when nothing is free; hold-down."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natcore.testhooks.ports import PortTable

OWNER, OTHER = 1, 2


def table(*ranges: tuple[int, int], addresses: int = 4, key: bytes = bytes(32)) -> tuple[PortTable, int]:
    made = PortTable(addresses, ranges or ((1024, 65535),), key)
    number = made.add(0x0A0A0A0A)
    assert number is not None
    return made, number


@pytest.mark.parametrize(
    "ranges", [((1024, 65535),), ((1, 1),), ((65535, 65535),), ((60, 70), (130, 130)), ((1, 65535),)]
)
def test_every_port_is_given_once_and_only_then_none(ranges: tuple[tuple[int, int], ...]) -> None:
    ports, number = table(*ranges)
    allowed = {port for first, last in ranges for port in range(first, last + 1)}
    drawn = [ports.draw(number, 0, OWNER, 0) for _ in allowed]
    assert set(drawn) == allowed and len(drawn) == len(allowed)
    assert ports.draw(number, 0, OWNER, 0) is None and ports.free(number, 0) == 0


def test_ports_are_freed_after_their_hold_down_a_bounded_number_at_a_time() -> None:
    ports, number = table()
    drawn = []
    while (port := ports.draw(number, 0, OWNER, 0)) is not None:
        drawn.append(port)
    for n, port in enumerate(drawn):  # 100 ms, or 300 ms in the second half
        ports.release(number, 0, port, OWNER, 100 if n % 2 else 300, 0)
    freed, draws = 0, 0
    while freed < len(drawn) // 2:
        before = ports.held(number, 0)
        assert ports.draw(number, 0, OTHER, 200) is not None
        draws += 1
        now_free = before - ports.held(number, 0)
        assert now_free <= 8192 // 5 + 64
        freed += now_free
        while ports.free(number, 0):
            ports.draw(number, 0, OTHER, 200)
    assert draws <= len(drawn) // 2 // (8192 // 6) + 2
    assert ports.draw(number, 0, OTHER, 299) is None
    assert ports.draw(number, 0, OTHER, 300) is not None


def test_a_port_that_is_released_behind_the_cursor_is_allocated_again() -> None:
    ports, number = table()
    drawn = []
    while (port := ports.draw(number, 0, OWNER, 0)) is not None:
        drawn.append(port)
    lowest, highest = min(drawn), max(drawn)
    for port in drawn:
        if port != lowest:
            ports.release(number, 0, port, OWNER, 100 if port == highest else 10_000, 0)
    assert ports.draw(number, 0, OTHER, 100) is None  # the round has not reached the one that is due
    ports.release(number, 0, lowest, OWNER, 150, 100)
    tries = [ports.draw(number, 0, OTHER, 120) for _ in range(20)]
    assert [port for port in tries if port is not None] == [highest]
    assert ports.draw(number, 0, OTHER, 150) == lowest


def test_the_last_free_port_is_found() -> None:
    """A bounded number of random tries would report 'out of ports' falsely."""
    ports, number = table()
    while ports.free(number, 1):
        ports.draw(number, 1, OWNER, 0)
    for port in (1024, 40_000, 65535):
        ports.release(number, 1, port, OWNER, 0, 0)
        assert ports.draw(number, 1, OTHER, 0) == port


@given(
    st.binary(min_size=32, max_size=32),
    st.sampled_from([((1024, 65535),), ((60, 70), (130, 400)), ((5000, 5127),)]),
    st.integers(0, 31),
)
def test_the_port_of_a_later_draw_is_known(key: bytes, ranges: tuple[tuple[int, int], ...], before: int) -> None:
    """Unless the draws before it take what it would get: here they are of another address."""
    ports, number = table(*ranges, key=key)
    elsewhere = ports.add(0x0A0A0A0B)
    assert elsewhere is not None
    for _ in range(20):
        ports.draw(number, 1, OWNER, 0)
    foretold = ports.foretell(number, 1, before)
    for _ in range(before):
        ports.draw(elsewhere, 1, OTHER, 0)
    assert ports.draw(number, 1, OTHER, 0) == foretold


def test_protocols_have_their_own_ports() -> None:
    ports, number = table((7, 7))
    assert [ports.draw(number, space, OWNER, 0, space + 10) for space in range(3)] == [7, 7, 7]
    assert [ports.mapping(number, space, 7) for space in range(3)] == [10, 11, 12]
    assert ports.mapping(number, 0, 8) is None


def test_ports_are_drawn_evenly_from_an_empty_range() -> None:
    ports, number = table()
    counts: Counter[int] = Counter()
    for _ in range(16_000):
        port = ports.draw(number, 0, OWNER, 0)
        assert port is not None
        counts[(port - 1024) // 4032] += 1  # 16 equal parts
        ports.release(number, 0, port, OWNER, 0, 0)
    assert len(counts) == 16 and all(850 < count < 1150 for count in counts.values())  # 1,000, deviation 31


def test_ports_are_drawn_evenly_from_ranges_with_a_gap() -> None:
    """Nothing gathers behind the gap, where a guesser would look first."""
    ports, number = table((1024, 2047), (60_416, 61_439))
    counts: Counter[int] = Counter()
    for _ in range(16_000):
        port = ports.draw(number, 0, OWNER, 0)
        assert port is not None
        counts[port // 128] += 1
        ports.release(number, 0, port, OWNER, 0, 0)
    assert len(counts) == 16 and all(850 < count < 1150 for count in counts.values())


def test_the_same_key_draws_the_same_ports_and_another_key_others() -> None:
    def draws(key: bytes) -> list[int | None]:
        ports, number = table(key=key)
        return [ports.draw(number, 0, OWNER, 0) for _ in range(50)]

    assert draws(b"a" * 32) == draws(b"a" * 32) != draws(b"b" * 32)


def test_a_port_held_down_waits_for_others_but_not_for_its_owner() -> None:
    """RFC 6888 REQ-8."""
    ports, number = table((5, 5))
    assert ports.draw(number, 0, OWNER, 0) == 5
    ports.release(number, 0, 5, OWNER, 1000, 0)
    assert ports.held(number, 0) == 1 and ports.mapping(number, 0, 5) is None
    assert ports.draw(number, 0, OTHER, 999) is None
    assert ports.draw(number, 0, OWNER, 999) == 5
    ports.release(number, 0, 5, OWNER, 2000, 1000)
    assert ports.draw(number, 0, OTHER, 1999) is None
    assert ports.draw(number, 0, OTHER, 2000) == 5
    assert ports.held(number, 0) == 0


def test_a_port_released_after_its_hold_down_is_free_at_once() -> None:
    ports, number = table((5, 5))
    ports.draw(number, 0, OWNER, 0)
    ports.release(number, 0, 5, OWNER, 1000, 1000)
    assert ports.held(number, 0) == 0
    assert ports.draw(number, 0, OTHER, 1000) == 5


def test_owners_with_equal_hashes_are_kept_apart() -> None:
    """held_by counts by a hash of the owner: a stranger in the same slot still has to wait."""
    meeting = [
        owner for owner in range(1, 200_000) if owner * 2654435761 % 2**32 >> 20 == OWNER * 2654435761 % 2**32 >> 20
    ]
    ports, number = table((5, 5))
    ports.draw(number, 0, OWNER, 0)
    ports.release(number, 0, 5, OWNER, 1000, 0)
    assert meeting[0] == OWNER and len(meeting) > 3
    assert all(ports.draw(number, 0, stranger, 0) is None for stranger in meeting[1:])
    assert ports.draw(number, 0, OWNER, 0) == 5


def test_hold_downs_survive_the_clock_s_wrap_around() -> None:
    """Milliseconds are modulo 2^32."""
    ports, number = table((5, 5))
    late = 2**32 - 500
    ports.draw(number, 0, OWNER, late)
    ports.release(number, 0, 5, OWNER, (late + 1000) % 2**32, late)
    assert ports.draw(number, 0, OTHER, 499) is None
    assert ports.draw(number, 0, OTHER, 500) == 5


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 400)), max_size=60))
def test_a_port_is_refused_exactly_when_none_is_free_for_its_owner(turns: list[tuple[int, int]]) -> None:
    """Draws while odd, releases the oldest while even; a dictionary predicts who may have something."""
    ports, number = table((10, 12))
    used: list[tuple[int, int]] = []
    held: dict[int, tuple[int, int]] = {}
    now = 0
    for turn, (owner, step) in enumerate(turns):
        now += step
        held = {port: row for port, row in held.items() if row[1] > now}
        if turn % 3 < 2:
            mine = {port for port, row in held.items() if row[0] == owner}
            free = {10, 11, 12} - {port for port, _ in used} - set(held)
            port = ports.draw(number, 2, owner, now)
            assert port in (free or mine) if free or mine else port is None
            if port is not None:
                held.pop(port, None)
                used.append((port, owner))
        elif used:
            port, owner = used.pop(0)
            ports.release(number, 2, port, owner, now + 250, now)
            held[port] = (owner, now + 250)
        ports.reclaim(now)
        assert ports.held(number, 2) == len(held)
        assert ports.free(number, 2) == 3 - len(held) - len(used)


def test_addresses_are_shared_by_reference_and_found_until_the_last_goes() -> None:
    ports = PortTable(2, ((1, 10),))
    one, two = ports.add(111), ports.add(222)
    assert ports.add(111) == one != two
    assert ports.add(333) is None  # capacity
    assert one is not None and two is not None
    ports.drop(one)
    assert ports.find(111) == one
    ports.drop(one)
    assert ports.find(111) is None and ports.find(222) == two
    assert ports.add(333) == one  # the number is free again, its ports are new
    assert ports.free(one, 0) == 10

"""natcore/log/journal: a ring that keeps its order, wraps around, and counts what does not fit."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from natcore import RECORD
from natcore.dtypes import CREATE, END, WINDOW
from natcore.testhooks.wrappers import JournalRing


def drained(ring: JournalRing, most: int, number: int) -> list[tuple[int, int]]:
    rows = np.zeros(most, RECORD)
    count = ring.drain(rows, number)
    return [(int(row["session"]), int(row["number"])) for row in rows[:count]]


def test_rows_come_out_in_order_and_numbered() -> None:
    ring = JournalRing(4)
    assert [ring.write(session) for session in (10, 11, 12)] == [True] * 3
    assert drained(ring, 2, 100) == [(10, 100), (11, 101)]
    assert drained(ring, 9, 102) == [(12, 102)]
    assert drained(ring, 9, 103) == []


def test_a_full_ring_loses_the_new_row_and_counts_it() -> None:
    ring = JournalRing(3)
    assert [ring.write(session) for session in range(5)] == [True, True, True, False, False]
    assert ring.lost == 2
    assert drained(ring, 1, 0) == [(0, 0)]
    assert ring.write(9)
    assert drained(ring, 9, 1) == [(1, 1), (2, 2), (9, 3)]
    assert ring.lost == 2


def test_what_the_sweep_writes_beside_a_full_ring_keeps_its_place() -> None:
    ring = JournalRing(2)
    assert [ring.write(session, overflowing=True, overflow_limit=3) for session in range(6)] == [True] * 5 + [False]
    assert not ring.write(6)  # a packet's row
    assert drained(ring, 1, 0) == [(0, 0)]
    assert ring.write(7)
    assert drained(ring, 3, 1) == [(1, 1), (2, 2), (3, 3)]
    assert ring.write(8, overflowing=True, overflow_limit=3) and ring.write(9, overflowing=True, overflow_limit=3)
    assert drained(ring, 9, 4) == [(4, 4), (7, 5), (8, 6), (9, 7)]
    assert ring.lost == 2


@given(
    st.integers(1, 9), st.integers(0, 4000),
    st.lists(st.tuples(st.integers(0, 1500), st.booleans(), st.integers(1, 1500)), max_size=12),
)  # fmt: skip
def test_beside_the_ring_nothing_is_lost_but_beyond_the_limit(
    capacity: int, limit: int, turns: list[tuple[int, bool, int]]
) -> None:
    ring, waiting, lost, session = JournalRing(capacity), list[int](), 0, 0
    written = 0
    for writes, overflowing, most in turns:
        for _ in range(writes):
            session += 1
            if ring.write(session, overflowing, limit):
                waiting.append(session)
            else:
                assert len(waiting) >= capacity + limit if overflowing else len(waiting) >= capacity
                lost += 1
        taken = drained(ring, most, written)
        assert taken == [(row, written + at) for at, row in enumerate(waiting[:most])]
        waiting = waiting[most:]
        written += len(taken)
    assert drained(ring, len(waiting) + 1, written) == [(row, written + at) for at, row in enumerate(waiting)]
    assert ring.lost == lost


@given(st.integers(1, 9), st.lists(st.tuples(st.integers(0, 12), st.integers(1, 12)), max_size=40))
def test_what_was_written_is_read_or_lost(capacity: int, turns: list[tuple[int, int]]) -> None:
    """Over any number of wraps; numbers have no gap."""
    ring, waiting, lost, session, number = JournalRing(capacity), list[int](), 0, 0, 0
    for writes, most in turns:
        for _ in range(writes):
            session += 1
            if ring.write(session):
                waiting.append(session)
            else:
                assert len(waiting) == capacity
                lost += 1
        taken = drained(ring, most, number)
        assert taken == [(row, number + at) for at, row in enumerate(waiting[:most])]
        waiting = waiting[most:]
        number += len(taken)
    assert ring.lost == lost


@given(
    st.integers(1, 9),
    st.lists(st.tuples(st.lists(st.sampled_from([WINDOW, CREATE, END]), max_size=12), st.integers(1, 12)), max_size=40),
)
def test_without_a_reader_windows_and_other_rows_displace_no_row_of_the_other_kind(
    capacity: int, turns: list[tuple[list[int], int]]
) -> None:
    """Each kind of row has the whole capacity to itself, and all come out in the order in which they were written."""
    ring, waiting, lost, session, number = JournalRing(capacity), list[tuple[int, bool]](), [0, 0], 0, 0
    for kinds, most in turns:
        for kind in kinds:
            session += 1
            if ring.write(session, kind=kind):
                waiting.append((session, kind == WINDOW))
            else:
                assert sum(is_window is (kind == WINDOW) for _, is_window in waiting) == capacity
                lost[kind != WINDOW] += 1
        taken = drained(ring, most, number)
        assert taken == [(row, number + at) for at, (row, _) in enumerate(waiting[:most])]
        waiting = waiting[most:]
        number += len(taken)
    assert [ring.lost, ring.lifecycle_lost] == lost
    assert [row for row, _ in drained(ring, 99, 0)] == [row for row, _ in waiting]


def test_a_reader_that_comes_finds_what_was_written_before_in_its_order() -> None:
    ring = JournalRing(4)
    for session, kind in enumerate([CREATE, WINDOW, END]):
        assert ring.write(session, kind=kind)
    assert ring.write(3, kind=END, overflow_limit=8) and ring.write(4, kind=WINDOW, overflow_limit=8)
    assert [row for row, _ in drained(ring, 2, 0)] == [0, 1]
    assert [row for row, _ in drained(ring, 9, 2)] == [2, 3, 4]

"""Frames that wait for the standby, against a model: none overtakes another one of its connection, none waits for ever."""

from __future__ import annotations

from random import Random

import pytest

from natcore.testhooks.plane import DeferredFrames
from natcore.testing import craft

ACKNOWLEDGED, LATE, ALONE = 1, 2, 3  # of natcore/io/deferred_frames.pxd
MOST = 8192
WAIT_MS = 20
Gone = list[tuple[int, bytes]]


def frame(connection: int, number: int = 0, size: int = 0) -> bytes:
    outside = f"203.0.113.{1 + connection % 4}", 1024 + connection
    return craft.ether(craft.udp(outside, ("198.51.100.7", 53), payload=number.to_bytes(4) + bytes(size)))


def test_a_frame_leaves_when_its_cycle_is_acknowledged_and_later_ones_of_the_connection_with_it() -> None:
    deferred = DeferredFrames()
    assert not deferred.follows(frame(1))
    assert deferred.enter(frame(1), True, 6, 100)
    assert deferred.follows(frame(1, 1))
    assert not deferred.follows(frame(2)), "another connection passes by"
    assert deferred.enter(frame(1, 1), False, 9, 105)
    assert deferred.enter(frame(2), True, 7, 106)
    assert deferred.leave(5, WAIT_MS, 110) == []
    assert deferred.leave(6, WAIT_MS, 110) == [(ACKNOWLEDGED, frame(1)), (ACKNOWLEDGED, frame(1, 1))]
    assert not deferred.follows(frame(1, 2)), "its packets need not wait any more"
    assert deferred.leave(8, WAIT_MS, 111) == [(ACKNOWLEDGED, frame(2))]
    assert (deferred.frames, deferred.waited_ms) == (0, 10 + 10 + 5)


def test_without_an_acknowledgement_it_leaves_after_the_wait_and_its_connection_is_free() -> None:
    deferred = DeferredFrames()
    assert deferred.enter(frame(1), True, 6, 100)
    assert deferred.enter(frame(1, 1), False, 6, 119)
    assert deferred.enter(frame(2), True, 6, 119)
    assert deferred.leave(5, WAIT_MS, 119) == []
    assert deferred.leave(5, WAIT_MS, 120) == [(LATE, frame(1)), (LATE, frame(1, 1))]
    assert not deferred.follows(frame(1))
    assert deferred.leave(5, 0, 121) == [(ALONE, frame(2))]


def test_numbers_of_cycles_and_the_clock_wrap_around() -> None:
    deferred = DeferredFrames()
    assert deferred.enter(frame(1), True, 0, 2**32 - 5)
    assert deferred.leave(2**32 - 1, WAIT_MS, 14) == []
    assert deferred.leave(0, WAIT_MS, 14) == [(ACKNOWLEDGED, frame(1))]
    assert deferred.enter(frame(1), True, 5, 2**32 - 5)
    assert deferred.leave(0, WAIT_MS, 15) == [(LATE, frame(1))]


def test_the_space_is_bounded_in_frames_and_bytes() -> None:
    small, large = DeferredFrames(), DeferredFrames()
    assert [small.enter(frame(i), True, 1, 0) for i in range(MOST + 1)] == [True] * MOST + [False]
    assert len(small.leave(1, WAIT_MS, 0)) == MOST
    assert small.enter(frame(1), True, 1, 0)
    taken = sum(large.enter(frame(i, size=8000), True, 1, 0) for i in range(1000))
    assert 500 < taken < 525


@pytest.mark.parametrize("seed", range(20))
def test_no_frame_overtakes_another_one_of_its_connection_and_none_stays(seed: int) -> None:
    """With as many connections as there are buckets, so that many share one: they wait longer at most."""
    random, deferred = Random(seed), DeferredFrames()
    now, cycle, acknowledged = 2**32 - 500, 2**32 - 10, 2**32 - 11
    waiting: dict[int, list[bytes]] = {}
    since: dict[bytes, int] = {}
    cycles: dict[bytes, int] = {}  # that first frames wait for
    first = cycles.keys()
    passed = held = 0

    def leave(wait: int) -> None:
        for outcome, data in deferred.leave(acknowledged % 2**32, wait, now % 2**32):
            [connection] = [each for each, frames in waiting.items() if frames and frames[0] == data]
            waiting[connection].pop(0)  # the first of its connection
            assert outcome != LATE or now - since[data] >= wait or data not in first
        for frames in waiting.values():
            for data in frames:
                assert cycles.get(data, acknowledged + 1) > acknowledged, "it is acknowledged, and waits"
                assert data not in first or now - since[data] < wait, "it has waited long enough"

    for sent in range(3000):
        now += random.choice([0, 0, 1])
        later = [each for each, frames in waiting.items() if frames] if random.random() < 0.3 else []
        connection = random.choice(later or [random.randrange(4000)])
        data = frame(connection, sent)
        if random.random() < 0.3:
            assert deferred.enter(data, True, (cycle + 1) % 2**32, now % 2**32)
            waiting.setdefault(connection, []).append(data)
            cycles[data], since[data] = cycle + 1, now
        elif deferred.follows(data):
            assert deferred.enter(data, False, (cycle + 1) % 2**32, now % 2**32)
            waiting.setdefault(connection, []).append(data)
            since[data] = now
            held += 1
        else:
            assert not waiting.get(connection), "it would overtake"
            passed += 1
        if random.random() < 0.05:
            cycle += 1
            acknowledged = cycle - random.randrange(1, 3)
            leave(WAIT_MS)
        elif random.random() < 0.05:
            leave(WAIT_MS)
    assert passed > 1000 and held > 300
    now += WAIT_MS
    leave(WAIT_MS)
    assert deferred.frames == 0

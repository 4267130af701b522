"""Pending frames against a list: which wait, in which order, and when there is no more space."""

from __future__ import annotations

from random import Random

import pytest

from natcore.testhooks.plane import PendingFrames

FRAMES, EACH, CAPACITY, HEAD = (
    1024,
    212_992,
    4 << 20,
    64,
)  # of natcore/io/pending_frames.pxd; HEAD: bytes before a frame at most


@pytest.mark.parametrize("seed", range(20))
def test_frames_leave_as_they_came(seed: int) -> None:
    """Any order of leaving, many times around the ring: none is lost, none is altered, none overtakes another."""
    random, pending, kept = Random(seed), PendingFrames(), list[tuple[int, bytes]]()
    sizes = [60, 60, 1514, 1514, 9000, 65_550]
    for step in range(3000):
        address = random.randint(1, 30)
        data = step.to_bytes(4) + bytes([step & 0xFF]) * (random.choice(sizes) - 4)
        before = sum(len(d) for a, d in kept if a == address)
        if pending.enter(address, data):
            kept.append((address, data))
        else:
            assert before + len(data) > EACH or len(kept) == FRAMES or pending.used + len(data) > CAPACITY - 65_700
        if random.random() < 0.1:
            ready = set(random.sample(range(1, 31), random.randint(1, 10)))
            assert pending.leave(ready) == [one for one in kept if one[0] in ready]
            kept = [one for one in kept if one[0] not in ready]
        assert pending.frames == len(kept)
    assert pending.leave(range(1, 31)) == kept
    assert (pending.frames, pending.used) == (0, 0)


def test_the_largest_datagrams_fragments_may_wait_for_one_next_hop() -> None:
    pending = PendingFrames()
    assert all(pending.enter(7, bytes(1514)) for _ in range(3 * 45))
    assert pending.waiting_for(7) == 3 * 45 * 1514
    assert not all(pending.enter(7, bytes(1514)) for _ in range(45))
    assert pending.waiting_for(7) <= EACH
    assert pending.enter(8, bytes(1514)), "another next hop's are not concerned"


def test_the_room_is_bounded_in_frames_and_bytes() -> None:
    small, large = PendingFrames(), PendingFrames()
    assert [small.enter(1 + i, bytes(60)) for i in range(FRAMES + 1)] == [True] * FRAMES + [False]
    taken = sum(large.enter(1 + i, bytes(65_792)) for i in range(100))
    assert CAPACITY // (65_792 + HEAD) - 1 <= taken <= CAPACITY // 65_792
    assert not PendingFrames().enter(1, bytes(65_793)), "longer than any frame"
    assert large.leave({1}) and large.enter(1, bytes(65_792)), "the first place is free again"

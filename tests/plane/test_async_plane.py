"""A plane in an event loop: stepped when frames wait, other tasks have their turn, what ends it is told to who waits."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from natcore import Error, Gateway
from natcore.plane.async_plane import AsyncPlane


class FakePlane:
    """What AsyncPlane asks of a plane: a descriptor, steps, an end."""

    def __init__(self) -> None:
        self.ready, self.tell = os.pipe()
        self.waiting, self.taken, self.stops = 0, 0, 0
        self.state = "running"
        self.failure: BaseException | None = None

    def come(self, packets: int) -> None:
        self.waiting += packets
        os.write(self.tell, b"x")

    def fail(self, error: BaseException) -> None:
        self.failure, self.state = error, "stopped"
        os.write(self.tell, b"x")

    def fileno(self) -> int:
        return self.ready

    def step(self, budget: int) -> int:
        if self.failure is not None:
            raise self.failure
        moved = min(budget, self.waiting)
        self.waiting -= moved
        self.taken += moved
        if moved and not self.waiting:
            os.read(self.ready, 100)
        return moved

    def counters(self, worker: int | None = None) -> dict[str, int]:
        return {"taken": self.taken}

    def stop(self) -> None:
        self.stops += 1
        self.state = "stopped"


@pytest.fixture
def fake() -> Iterator[FakePlane]:
    made = FakePlane()
    yield made
    os.close(made.ready)
    os.close(made.tell)


def run(fake: FakePlane, story: Callable[[AsyncPlane], Coroutine[Any, Any, None]], budget: int = 256) -> None:
    async def lived() -> None:
        async with AsyncPlane(lambda: fake, budget) as plane:  # type: ignore[arg-type, return-value]
            await story(plane)

    asyncio.run(asyncio.wait_for(lived(), 120))


async def until(condition: Callable[[], bool]) -> int:
    """How many turns others had until the condition held."""
    turns = 0
    while not condition():
        turns += 1
        await asyncio.sleep(0)
    return turns


def test_it_steps_whenever_frames_wait_and_stops_at_the_end(fake: FakePlane) -> None:
    async def story(plane: AsyncPlane) -> None:
        fake.come(100)
        await until(lambda: fake.taken == 100)
        fake.come(5)
        await until(lambda: fake.taken == 105)
        assert plane.counters() == {"taken": 105} and plane.state == "running"
        assert not await plane.wait(timeout=0)

    run(fake, story)
    assert fake.stops == 1


def test_others_have_their_turn_between_budgets(fake: FakePlane) -> None:
    async def story(plane: AsyncPlane) -> None:
        fake.come(1000)
        assert await until(lambda: fake.taken == 1000) >= 90

    run(fake, story, budget=10)


def test_what_ends_it_is_raised_by_wait_and_it_is_stepped_no_more(fake: FakePlane) -> None:
    async def story(plane: AsyncPlane) -> None:
        waiting = asyncio.create_task(plane.wait())
        fake.fail(OSError("the interface burnt"))
        with pytest.raises(OSError, match="burnt"):
            await waiting
        with pytest.raises(OSError, match="burnt"):
            await plane.wait(timeout=0)
        assert plane.state == "stopped"

    run(fake, story)


def test_a_stop_from_elsewhere_ends_the_wait(fake: FakePlane) -> None:
    async def story(plane: AsyncPlane) -> None:
        waiting = asyncio.create_task(plane.wait())
        await asyncio.sleep(0)
        fake.stop()  # Gateway.close() does
        fake.come(1)
        assert await waiting

    run(fake, story)


def test_a_stop_ends_every_wait_and_may_come_twice(fake: FakePlane) -> None:
    async def story(plane: AsyncPlane) -> None:
        waiting = [asyncio.create_task(plane.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        await plane.stop()
        await plane.stop()
        assert await asyncio.gather(*waiting) == [True] * 3

    run(fake, story)


def test_a_wait_that_is_cancelled_cancels_no_other(fake: FakePlane) -> None:
    async def story(plane: AsyncPlane) -> None:
        one, other = (asyncio.create_task(plane.wait()) for _ in range(2))
        await asyncio.sleep(0)
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        await plane.stop()
        assert await other

    run(fake, story)


def test_an_error_in_the_block_stops_the_plane(fake: FakePlane) -> None:
    async def story(plane: AsyncPlane) -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        run(fake, story)
    assert fake.stops == 1


def test_it_is_started_once_and_by_its_block(fake: FakePlane) -> None:
    plane = AsyncPlane(lambda: fake)  # type: ignore[arg-type, return-value]
    with pytest.raises(Error, match="has not been started"):
        plane.counters()

    async def twice() -> None:
        async with plane:
            with pytest.raises(Error, match="started already"):
                await plane.__aenter__()

    asyncio.run(twice())


def test_the_gateways_errors_come_when_the_block_is_entered() -> None:
    async def enter(gateway: Gateway) -> None:
        async with gateway.forward_async(inside="lan0", outside="lan0"):
            raise AssertionError

    with Gateway() as gateway:
        with pytest.raises(Error, match="outside"):
            asyncio.run(enter(gateway))
        with pytest.raises(Error, match="budget"):
            gateway.forward_async(inside="lan0", outside="wan0", budget=0)

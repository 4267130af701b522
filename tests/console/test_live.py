"""Live parts: made once for all who look, and not at all without a viewer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse

from natcore.console.live import MOST_STREAMS, Streams

SCOPE = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.0"}}


class Source:
    """What gives a part's events, and how often it began and ended."""

    def __init__(self) -> None:
        self.begun = self.ended = 0
        self.coming: asyncio.Queue[str | None] = asyncio.Queue()

    async def begin(self) -> AsyncIterator[str]:
        self.begun += 1
        try:
            while (event := await self.coming.get()) is not None:
                yield event
        finally:
            self.ended += 1


def viewed(streams: Streams, source: Source, name: str = "overview") -> StreamingResponse:
    answer = streams.answer(name, source.begin)
    assert isinstance(answer, StreamingResponse)
    return answer


async def next_of(answer: StreamingResponse) -> Any:
    return await anext(aiter(answer.body_iterator))


async def leaves(answer: StreamingResponse) -> None:
    """The browser is gone: the server notices, and ends the answer."""

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        await asyncio.sleep(0)

    await answer(SCOPE, receive, send)
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_part_that_several_look_at_is_made_once() -> None:
    async def life() -> None:
        streams, source, other = Streams(), Source(), Source()
        viewers = [viewed(streams, source) for _ in range(3)]
        await source.coming.put("first")
        for viewer in viewers:
            assert "retry" in await next_of(viewer)
            assert await next_of(viewer) == "first"
        late, elsewhere = viewed(streams, source), viewed(streams, other, "ports")
        assert "retry" in await next_of(late)
        assert await next_of(late) == "first"  # who comes later need not wait for the next one
        await source.coming.put("second")
        assert [await next_of(viewer) for viewer in (*viewers, late)] == ["second"] * 4
        assert (source.begun, other.begun) == (1, 1)
        for viewer in viewers:
            await leaves(viewer)
        assert source.ended == 0
        await leaves(late)
        assert (source.ended, other.ended) == (1, 0)  # without a viewer nothing is asked
        again = viewed(streams, source)
        await leaves(elsewhere)
        await leaves(again)
        assert (source.begun, source.ended, other.ended) == (2, 2, 1)

    asyncio.run(life())


def test_a_part_that_is_over_ends_for_all_and_begins_anew() -> None:
    async def life() -> None:
        streams, source = Streams(), Source()
        viewers = [viewed(streams, source) for _ in range(2)]
        await source.coming.put("last")
        await source.coming.put(None)
        for viewer in viewers:
            assert [str(event) async for event in viewer.body_iterator][-1] == "last"
        assert source.ended == 1
        again = viewed(streams, source)
        await source.coming.put("anew")
        assert "retry" in await next_of(again)
        assert await next_of(again) == "anew"
        for viewer in (*viewers, again):
            await leaves(viewer)
        assert (source.begun, source.ended) == (2, 2)

    asyncio.run(life())


def test_so_many_streams_and_no_more() -> None:
    async def life() -> None:
        streams, source = Streams(), Source()
        viewers = [viewed(streams, source) for _ in range(MOST_STREAMS)]
        assert streams.answer("overview", source.begin).status_code == 503
        await leaves(viewers.pop())
        viewers.append(viewed(streams, source))
        for viewer in viewers:
            await leaves(viewer)
        assert (source.begun, source.ended) == (1, 1)

    asyncio.run(life())

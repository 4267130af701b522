"""Live parts of pages: server-sent events, each the part's HTML anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress

from natcore.errors import ControlError
from natcore.internal.extras import extra

with extra("console"):
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import PlainTextResponse, Response, StreamingResponse
    from starlette.types import Receive, Scope, Send

MOST_STREAMS = 24  # at once, of all pages and gateways: the control socket has places for 64 clients
RETRY_MS = 5000  # until a browser connects again


class Streams:
    """The streams that are open; each is a page that someone looks at. A part that many look at is made once for all."""

    def __init__(self) -> None:
        self._open = 0
        self._parts: dict[str, _Part] = {}

    def answer(self, name: str, begin: Callable[[], AsyncIterator[str]]) -> Response:
        """Return the answer that is the stream; or, where no more may be opened, that there are too many.

        name: streams of one name are the same part. begin: what gives it; called for the first of them.
        """
        if self._open >= MOST_STREAMS:
            return PlainTextResponse("too many live pages", 503)
        self._open += 1  # from now on: many that are asked for at once are counted before the first part of any
        part = self._parts.get(name)
        if part is None or part.is_over:
            part = self._parts[name] = _Part(begin())
        part.viewers += 1

        def leave() -> None:
            self._open -= 1
            part.viewers -= 1
            if not part.viewers:
                part.end()
                if self._parts.get(name) is part:
                    del self._parts[name]

        return _Stream(part.followed(), leave)

    async def repeated(self, make: Callable[[], str], seconds: float) -> AsyncIterator[str]:
        """Yield a part again and again. make: its HTML, made in a thread; ControlError: what is said instead."""
        while True:
            await asyncio.sleep(seconds)
            try:
                yield _event("part", await run_in_threadpool(make))
            except ControlError as error:
                yield _event("problem", str(error))

    async def followed(self, rows: Iterator[str], close: Callable[[], None]) -> AsyncIterator[str]:
        """Yield what an iterator gives, which waits in a thread. close: ends it."""
        try:
            while (found := await run_in_threadpool(_next, rows)) is not None:
                yield _event("part", found)
        finally:
            close()


class _Part:
    """A live part: what its last event was, and who waits for the next one."""

    def __init__(self, events: AsyncIterator[str]) -> None:
        self.viewers = 0
        self.is_over = False
        self._last, self._number = "", 0
        self._next = asyncio.Event()
        self._task = asyncio.ensure_future(self._follow(events))

    def end(self) -> None:
        """Make no more of it: no page looks any more."""
        self._task.cancel()

    async def _follow(self, events: AsyncIterator[str]) -> None:
        try:
            async for self._last in events:
                self._number += 1
                self._tell()
        finally:
            self.is_over = True
            self._tell()

    def _tell(self) -> None:
        told, self._next = self._next, asyncio.Event()
        told.set()

    async def followed(self) -> AsyncIterator[str]:
        """Yield its events for one viewer, the last one first."""
        yield f"retry: {RETRY_MS}\n\n"
        seen = 0
        while True:
            coming = self._next
            if self._number != seen:
                seen = self._number
                yield self._last
            elif self.is_over:
                return
            else:
                await coming.wait()


class _Stream(StreamingResponse):
    """A stream as an answer. end: called when it is over, however it ends."""

    def __init__(self, parts: AsyncIterator[str], end: Callable[[], None]) -> None:
        super().__init__(parts, media_type="text/event-stream", headers={"x-accel-buffering": "no"})
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()


def _next(rows: Iterator[str]) -> str | None:
    with suppress(ControlError):  # the gateway is gone: the browser tries again
        return next(rows, None)
    return None


def _event(kind: str, data: str) -> str:
    lines = "".join(f"data: {line}\n" for line in data.splitlines() or [""])
    return f"event: {kind}\n{lines}\n"

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
    """The streams that are open; each is a page that someone looks at."""

    def __init__(self) -> None:
        self._open = 0

    def answer(self, parts: AsyncIterator[str]) -> Response:
        """Return the answer that is the stream; or, where no more may be opened, that there are too many."""
        if self._open >= MOST_STREAMS:
            return PlainTextResponse("too many live pages", 503)
        self._open += 1  # from now on: many that are asked for at once are counted before the first part of any
        return _Stream(parts, self._leave)

    def _leave(self) -> None:
        self._open -= 1

    async def repeated(self, make: Callable[[], str], seconds: float) -> AsyncIterator[str]:
        """Yield a part again and again. make: its HTML, made in a thread; ControlError: what is said instead."""
        yield f"retry: {RETRY_MS}\n\n"
        while True:
            await asyncio.sleep(seconds)
            try:
                yield _event("part", await run_in_threadpool(make))
            except ControlError as error:
                yield _event("problem", str(error))

    async def followed(self, rows: Iterator[str], close: Callable[[], None]) -> AsyncIterator[str]:
        """Yield what an iterator gives, which waits in a thread. close: ends it."""
        try:
            yield f"retry: {RETRY_MS}\n\n"
            while (found := await run_in_threadpool(_next, rows)) is not None:
                yield _event("part", found)
        finally:
            close()


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

"""Live parts of pages: server-sent events, each the part's HTML anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress

from natcore.errors import ControlError
from natcore.internal.extras import extra

with extra("console"):
    from starlette.concurrency import run_in_threadpool

MOST_STREAMS = 24  # at once, of all pages and gateways: the control socket has places for 64 clients
RETRY_MS = 5000  # until a browser connects again


class Streams:
    """The streams that are open; each is a page that someone looks at."""

    def __init__(self) -> None:
        self._open = 0

    @property
    def full(self) -> bool:
        """Whether no more may be opened."""
        return self._open >= MOST_STREAMS

    async def repeated(self, make: Callable[[], str], seconds: float) -> AsyncIterator[str]:
        """Yield a part again and again. make: its HTML, made in a thread; ControlError: what is said instead."""
        with self._one():
            yield f"retry: {RETRY_MS}\n\n"
            while True:
                await asyncio.sleep(seconds)
                try:
                    yield _event("part", await run_in_threadpool(make))
                except ControlError as error:
                    yield _event("problem", str(error))

    async def followed(self, rows: Iterator[str], close: Callable[[], None]) -> AsyncIterator[str]:
        """Yield what an iterator gives, which waits in a thread. close: ends it."""
        with self._one():
            try:
                yield f"retry: {RETRY_MS}\n\n"
                while (found := await run_in_threadpool(_next, rows)) is not None:
                    yield _event("part", found)
            finally:
                close()

    @contextmanager
    def _one(self) -> Iterator[None]:
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


def _next(rows: Iterator[str]) -> str | None:
    with suppress(ControlError):  # the gateway is gone: the browser tries again
        return next(rows, None)
    return None


def _event(kind: str, data: str) -> str:
    lines = "".join(f"data: {line}\n" for line in data.splitlines() or [""])
    return f"event: {kind}\n{lines}\n"

"""A browser's connection: who connects and asks nothing gives the place back, so that none can take them all."""

from __future__ import annotations

from asyncio import BaseTransport, TimerHandle

from natcore.internal.extras import extra

with extra("console"):
    from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0  # from the first byte of a request, or the connection's begin, to the end of the request's head


class Connection(H11Protocol):
    """A connection that is closed where the head of a request takes longer than HEAD_SECONDS."""

    _limit: TimerHandle | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        """Wait for a request."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take a piece of a request."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        super().connection_lost(exc)
        self._rest()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._rest()  # a request is here, and its answer takes as long as it takes
        elif self._limit is None:
            self._limit = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _rest(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

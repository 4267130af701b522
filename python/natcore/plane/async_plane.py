"""AsyncPlane: a plane that an asyncio event loop steps, without a thread that moves packets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from natcore.choices import PlaneState
from natcore.errors import Error
from natcore.plane.plane import Plane

TICK_SECONDS = 0.25  # what is only due by the clock: expiry, retries, links


class AsyncPlane:
    """A gateway that forwards within an asyncio event loop: an asynchronous context manager, made by Gateway.forward_async.

    The loop steps the plane whenever frames wait, a budget of packets at a time, so that other tasks have their turn. What
    else the loop does delays packets: a plane with threads of its own does not wait for Python. The start takes the loop's
    time for some hundredths of a second; the stop does not.
    """

    def __init__(self, make: Callable[[], Plane], budget: int = 256) -> None:
        self._make = make
        self._budget = budget
        self._plane: Plane | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> AsyncPlane:
        if self._plane is not None:
            raise Error("the plane has been started already; forward_async makes another one")
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._plane = self._make()
        self._loop.add_reader(self._plane.fileno(), self._step)
        self._tick()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def plane(self) -> Plane:
        """The plane itself: its counters, its interfaces. Error: it has not been started."""
        if self._plane is None:
            raise Error("the plane has not been started: async with gateway.forward_async(…) starts it")
        return self._plane

    @property
    def state(self) -> PlaneState:
        """One of "running", "degraded" (an interface is down or away), "stopped"."""
        return self.plane.state

    def counters(self, worker: int | None = None) -> dict[str, int]:
        """Return what `Plane.counters` does."""
        return self.plane.counters(worker)

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until the plane ends.

        Parameters
        ----------
        timeout
            Seconds; None: as long as it takes.

        Returns
        -------
        bool
            Whether it has ended.

        Raises
        ------
        BaseException
            What ended the plane, if it failed.
        """
        done, _ = await asyncio.wait([self._end()], timeout=timeout)
        if done:
            self._ended.result()
        return bool(done)

    async def stop(self) -> None:
        """End forwarding within a second; the loop goes on meanwhile. Idempotent."""
        plane = self.plane
        self._leave()
        await asyncio.to_thread(plane.stop)
        if not self._ended.done():
            self._ended.set_result(None)

    def _end(self) -> asyncio.Future[None]:
        """Done when the plane has ended. Error: it has not been started."""
        assert self.plane
        return self._ended

    def _leave(self) -> None:
        """The loop has nothing more to do with the plane."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._loop.remove_reader(self.plane.fileno())

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK_SECONDS, self._tick)
        self._step()

    def _step(self) -> None:
        try:
            self.plane.step(self._budget)
        except BaseException as error:
            self._leave()
            if not self._ended.done():
                self._ended.set_exception(error)
                self._ended.exception()  # it was looked at: a plane that is not waited for fails without a word of asyncio's
            return
        if self.plane.state == "stopped" and self._timer is not None:
            self._leave()
            if not self._ended.done():
                self._ended.set_result(None)

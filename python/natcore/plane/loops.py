"""Loops: a plane's workers, each with a loop of its own over every interface; a setting goes to all of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from natcore.api.gateway import Core
from natcore.api.plane import PlaneLoop
from natcore.errors import CapacityError
from natcore.internal import threads
from natcore.io.device import Driver
from natcore.io.fast_path import FastPath
from natcore.io.frame_view import FrameView


class Loops:
    """One PlaneLoop for each worker of core. Its calls are those of a PlaneLoop, for all of them; see there.

    interfaces: how many. offset_ns: the gateway's clock - monotonic. requests_fd: eventfd, readable when a next hop is to be
    resolved.
    """

    def __init__(self, core: Core, workers: int, interfaces: int, offset_ns: int, requests_fd: int) -> None:
        self.wake_fds: list[int] = []
        self._threads: list[threading.Thread] = []
        for _ in range(workers):
            self.wake_fds.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        self._loops = [
            PlaneLoop(core.worker_capsule(worker), core, offset_ns, wake_fd, requests_fd, interfaces)
            for worker, wake_fd in enumerate(self.wake_fds)
        ]

    def __del__(self) -> None:
        for descriptor in self.wake_fds:
            os.close(descriptor)

    # ---- running ----------------------------------------------------------------------------------------------------

    def start(self, cpus: Sequence[int], failed: Callable[[BaseException], None]) -> None:
        """A thread for each, bound to its processor of cpus if there are any. failed: called with the error that ended one."""

        def work(loop: PlaneLoop, cpu: Sequence[int]) -> None:
            try:
                if cpu:
                    os.sched_setaffinity(0, cpu)  # of this thread
                loop.run()
            except BaseException as error:
                failed(error)

        for worker, loop in enumerate(self._loops):
            self._threads.append(threads.start(f"natcore-w{worker}", work, loop, cpus[worker : worker + 1]))

    def step(self, budget: int) -> int:
        """Move about budget frames at most, each worker its part; return how many."""
        share = max(1, budget // len(self._loops))
        return sum(loop.step(share) for loop in self._loops)

    def wake(self) -> None:
        """Wake the loops that wait for wake_fds."""
        for descriptor in self.wake_fds:
            with suppress(BlockingIOError):
                os.eventfd_write(descriptor, 1)

    def close(self) -> None:
        """End all loops, then close their drivers. Idempotent."""
        self._stop()
        for loop in self._loops:
            loop.close()

    def leave(self, interfaces: Iterable[int]) -> list[list[Driver | None]]:
        """End all loops, and give their drivers of these interfaces, which stay open."""
        self._stop()
        left = [[loop.release(number) for loop in self._loops] for number in interfaces]
        for loop in self._loops:
            loop.close()
        return left

    def _stop(self) -> None:
        for loop in self._loops:
            loop.stop()
        for thread in self._threads:
            thread.join()

    # ---- settings of all loops -----------------------------------------------------------------------------------------

    def attach(self, number: int, drivers: Sequence[Driver], mac: bytes) -> None:
        for loop, driver in zip(self._loops, drivers, strict=True):
            loop.attach(number, driver, mac)

    def detach(self, number: int) -> None:
        for loop in self._loops:
            loop.detach(number)

    def set_fast_path(self, fast_path: FastPath | None) -> None:
        self._loops[0].set_fast_path(fast_path)  # a plane with one has one worker

    def set_redirects(self, number: int, redirects: bool) -> None:
        for loop in self._loops:
            loop.set_redirects(number, redirects)

    def set_tap(self, number: int, tap: Driver | None) -> None:
        self._loops[0].set_tap(number, tap)  # its frames are the first worker's

    def set_mac(self, number: int, mac: bytes) -> None:
        for loop in self._loops:
            loop.set_mac(number, mac)

    def set_address(self, number: int, address: int) -> None:
        for loop in self._loops:
            loop.set_address(number, address)

    def set_mtu(self, number: int, mtu: int) -> None:
        for loop in self._loops:
            loop.set_mtu(number, mtu)

    def set_local(self, addresses: set[int]) -> None:
        for loop in self._loops:
            loop.set_local(addresses)

    def set_routes(self, over: int, starts: Sequence[int], vias: Sequence[int], interfaces: Sequence[int]) -> None:
        for loop in self._loops:
            loop.set_routes(over, starts, vias, interfaces)

    def learn(self, number: int, address: int, mac: bytes | None, failed: bool) -> None:
        for loop in self._loops:
            loop.learn(number, address, mac, failed)

    def set_offset(self, offset_ns: int) -> None:
        for loop in self._loops:
            loop.set_offset(offset_ns)

    def announce(self) -> None:
        self._loops[0].announce()  # once, not by each

    def attach_view(self, view: FrameView) -> None:
        """Raises CapacityError: there are too many views."""
        for loop in self._loops:
            if not loop.attach_view(view):
                self.detach_view(view)
                raise CapacityError("too many watch the frames of this plane")

    def detach_view(self, view: FrameView) -> None:
        for loop in self._loops:
            loop.detach_view(view)

    # ---- requests of the loops ---------------------------------------------------------------------------------------------

    def take_resolve_requests(self) -> list[tuple[int, int]]:
        return sorted({request for loop in self._loops for request in loop.take_resolve_requests()})

    def take_used(self, number: int) -> list[int]:
        return sorted({address for loop in self._loops for address in loop.take_used(number)})

    def turned(self) -> dict[str, float]:
        """When each loop turned last, by its thread's name: seconds of CLOCK_MONOTONIC, 0.0: not yet."""
        return {f"natcore-w{worker}": loop.turned_ns / 1e9 for worker, loop in enumerate(self._loops)}

    def in_pool(self, addresses: set[int]) -> set[int]:
        return self._loops[0].in_pool(addresses)

    def pool(self) -> bytes:
        return self._loops[0].pool()

    def shared(self) -> dict[int, bytes]:
        return self._loops[0].shared()

    def counters(self, worker: int) -> dict[str, int]:
        """worker: -1 for all."""
        return added(loop.counters() for loop in self._of(worker))

    def interface_counters(self, number: int, worker: int) -> dict[str, int]:
        return added(loop.interface_counters(number) for loop in self._of(worker))

    def _of(self, worker: int) -> list[PlaneLoop]:
        return self._loops if worker < 0 else [self._loops[worker]]


def added(counters: Iterable[dict[str, int]]) -> dict[str, int]:
    """The sums by name."""
    total: dict[str, int] = {}
    for each in counters:
        for name, value in each.items():
            total[name] = total.get(name, 0) + value
    return total

"""Serializes the calls that change a gateway, from any thread; and marks gateways in a forked child."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from types import TracebackType

from natcore.errors import Error


class ChangeLock:
    """A lock for calls, not for data. A nested call of the same thread, as from a signal handler, raises Error."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.held = False  # a call is under way

    def __enter__(self) -> None:
        self._lock.acquire()
        if self.held:  # by this thread
            self._lock.release()
            raise Error(
                "this thread is changing the gateway already; a signal handler or a callback within such a call may "
                "look at it, and change it afterwards"
            )
        self.held = True

    def try_enter(self) -> bool:
        """As entering it, but without waiting; whether it is entered. `leave` undoes that."""
        if not self._lock.acquire(blocking=False):
            return False
        if self.held:
            self._lock.release()
            return False
        self.held = True
        return True

    def leave(self) -> None:
        self.held = False
        self._lock.release()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave()


_forked: dict[int, weakref.WeakMethod[Callable[[], None]]] = {}


def after_fork(method: Callable[[], None]) -> None:
    """Have a method called in the children of this process; its object is not kept alive."""
    reference = weakref.WeakMethod(method, lambda gone: _forked.pop(id(gone), None))
    _forked[id(reference)] = reference


def _in_child() -> None:
    for reference in list(_forked.values()):
        method = reference()
        if method is not None:
            method()


os.register_at_fork(after_in_child=_in_child)

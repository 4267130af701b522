"""Serializes the calls that change a gateway, from any thread; and marks gateways in a forked child."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from natcore.errors import Error

Owner = TypeVar("Owner")


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


_forked: weakref.WeakKeyDictionary[object, Callable[[Any], None]] = weakref.WeakKeyDictionary()


def after_fork(owner: Owner, call: Callable[[Owner], None]) -> None:
    """Have call(owner) made in the children of this process; the owner is not kept alive."""
    _forked[owner] = call


def _in_child() -> None:
    for owner, call in list(_forked.items()):
        call(owner)


os.register_at_fork(after_in_child=_in_child)

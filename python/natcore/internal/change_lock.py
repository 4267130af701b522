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

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.held = False
        self._lock.release()


_forked: weakref.WeakSet[object] = weakref.WeakSet()


def after_fork(owner: object) -> None:
    """Have owner._forked() called in the children of this process; the owner is not kept alive."""
    _forked.add(owner)


def _in_child() -> None:
    for owner in list(_forked):
        call: Callable[[], None] = owner._forked  # type: ignore[attr-defined]
        call()


os.register_at_fork(after_in_child=_in_child)

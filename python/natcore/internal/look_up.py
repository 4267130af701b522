"""Looking up a receiver's name with a time limit: the system's resolver has none of its own that a caller could set."""

from __future__ import annotations

import errno
import os
import socket
import threading
from contextlib import suppress
from typing import Any

from natcore.errors import CapacityError
from natcore.internal import threads

Found = list[tuple[Any, Any, int, str, Any]]  # as socket.getaddrinfo has it


class _LookUp:
    """A look-up in a thread of its own, which ends when the resolver answers."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.found: Found = []
        self.error: Exception | None = None


# A resolver that hangs holds one thread for each name, however often delivery is tried. By process: a fork has no threads.
_under_way: dict[tuple[object, ...], _LookUp] = {}


def look_up(host: str, port: int, kind: int, seconds: float) -> Found:
    """Return the addresses of the name, as socket.getaddrinfo. Raises OSError; TimeoutError: not within `seconds`."""
    with suppress(socket.gaierror):
        return socket.getaddrinfo(host, port, type=kind, flags=socket.AI_NUMERICHOST)  # asks no resolver
    key = (os.getpid(), host, port, kind)
    mine = _LookUp()
    shared = _under_way.setdefault(key, mine)
    if shared is mine:
        try:
            threads.start("natcore-look-up", _run, key, mine)
        except CapacityError as error:
            _under_way.pop(key, None)
            raise OSError(errno.EAGAIN, f"the name is not looked up: {error}") from error
    if not shared.done.wait(seconds):
        raise TimeoutError(errno.ETIMEDOUT, "the resolver has not answered")
    if shared.error is not None:
        raise shared.error
    return shared.found


def _run(key: tuple[Any, ...], look_up: _LookUp) -> None:
    _, host, port, kind = key
    try:
        look_up.found = socket.getaddrinfo(host, port, type=kind)
    except Exception as error:  # raised where it is waited for
        look_up.error = error
    finally:
        _under_way.pop(key, None)
        look_up.done.set()

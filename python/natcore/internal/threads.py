"""Threads with names that ps, top and gdb show: at most 15 bytes, as the kernel has them."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from natcore.errors import CapacityError

_SET_NAME = 15  # PR_SET_NAME
_MOST_BYTES = 15


def start(name: str, target: Callable[..., object], *arguments: object) -> threading.Thread:
    """Start a daemon thread. Raises CapacityError."""
    thread = made(name, target, *arguments)
    thread.start()
    return thread


def made(name: str, target: Callable[..., object], *arguments: object) -> threading.Thread:
    """Return a daemon thread that is not started yet."""
    name = name.encode()[:_MOST_BYTES].decode(errors="ignore")

    def run() -> None:
        set_name(name)
        target(*arguments)

    return _Thread(target=run, name=name, daemon=True)


class _Thread(threading.Thread):
    def start(self) -> None:
        """Start the thread. Raises CapacityError: the system has none left (memory, RLIMIT_NPROC, a control group's limit)."""
        try:
            super().start()
        except RuntimeError as error:
            raise CapacityError(f"thread {self.name} did not start: {error}") from error


def set_names(name: str) -> None:
    """Set the kernel's name of all present threads, such as those of libraries; threads that they start inherit it."""
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has just ended
            (task / "comm").write_text(name)


def set_name(name: str) -> None:
    """Set the calling thread's name in the kernel; threads that it starts without one inherit it."""
    ctypes.CDLL(None).prctl(_SET_NAME, name.encode()[:_MOST_BYTES], 0, 0, 0)

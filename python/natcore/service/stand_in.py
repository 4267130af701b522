"""What a `natcore run` becomes that has a successor, and was started by a program that no one can tell of another main process.

It is the parent of all successors, passes its signals on to them, and ends with the last one's status. It imports little, and
runs as a program of its own: `python stand_in.py`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

VARIABLE = "NATCORE_STAND_IN"  # in a successor's environment: the number of this process
STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
PASSED_ON = (*STOP, signal.SIGHUP, signal.SIGUSR1)
_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class StandIn:
    """The process that stands in for this one, where it has one."""

    def __init__(self) -> None:
        given = os.environ.get(VARIABLE, "")
        self._number = int(given) if given.isdecimal() else 0
        self._is_parent = False

    @property
    def is_there(self) -> bool:
        """Whether there is one; else this process becomes it when it has a successor, and no manager to tell."""
        return bool(self._number)

    @property
    def environment(self) -> dict[str, str]:
        """What a successor must know."""
        return {VARIABLE: str(self._number or os.getpid())}

    def is_gone(self) -> bool:
        """Return whether it was this process's parent and is no more: who killed it meant the service."""
        parent = os.getppid()
        self._is_parent = self._is_parent or parent == self._number
        return self._is_parent and parent != self._number


def become(successor: int, asked: Sequence[int]) -> None:
    """Replace this process's program; it does not return. asked: signals so far; one that ends the service is passed on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (*PASSED_ON, signal.SIGCHLD))  # what comes now waits for the other program
    for number in set(asked) & set(STOP):
        with suppress(ProcessLookupError):
            os.kill(successor, number)
    os.execv(sys.executable, [sys.executable, "-I", "-S", str(Path(__file__).absolute())])


def main() -> int:
    """Wait for the children; return the last one's status, as a shell has it."""
    awaited = (*PASSED_ON, signal.SIGCHLD)
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    last, stop = 0, 0
    while True:
        try:
            while True:
                number, status = os.waitpid(-1, os.WNOHANG)
                if not number:
                    break
                last = os.waitstatus_to_exitcode(status)
                _pass_on(stop)  # it may have been that one's successor that was meant
        except ChildProcessError:
            return last if last >= 0 else 128 - last
        received = signal.sigwait(awaited)
        if received in STOP:
            stop = received
        if received != signal.SIGCHLD:
            _pass_on(received)


def _pass_on(number: int) -> None:
    for child in _children() if number else ():
        with suppress(ProcessLookupError):
            os.kill(child, number)


def _children() -> list[int]:
    return [int(each) for each in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


if __name__ == "__main__":
    sys.exit(main())

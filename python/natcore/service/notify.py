"""What a service tells systemd: READY, RELOADING, STATUS, WATCHDOG, STOPPING (sd_notify(3)); nothing where no one listens."""

from __future__ import annotations

import os
import select
import socket
import time
from array import array
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

_STATUS_SECONDS = 5.0  # between two changes of the status line
_BARRIER_SECONDS = 2.0  # that the manager may need to take descriptors


class Notifier:
    """Sends datagrams to the manager that started this process; a failure is never more than a message not sent.

    It takes NOTIFY_SOCKET and WATCHDOG_USEC out of the environment: programs that are started get neither.

    environment: where these are. clock: seconds of CLOCK_MONOTONIC.
    """

    def __init__(
        self, environment: Mapping[str, str] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        given = os.environ if environment is None else environment
        self._given = address = given.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._clock = clock
        self._watchdog = _watchdog_seconds(given)
        self._petted = self._told = -float("inf")
        self._status = ""
        if environment is None:
            for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
                os.environ.pop(name, None)

    @property
    def watchdog(self) -> float | None:
        """Seconds after which the manager takes the service for dead; None: it does not."""
        return self._watchdog

    @property
    def is_heard(self) -> bool:
        """Whether there is a manager that listens."""
        return bool(self._address)

    @property
    def environment(self) -> dict[str, str]:
        """What another process needs to tell the same manager."""
        told = {"NOTIFY_SOCKET": self._given} if self._address else {}
        return told if self._watchdog is None else {**told, "WATCHDOG_USEC": str(round(self._watchdog * 1e6))}

    def main_process(self, number: int) -> None:
        """From now on the service's main process is another one."""
        self._send(f"MAINPID={number}")

    def ready(self) -> None:
        """The service works, or works again after a reload."""
        self._send("READY=1")

    def reloading(self) -> None:
        """A reload begins; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={round(self._clock() * 1e6)}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def keep(self, descriptors: Mapping[str, int]) -> None:
        """Have the manager keep descriptors, by their names, for the unit's next process. Returns when it has them."""
        for name, descriptor in descriptors.items():  # FDPOLL: a link that goes down is no reason to close its ring
            self._send(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", descriptor)
        if self._address:
            ours, theirs = os.pipe2(os.O_CLOEXEC)
            self._send("BARRIER=1", theirs)
            os.close(theirs)
            select.select([ours], [], [], _BARRIER_SECONDS)  # it closes the other end
            os.close(ours)

    def forget(self, names: Iterable[str]) -> None:
        """Have the manager keep these no more."""
        for name in names:
            self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def status(self, text: str) -> None:
        """Tell what `systemctl status` shows, one line; at most each few seconds, the first at once."""
        now = self._clock()
        if text != self._status and now - self._told >= _STATUS_SECONDS:
            self._status, self._told = text, now
            self._send(f"STATUS={' '.join(text.split())}")

    def pet(self, alive: Callable[[], bool]) -> None:
        """Pet the watchdog if it is time and `alive` says that all goes on; call it often."""
        now = self._clock()
        if self._watchdog is not None and now - self._petted >= self._watchdog / 4 and alive():
            self._petted = now
            self._send("WATCHDOG=1")

    def _send(self, message: str, *descriptors: int) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(_BARRIER_SECONDS if descriptors else 0.0)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
            sender.sendmsg([message.encode()], rights, 0, self._address)


def _watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """WATCHDOG_USEC, where it is meant for this process (sd_watchdog_enabled(3))."""
    with suppress(ValueError):
        if int(environment.get("WATCHDOG_PID", os.getpid())) == os.getpid():
            microseconds = int(environment["WATCHDOG_USEC"]) if "WATCHDOG_USEC" in environment else 0
            return microseconds / 1e6 if microseconds > 0 else None
    return None

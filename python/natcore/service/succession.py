"""A restart without a pause: `natcore run` starts its successor beside itself, and hands the gateway over once that is ready.

Theory of operation: the two share a socket pair, and no one else has an end of it. The successor imports everything, reads its
file and checks it, while its predecessor forwards; then it says "ready". Until here nothing has changed, and whatever goes
wrong ends the successor alone. The predecessor stops its loops, saves the gateway into memory, and gives it away together with
the plane's open descriptors (plane/left_plane.py): packets that come from now on wait in the rings. The successor restores,
forwards, and says so. If it cannot, it gives the gateway back, and the predecessor goes on with it; if it dies, the
predecessor goes on with what it gave. Messages are JSON objects with a "step", one a datagram, with descriptors beside them
(SCM_RIGHTS).
"""

from __future__ import annotations

import gc
import io
import json
import os
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

from natcore.errors import Error
from natcore.internal import threads
from natcore.internal.closing import Closing
from natcore.plane.left_plane import LeftInterface, LeftPlane
from natcore.service import privileges

VERSION = 1  # of the messages
VARIABLE = "NATCORE_PREDECESSOR"  # in the environment: the successor's end of the socket pair
READY_SECONDS = 120.0  # to import, to read the file and to check it
FORWARDING_SECONDS = 60.0  # to restore, to start the session logs and to forward
_MOST_BYTES = 1 << 17  # of a message; an interface of 16 workers has some KB
_MOST_DESCRIPTORS = 253  # SCM_MAX_FD
_POLL_SECONDS = 0.1
_DEFAULT = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores these, and a program that it starts would


class SuccessionError(Error):
    """The restart did not take place; this process goes on. The message says why.

    is_sure: the successor has logged nothing that the estate does not know; else the session logs begin a run of their own, so
    that two rows never have one name.
    """

    is_sure = True


@dataclass
class Estate(Closing):
    """What is handed over: the gateway's state, a file in memory that is read from its begin, and what the plane has left.
    since: when the plane stopped, seconds of CLOCK_MONOTONIC."""

    state: BinaryIO
    plane: LeftPlane | None = None
    since: float = 0.0
    is_sure: bool = True  # the session logs go on

    def close(self) -> None:
        """Close what no one has taken. Idempotent."""
        self.state.close()
        if self.plane is not None:
            self.plane.close()


def file_in_memory() -> BinaryIO:
    """Return an empty file that has no name and goes with its last descriptor."""
    return os.fdopen(os.memfd_create("natcore-state", os.MFD_CLOEXEC), "w+b", buffering=0)


def driver_of(plane: Mapping[str, Any]) -> str:
    """Return the driver of a file's [plane]."""
    return str(plane.get("driver", "af_packet"))


def rehearse() -> None:
    """Take over a gateway without packets once, so that everything is imported and at hand: packets wait for the real one.

    No garbage is collected from here on until `gc.enable`: a whole collection would take as long as all the rest.
    """
    from natcore.config import Policy
    from natcore.control.verb import verbs
    from natcore.gateway import Gateway
    from natcore.plane.host_ports import HostPorts
    from natcore.plane.links import look_once
    from natcore.sinks.memory import MemorySink

    verbs()
    look_once()
    HostPorts(Policy()).of(0)
    state = io.BytesIO()
    with tempfile.TemporaryDirectory(prefix="natcore-") as spool:
        with Gateway(max_sessions=16) as gateway:
            gateway.start_session_log(MemorySink(), spool=spool)
            gateway.hand_over(state, at_once=True)
        state.seek(0)
        with Gateway.restore(state, resume=True) as gateway:
            gateway.start_session_log(MemorySink(), spool=spool)
    gc.collect()
    gc.freeze()
    gc.disable()


class Restart:
    """A restart that was asked for, and its end. successor: ready to take over."""

    def __init__(self, successor: Successor) -> None:
        self.successor = successor
        self._done = threading.Event()
        self._told: dict[str, Any] = {}
        self._error: BaseException | None = None

    def succeed(self, told: dict[str, Any]) -> None:
        """The successor forwards. told: of that."""
        self._told = told
        self._done.set()

    def fail(self, error: BaseException) -> None:
        """It does not."""
        self._error = error
        self._done.set()

    def wait(self) -> dict[str, Any]:
        """Wait for either. Raises SuccessionError."""
        self._done.wait()
        if self._error is not None:
            raise SuccessionError(str(self._error)) from self._error
        return self._told


class _Line(Closing):
    """An end of the socket pair."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def fileno(self) -> int:
        return self._socket.fileno()

    def say(self, step: str, descriptors: Sequence[int] = (), **fields: Any) -> None:
        """Raises OSError: the other end is gone."""
        socket.send_fds(self._socket, [json.dumps({"step": step, **fields}).encode()], list(descriptors))

    def hear(self, timeout: float | None, goes_on: Any = lambda: True) -> tuple[dict[str, Any], list[int]]:
        """Return the next message and its descriptors. goes_on: asked now and then whether to wait still.

        Raises EOFError: the other end is gone, TimeoutError.
        """
        end = None if timeout is None else time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while not poll.poll(_POLL_SECONDS * 1000):
            if not goes_on() or (end is not None and time.monotonic() >= end):
                raise TimeoutError
        try:
            data, descriptors, _, _ = socket.recv_fds(self._socket, _MOST_BYTES, _MOST_DESCRIPTORS)
        except OSError as error:
            raise EOFError from error
        if not data:
            raise EOFError
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        return json.loads(data), list(descriptors)

    def give(self, estate: Estate) -> None:
        """Send an estate; its descriptors here are still open. Raises OSError."""
        plane = estate.plane
        for interface in () if plane is None else plane.interfaces.values():
            self.say("interface", interface.descriptors(), interface=interface.encode())
        ruleset = None if plane is None else plane.ruleset
        kept = [estate.state.fileno(), *([] if ruleset is None else ruleset[:1])]
        sequence = None if ruleset is None else ruleset[1]
        self.say("estate", kept, kind=None if plane is None else plane.kind, sequence=sequence, since=estate.since)

    def take(self, message: Mapping[str, Any], descriptors: list[int]) -> Estate:
        """Return the estate, of which the first message has come. Raises EOFError, TimeoutError, ValueError."""
        interfaces: dict[str, LeftInterface] = {}
        while message["step"] == "interface":
            found = LeftInterface.decode(message["interface"], descriptors)
            interfaces[found.name] = found
            message, descriptors = self.hear(READY_SECONDS)
        state, *ruleset = descriptors
        plane = None
        if message["kind"] is not None:
            driver, at_once, workers, unit = message["kind"]
            plane = LeftPlane(
                (driver, at_once, workers, unit), (ruleset[0], message["sequence"]) if ruleset else None, interfaces
            )
        os.lseek(state, 0, os.SEEK_SET)
        return Estate(os.fdopen(state, "r+b", buffering=0), plane, float(message["since"]))

    def close(self) -> None:
        self._socket.close()


class Successor(Closing):
    """The process that is to go on, as its predecessor sees it. A context manager that lets it go."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """Start it, with this process's command and environment. environment: more of it. Raises SuccessionError."""
        own, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line = _Line(own)
        self._pid = 0
        self._is_main = False
        self._process = -1  # its pidfd, once it is ready
        command = [sys.executable, *sys.orig_argv[1:]]
        its.set_inheritable(True)
        more = {**os.environ, **(environment or {}), VARIABLE: str(its.fileno())}
        failed: list[OSError] = []

        def start() -> None:
            privileges.pass_on()  # this thread's alone, and its children's
            try:
                self._pid = os.posix_spawn(command[0], command, more, setsigdef=_DEFAULT)
            except OSError as error:
                failed.append(error)

        thread = threads.start("natcore-restart", start)
        thread.join()
        its.close()
        if not self._pid:
            own.close()
            raise SuccessionError(f"{command[0]} cannot be started: {failed[0] if failed else 'unknown'}")

    @property
    def pid(self) -> int:
        return self._pid

    def wait_ready(self, driver: str) -> None:
        """Wait until it can take over. driver: of this process's plane; it has the rights for that. Raises SuccessionError."""
        told = self._hear("ready", READY_SECONDS)
        if told["pid"] != self._pid:  # it is the manager's child by now
            os.waitpid(self._pid, 0)
            self._pid = told["pid"]
        try:
            self._process = os.pidfd_open(self._pid)
        except ProcessLookupError:
            raise SuccessionError("it has ended; its output says why") from None
        if told["version"] != VERSION:
            raise SuccessionError(f"it speaks version {told['version']} of the hand-over, this process {VERSION}")
        if told["driver"] != driver:
            raise SuccessionError(
                f"plane.driver must stay {driver!r}, got {told['driver']!r}: this process has given up the rights that it needs"
            )

    def give(self, estate: Estate) -> None:
        """Hand everything over; what is open here stays so. Raises SuccessionError."""
        try:
            self._line.give(estate)
        except OSError as error:
            raise SuccessionError(f"it has ended: {error}") from error

    def wait_forwarding(self) -> tuple[Estate | None, dict[str, Any]]:
        """Wait until it forwards; return None, or the estate that it gave back, and what it says of that.

        Raises SuccessionError: it has failed, and given nothing back.
        """
        try:
            message, descriptors = self._line.hear(FORWARDING_SECONDS)
            if message["step"] == "forwarding":
                return None, message
            if message["step"] == "failed":
                raise SuccessionError(message["reason"])
            estate = self._line.take(message, descriptors)
            return estate, self._line.hear(FORWARDING_SECONDS)[0]
        except (EOFError, TimeoutError, ValueError, KeyError) as error:
            self.end()
            failed = SuccessionError(str(error) or "it has ended; its output says why")
            failed.is_sure = False
            raise failed from error

    def appoint(self) -> None:
        """It is the service's main process from now on."""
        self._is_main = True
        with suppress(OSError):
            self._line.say("main")

    def end(self) -> None:
        """Kill it, and wait until it is gone: two must not forward. Idempotent."""
        with suppress(ProcessLookupError):
            if self._process >= 0:
                signal.pidfd_send_signal(self._process, signal.SIGKILL)
                select.select([self._process], [], [])
            else:
                os.kill(self._pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    def close(self) -> None:
        """Let it go, if it is the main process; else end it."""
        self._line.close()
        if not self._is_main:
            self.end()
        if self._process >= 0:
            os.close(self._process)
            self._process = -1

    def _hear(self, step: str, timeout: float) -> dict[str, Any]:
        try:
            message, _ = self._line.hear(timeout)
        except (EOFError, TimeoutError, ValueError) as error:
            self.end()
            told = "it has ended" if isinstance(error, EOFError) else f"it was not ready in {timeout:g} s"
            raise SuccessionError(f"{told}; its output says why") from None
        if message["step"] != step:
            raise SuccessionError(str(message.get("reason", message["step"])))
        return message


class Predecessor(Closing):
    """The process that forwards still, as its successor sees it."""

    def __init__(self, end: socket.socket) -> None:
        self._line = _Line(end)
        self._state = "asked"  # then "taken", "appointed"

    @classmethod
    def of_environment(cls) -> Predecessor | None:
        """Return it where this process was started as a successor."""
        given = os.environ.pop(VARIABLE, "")
        if not given.isdecimal():
            return None
        if os.environ.get("NOTIFY_SOCKET") and os.fork():
            # systemd waits only for a main process that is its own child: this one is, once its parent is gone
            os._exit(0)
        end = socket.socket(fileno=int(given))
        end.set_inheritable(False)
        return cls(end)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell it of the error that ends the block, unless the estate was given back, or this process goes on by itself."""
        try:
            yield
        except Exception as error:
            if self._state != "appointed":
                with suppress(OSError):
                    self._line.say("failed", reason=str(error) or type(error).__name__)
            raise

    def take(self, driver: str) -> Estate | None:
        """Say that this process is ready, and wait for the estate; None: there is none, the predecessor goes on."""
        try:
            self._line.say("ready", version=VERSION, driver=driver, pid=os.getpid())
            message, descriptors = self._line.hear(None)
            estate = self._line.take(message, descriptors)
        except (EOFError, OSError):
            return None
        self._state = "taken"
        return estate

    def is_owed(self) -> bool:
        """Whether an estate was taken and must be given back if this process cannot go on with it."""
        return self._state == "taken"

    def forwards(self, **fields: Any) -> None:
        """Say that this process forwards, and wait until it is the service's main process. fields: more to say."""
        self._state = "appointed"
        with suppress(OSError, EOFError, TimeoutError):
            self._line.say("forwarding", **fields)
            self._line.hear(FORWARDING_SECONDS)
        self.close()

    def give_back(self, estate: Estate, reason: str) -> None:
        """This process cannot go on."""
        self._state = "appointed"
        with suppress(OSError):
            self._line.give(estate)
            self._line.say("failed", reason=reason)
        self.close()

    def close(self) -> None:
        self._line.close()

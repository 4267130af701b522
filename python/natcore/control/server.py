"""ControlServer: answers the control socket of a gateway, in a thread of its own, natcore-control.

Theory of operation: one loop over non-blocking sockets. A client's answer is a generator; the loop takes rows from it while the
client reads, a turn of 2 ms at a time, so that a client that reads slowly, sends nonsense or asks for everything costs its own
connection. What takes long (slow verbs) runs in threads. Packets never wait for this thread, but for the moment in which it
copies rows of a table with a worker locked.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import struct
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natcore.control import socket_file
from natcore.control.connection import Connection, Limits
from natcore.control.history import History
from natcore.control.job import Job
from natcore.control.protocol import VERSION, Failure, Greeting, Request, encode
from natcore.control.verb import Answer, Context, Peer, verbs
from natcore.errors import ControlError, Error
from natcore.internal import threads
from natcore.internal.closing import Closing
from natcore.internal.exit_codes import ExitCode
from natcore.internal.parts import parts_of
from natcore.internal.validation import check_integer

if TYPE_CHECKING:
    from natcore.gateway import Gateway

_log = logging.getLogger(__name__)
_LONGEST_SLEEP = 1.0  # seconds; limits of time are looked at as often
_PAUSE = 1.0  # after the system had no descriptor left for a client
_CLOSE_SECONDS = 5.0
_COUNTERS = (
    "accepted", "refused_full", "dropped_slow", "dropped_idle", "dropped_error", "requests", "requests_failed", "too_long",
    "no_descriptor",
)  # fmt: skip


class ControlServer(Closing):
    """The control socket of a gateway, from its making until `close`; `Gateway.serve_control` makes it.

    Root, the process's own user and members of `write_group` may use verbs that change something; whoever else the file's mode
    lets connect may look.

    Parameters
    ----------
    gateway
        The gateway.
    path
        The socket's file; one that a process left there is replaced.
    group
        The file's group, by name or number; None: the process's.
    write_group
        A group that may change, by name or number; None: none.
    mode
        The file's permissions, 0 to 0o777.
    limits
        What clients may cost.
    clock
        Seconds, any origin.
    wall
        Unix seconds, of the history's samples.

    Raises
    ------
    ConfigurationError
        A process listens there, there is no such group, or something else than a socket is at the path.
    OSError
        The file cannot be made.
    """

    def __init__(
        self,
        gateway: Gateway,
        path: str | os.PathLike[str],
        *,
        group: str | int | None = None,
        write_group: str | int | None = None,
        mode: int = 0o660,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        mode = check_integer("mode", mode, 0, 0o777)
        number = None if group is None else socket_file.group_number("group", group)
        self._writers = None if write_group is None else socket_file.group_number("write_group", write_group)
        verbs()  # their modules are imported now, not by the first client
        self._gateway = weakref.ref(gateway)
        self._instance = gateway.instance
        self._limits, self._clock = limits or Limits(), clock
        self.service: Any = None
        """The `natcore run` around the gateway, for verbs."""
        self._history = History(gateway, wall)
        self._connections: dict[int, Connection] = {}
        self._jobs: list[tuple[Job, bool]] = []  # and whether a writer asked
        self._counted: Counter[str] = Counter(dict.fromkeys(_COUNTERS, 0))
        self._paused_until = 0.0
        self._closing = self._retiring = False
        self._retired = threading.Event()
        self._lock = threading.Lock()  # of the list of jobs, and of close()
        self._socket, self._path, self._made = socket_file.listen(path, number, mode)
        self._remove = weakref.finalize(self, socket_file.remove, self._path, self._made, os.getpid())
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._wake_fd)  # jobs, which refer to this server, may write to it until then
        self._poll = select.epoll()
        self._poll.register(self._socket, select.EPOLLIN)
        self._poll.register(self._wake_fd, select.EPOLLIN)
        try:
            self._thread = threads.start("natcore-control", self._run)
        except Error:
            self._release()
            raise

    @property
    def path(self) -> Path:
        """The socket's file."""
        return self._path

    def counters(self) -> dict[str, int]:
        """Clients and requests so far.

        Returns
        -------
        dict of str to int
            accepted; refused_full: there were too many; dropped_slow, dropped_idle, dropped_error: connections; requests,
            requests_failed; too_long: requests; no_descriptor: the process had none left; clients (gauge).
        """
        return {**self._counted, "clients": len(self._connections)}

    def retire(self) -> None:
        """Take no more clients, and give the path free for another process's server; those that are there are served on, until
        `close`. The gateway's end does not close it any more."""
        gateway = self._gateway()
        if gateway is not None:
            with suppress(ValueError):
                parts_of(gateway).controls.remove(self)
        self._retiring = True
        self._wake()
        self._retired.wait(_CLOSE_SECONDS)

    def answer_rest(self, timeout: float = _CLOSE_SECONDS) -> None:
        """Wait until every request is answered, for a time; seconds."""
        end = time.monotonic() + timeout
        while (
            time.monotonic() < end
            and self._thread.is_alive()
            and any(not each.is_settled for each in tuple(self._connections.values()))
        ):
            time.sleep(_PAUSE / 100)

    def close_when_answered(self, then: Callable[[], object] | None = None) -> None:
        """Retire now; close when every request is answered, in a thread of its own, and call `then`."""
        self.retire()
        threads.start("natcore-control-rest", self._close_answered, then)

    def _close_answered(self, then: Callable[[], object] | None) -> None:
        self.answer_rest()
        self.close()
        if then is not None:
            then()

    def close(self) -> None:
        """Drop all clients, and remove the file. Idempotent."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        self._wake()
        current = threading.current_thread()
        with self._lock:
            jobs = [job for job, _ in self._jobs]
        for thread in (self._thread, *(job.thread for job in jobs)):
            if thread is not current:
                thread.join(_CLOSE_SECONDS)

    def __repr__(self) -> str:
        return f"<ControlServer {self._path}{', closed' if self._closing else ''}>"

    # ---- the loop ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing and self._gateway() is not None:
                self._turn()
        except Exception:
            _log.exception("the control socket %s has failed; the gateway goes on", self._path)
        finally:
            self._closing = True
            for connection in list(self._connections.values()):
                self._drop(connection)
            self._release()

    def _release(self) -> None:
        self._remove()
        self._socket.close()
        self._poll.close()

    def _turn(self) -> None:
        if self._retiring and not self._retired.is_set():
            self._poll.unregister(self._socket)
            self._remove()
            self._socket.close()
            self._retired.set()
        for descriptor, events in self._poll.poll(self._sleep()):
            if descriptor == self._wake_fd:
                with suppress(BlockingIOError):
                    os.eventfd_read(descriptor)
                for connection in self._connections.values():
                    connection.resume_at = 0.0
            elif descriptor == self._socket.fileno():
                self._accept()
            elif descriptor in self._connections:
                self._serve(self._connections[descriptor], events)
        now = self._clock()
        for connection in list(self._connections.values()):
            if connection.is_ready and connection.resume_at <= now:
                self._work(connection)
        self._look_after(self._clock())
        self._look_back(self._clock())

    def _look_back(self, now: float) -> None:
        """Have the history take its samples."""
        gateway = self._gateway()
        if gateway is not None:
            with suppress(Error):  # it closes
                self._history.look(gateway, now)

    def _sleep(self) -> float:
        """Return seconds until there is something to do without a descriptor."""
        now = self._clock()
        due = [each.resume_at for each in self._connections.values() if each.is_ready]
        return max(0.0, min([_LONGEST_SLEEP, *(at - now for at in due)]))

    def _serve(self, connection: Connection, events: int) -> None:
        try:
            if events & (select.EPOLLHUP | select.EPOLLERR):
                self._drop(connection)  # it reads nothing more
                return
            if events & select.EPOLLIN and connection.wants_input:
                connection.receive(self._clock())
            if events & select.EPOLLOUT:
                connection.transmit(self._clock())
        except OSError:
            self._count("dropped_error")
            self._drop(connection)

    def _work(self, connection: Connection) -> None:
        before = connection.requests, connection.failed
        try:
            connection.work(self._clock)
        except Exception:  # an answer that cannot be written down
            _log.exception("a client of %s is dropped", self._path)
            self._count("dropped_error")
            self._drop(connection)
        self._counted["requests"] += connection.requests - before[0]
        self._counted["requests_failed"] += connection.failed - before[1]

    def _look_after(self, now: float) -> None:
        """Drop what is done, idle or slow; poll each for what it needs now."""
        for descriptor, connection in list(self._connections.items()):
            reason = connection.why_dropped(now)
            if reason is not None:
                self._count(f"dropped_{reason}")
                self._drop(connection)
            elif connection.is_done:
                self._counted["too_long"] += connection.too_long
                self._drop(connection)
            else:
                wanted = select.EPOLLIN if connection.wants_input else 0
                self._poll.modify(descriptor, wanted | (select.EPOLLOUT if connection.wants_output else 0))
        if self._paused_until and now >= self._paused_until:
            self._paused_until = 0.0
            self._poll.modify(self._socket, select.EPOLLIN)

    # ---- clients ----------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            accepted, _ = self._socket.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                self._count("no_descriptor")
                self._paused_until = self._clock() + _PAUSE
                self._poll.modify(self._socket, 0)
            return
        accepted.setblocking(False)
        peer = self._peer(accepted)
        if not self._has_place(peer):
            self._count("refused_full")
            with accepted, suppress(OSError):
                accepted.send(encode(Failure(0, "too many clients; try again", ExitCode.TRY_AGAIN)))
            return
        connection = Connection(accepted, peer, self._limits, self._begin, self._clock())
        connection.send(Greeting(VERSION, _version(), self._instance, os.getpid(), peer.writer))
        self._connections[accepted.fileno()] = connection
        self._poll.register(accepted, select.EPOLLIN | select.EPOLLOUT)
        self._count("accepted")

    def _peer(self, accepted: socket.socket) -> Peer:
        raw = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("=iII"))
        pid, uid, gid = struct.unpack("=iII", raw)
        groups = socket_file.groups_of(accepted, gid)
        return Peer(pid, uid, groups, uid in (0, os.geteuid()) or self._writers in groups)

    def _has_place(self, peer: Peer) -> bool:
        if peer.writer:
            return len(self._connections) < self._limits.clients
        others = [each.peer for each in self._connections.values() if not each.peer.writer]
        return (
            len(others) < self._limits.clients - self._limits.kept_for_writers
            and sum(other.uid == peer.uid for other in others) < self._limits.clients_of_user
            and len(self._connections) < self._limits.clients
        )

    def _drop(self, connection: Connection) -> None:
        del self._connections[connection.socket.fileno()]
        try:
            connection.close()
        except Exception:
            _log.exception("a verb did not end well when its client was gone")

    def _begin(self, connection: Connection, request: Request) -> Answer:
        asked = verbs().get(request.verb)
        if asked is None:
            raise ControlError(
                f"verb must be one of {', '.join(sorted(verbs()))}, got {request.verb!r}", ExitCode.USAGE
            )
        if asked.writes and not connection.peer.writer:
            raise ControlError(
                f"{request.verb}: user {connection.peer.uid} is a reader here; it is for root, the gateway's own user and"
                " members of write_group",
                ExitCode.REFUSED,
            )
        gateway = self._gateway()
        if gateway is None:
            raise ControlError("the gateway is gone")
        if not asked.standby and getattr(self.service, "is_standby", False):
            raise ControlError(
                f"{request.verb}: this gateway is the standby of {self.service.pair.peer_name}, which translates: ask there,"
                " or let this one take over (natcore activate)",
                ExitCode.TRY_AGAIN,
            )
        context = Context(gateway, self.service, connection.peer, self._history, self.counters())
        if not asked.slow:
            return asked.start(context, request.arguments)
        with self._lock:
            if sum(writer is connection.peer.writer for _, writer in self._jobs) >= self._limits.jobs:
                raise ControlError("too many slow requests; try again", ExitCode.TRY_AGAIN)
            job = Job(lambda: asked.start(context, request.arguments), self._wake, self._job_ended)
            self._jobs.append((job, connection.peer.writer))
        return job.answer()

    def _job_ended(self, ended: Job) -> None:
        with self._lock:
            self._jobs = [each for each in self._jobs if each[0] is not ended]

    def _wake(self) -> None:
        with suppress(OSError):
            os.eventfd_write(self._wake_fd, 1)

    def _count(self, name: str) -> None:
        self._counted[name] += 1


def _version() -> str:
    from natcore import __version__

    return __version__

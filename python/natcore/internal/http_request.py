"""An HTTP request with one deadline for all its waits: a server that drips bytes cannot make it last."""

from __future__ import annotations

import errno
import http.client
import io
import socket
import ssl
from collections.abc import Mapping
from time import monotonic
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from natcore.internal.look_up import look_up


class Deadline:
    """The deadline of a request, started anew for each. what: the thing that timed out, for the error."""

    def __init__(self, seconds: float, what: str = "no answer") -> None:
        self._seconds, self._what = seconds, what
        self._until = monotonic() + seconds

    def begin(self) -> None:
        self._until = monotonic() + self._seconds

    def left(self) -> float:
        """Return the seconds left; raises TimeoutError when there are none."""
        left = self._until - monotonic()
        if left <= 0:
            raise TimeoutError(errno.ETIMEDOUT, f"{self._what} within {self._seconds:g} s")
        return left


def connect(host: str, port: int, deadline: Deadline) -> socket.socket:
    """A TCP connection to the first of the host's addresses that answers; its name and all of them have the deadline's time."""
    failed: OSError | None = None
    for family, kind, protocol, _, address in look_up(host, port, socket.SOCK_STREAM, deadline.left()):
        made = socket.socket(family, kind, protocol)
        try:
            made.settimeout(deadline.left())
            made.connect(address)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return made
        except OSError as error:
            made.close()
            failed = error
    raise failed or OSError(errno.EADDRNOTAVAIL, "the name has no address")


class TimedSocket:
    """A connected socket as http.client uses one, plain or TLS. Its readers keep it open, as a socket's own do."""

    def __init__(self, made: Any, deadline: Deadline) -> None:
        self._made, self._deadline = made, deadline
        self._readers = 0
        self._closed = False

    def sendall(self, data: Any, flags: int = 0) -> None:
        view = memoryview(data).cast("B")
        while view:
            self._made.settimeout(self._deadline.left())
            view = view[self._made.send(view) :]

    def recv_into(self, buffer: Any) -> int:
        self._made.settimeout(self._deadline.left())
        count: int = self._made.recv_into(buffer)
        return count

    def makefile(self, mode: str = "rb", *arguments: Any, **more: Any) -> io.BufferedReader:
        self._readers += 1
        return io.BufferedReader(_Reader(self))

    def close(self) -> None:
        self._closed = True
        if not self._readers:
            self._made.close()

    def leave(self) -> None:
        """Note that a reader was closed."""
        self._readers -= 1
        if self._closed:
            self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made, name)


class _Reader(io.RawIOBase):
    def __init__(self, timed: TimedSocket) -> None:
        self._timed: TimedSocket | None = timed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        assert self._timed is not None
        return self._timed.recv_into(buffer)

    def close(self) -> None:
        timed, self._timed = self._timed, None
        if timed is not None:
            timed.leave()
        super().close()


class Answer(NamedTuple):
    """A server's answer."""

    status: int
    headers: http.client.HTTPMessage  # a name is found in any case
    body: bytes


def post(
    url: str,
    data: bytes,
    headers: Mapping[str, str],
    *,
    seconds: float,
    tls: ssl.SSLContext | None = None,
    most_bytes: int = 1 << 30,
) -> Answer:
    """Return the answer to one request on a new connection, whatever its status; no proxy, and no redirect is followed.

    seconds: for all of it. tls: with https; None: the system's authorities. most_bytes: of the answer's body.
    Raises OSError; its cause is an HTTPException where the answer is none.
    """
    parts = urlsplit(url)
    if parts.scheme == "https" and tls is None:
        tls = ssl.create_default_context()
    port = parts.port or (80 if parts.scheme == "http" else 443)
    connection = _Connection(parts.hostname or "", port, tls if parts.scheme == "https" else None, Deadline(seconds))
    try:
        path = f"{parts.path or '/'}{parts.query and '?' + parts.query}"
        connection.request("POST", path, data, {"User-Agent": "natcore", **headers})
        answer = connection.getresponse()
        body = answer.read(most_bytes + 1)
        if len(body) > most_bytes:
            raise OSError(errno.EMSGSIZE, f"an answer of more than {most_bytes:,} bytes")
        return Answer(answer.status, answer.headers, body)
    except http.client.HTTPException as error:
        raise OSError(errno.EBADMSG, f"{type(error).__name__}: {error}") from error
    finally:
        connection.close()


class _Connection(http.client.HTTPConnection):
    """A connection with one deadline for all waits."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None, deadline: Deadline) -> None:
        super().__init__(host, port)
        self._deadline = deadline
        self._context = context

    def connect(self) -> None:
        made = connect(self.host, self.port, self._deadline)
        try:
            if self._context is not None:
                made.settimeout(self._deadline.left())
                made = self._context.wrap_socket(made, server_hostname=self.host)
        except BaseException:
            made.close()
            raise
        self.sock = TimedSocket(made, self._deadline)

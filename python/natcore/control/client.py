"""Client: asks the control socket of a running gateway."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from natcore.control import socket_file
from natcore.control.protocol import (
    MAX_LINE_BYTES,
    VERSION,
    End,
    Failure,
    Greeting,
    Message,
    Request,
    Row,
    Rows,
    decode_message,
    encode,
)
from natcore.errors import ControlError
from natcore.internal.closing import Closing
from natcore.internal.exit_codes import ExitCode
from natcore.internal.redaction import show
from natcore.internal.validation import check_number

_RECEIVE_BYTES = 256 << 10


class Client(Closing):
    """A connection to a running gateway; a context manager that closes itself.

    Parameters
    ----------
    path
        The socket's file; `find` knows where `natcore run` serves an instance.
    timeout
        Seconds that the gateway may take for each piece of an answer, 0.001 to 10^6; None: as long as it takes.

    Raises
    ------
    ControlError
        Nothing listens there, this user may not connect, or it speaks another version of the protocol.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float | None = 30.0) -> None:
        self._path = Path(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(
            None if timeout is None else check_number("timeout", timeout, 0.001, 1e6, unit="seconds")
        )
        self._received = bytearray()
        self._asked = 0
        try:
            self._connect()
            first = self._message()
            if isinstance(first, Failure):
                raise ControlError(first.message, first.code)
            if not isinstance(first, Greeting) or first.protocol != VERSION:
                raise ControlError(
                    f"{self._path} must speak version {VERSION} of natcore's protocol, got {show(str(first))}"
                )
        except BaseException:
            self._socket.close()
            raise
        self.path = self._path
        """The socket's file."""
        self.greeting = first
        """What the server said of itself."""
        self.summary: Mapping[str, Any] = {}
        """Of the last answer that was read to its end."""

    def _connect(self) -> None:
        try:
            self._socket.connect(os.fsencode(self._path))
        except OSError as error:
            reasons = {
                errno.ENOENT: "no gateway serves there",
                errno.ECONNREFUSED: "the gateway that served there is gone",
                errno.EACCES: "this user may not connect: it takes root or a member of the socket's group",
                errno.EAGAIN: "too many clients wait there",
            }
            code = {errno.EACCES: ExitCode.REFUSED}.get(error.errno or 0, ExitCode.TRY_AGAIN)
            reason = reasons.get(error.errno or 0, error.strerror or str(error))
            raise ControlError(f"{self._path}: {reason}", code) from None

    def rows(self, verb: str, **arguments: object) -> Iterator[Row]:
        """Ask, and yield the answer's rows as they come; `summary` has its end then.

        An answer that is not read to its end closes the connection.

        Parameters
        ----------
        verb
            Such as "sessions".
        arguments
            By name; those that are None are left out.

        Yields
        ------
        dict
            A row.

        Raises
        ------
        ControlError
            It was refused, or failed.
        """
        self._asked += 1
        given = {name: value for name, value in arguments.items() if value is not None}
        finished = False
        try:
            self._send(encode(Request(verb, given, self._asked)))
            while True:
                message = self._message()
                if isinstance(message, Rows):
                    yield from message.rows
                    continue
                finished = True
                if isinstance(message, End):
                    self.summary = message.summary
                    return
                if isinstance(message, Failure):
                    raise ControlError(message.message, message.code, message.details)
                raise ControlError(f"{self._path}: an answer out of turn: {show(str(message))}")
        finally:
            if not finished:
                self.close()

    def ask(self, verb: str, **arguments: object) -> list[Row]:
        """Ask, and return all rows; `summary` has the answer's end.

        Parameters
        ----------
        verb, arguments
            As for `rows`; errors too.
        """
        return list(self.rows(verb, **arguments))

    def close(self) -> None:
        """Close the connection; a request under way ends. Idempotent."""
        self._socket.close()

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise ControlError(f"{self._path}: {error}", ExitCode.TRY_AGAIN) from None

    def _message(self) -> Message:
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            if searched > MAX_LINE_BYTES:
                raise ControlError(f"{self._path}: a line of more than {MAX_LINE_BYTES:,} bytes")
            try:
                piece = self._socket.recv(_RECEIVE_BYTES)
            except TimeoutError:
                raise ControlError(f"{self._path}: no answer in time", ExitCode.TRY_AGAIN) from None
            except OSError as error:
                raise ControlError(f"{self._path}: {error}", ExitCode.TRY_AGAIN) from None
            if not piece:
                raise ControlError(f"{self._path}: the gateway has closed the connection", ExitCode.TRY_AGAIN)
            self._received += piece
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return decode_message(line)


def find(instance: str | None = None) -> Path:
    """Return the control socket of a running gateway.

    Parameters
    ----------
    instance
        The gateway's name, or the socket's path (with a slash); None: the one that there is.

    Raises
    ------
    ControlError
        There is none, or there are several and none was named.
    """
    if instance is not None:
        return Path(instance) if "/" in instance else socket_file.default_path(instance)
    found: list[Path] = []
    with suppress(OSError):
        found = sorted(socket_file.FOLDER.glob("*.sock"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise ControlError(f"no gateway serves in {socket_file.FOLDER}; is `natcore run` up?", ExitCode.TRY_AGAIN)
    names = ", ".join(path.stem for path in found)
    raise ControlError(f"--instance must be one of {names}: there are several gateways", ExitCode.USAGE)

"""One client of the control socket: what it sent, what it is owed, and the answer under way. It never waits."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

from natcore.control.protocol import (
    MAX_REQUEST_BYTES,
    End,
    Failure,
    Message,
    Request,
    Row,
    Rows,
    decode_request,
    encode,
)
from natcore.control.verb import Answer, Peer
from natcore.errors import ControlError, Error
from natcore.internal.exit_codes import ExitCode, exit_code

_RECEIVE_BYTES = 65_536
_ROWS_LINE = 256  # rows that are gathered in a line, where a verb yields them one by one
_POLL_SECONDS = 0.1  # until a verb that had nothing to tell is asked again


@dataclass(frozen=True)
class Limits:
    """What a client may cost."""

    clients: int = 64
    clients_of_user: int = 16  # of a user that is no writer
    kept_for_writers: int = 8  # of `clients`
    jobs: int = 4  # slow verbs at once, of all that are no writers; as many again of writers
    waiting_bytes: int = 256 << 10  # of an answer that wait to be read; a line more at most
    idle_seconds: float = 300.0  # without a request
    slow_seconds: float = 30.0  # in which a waiting answer is not read at all
    turn_seconds: float = 0.002  # of one client's answer, before others have their turn


class Connection:
    """A client. begin: starts a request's answer, or raises."""

    def __init__(
        self, connected: socket.socket, peer: Peer, limits: Limits, begin: Callable[[Connection, Request], Answer], now: float
    ) -> None:  # fmt: skip
        self.socket, self.peer = connected, peer
        self._limits, self._begin = limits, begin
        self._received = bytearray()
        self._waiting = bytearray()
        self._ended = False  # it sends nothing more
        self._closing = False  # when what waits is sent
        self._answer: Answer | None = None
        self._request = 0
        self._asked_at = self._progress_at = now
        self.resume_at = 0.0  # when the answer is to be continued
        self.too_long = False
        self.failed = 0  # requests that were not carried out
        self.requests = 0

    def send(self, message: Message) -> None:
        """Add a line to what waits."""
        self._waiting += encode(message)

    @property
    def is_done(self) -> bool:
        """Whether it is to be closed."""
        return not self._waiting and self._answer is None and (self._closing or (self._ended and not self._has_line))

    @property
    def is_settled(self) -> bool:
        """Whether it is owed nothing."""
        return not self._waiting and self._answer is None and not self._has_line

    @property
    def _has_line(self) -> bool:
        return b"\n" in self._received

    @property
    def wants_input(self) -> bool:
        """Whether to poll for input: requests that follow wait in the kernel while there is no place."""
        return not self._ended and not self._closing and len(self._received) < MAX_REQUEST_BYTES

    @property
    def wants_output(self) -> bool:
        """Whether to poll for output."""
        return bool(self._waiting)

    @property
    def is_ready(self) -> bool:
        """Whether `work` has something to do, once resume_at has come."""
        if self._answer is None:
            return not self._closing and self._has_line and not self._is_full
        return not self._is_full

    @property
    def _is_full(self) -> bool:
        return len(self._waiting) >= self._limits.waiting_bytes

    def why_dropped(self, now: float) -> str | None:
        """Return "slow" or "idle" where it is to be dropped."""
        if self._waiting:
            return "slow" if now - self._progress_at >= self._limits.slow_seconds else None
        if self._answer is None and now - self._asked_at >= self._limits.idle_seconds:
            return "idle"
        return None

    def receive(self, now: float) -> None:
        """Take what arrived. Raises OSError: the connection is gone."""
        if not self._waiting:
            self._progress_at = now
        try:
            piece = self.socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        self._received += piece
        self._ended = not piece
        if self._answer is None:
            self._check_length()

    def _check_length(self) -> None:
        if len(self._received) >= MAX_REQUEST_BYTES and not self._has_line and not self._closing:
            self.too_long = self._closing = True
            self._received.clear()
            self._fail(
                0, ControlError(f"a request must have at most {MAX_REQUEST_BYTES:,} bytes, got more", ExitCode.USAGE)
            )

    def transmit(self, now: float) -> None:
        """Send what waits. Raises OSError: the connection is gone."""
        try:
            sent = self.socket.send(self._waiting)
        except BlockingIOError:
            return
        del self._waiting[:sent]
        self._progress_at = now

    def work(self, clock: Callable[[], float]) -> None:
        """Continue the answer, or begin the next one, for a turn's time at most."""
        now = clock()
        end = now + self._limits.turn_seconds
        if not self._waiting:
            self._progress_at = now
        while now < end and self.is_ready:
            if self._answer is None:
                self._next_request(now)
            elif not self._continue(end, clock):
                break
            now = clock()

    def _next_request(self, now: float) -> None:
        line, _, rest = self._received.partition(b"\n")
        self._received = rest
        self._asked_at = now
        if not line.strip():
            return
        self.requests += 1
        self._request, self.resume_at = 0, 0.0
        try:
            request = decode_request(bytes(line))
            self._request = request.id
            self._answer = self._begin(self, request)
        except Exception as error:
            self._fail(self._request, error)
        self._check_length()

    def _continue(self, end: float, clock: Callable[[], float]) -> bool:
        """Take rows; whether there are more at once."""
        assert self._answer is not None
        rows: list[Row] = []
        more = True
        try:
            while len(rows) < _ROWS_LINE and clock() < end:
                found = next(self._answer)
                if found is None:
                    self.resume_at, more = clock() + _POLL_SECONDS, False
                elif isinstance(found, list):
                    rows += found
                    more = bool(found)
                else:
                    rows.append(found)
                if not more:
                    break
            if rows:
                self.send(Rows(self._request, rows))
        except StopIteration as done:
            self._answer = None
            self._finish(rows, dict(done.value or {}), clock())
        except Exception as error:
            self._answer = None
            self._fail(self._request, error)
            self._check_length()
        return more

    def _finish(self, rows: list[Row], summary: dict[str, object], now: float) -> None:
        try:
            if rows:
                self.send(Rows(self._request, rows))
            self.send(End(self._request, summary))
        except Exception as error:  # a value that JSON does not have
            self._fail(self._request, error)
        self._asked_at = now
        self._check_length()

    def _fail(self, request: int, error: Exception) -> None:
        self.failed += 1
        known = isinstance(error, Error | OSError)
        message = str(error) if known else f"{type(error).__name__}: {error}"
        self.send(Failure(request, message, exit_code(error), getattr(error, "details", {})))

    def close(self) -> None:
        """Drop it, and the answer under way."""
        if self._answer is not None:
            answer, self._answer = self._answer, None
            answer.close()
        self.socket.close()

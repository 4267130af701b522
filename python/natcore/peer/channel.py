"""Channel: messages over TCP with TLS 1.3, in which both sides show a certificate of the pair's own authority."""

from __future__ import annotations

import json
import select
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from natcore.errors import ConfigurationError, PeerError
from natcore.internal.closing import Closing
from natcore.internal.redaction import show
from natcore.peer.messages import HEADER, MOST_JSON, VERSION, Kind, Message, parse_head, parse_json

if TYPE_CHECKING:
    from pathlib import Path

HELLO_SECONDS = 2.0  # that a connection has for TLS and its first message
STALL_SECONDS = 5.0  # for a message that has begun, besides those that its bytes may take: the connection is given up
LEAST_RATE = 65_536  # bytes a second
PATIENCE = 0.5  # seconds without a byte taken: who sends is told
FIRST = 65_536  # bytes of a body that memory is made for before they come


class Credentials(NamedTuple):
    """Files in PEM: a certificate with its key, and the authority that signed both gateways' certificates and no others."""

    certificate: Path
    key: Path
    authority: Path

    def context(self, *, server: bool) -> ssl.SSLContext:
        """Return a context for one side. Raises ConfigurationError: a file cannot be read, or is none of these."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # the authority signs for the pair alone: whoever has a certificate is one of it
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
            context.load_verify_locations(self.authority)
        except (OSError, ValueError) as error:
            named = ", ".join(show(str(each)) for each in self)
            raise ConfigurationError(
                f"certificate, key and authority must be files in PEM, got {named}: {error}"
            ) from None
        return context


def _no_password() -> str:
    raise ValueError("the key has a password")


class Address(NamedTuple):
    """Where a gateway listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(name: str, value: str) -> Address:
    """Return the address that a text such as "192.0.2.1:7411" or "[2001:db8::1]:7411" has. Raises ConfigurationError."""
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ConfigurationError(f'{name} must be ADDRESS:PORT, such as "192.0.2.1:7411", got {show(value)}')
    return Address(host.removeprefix("[").removesuffix("]"), int(port))


class Channel(Closing):
    """A connection between two of the group, after the handshake. One thread at a time.

    hello: what the other side said of itself.
    """

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self._socket = connection
        self.hello: dict[str, Any] = {}
        self.sent_bytes = 0

    @classmethod
    def accept(cls, raw: socket.socket, context: ssl.SSLContext, hello: Callable[[dict[str, Any]], object]) -> Channel:
        """Answer a connection that was accepted. hello: called with what the other one said; returns what to answer. Raises
        PeerError, OSError."""
        end = time.monotonic() + HELLO_SECONDS
        channel = cls(_shaken(raw, context, end, server=True))
        try:
            channel.hello = channel._hello(end)
            channel._say(hello(channel.hello))
        except BaseException:
            channel.close()
            raise
        return channel

    @classmethod
    def connect(cls, to: Address, context: ssl.SSLContext, hello: dict[str, Any], timeout: float) -> Channel:
        """Connect, and say hello. Raises PeerError, OSError."""
        raw = socket.create_connection(to, timeout)
        end = time.monotonic() + max(timeout, HELLO_SECONDS)
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # the other side waits for each answer
            channel = cls(_shaken(raw, context, end, server=False))
        except BaseException:
            raw.close()
            raise
        try:
            channel._say(hello)
            channel.hello = channel._hello(end)
        except BaseException:
            channel.close()
            raise
        return channel

    def send(self, message: Message, stalled: Callable[[], object] = lambda: None) -> None:
        """Send a message. stalled: called when the other side has taken nothing for `PATIENCE`. Raises OSError: it is gone, or
        took nothing for `STALL_SECONDS`."""
        head = message.head()
        if len(message.body) < 1024:
            self._send_all(head + bytes(message.body), stalled)
        else:
            self._send_all(head, stalled)
            self._send_all(message.body, stalled)
        self.sent_bytes += len(head) + len(message.body)

    def _send_all(self, data: bytes | memoryview, stalled: Callable[[], object]) -> None:
        left = memoryview(data)
        while left:
            try:
                self._socket.settimeout(PATIENCE)
                sent = self._socket.send(left)
            except TimeoutError:
                stalled()
                self._socket.settimeout(STALL_SECONDS - PATIENCE)
                sent = self._socket.send(left)
            left = left[sent:]

    def receive(self, timeout: float, wake: int | None = None) -> Message | None:
        """Return the next message; None: none began to come within `timeout` seconds, or before the descriptor `wake` was
        readable. Raises PeerError: it is none; EOFError, OSError: the other side has gone."""
        if not self._socket.pending():
            own = self._socket.fileno()
            if own not in _ready([own] if wake is None else [own, wake], select.POLLIN, timeout):
                return None
        end = time.monotonic() + STALL_SECONDS
        kind, worker, number, size = parse_head(bytes(self._exactly(HEADER.size, end)))
        return Message(kind, worker, number, memoryview(self._exactly(size, end + size / LEAST_RATE)))

    def _exactly(self, size: int, end: float) -> bytearray:
        """Return so many bytes; memory is made as they come. Raises TimeoutError: they have not come by then."""
        buffer = bytearray(min(size, FIRST))
        filled = 0
        while filled < size:
            if filled == len(buffer):
                buffer.extend(bytes(min(size - filled, len(buffer))))
            self._socket.settimeout(_left(end))
            got = self._socket.recv_into(memoryview(buffer)[filled:])
            if got == 0:
                raise EOFError("the other gateway closed the connection")
            filled += got
        return buffer

    def _say(self, hello: object) -> None:
        body = json.dumps({"version": VERSION, **dict(hello)}).encode()  # type: ignore[call-overload]
        self.send(Message(Kind.HELLO, 0, 0, body))

    def _hello(self, end: float) -> dict[str, Any]:
        kind, _, _, size = parse_head(bytes(self._exactly(HEADER.size, end)))
        if kind != Kind.HELLO or size > MOST_JSON:
            raise PeerError("the other side's first message is none")
        said = parse_json(bytes(self._exactly(size, end)))
        if said.get("version") != VERSION:
            raise PeerError(
                f"the other gateway speaks version {show(said.get('version'))} of the protocol; this one speaks {VERSION}"
            )
        return said

    def abort(self) -> None:
        """Let whatever waits in this channel fail at once; by any thread."""
        with suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # the TCP connection's: TLS is the other thread's

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._socket.close()


def _ready(descriptors: Sequence[int], events: int, timeout: float) -> list[int]:
    """Return those that are ready, or broken, after so many seconds at most; their numbers may be any (poll(2))."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, events)
    return [descriptor for descriptor, _ in poll.poll(timeout * 1000)]


def _left(end: float) -> float:
    """Return the seconds until a moment. Raises TimeoutError: it is over."""
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("the other gateway is too slow")
    return left


def _shaken(raw: socket.socket, context: ssl.SSLContext, end: float, *, server: bool) -> ssl.SSLSocket:
    """Return the connection with TLS; the whole handshake must be over by then. Raises OSError."""
    raw.settimeout(0)
    connection = context.wrap_socket(raw, server_side=server, do_handshake_on_connect=False)
    try:
        while True:
            try:
                connection.do_handshake()
                return connection
            except ssl.SSLWantReadError:
                _ready([connection.fileno()], select.POLLIN, _left(end))
            except ssl.SSLWantWriteError:
                _ready([connection.fileno()], select.POLLOUT, _left(end))
    except BaseException:
        connection.close()
        raise

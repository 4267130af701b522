"""Channel: messages over TCP with TLS 1.3, in which both sides show a certificate of the pair's own authority."""

from __future__ import annotations

import json
import select
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from natcore.errors import ConfigurationError, PeerError
from natcore.internal.closing import Closing
from natcore.internal.redaction import show
from natcore.peer.messages import HEADER, VERSION, Kind, Message, parse_head

if TYPE_CHECKING:
    from pathlib import Path

HELLO_SECONDS = 2.0  # that a connection has for TLS and its first message
STALL_SECONDS = 5.0  # without a byte in the middle of a message: the connection is given up
MOST_HELLO = 4096
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
        raw.settimeout(HELLO_SECONDS)
        channel = cls(context.wrap_socket(raw, server_side=True))
        try:
            channel.hello = channel._hello()
            channel._say(hello(channel.hello))
        except BaseException:
            channel.close()
            raise
        return channel

    @classmethod
    def connect(cls, to: Address, context: ssl.SSLContext, hello: dict[str, Any], timeout: float) -> Channel:
        """Connect, and say hello. Raises PeerError, OSError."""
        raw = socket.create_connection(to, timeout)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # the other side waits for each answer
        raw.settimeout(max(timeout, HELLO_SECONDS))
        try:
            channel = cls(context.wrap_socket(raw))
        except BaseException:
            raw.close()
            raise
        try:
            channel._say(hello)
            channel.hello = channel._hello()
        except BaseException:
            channel.close()
            raise
        return channel

    def send(self, message: Message) -> None:
        """Send a message. Raises OSError: the other side is gone, or took nothing for `STALL_SECONDS`."""
        self._socket.settimeout(STALL_SECONDS)
        head = message.head()
        if len(message.body) < 1024:
            self._socket.sendall(head + bytes(message.body))
        else:
            self._socket.sendall(head)
            self._socket.sendall(message.body)
        self.sent_bytes += len(head) + len(message.body)

    def receive(self, timeout: float, wake: int | None = None) -> Message | None:
        """Return the next message; None: none began to come within `timeout` seconds, or before the descriptor `wake` was
        readable. Raises PeerError: it is none; EOFError, OSError: the other side has gone."""
        if not self._socket.pending():
            own = self._socket.fileno()
            if own not in select.select([own] if wake is None else [own, wake], [], [], timeout)[0]:
                return None
        self._socket.settimeout(STALL_SECONDS)
        kind, worker, number, size = parse_head(bytes(self._exactly(HEADER.size)))
        return Message(kind, worker, number, memoryview(self._exactly(size)))

    def _exactly(self, size: int) -> bytearray:
        """Return so many bytes; memory is made as they come."""
        buffer = bytearray(min(size, FIRST))
        filled = 0
        while filled < size:
            if filled == len(buffer):
                buffer.extend(bytes(min(size - filled, len(buffer))))
            got = self._socket.recv_into(memoryview(buffer)[filled:])
            if got == 0:
                raise EOFError("the other gateway closed the connection")
            filled += got
        return buffer

    def _say(self, hello: object) -> None:
        body = json.dumps({"version": VERSION, **dict(hello)}).encode()  # type: ignore[call-overload]
        self.send(Message(Kind.HELLO, 0, 0, body))

    def _hello(self) -> dict[str, Any]:
        self._socket.settimeout(HELLO_SECONDS)
        kind, _, _, size = parse_head(bytes(self._exactly(HEADER.size)))
        if kind != Kind.HELLO or size > MOST_HELLO:
            raise PeerError("the other side's first message is none")
        try:
            said = json.loads(bytes(self._exactly(size)))
        except ValueError:
            said = None
        if not isinstance(said, dict) or said.get("version") != VERSION:
            version = said.get("version") if isinstance(said, dict) else None
            raise PeerError(
                f"the other gateway speaks version {show(version)} of the protocol; this one speaks {VERSION}"
            )
        return said

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._socket.close()

"""Connections to receivers that answer nothing. Over TCP sent means: the receiver's TCP has acknowledged it.

IPFIX and syslog have no acknowledgements of their own (RFC 6587 says so of syslog); this is the most that a sender can
know. Over UDP it knows that the datagram left, and of an earlier one that its port was closed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import ssl
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from natcore.errors import ConfigurationError, DeliveryError
from natcore.internal.http_request import Deadline, TimedSocket, connect
from natcore.internal.look_up import look_up
from natcore.internal.redaction import show
from natcore.internal.validation import is_text

_SIOCOUTQ = 0x5411  # linux/sockios.h: bytes that the peer has not acknowledged
_FIRST_PAUSE, _LONGEST_PAUSE = 0.0002, 0.02  # seconds
_MOST_READS = 16  # of up to 4 KiB, each time that a receiver is listened to, who has nothing to say
_FIRST_WORD_SECONDS = 1.0  # of a TLS receiver, once a connection; most say it at once


class Connection(ABC):
    """A connection, opened on first use and again after a failure or a fork. timeout: seconds of a connect or a send."""

    def __init__(self, host: str, port: int, timeout: float) -> None:
        self._host, self._port, self._timeout = host, port, timeout
        self._socket: socket.socket | None = None
        self._owner = 0

    def connect(self) -> bool:
        """Open the connection if need be; -> True: it is a new one. Raises DeliveryError."""
        if self._socket is not None and self._owner == os.getpid() and not self._is_closed(self._socket):
            return False
        self.close()
        try:
            self._socket = self._make()
        except OSError as error:
            raise self._refused(error) from error
        self._owner = os.getpid()
        return True

    def send(self, parts: Sequence[bytes | memoryview]) -> None:
        """Send everything; a failure closes the connection. Raises DeliveryError."""
        assert self._socket is not None
        try:
            self._send(self._socket, parts)
        except OSError as error:
            self.close()
            raise self._refused(error) from error

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _refused(self, error: OSError) -> DeliveryError:
        """Return the error for a later attempt; its code is the errno's name."""
        code = errno.errorcode.get(error.errno or 0, type(error).__name__)
        if isinstance(error, TimeoutError):
            code = "ETIMEDOUT"
        elif isinstance(error, ssl.SSLError):  # its errno is OpenSSL's
            code = error.reason or type(error).__name__
        return DeliveryError(code, f"{self._host}:{self._port}: {error.strerror or error}")

    @abstractmethod
    def _make(self) -> socket.socket: ...

    @abstractmethod
    def _send(self, connection: socket.socket, parts: Sequence[bytes | memoryview]) -> None: ...

    @abstractmethod
    def _is_closed(self, connection: socket.socket) -> bool: ...


class Stream(Connection):
    """A TCP connection."""

    def _make(self) -> socket.socket:
        return connect(self._host, self._port, Deadline(self._timeout))

    def _send(self, connection: socket.socket, parts: Sequence[bytes | memoryview]) -> None:
        deadline, pause = Deadline(self._timeout, "not acknowledged"), _FIRST_PAUSE
        timed = TimedSocket(connection, deadline)
        for part in parts:
            timed.sendall(part)
        while struct.unpack("i", fcntl.ioctl(connection, _SIOCOUTQ, bytes(4)))[0]:
            if self._is_closed(connection):
                break
            time.sleep(min(pause, deadline.left()))
            pause = min(2 * pause, _LONGEST_PAUSE)
        ended = self._end_of(connection)  # it may have thrown away what it had not read
        if ended is not None:
            raise ended

    def _is_closed(self, connection: socket.socket) -> bool:
        """Return the error if the peer has closed or reset, or sends too much; a little that it sends is ignored."""
        return self._end_of(connection) is not None

    def _end_of(self, connection: socket.socket) -> OSError | None:
        """Return the error that ended the connection; None: it is open."""
        connection.setblocking(False)
        try:
            for _ in range(_MOST_READS):
                if not connection.recv(4096):
                    return ConnectionResetError(errno.ECONNRESET, "the receiver closed the connection")
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        except OSError as error:
            return error
        finally:
            connection.settimeout(self._timeout)
        return ConnectionAbortedError(errno.ECONNABORTED, "the receiver does not stop talking, though nothing is asked")


Tls = bool | Mapping[str, str] | ssl.SSLContext
_TLS_FILES = ("ca", "certificate", "key")


def tls_context(tls: Tls) -> ssl.SSLContext | None:
    """Return the context for a sink's `tls`; None: no TLS. Raises ConfigurationError: another value, an unusable file."""
    if isinstance(tls, ssl.SSLContext):
        return tls
    if tls is False:
        return None
    files = {} if tls is True else tls
    is_table = isinstance(files, Mapping) and set(files) <= set(_TLS_FILES) and all(map(is_text, files.values()))
    if not is_table or ("key" in files and "certificate" not in files):
        raise ConfigurationError(
            f"tls must be true, false, a table of the files {', '.join(_TLS_FILES)}, or an ssl.SSLContext, got {show(tls)}"
        )
    try:
        context = ssl.create_default_context(cafile=files.get("ca"))
        if "certificate" in files:
            context.load_cert_chain(files["certificate"], files.get("key"), password="")
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"tls must name PEM files, and a key without a password, got {show(tls)}: {error}"
        ) from error
    return context


class TlsStream(Stream):
    """TLS over TCP (RFC 5425, RFC 7011 section 10.4): the receiver shows a certificate for the host's name."""

    def __init__(self, host: str, port: int, timeout: float, context: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout)
        self._context = context

    def _make(self) -> socket.socket:
        """TLS 1.3 is done here before the receiver has looked at the certificate that it is shown: its first word, a
        session ticket or an alert, is waited for, since rows that it throws away are acknowledged by its TCP as well."""
        deadline = Deadline(self._timeout)
        plain = connect(self._host, self._port, deadline)
        try:
            made = self._context.wrap_socket(plain, server_hostname=self._host, do_handshake_on_connect=False)
        except BaseException:
            plain.close()
            raise
        try:
            _shake_hands(made, deadline)
            if made.version() == "TLSv1.3" and not made.pending():
                poll = select.poll()
                poll.register(made, select.POLLIN)
                poll.poll(1000 * min(_FIRST_WORD_SECONDS, deadline.left()))
            refused = self._end_of(made)
            if refused is not None:
                raise refused
        except BaseException:
            made.close()
            raise
        return made


def _shake_hands(made: ssl.SSLSocket, deadline: Deadline) -> None:
    """Bound the whole handshake, however small the pieces are that the receiver sends."""
    made.setblocking(False)
    poll = select.poll()
    while True:
        try:
            made.do_handshake()
        except ssl.SSLWantReadError:
            poll.register(made, select.POLLIN)
        except ssl.SSLWantWriteError:
            poll.register(made, select.POLLOUT)
        else:
            return
        poll.poll(1000 * deadline.left())


def stream(host: str, port: int, timeout: float, tls: Tls) -> Stream:
    """Return a connection over TCP, with TLS if configured."""
    context = tls_context(tls)
    return Stream(host, port, timeout) if context is None else TlsStream(host, port, timeout, context)


class Datagrams(Connection):
    """UDP, connected, so that the kernel reports 'port unreachable' at the next send. One datagram a part."""

    def _make(self) -> socket.socket:
        deadline = Deadline(self._timeout)
        found = look_up(self._host, self._port, socket.SOCK_DGRAM, deadline.left())
        family, kind, protocol, _, address = found[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.settimeout(deadline.left())
            made.connect(address)
            made.settimeout(self._timeout)
        except BaseException:
            made.close()
            raise
        return made

    def _send(self, connection: socket.socket, parts: Sequence[bytes | memoryview]) -> None:
        for part in parts:
            connection.send(part)

    def _is_closed(self, connection: socket.socket) -> bool:
        return False

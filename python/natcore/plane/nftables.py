"""nf_tables over netlink: the messages and expressions that the kernel bypass needs, and a socket for them."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from natcore.internal.closing import Closing

# linux/netfilter/nfnetlink.h, nf_tables.h and netfilter.h
NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, NEWRULE, GETRULE = 0, 1, 2, 3, 6, 7
DESTROYTABLE = 26  # as DELTABLE, and no error where there is none; kernel 6.3
IPV4, NETDEV = 2, 5  # NFPROTO_IPV4, NFPROTO_NETDEV
OWNER, PERSIST = 0x2, 0x4  # of a table: no other socket may change it; it outlives its socket. Kernels 5.12, 6.9
INGRESS, PREROUTING = 0, 0  # hooks of the families netdev and ip
DROP, ACCEPT, GOTO = 0, 1, -4
PACKET_TYPE, INPUT_NAME = 19, 6  # NFT_META_PKTTYPE, NFT_META_IIFNAME
LINK_HEADER, NETWORK_HEADER, TRANSPORT_HEADER = 0, 1, 2
EQUAL, NOT_EQUAL, AT_MOST, AT_LEAST = 0, 1, 3, 5
NAME_BYTES = 16  # of an interface's name in a register: IFNAMSIZ

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_REQUEST, _ACK, _CREATE, _APPEND, _DUMP = 0x1, 0x4, 0x400, 0x800, 0x300
_ERROR, _DONE = 2, 3
_ANSWER_SECONDS = 5.0
_EVENTS = 7  # NFNLGRP_NFTABLES
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_FIB_ADDRESS_TYPE, _FIB_DESTINATION = 3, 2  # NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_DADDR


class Message(NamedTuple):
    """A change: kind (NEWTABLE …), family, attributes."""

    kind: int
    family: int
    attributes: Sequence[bytes]


def attribute(kind: int, value: bytes | str | int | Sequence[bytes]) -> bytes:
    """A netlink attribute: bytes as they are, a str with its zero, an int big-endian in 32 bits, a sequence nested."""
    if isinstance(value, int):
        data = struct.pack(">i", value)
    elif isinstance(value, str):
        data = value.encode() + b"\0"
    elif isinstance(value, bytes):
        data = value
    else:
        data, kind = b"".join(value), kind | 0x8000
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def attributes(body: bytes, offset: int = 4) -> dict[int, bytes]:
    """The attributes of a netlink message; offset: of the first, 4 behind nfgenmsg."""
    found: dict[int, bytes] = {}
    while offset + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, offset)
        found[kind & 0x3FFF] = body[offset + 4 : offset + length]
        offset += max(4, (length + 3) & ~3)
    return found


# ---- expressions -----------------------------------------------------------------------------------------------------


def _expression(name: str, *parts: bytes) -> bytes:
    return attribute(1, [attribute(1, name), attribute(2, parts)])


def verdict(code: int, chain: str = "") -> bytes:
    """Load a verdict into register 0; with GOTO the chain that goes on."""
    parts = [attribute(1, code), *([attribute(2, chain)] if chain else [])]
    return _expression("immediate", attribute(1, 0), attribute(2, [attribute(2, parts)]))


def compare(operation: int, data: bytes) -> bytes:
    """Continue the rule if register 1 equals the value, or does not."""
    return _expression("cmp", attribute(1, 1), attribute(2, operation), attribute(3, [attribute(1, data)]))


def load(base: int, offset: int, length: int) -> bytes:
    """Load bytes of the packet into register 1."""
    return _expression("payload", attribute(1, 1), attribute(2, base), attribute(3, offset), attribute(4, length))


def mask(bits: bytes) -> bytes:
    """Mask register 1."""
    length, zero = len(bits), bytes(len(bits))
    data = [attribute(4, [attribute(1, bits)]), attribute(5, [attribute(1, zero)])]
    return _expression("bitwise", attribute(1, 1), attribute(2, 1), attribute(3, length), *data)


def meta(key: int) -> bytes:
    """Load the packet's metadata into register 1."""
    return _expression("meta", attribute(2, key), attribute(1, 1))


def destination_type() -> bytes:
    """Load the type (RTN_…) of the route to the packet's destination into register 1."""
    return _expression("fib", attribute(1, 1), attribute(2, _FIB_ADDRESS_TYPE), attribute(3, _FIB_DESTINATION))


def chain(table: str, name: str, hook: int, priority: int, interface: str | None = None) -> list[bytes]:
    """The attributes of a base chain that accepts what no rule drops. interface: of the family netdev."""
    where = [attribute(1, hook), attribute(2, priority), *([attribute(3, interface)] if interface else [])]
    return [attribute(1, table), attribute(3, name), attribute(7, "filter"), attribute(4, where), attribute(5, ACCEPT)]


def plain_chain(table: str, name: str) -> list[bytes]:
    """The attributes of a chain that rules lead to."""
    return [attribute(1, table), attribute(3, name)]


def rule(table: str, name: str, expressions: bytes) -> list[bytes]:
    return [attribute(1, table), attribute(2, name), attribute(4, [expressions])]


# ---- sockets ---------------------------------------------------------------------------------------------------------


def _message(kind: int, flags: int, sequence: int, family: int, resource: int, *parts: bytes) -> bytes:
    body = struct.pack(">BBH", family, 0, resource) + b"".join(parts)
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(kind, sequence, body)"""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, _, sequence = struct.unpack_from("=IHHI", data, offset)
        yield kind, sequence, data[offset + 16 : offset + length]
        offset += max(16, (length + 3) & ~3)


def _open() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)


class Ruleset(Closing):
    """The tables of this network namespace, by a socket that owns what it makes with OWNER. A context manager.

    One thread at a time. left: what `leave` gave in another process: the socket, which is this one's now, and its last number.
    """

    def __init__(self, left: tuple[int, int] | None = None) -> None:
        if left is not None:
            self._socket, self._sequence = socket.socket(fileno=left[0]), left[1]
            self._socket.settimeout(_ANSWER_SECONDS)
            return
        self._sequence = 0
        self._socket = _open()
        try:
            self._socket.settimeout(_ANSWER_SECONDS)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            self._socket.bind((0, 0))
        except BaseException:
            self._socket.close()
            raise

    def commit(self, messages: Sequence[Message]) -> None:
        """Apply all messages in one step, or none and raise OSError."""
        first = self._sequence
        parts = [_message(_BATCH_BEGIN, _REQUEST, self._next(), 0, _SUBSYSTEM)]
        for kind, family, given in messages:
            made = (_CREATE | (_APPEND if kind == NEWRULE else 0)) if kind in (NEWTABLE, NEWCHAIN, NEWRULE) else 0
            parts.append(_message(_SUBSYSTEM << 8 | kind, _REQUEST | _ACK | made, self._next(), family, 0, *given))
        parts.append(_message(_BATCH_END, _REQUEST, self._next(), 0, _SUBSYSTEM))
        self._socket.send(b"".join(parts))
        waiting, failed = len(messages), 0
        while waiting:
            for kind, sequence, body in _messages(self._socket.recv(1 << 17)):
                if kind != _ERROR or not first < sequence <= self._sequence:
                    continue  # of a request before, that was given up
                code = struct.unpack_from("=i", body)[0]
                failed = failed or -code
                waiting -= 1
                if code and sequence == first + 1:  # of the batch as a whole
                    waiting = 0
        if failed:
            raise OSError(failed, f"nf_tables: {os.strerror(failed)}")

    def tables(self) -> list[tuple[int, str, int]]:
        """(family, name, flags) of every table."""
        found = []
        for body in self._ask(GETTABLE, _DUMP, 0):
            parts = attributes(body)
            found.append((body[0], _text(parts.get(1, b"")), int.from_bytes(parts.get(2, b""))))
        return found

    def mark(self, family: int, table: str) -> tuple[object, ...]:
        """A value that differs as soon as the table or its rules were changed; () where the table is missing."""
        try:
            known = [attributes(body) for body in self._ask(GETTABLE, 0, family, attribute(1, table))]
            rules = [attributes(body) for body in self._ask(GETRULE, _DUMP, family, attribute(1, table))]
        except FileNotFoundError:
            return ()
        return (known[0].get(4), known[0].get(2), *(each.get(3) for each in rules))  # handles, and the table's flags

    def _ask(self, kind: int, flags: int, family: int, *parts: bytes) -> Iterator[bytes]:
        sequence = self._next()
        flags |= 0 if flags & _DUMP else _ACK
        self._socket.send(_message(_SUBSYSTEM << 8 | kind, _REQUEST | flags, sequence, family, 0, *parts))
        found: list[bytes] = []
        while True:
            for answer, number, body in _messages(self._socket.recv(1 << 17)):
                if number != sequence:
                    continue
                if answer == _DONE:
                    return iter(found)
                if answer == _ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    if code:
                        raise OSError(code, f"nf_tables: {os.strerror(code)}")
                    return iter(found)
                found.append(body)

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def leave(self) -> tuple[int, int]:
        """Give the socket, which is the caller's from now on, to own the tables in another process."""
        return self._socket.detach(), self._sequence

    def close(self) -> None:
        self._socket.close()


class Events:
    """Tells that tables of this network namespace with a name prefix were changed."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix.encode()
        self._socket = _open()
        try:
            with suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_RCVBUFFORCE", 33), 1 << 22)
            self._socket.bind((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _EVENTS)
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def take(self) -> bool:
        """Return whether there was, or may have been, such a change since the last call."""
        found = False
        while True:
            try:
                data = self._socket.recv(1 << 17)
            except BlockingIOError:
                return found
            except OSError:  # ENOBUFS: some were lost
                found = True
                continue
            found |= any(attributes(body).get(1, b"").startswith(self._prefix) for _, _, body in _messages(data))

    def close(self) -> None:
        self._socket.close()


def _text(name: bytes) -> str:
    return name.rstrip(b"\0").decode(errors="replace")


def names(tables: Iterable[tuple[int, str, int]], family: int, prefix: str) -> list[str]:
    """Return what follows the prefix in the names of a family's tables."""
    return sorted(name.removeprefix(prefix) for of, name, _ in tables if of == family and name.startswith(prefix))

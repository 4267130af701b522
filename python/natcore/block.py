"""Keeps the kernel's stack off an interface's IPv4, by an nf_tables chain at its ingress, set by netlink.

The taps that a plane reads come before that hook. Spared are the host's own addresses, what is not addressed to this
machine's link address, and VLANs. The table outlives its process: after a crash nothing leaks untranslated.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress

from .errors import InterfaceError

PREFIX = "natcore-"  # of table names: natcore-INTERFACE

# linux/netfilter/nfnetlink.h and nf_tables.h
_NETLINK_NETFILTER = 12
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NFTABLES = 10 << 8
_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE = 0, 1, 2, 3, 6
_NETDEV = 5  # NFPROTO_NETDEV
_REQUEST, _ACK, _CREATE, _APPEND, _DUMP = 0x1, 0x4, 0x400, 0x800, 0x300
_ERROR, _DONE = 2, 3
_DROP, _ACCEPT = 0, 1
_PKTTYPE = 19  # NFT_META_PKTTYPE
_LINK_HEADER, _NETWORK_HEADER = 0, 1
_EQUAL, _NOT_EQUAL = 0, 1
_PRIORITY = -500  # before other ingress chains: what they would forward or redirect is ours


def _attribute(kind: int, value: bytes | str | int | Sequence[bytes]) -> bytes:
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


def _message(kind: int, flags: int, sequence: int, family: int, resource: int, *attributes: bytes) -> bytes:
    body = struct.pack(">BBH", family, 0, resource) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body


def _expression(name: str, *attributes: bytes) -> bytes:
    return _attribute(1, [_attribute(1, name), _attribute(2, attributes)])


def _verdict(code: int) -> bytes:
    """Register 0 becomes a verdict."""
    return _expression("immediate", _attribute(1, 0), _attribute(2, [_attribute(2, [_attribute(1, code)])]))


def _compare(operation: int, data: bytes) -> bytes:
    return _expression("cmp", _attribute(1, 1), _attribute(2, operation), _attribute(3, [_attribute(1, data)]))


def _load(base: int, offset: int, length: int) -> bytes:
    return _expression("payload", _attribute(1, 1), _attribute(2, base), _attribute(3, offset), _attribute(4, length))


def _mask(mask: bytes) -> bytes:
    length, zero = len(mask), bytes(len(mask))
    data = [_attribute(4, [_attribute(1, mask)]), _attribute(5, [_attribute(1, zero)])]
    return _expression("bitwise", _attribute(1, 1), _attribute(2, 1), _attribute(3, length), *data)


def _rules(spared: Iterable[int]) -> list[bytes]:
    """Expression lists: leave alone what is not for our link address and what is for a spared address; drop IPv4."""
    packet_type = _expression("meta", _attribute(2, _PKTTYPE), _attribute(1, 1))
    rules = [packet_type + _compare(_NOT_EQUAL, b"\0") + _verdict(_ACCEPT)]
    for address in sorted(spared):  # what is not IPv4 and looks like it would be accepted anyway
        rules.append(_load(_NETWORK_HEADER, 16, 4) + _compare(_EQUAL, struct.pack(">I", address)) + _verdict(_ACCEPT))
    # by the Ethernet type: a frame with an 802.1Q tag has 0x8100 there, also where the device took the tag off
    rules.append(_load(_LINK_HEADER, 12, 2) + _compare(_EQUAL, b"\x08\x00") + _verdict(_DROP))
    for tag in (b"\x81\x00", b"\x88\xa8"):  # a priority alone, of no VLAN: the kernel would take it for its own
        tagged = _load(_LINK_HEADER, 12, 6) + _mask(b"\xff\xff\x0f\xff\xff\xff")
        rules.append(tagged + _compare(_EQUAL, tag + b"\x00\x00\x08\x00") + _verdict(_DROP))
    return rules


def _table_messages(interface: str, spared: Iterable[int] | None) -> list[tuple[int, int, list[bytes]]]:
    """(message, flags, attributes): the table away, and with spared there again, anew."""
    table = PREFIX + interface
    name = _attribute(1, table)
    messages = [(_NEWTABLE, _CREATE, [name]), (_DELTABLE, 0, [name])]  # so that the deletion never fails
    if spared is None:
        return messages
    hook = [_attribute(1, 0), _attribute(2, _PRIORITY), _attribute(3, interface)]
    chain = [name, _attribute(3, "ingress"), _attribute(7, "filter"), _attribute(4, hook), _attribute(5, _ACCEPT)]
    messages += [(_NEWTABLE, _CREATE, [name]), (_NEWCHAIN, _CREATE, chain)]
    for rule in _rules(spared):
        messages.append((_NEWRULE, _CREATE | _APPEND, [name, _attribute(2, "ingress"), _attribute(4, [rule])]))
    return messages


def _commit(messages: Sequence[tuple[int, int, list[bytes]]]) -> None:
    """All of it, or nothing and OSError."""
    parts = [_message(_BATCH_BEGIN, _REQUEST, 0, 0, 10)]
    for sequence, (kind, flags, attributes) in enumerate(messages, 1):
        parts.append(_message(_NFTABLES | kind, _REQUEST | _ACK | flags, sequence, _NETDEV, 0, *attributes))
    parts.append(_message(_BATCH_END, _REQUEST, len(messages) + 1, 0, 10))
    waiting = len(messages)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as netlink:
        netlink.settimeout(5.0)
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        netlink.bind((0, 0))
        netlink.send(b"".join(parts))
        while waiting:
            for kind, body in _answers(netlink.recv(1 << 17)):
                code = struct.unpack_from("=i", body)[0] if kind == _ERROR else 0
                if code:
                    raise OSError(-code, f"nf_tables: {os.strerror(-code)}")
                waiting -= kind == _ERROR


def _answers(data: bytes) -> Iterable[tuple[int, bytes]]:
    offset = 0
    while offset + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, offset)
        yield kind, data[offset + 16 : offset + length]
        offset += max(16, (length + 3) & ~3)


def _refused(interface: str, error: OSError) -> InterfaceError:
    if error.errno in (errno.EPERM, errno.EACCES):
        return InterfaceError(errno.EPERM, f"{interface!r}: keeping the kernel off it needs CAP_NET_ADMIN")
    if error.errno in (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT):
        missing = "this kernel has no nf_tables at ingress (CONFIG_NF_TABLES_NETDEV)"
        return InterfaceError(error.errno, f"{interface!r}: {missing}")
    reason = error.strerror or str(error)
    return InterfaceError(error.errno or errno.EIO, f"{interface!r}: keeping the kernel off it failed: {reason}")


def install(interface: str, spared: Iterable[int]) -> None:
    """From now on, in one step, the kernel sees IPv4 from the interface for the spared addresses (host order) only."""
    try:
        _commit(_table_messages(interface, spared))
    except OSError as error:
        raise _refused(interface, error) from error


def remove(interface: str) -> None:
    """The kernel sees everything again. Nothing there: nothing happens."""
    try:
        _commit(_table_messages(interface, None))
    except OSError as error:
        raise _refused(interface, error) from error


def check() -> None:
    """PermissionError, if this process may not, InterfaceError, if the kernel cannot: a table of no interface comes and
    goes in one step.
    """
    try:
        _commit(_table_messages("", None))
    except PermissionError:
        raise
    except OSError as error:
        raise _refused("*", error) from error


def installed() -> list[str]:
    """The interfaces that a plane has blocked, alive or dead, in this network namespace."""
    found: list[str] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as netlink:
        netlink.settimeout(5.0)
        netlink.bind((0, 0))
        netlink.send(_message(_NFTABLES | _GETTABLE, _REQUEST | _DUMP, 1, _NETDEV, 0))
        while True:
            for kind, body in _answers(netlink.recv(1 << 17)):
                if kind == _DONE:
                    return sorted(found)
                if kind == _ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    raise _refused("*", OSError(code, os.strerror(code)))
                name = _table_name(body)
                if name.startswith(PREFIX):
                    found.append(name.removeprefix(PREFIX))


def _table_name(body: bytes) -> str:
    offset = 4  # nfgenmsg
    while offset + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, offset)
        if kind & 0x3FFF == 1:
            return body[offset + 4 : offset + length].rstrip(b"\0").decode(errors="replace")
        offset += max(4, (length + 3) & ~3)
    return ""


class Claim:
    """This process owns the interface in this network namespace, until `close` or its own end, whatever that is."""

    def __init__(self, interface: str) -> None:
        self.interface = interface
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.bind(f"\0natcore:{interface}")  # abstract: a name of the namespace, gone with its owner
        except OSError as error:
            self._socket.close()
            raise InterfaceError(
                errno.EBUSY, f"{interface!r}: another plane of natcore has it; stop that one first"
            ) from error

    def close(self) -> None:
        self._socket.close()


def clean() -> list[str]:
    """Takes away what planes left behind that died; interfaces of living ones are left alone. The names cleaned."""
    cleaned = []
    for interface in installed():
        with suppress(InterfaceError):
            claim = Claim(interface)
            try:
                remove(interface)
                cleaned.append(interface)
            finally:
                claim.close()
    return cleaned

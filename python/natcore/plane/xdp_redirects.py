"""Whether the kernel can send redirected frames by an interface (XDP_REDIRECT): its driver says so, by netlink.

A veth can where its other end has GRO on or an XDP program. Where it cannot, what a program redirects to it is lost without a
word, so that the fast path asks before, and again each second.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

_NETLINK_GENERIC, _CONTROL, _GET_FAMILY = 16, 16, 3  # linux/netlink.h, linux/genetlink.h
_FAMILY_ID, _FAMILY_NAME = 1, 2
_DEVICE_GET, _IFINDEX, _XDP_FEATURES, _REDIRECT_TARGET = 1, 1, 3, 1 << 2  # linux/netdev.h
_REQUEST = 1
_ERROR = 2
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")


class Redirects:
    """Asks the kernel; it has one socket until `close`."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC)
        self._family: int | None = None
        try:
            self._socket.settimeout(1.0)
            self._socket.bind((0, 0))
            found = self._ask(_CONTROL, _GET_FAMILY, _FAMILY_NAME, b"netdev\0")
            self._family = struct.unpack_from("=H", found[_FAMILY_ID])[0] if _FAMILY_ID in found else None
        except OSError:
            pass  # a kernel before 6.3 does not say

    def possible(self, index: int) -> bool | None:
        """Whether frames can be redirected to the interface of this number (ifindex); None: the kernel does not say (before
        6.3, or there is no such interface)."""
        if self._family is None:
            return None
        with suppress(OSError):
            found = self._ask(self._family, _DEVICE_GET, _IFINDEX, struct.pack("=I", index))
            if _XDP_FEATURES in found:
                return bool(struct.unpack_from("=Q", found[_XDP_FEATURES])[0] & _REDIRECT_TARGET)
        return None

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()

    def _ask(self, family: int, command: int, attribute: int, value: bytes) -> dict[int, bytes]:
        """The attributes of the answer to a generic netlink request with one attribute. Raises OSError."""
        body = struct.pack("=BBH", command, 1, 0) + _ATTRIBUTE.pack(4 + len(value), attribute) + value
        body += bytes(-len(body) % 4)
        self._socket.send(_HEADER.pack(16 + len(body), family, _REQUEST, 0, 0) + body)
        answer = self._socket.recv(1 << 16)
        length, kind, _, _, _ = _HEADER.unpack_from(answer)
        if kind == _ERROR:
            raise OSError(-struct.unpack_from("=i", answer, 16)[0], "netlink")
        found, at = {}, 20
        while at + 4 <= min(length, len(answer)):
            size, which = _ATTRIBUTE.unpack_from(answer, at)
            if size < 4:
                break
            found[which & 0x3FFF] = answer[at + 4 : at + size]
            at += size + 3 & ~3
        return found

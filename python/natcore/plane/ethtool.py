"""What a device says of itself, and how it spreads frames over its queues (RSS): ethtool's requests."""

from __future__ import annotations

import array
import errno
import fcntl
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass

from natcore.internal.protocols import TCP, UDP

_SIOCETHTOOL = 0x8946  # linux/sockios.h, linux/ethtool.h
_GET_DRIVER, _GET_FLAGS, _GET_CHANNELS = 0x03, 0x25, 0x3C
_GET_FIELDS, _SET_FIELDS, _GET_HASHING, _SET_HASHING = 0x29, 0x2A, 0x46, 0x47
_SEND_VLAN, _RECEIVE_VLAN = 1 << 7, 1 << 8
_FLOW = {TCP: 1, UDP: 2}  # TCP_V4_FLOW, UDP_V4_FLOW
_FIELDS = struct.Struct("=IIQ")  # of struct ethtool_rxnfc: command, flow, fields
_FIELDS_BYTES = 256  # the kernel reads and writes no more than it has
# Of struct ethtool_rxfh: command, context, entries, key's bytes, function, transformation.
_HASHING = struct.Struct("=IIIIBB2xI")
ADDRESSES = 1 << 4 | 1 << 5  # fields of a hash: RXH_IP_SRC, RXH_IP_DST
PORTS = 1 << 6 | 1 << 7  # RXH_L4_B_0_1, RXH_L4_B_2_3
TOEPLITZ = 1  # ETH_RSS_HASH_TOP


@dataclass(frozen=True, slots=True)
class Hashing:
    """A device's RSS: a packet's hash, and the queue by the hash's low bits.

    function: a bit, TOEPLITZ or another. transformation: of what is hashed, 0: none. key: bytes. table: queues, by the low
    bits of the hash.
    """

    function: int
    transformation: int
    key: bytes
    table: tuple[int, ...]


def _asked(name: str, request: bytes) -> bytes:
    """An ethtool request's answer, as long as the request. Raises OSError: EOPNOTSUPP, ENODEV."""
    answer = array.array("B", request)
    by_name = struct.pack("16sQ16x", name.encode(), answer.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, by_name)
    return answer.tobytes()


def _ask(name: str, command: int, length: int) -> bytes:
    return _asked(name, struct.pack("=I", command).ljust(length, b"\0"))


def queues_of(name: str) -> int:
    """Return the interface's receive queues (ethtool -l); 1 where the driver does not say."""
    with suppress(OSError):
        _, _, _, _, _, received, _, _, combined = struct.unpack("=9I", _ask(name, _GET_CHANNELS, 36))
        return max(1, int(received + combined))
    return 1


def is_virtual(name: str) -> bool:
    """Return whether the device is virtual (on no bus, ethtool -i): senders then leave checksums to offload."""
    with suppress(OSError):
        return _ask(name, _GET_DRIVER, 196)[100:132].strip(b"\0") in (b"", b"N/A")
    return True


def puts_tags_on(name: str) -> bool:
    """Whether the device puts 802.1Q tags on frames (ethtool -k: tx-vlan-offload), or does not say."""
    with suppress(OSError):
        return bool(struct.unpack("=II", _ask(name, _GET_FLAGS, 8))[1] & _SEND_VLAN)
    return True


def takes_tags_off(name: str) -> bool:
    """Whether the device takes 802.1Q tags off frames (ethtool -k: rx-vlan-offload). Virtual ones carry them beside."""
    with suppress(OSError):
        return not is_virtual(name) and bool(struct.unpack("=II", _ask(name, _GET_FLAGS, 8))[1] & _RECEIVE_VLAN)
    return False


class Device:
    """The RSS of an interface (ethtool -x, -X, -n rx-flow-hash, -N rx-flow-hash). Every call raises OSError: EOPNOTSUPP where
    the device has none, or cannot set what is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def hashing(self) -> Hashing:
        entries, key_bytes = _HASHING.unpack(self._rss(_HASHING.pack(_GET_HASHING, 0, 0, 0, 0, 0, 0)))[2:4]
        if not entries or not key_bytes:
            raise OSError(errno.EOPNOTSUPP, "no RSS key or table")
        asking = _HASHING.pack(_GET_HASHING, 0, entries, key_bytes, 0, 0, 0)
        answer = self._rss(asking.ljust(_HASHING.size + 4 * entries + key_bytes, b"\0"))
        function, transformation = _HASHING.unpack_from(answer)[4:6]
        table = struct.unpack_from(f"={entries}I", answer, _HASHING.size)
        return Hashing(function, transformation, answer[_HASHING.size + 4 * entries :], table)

    def set_hashing(self, wanted: Hashing) -> None:
        head = _HASHING.pack(
            _SET_HASHING, 0, len(wanted.table), len(wanted.key), wanted.function, wanted.transformation, 0
        )
        self._rss(head + struct.pack(f"={len(wanted.table)}I", *wanted.table) + wanted.key)

    def fields(self, protocol: int) -> int:
        """Return what is hashed of TCP's or UDP's packets over IPv4."""
        asking = _FIELDS.pack(_GET_FIELDS, _FLOW[protocol], 0)
        return int(_FIELDS.unpack_from(_asked(self._name, asking.ljust(_FIELDS_BYTES, b"\0")))[2])

    def set_fields(self, protocol: int, fields: int) -> None:
        _asked(self._name, _FIELDS.pack(_SET_FIELDS, _FLOW[protocol], fields).ljust(_FIELDS_BYTES, b"\0"))

    def _rss(self, request: bytes) -> bytes:
        return _asked(self._name, request)

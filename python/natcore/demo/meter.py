"""The IPv4 packets and bytes of an interface, by the kernel's counters."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
import time
from pathlib import Path
from typing import NamedTuple

from natcore.demo.namespaces import inside
from natcore.internal.closing import Closing

_ETH_P_ALL = 0x0003
_SO_ATTACH_FILTER = 26
_SIOCETHTOOL = 0x8946
_ETHTOOL_SET = {"tso": 0x1F, "gso": 0x24, "gro": 0x2C}  # linux/ethtool.h
_ETHERNET_BYTES = 14
# struct sock_filter: load the ethertype; 0x0800 (IPv4): take nothing, else all of it
_NOT_IPV4 = b"".join(
    struct.pack("=HBBI", *step) for step in ((0x28, 0, 0, 12), (0x15, 0, 1, 0x0800), (6, 0, 0, 0), (6, 0, 0, 0xFFFF))
)


class Counts(NamedTuple):
    """Packets and bytes, each way. IPv4: without link headers."""

    received_packets: int
    received_bytes: int
    sent_packets: int
    sent_bytes: int

    def less(self, other: Counts) -> Counts:
        return Counts(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))


class Meter(Closing):
    """IPv4 packets and bytes of an Ethernet interface since start().

    The interface counters count every frame; what is not IPv4 (ARP) is counted by a packet socket and taken off. An
    interface counts a super-frame once, so segmentation offloads are switched off here. Needs CAP_NET_ADMIN and
    CAP_NET_RAW in the network namespace, which is named. xdp_peer: at the veth's other end there is an XDP program; what
    is sent there is counted without link headers.
    """

    def __init__(self, namespace: str, interface: str, *, xdp_peer: bool = False) -> None:
        self.namespace, self.interface = namespace, interface
        self._sent_header = 0 if xdp_peer else _ETHERNET_BYTES
        with inside(namespace):
            _switch_off_segmentation(interface)
            self._others = _tap(interface)
        self._seen = self._base = Counts(0, 0, 0, 0)

    def start(self) -> None:
        """Count from here, once the interface is quiet (3 s at most)."""
        self._settle()
        self._seen, self._base = Counts(0, 0, 0, 0), self._frames()

    def read(self) -> Counts:
        """Return the counts since start(), once the interface is quiet (3 s at most)."""
        self._settle()
        frames = self._frames().less(self._base).less(self._seen)
        return Counts(
            frames.received_packets,
            frames.received_bytes - _ETHERNET_BYTES * frames.received_packets,
            frames.sent_packets,
            frames.sent_bytes - self._sent_header * frames.sent_packets,
        )

    @property
    def other_frames(self) -> int:
        """Frames that were not IPv4, both ways, up to the last read()."""
        return self._seen.received_packets + self._seen.sent_packets

    def close(self) -> None:
        self._others.close()

    def _settle(self) -> None:
        end = time.monotonic() + 3
        before = None
        while (now := self._frames()) != before and time.monotonic() < end:
            before = now
            time.sleep(0.25)
        self._drain()

    def _drain(self) -> None:
        """Count the frames that are not IPv4."""
        received_packets, received_bytes, sent_packets, sent_bytes = self._seen
        unseen = _ETHERNET_BYTES - self._sent_header
        while True:
            try:
                length, _, _, address = self._others.recvmsg_into([], 0, socket.MSG_TRUNC)
            except BlockingIOError:
                break
            if address[2] == socket.PACKET_OUTGOING:
                sent_packets, sent_bytes = sent_packets + 1, sent_bytes + length - unseen
            else:
                received_packets, received_bytes = received_packets + 1, received_bytes + length
        self._seen = Counts(received_packets, received_bytes, sent_packets, sent_bytes)

    def _frames(self) -> Counts:
        """The interface counters: frames, with their Ethernet headers (but see xdp_peer)."""
        with inside(self.namespace):
            text = Path("/proc/thread-self/net/dev").read_text()
        for line in text.splitlines():
            name, _, columns = line.partition(":")
            if name.strip() == self.interface:
                numbers = [int(column) for column in columns.split()]
                return Counts(numbers[1], numbers[0], numbers[9], numbers[8])
        raise OSError(f"no interface {self.interface}")


def _tap(interface: str) -> socket.socket:
    """A packet socket that sees all frames but IPv4, both ways."""
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # protocol 0: nothing until it is bound
    program = ctypes.create_string_buffer(_NOT_IPV4, len(_NOT_IPV4))
    tap.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_NOT_IPV4) // 8, ctypes.addressof(program))
    )
    tap.setblocking(False)
    tap.bind((interface, _ETH_P_ALL))
    return tap


def _switch_off_segmentation(interface: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for command in _ETHTOOL_SET.values():
            value = ctypes.create_string_buffer(struct.pack("=II", command, 0), 8)
            fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("16sP", interface.encode(), ctypes.addressof(value)))

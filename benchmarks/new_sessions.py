"""A load of new sessions at a rate, and whether each of them goes on: for benchmarks/failover.py.

Each session is one datagram from an inside endpoint of its own, with its number as the payload: the outside host notes which
outside endpoint a number came from, and can ask back. Two processes do it, forked before there are threads: one sends, with
`sendmmsg` and frames made beforehand; the other notes what reaches the outside host, and when.
"""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import socket
import struct
import time
from contextlib import suppress

import numpy as np

from natcore.demo.namespaces import Network
from natcore.internal.closing import Closing
from natcore.testing import craft
from support.netns import SERVER, at

SO_RCVBUFFORCE, SO_TIMESTAMPNS = 33, 35
BUFFER_BYTES = 1 << 26
FIRST_HOST, HOSTS, FIRST_PORT, PER_HOST = 130, 120, 10_000, 4000
MOST = HOSTS * PER_HOST  # sessions
TICK = 0.002  # seconds between two bursts
SINK = 10  # the outside host's port
INSIDE_IP_AT, INSIDE_PORT_AT, PAYLOAD_AT = 26, 34, 42  # in a frame
MESSAGE = np.dtype([("name", "u8"), ("name_bytes", "u8"), ("vector", "u8"), ("vectors", "u8"), ("control", "u8"),
                    ("control_bytes", "u8"), ("flags", "u8"), ("sent", "u8")])  # fmt: skip  # struct mmsghdr
VECTOR = np.dtype([("base", "u8"), ("bytes", "u8")])  # struct iovec
ASKED_AT_ONCE, TURNS = 256, 20  # of the questions back
_FORK = multiprocessing.get_context("fork")


def frames(router: bytes, count: int) -> np.ndarray:
    """The first datagrams of so many sessions, uint8 (count, 46), to the router's MAC address."""
    first = craft.udp(("10.0.0.1", 1), (SERVER, SINK), bytes(4), no_checksum=True)
    made = np.tile(np.frombuffer(router + craft.ether(first)[6:], np.uint8), (count, 1))
    host, port = np.divmod(np.arange(count), PER_HOST)
    made[:, INSIDE_IP_AT : INSIDE_IP_AT + 4] = words(0x0A000000 + FIRST_HOST + host)
    made[:, INSIDE_PORT_AT : INSIDE_PORT_AT + 2] = words(FIRST_PORT + port)[:, 2:]
    made[:, PAYLOAD_AT : PAYLOAD_AT + 4] = words(np.arange(count))
    made[:, 24:26] = 0
    header = made[:, 14:34].copy().view(">u2").astype(np.int64).sum(axis=1)
    made[:, 24:26] = words(0xFFFF - (header - 1) % 0xFFFF - 1)[:, 2:]
    return made


def words(values: np.ndarray) -> np.ndarray:
    """Big-endian, uint8 (n, 4)."""
    return values.astype(">u4").view(np.uint8).reshape(-1, 4)


def shared(dtype: type[np.generic]) -> np.ndarray:
    """Memory that processes share, an element for each session."""
    return np.frombuffer(mmap.mmap(-1, MOST * np.dtype(dtype).itemsize), dtype)


class NewSessions(Closing):
    """The load, from its making until `stop`; the inside hosts are addresses of the namespace `in`."""

    def __init__(self, network: Network, rate: int, router: bytes) -> None:
        network.run("in", ["ip", "route", "add", "local", "10.0.0.128/25", "dev", "lo"])
        with at(network, "in"):
            self._in = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self._heard = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
        self._in.bind(("eth0", 0))
        self._heard.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        with at(network, "out"):
            self._out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._out.bind((SERVER, SINK))
        self._out.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        self._out.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._rate, self._frames = rate, frames(router, MOST)
        self._end = _FORK.Event()
        self._sent, self._came = shared(np.float64), shared(np.float64)  # CLOCK_MONOTONIC, in seconds
        self._from = shared(np.uint64)  # outside address and port
        self._processes = [_FORK.Process(target=each, daemon=True) for each in (self._note, self._send)]
        for process in self._processes:
            process.start()

    def _send(self) -> None:
        """Send what is due, a burst each tick."""
        vectors, messages = np.zeros(MOST, VECTOR), np.zeros(MOST, MESSAGE)
        vectors["base"] = self._frames.ctypes.data + np.arange(MOST) * self._frames.shape[1]
        vectors["bytes"] = self._frames.shape[1]
        messages["vector"], messages["vectors"] = vectors.ctypes.data + np.arange(MOST) * VECTOR.itemsize, 1
        send = ctypes.CDLL(None).sendmmsg
        began, done = time.monotonic(), 0
        while not self._end.is_set() and done < MOST:
            due = min(MOST, int((time.monotonic() - began) * self._rate))
            if due > done:
                at_once = ctypes.c_void_p(messages.ctypes.data + done * MESSAGE.itemsize)
                count = send(self._in.fileno(), at_once, due - done, 0)
                self._sent[done : done + max(0, count)] = time.monotonic()
                done += max(0, count)
            time.sleep(TICK)

    def _note(self) -> None:
        """Whence each session's datagram came, and when."""
        offset = time.time() - time.monotonic()
        self._out.settimeout(0.2)
        while not self._end.is_set():
            with suppress(TimeoutError):
                data, ancillary, _, (ip, port) = self._out.recvmsg(64, 64)
                seconds, nanoseconds = struct.unpack("@qq", ancillary[0][2][:16])
                number = int.from_bytes(data, "big")
                self._from[number] = int.from_bytes(socket.inet_aton(ip), "big") << 16 | port
                self._came[number] = seconds + nanoseconds / 1e9 - offset

    @property
    def arrived(self) -> int:
        """Sessions that the outside host knows."""
        return int(np.count_nonzero(self._came))

    def stop(self) -> None:
        """Send no more."""
        self._end.set()
        for process in self._processes:
            process.join()

    def outcome(self, killed: float) -> tuple[dict[str, float], int]:
        """What became of the sessions that the outside host knew at a moment of CLOCK_MONOTONIC, by its answers to each, and
        how many outside endpoints two inside endpoints had."""
        came, sent = self._came, self._sent
        before = np.flatnonzero((came > 0) & (came < killed))
        lost = self._unanswered(before.tolist())
        ages = killed - came[sorted(lost)]
        rate = int(np.count_nonzero((sent > killed - 1.0) & (sent < killed)))
        told = {
            "sent in the second before": rate,
            "known": len(before),
            "lost": len(lost),
            "lost, of those older than 200 ms": int(np.count_nonzero(ages > 0.2)),
            "age of the oldest lost, ms": float(ages.max() * 1000) if len(ages) else 0.0,
        }
        arrived = self._from[came > 0]
        return told, len(arrived) - len(np.unique(arrived))

    def _unanswered(self, sessions: list[int]) -> set[int]:
        """Those of which no datagram from outside arrives at the inside endpoint."""
        left = set(sessions)
        self._heard.setblocking(False)
        self._out.setblocking(True)  # it was shared with who had a time-out
        for _ in range(TURNS):
            asked = sorted(left)
            for begin in range(0, len(asked), ASKED_AT_ONCE):
                for number in asked[begin : begin + ASKED_AT_ONCE]:
                    source = int(self._from[number])
                    self._out.sendto(
                        number.to_bytes(4, "big"),
                        (socket.inet_ntoa((source >> 16).to_bytes(4, "big")), source & 0xFFFF),
                    )
                time.sleep(0.005)
                self._hear(left)
            time.sleep(0.1)
            self._hear(left)
            if not left:
                break
        return left

    def _hear(self, left: set[int]) -> None:
        with suppress(BlockingIOError):
            while True:
                packet = self._heard.recv(128)
                if packet[20:22] != SINK.to_bytes(2, "big"):  # another flow's
                    continue
                port, number = struct.unpack_from(">H", packet, 22)[0], struct.unpack_from(">I", packet, 28)[0]
                host, at_host = divmod(number, PER_HOST)
                if packet[16:20] == bytes((10, 0, 0, FIRST_HOST + host)) and port == FIRST_PORT + at_host:
                    left.discard(number)

    def close(self) -> None:
        """Send no more, and close the sockets. Idempotent."""
        self.stop()
        for each in (self._in, self._heard, self._out):
            each.close()

"""Real traffic between the inside and the outside host, which lasts while something happens to the gateway, and is judged then.

Each kind has `start`, and `finish`, which returns what went wrong in words; none: nothing.
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import subprocess
import threading
import time

import numpy as np

from natcore.demo.namespaces import Network
from support.netns import CLIENT, SERVER, at, connect, listener

SECONDS = 60.0  # without an answer, after which something is wrong


class Idle:
    """TCP connections that are silent until the end, or say something each `every` seconds; then all must answer."""

    def __init__(self, network: Network, count: int, every: float = 0.0) -> None:
        self._count, self._every = count, every
        self._end = threading.Event()
        self._failed: list[str] = []
        self._accepted: list[socket.socket] = []
        self._listening = listener(network, "out")
        self._listening.listen(1024)
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()
        port = self._listening.getsockname()[1]
        self._clients = [connect(network, "in", (SERVER, port)) for _ in range(count)]
        if every:
            self._threads.append(threading.Thread(target=self._talk, daemon=True))
            self._threads[-1].start()

    def _accept(self) -> None:
        while len(self._accepted) < self._count:
            accepted, _ = self._listening.accept()
            accepted.settimeout(SECONDS)
            self._accepted.append(accepted)

    def _talk(self) -> None:
        while not self._end.wait(self._every) and not self._failed:
            self._ask_all()

    def _ask_all(self) -> None:
        try:
            for each in self._clients:
                each.sendall(b"?")
            for each in self._accepted:
                assert each.recv(1) == b"?"
                each.sendall(b"!")
            for each in self._clients:
                assert each.recv(1) == b"!"
        except (OSError, AssertionError) as error:
            self._failed.append(f"a TCP connection: {error!r}")

    def finish(self) -> list[str]:
        self._end.set()
        for thread in self._threads:
            thread.join(2 * SECONDS)
        if not self._failed:
            self._ask_all()
        for each in (*self._clients, *self._accepted, self._listening):
            each.close()
        return self._failed


class Flows:
    """UDP flows from ports of their own; each packet has its number and is answered. longest: seconds without an answer.

    sent: packets by the inside port; seen: their outside ports.
    """

    def __init__(self, network: Network, count: int, every: float = 0.01) -> None:
        self._every = every
        self._end = threading.Event()
        with at(network, "out"):
            self._server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._server.bind((SERVER, 0))
        self._server.settimeout(0.2)
        self._to = self._server.getsockname()
        self.clients: list[socket.socket] = []
        for _ in range(count):
            with at(network, "in"):
                made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                made.bind((CLIENT, 0))
                made.settimeout(0.2)
                self.clients.append(made)
        self.sent = {each.getsockname()[1]: 0 for each in self.clients}
        self.seen: dict[int, set[int]] = {port: set() for port in self.sent}
        self.answered = 0
        self.longest = 0.0
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._serve, self._send, self._receive)
        ]
        for thread in self._threads:
            thread.start()

    def _serve(self) -> None:
        while True:
            try:
                data, came_from = self._server.recvfrom(100)
            except TimeoutError:
                if self._end.is_set():
                    return
                continue
            self.seen[struct.unpack("=HI", data)[0]].add(came_from[1])
            self._server.sendto(data, came_from)

    def _send(self) -> None:
        while not self._end.wait(self._every):
            for each in self.clients:
                port = each.getsockname()[1]
                self.sent[port] += 1
                try:
                    each.sendto(struct.pack("=HI", port, self.sent[port]), self._to)
                except OSError:  # the network is gone: the test has failed
                    return

    def _receive(self) -> None:
        """Of the first flow alone the time is looked at: the others have their answers in their buffers."""
        last = 0.0
        while True:
            try:
                self.clients[0].recv(100)
            except TimeoutError:
                if self._end.is_set():
                    return
                continue
            now = time.monotonic()
            self.answered += 1
            self.longest = max(self.longest, now - last if last else 0.0)
            last = now

    def finish(self) -> list[str]:
        self._end.set()
        for thread in self._threads:
            thread.join(SECONDS)
        for each in (*self.clients, self._server):
            each.close()
        return [f"UDP port {port} was seen as {len(seen)} ports" for port, seen in self.seen.items() if len(seen) != 1]


class Download:
    """One TCP connection by which so many bytes come, at most so many a second. longest: seconds in which none came."""

    def __init__(self, network: Network, size: int, rate: int) -> None:
        self._data = np.random.default_rng(7).bytes(1 << 16)
        self._size, self._rate = size, rate
        self._listening = listener(network, "out")
        self.count = 0
        self.longest = 0.0
        self._digests = [hashlib.sha256(), hashlib.sha256()]
        self._failed: list[str] = []
        self._threads = [
            threading.Thread(target=self._serve, daemon=True),
            threading.Thread(target=self._fetch, args=(network,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _serve(self) -> None:
        try:
            accepted, _ = self._listening.accept()
            accepted.settimeout(SECONDS)
            began, sent = time.monotonic(), 0
            with accepted:
                while sent < self._size:
                    accepted.sendall(self._data)
                    self._digests[0].update(self._data)
                    sent += len(self._data)
                    time.sleep(max(0.0, began + sent / self._rate - time.monotonic()))
        except OSError as error:
            self._failed.append(f"the download's server: {error!r}")

    def _fetch(self, network: Network) -> None:
        try:
            client = connect(network, "in", (SERVER, self._listening.getsockname()[1]))
            client.settimeout(SECONDS)
            last = time.monotonic()
            with client:
                while data := client.recv(1 << 18):
                    self._digests[1].update(data)
                    self.count += len(data)
                    now = time.monotonic()
                    self.longest, last = max(self.longest, now - last), now
        except OSError as error:
            self._failed.append(f"the download: {error!r}")

    def finish(self) -> list[str]:
        for thread in self._threads:
            thread.join(3600)
        self._listening.close()
        if self._digests[0].digest() != self._digests[1].digest():
            self._failed.append(f"the download has another SHA-256 after {self.count:,} bytes")
        return self._failed


class Iperf:
    """iperf3 from inside, for some seconds. rate: bits a second; bits_per_second, retransmits: of it, at the end."""

    def __init__(self, network: Network, seconds: float, rate: str) -> None:
        self._server = network.popen("out", ["iperf3", "-s", "-1", "-p", "5299"], stdout=subprocess.DEVNULL)
        time.sleep(0.5)
        command = ["iperf3", "-c", SERVER, "-p", "5299", "-t", str(int(seconds)), "-b", rate, "-J"]
        self._client = network.popen("in", command, stdout=subprocess.PIPE, text=True)
        self.bits_per_second = 0.0
        self.retransmits = 0

    def finish(self) -> list[str]:
        out, _ = self._client.communicate()
        self._server.kill()
        self._server.wait()
        told = json.loads(out)
        if self._client.returncode or "error" in told:
            return [f"iperf3: {told.get('error', self._client.returncode)}"]
        self.bits_per_second = told["end"]["sum_received"]["bits_per_second"]
        self.retransmits = told["end"]["sum_sent"]["retransmits"]
        return []

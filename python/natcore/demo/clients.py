"""The demo's inside host: curl, ping, dig and iperf3, or replacements from the standard library."""

from __future__ import annotations

import json
import shutil
import socket
import struct
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import NamedTuple

from natcore.demo.servers import BODY, DNS_PORT, ECHO_PORT, IPERF_PORT

SECONDS = 5.0  # most that one program may take
NAME = "www.example.com"

Program = tuple[str, str, Callable[[], str]]  # command, protocol, and the run: it returns the outcome or raises


class Outcome(NamedTuple):
    """One program's outcome. command: as it was run. seconds: duration. detail: the result in words."""

    command: str
    protocol: str
    ok: bool
    detail: str
    seconds: float


class ClientError(Exception):
    """A program failed."""


class Clients:
    """Programs that talk to the demo's server, one after the other.

    Run it in the inside host's network namespace. stop() ends the one that runs, from another thread.
    """

    def __init__(self, server: str) -> None:
        self.server = server
        self._running: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def run(self) -> Iterator[Outcome]:
        """Yield each program's outcome, as it ends."""
        server = self.server
        programs: list[Program] = [
            self._either("curl", f"-sS --max-time 4 http://{server}/", "TCP", _check_page, self._fetch),
            self._either("ping", f"-n -c 5 -i 0.2 -W 2 {server}", "ICMP", _check_ping, self._ping),
            self._either("dig", f"+short +tries=1 +time=3 @{server} {NAME}", "UDP", self._check_dig, self._dns),
            ("TCP echo, 256 KiB", "TCP", self._tcp_echo),
            ("UDP echo, 20 datagrams", "UDP", self._udp_echo),
            ("HTTP, 3 downloads", "TCP", self._fetch_all),
        ]
        if shutil.which("iperf3"):
            arguments = f"-c {server} -p {IPERF_PORT} -n 16M -J"
            programs.append((f"iperf3 {arguments}", "TCP", lambda: _check_iperf(self._output("iperf3", arguments))))
        for command, protocol, program in programs:
            if self._stopped:
                return
            yield _timed(command, protocol, program)

    def stop(self) -> None:
        self._stopped = True
        if (running := self._running) is not None:
            running.kill()

    def _either(
        self, name: str, arguments: str, protocol: str, check: Callable[[bytes], str], fall_back: Callable[[], str]
    ) -> Program:
        """Return the program if it is installed, else the same with the standard library."""
        if shutil.which(name):
            return f"{name} {arguments}", protocol, lambda: check(self._output(name, arguments))
        return f"{name} in Python (it is not installed)", protocol, fall_back

    def _output(self, name: str, arguments: str) -> bytes:
        with subprocess.Popen([name, *arguments.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            self._running = process
            try:
                out, errors = process.communicate(timeout=SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise ClientError(f"no answer within {SECONDS:g} s") from None
            finally:
                self._running = None
        if process.returncode:
            said = (errors or out[-200:]).decode(errors="replace").strip()
            raise ClientError(f"exit {process.returncode}: {said}")
        return out

    def _fetch(self) -> str:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        end, page = time.monotonic() + SECONDS, bytearray()
        with opener.open(f"http://{self.server}/", timeout=SECONDS) as answer:
            while part := answer.read1(65536):
                page += part
                _check_time(end)
        return _check_page(page)

    def _fetch_all(self) -> str:
        for _ in range(3):
            detail = self._fetch()
        return f"3 times {detail}"

    def _tcp_echo(self) -> str:
        end, data = time.monotonic() + SECONDS, BODY[: 256 << 10]
        with socket.create_connection((self.server, ECHO_PORT), timeout=SECONDS) as connection:
            received = bytearray()
            for offset in range(0, len(data), 16384):  # send and receive alternate, so that neither side's buffer fills
                connection.sendall(data[offset : offset + 16384])
                while len(received) < offset + 16384 and (part := connection.recv(65536)):
                    received += part
                    _check_time(end)
        if received != data:
            raise ClientError(f"{len(received):,} of {len(data):,} bytes came back as they were sent")
        return f"{len(data):,} bytes and back"

    def _udp_echo(self) -> str:
        with _udp(self.server, ECHO_PORT) as connection:
            for number in range(20):
                data = BODY[number * 64 : number * 64 + 64 + number]
                connection.send(data)
                if connection.recv(65536) != data:
                    raise ClientError(f"datagram {number} came back changed")
        return "20 of 20 came back"

    def _check_dig(self, out: bytes) -> str:
        if (answer := out.decode().strip()) != self.server:
            raise ClientError(f"{NAME} is {answer!r}, not {self.server}")
        return f"{NAME} is {answer}"

    def _dns(self) -> str:
        labels = b"".join(bytes([len(label)]) + label.encode() for label in NAME.split("."))
        with _udp(self.server, DNS_PORT) as connection:
            connection.send(struct.pack("!6H", 4711, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, 1, 1))
            return self._check_dig(socket.inet_ntoa(connection.recv(512)[-4:]).encode())

    def _ping(self) -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as connection:
            connection.settimeout(SECONDS)
            for sequence in range(1, 6):
                connection.sendto(_echo(8, 4711, sequence), (self.server, 0))
                while connection.recv(1500)[20:] != _echo(0, 4711, sequence):  # behind the IPv4 header
                    pass
        return "5 of 5 answered"


def _timed(command: str, protocol: str, program: Callable[[], str]) -> Outcome:
    start = time.monotonic()
    try:
        ok, detail = True, program()
    except (ClientError, OSError) as error:
        ok, detail = False, f"{type(error).__name__}: {error}" if isinstance(error, OSError) else str(error)
    return Outcome(command, protocol, ok, detail, time.monotonic() - start)


def _check_time(end: float) -> None:
    """Bound the whole program's time: a socket's time-out bounds each step alone."""
    if time.monotonic() > end:
        raise ClientError(f"not done within {SECONDS:g} s")


def _udp(server: str, port: int) -> socket.socket:
    connection = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    connection.settimeout(SECONDS)
    connection.connect((server, port))
    return connection


def _check_page(page: bytes | bytearray) -> str:
    if page != BODY:
        raise ClientError(f"{len(page):,} bytes that are not the server's {len(BODY):,}")
    return f"{len(page):,} bytes, as served"


def _check_ping(out: bytes) -> str:
    line = next((line for line in out.decode().splitlines() if "packets transmitted" in line), "")
    if not line.startswith("5 packets transmitted, 5 received"):
        raise ClientError(line or "no answer")
    return line.split(", time")[0]


def _check_iperf(out: bytes) -> str:
    result = json.loads(out)
    if "error" in result:  # it exits with 0 nevertheless
        raise ClientError(result["error"])
    total = result["end"]["sum_received"]
    return f"{total['bytes']:,} bytes at {total['bits_per_second'] / 1e6:,.0f} Mbit/s"


def _echo(kind: int, identifier: int, sequence: int) -> bytes:
    """An ICMP echo request (8) or reply (0) of RFC 792, with 56 bytes of data and its checksum (RFC 1071)."""
    body = struct.pack("!HH", identifier, sequence) + bytes(range(56))
    total = (kind << 8) + sum(struct.unpack(f"!{len(body) // 2}H", body))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBH", kind, 0, ~total & 0xFFFF) + body

"""The demo's outside server: HTTP, TCP and UDP echo, DNS, and iperf3 where it is installed."""

from __future__ import annotations

import hashlib
import shutil
import socket
import socketserver
import struct
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ECHO_PORT, DNS_PORT, HTTP_PORT, IPERF_PORT = 7, 53, 80, 5201
BODY = hashlib.shake_256(b"natcore demo").digest(1 << 20)  # what HTTP serves: 1 MiB that is easy to check
_A, _IN = 1, 1  # DNS type and class (RFC 1035)


class Servers:
    """Servers on one address, each in a thread, until close(). peers: the client addresses that they saw.

    Sockets belong to the network namespace of the thread that makes this object. Raises OSError where a port is taken.
    """

    def __init__(self, address: str) -> None:
        self.peers: set[str] = set()
        self._servers: list[socketserver.BaseServer] = []
        self._iperf: subprocess.Popen[bytes] | None = None
        try:
            self._servers += [
                _Http((address, HTTP_PORT), _HttpHandler),
                _TcpEcho((address, ECHO_PORT), _EchoStream),
                _Udp((address, ECHO_PORT), _EchoDatagram),
                _Udp((address, DNS_PORT), _Dns),
            ]
            if iperf := shutil.which("iperf3"):
                command = [iperf, "--server", "--one-off", "--bind", address, "--port", str(IPERF_PORT)]
                self._iperf = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for server in self._servers:
                server.peers = self.peers  # type: ignore[attr-defined]
                threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self._servers.clear()
        if self._iperf is not None:
            self._iperf.kill()
            self._iperf.wait()
            self._iperf = None


class _Peers:
    """Notes who asked."""

    peers: set[str]

    def process_request(self, request: Any, client_address: Any) -> None:
        self.peers.add(client_address[0])
        super().process_request(request, client_address)  # type: ignore[misc]


class _Http(_Peers, ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:  # as socketserver does it: HTTPServer would ask DNS for its own name
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


class _TcpEcho(_Peers, socketserver.ThreadingTCPServer):
    daemon_threads = allow_reuse_address = True


class _Udp(_Peers, socketserver.UDPServer):
    pass


class _HttpHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _EchoStream(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        connection: socket.socket = self.request
        while data := connection.recv(65536):
            connection.sendall(data)


class _EchoDatagram(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        data, server = self.request
        server.sendto(data, self.client_address)


class _Dns(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        query, server = self.request
        answer = dns_answer(query, server.getsockname()[0])
        if answer is not None:
            server.sendto(answer, self.client_address)


def dns_answer(query: bytes, address: str) -> bytes | None:
    """The answer to a query with one question: this address for type A, nothing for others; None: not a query."""
    if len(query) < 12:
        return None
    identifier, flags, questions = struct.unpack_from("!HHH", query)
    end = 12
    while end < len(query) and query[end]:
        end += query[end] + 1
    end += 5  # the root label, type and class
    if flags & 0x8000 or questions != 1 or end > len(query):
        return None
    kind, class_ = struct.unpack_from("!HH", query, end - 4)
    found = kind == _A and class_ == _IN
    # QR, AA, RD as asked, RA; the name is a pointer to the question's; 60 s to live
    answer = struct.pack("!HHHHHH", identifier, 0x8480 | (flags & 0x0100), 1, int(found), 0, 0) + query[12:end]
    if found:
        answer += struct.pack("!HHHIH", 0xC00C, _A, _IN, 60, 4) + socket.inet_aton(address)
    return answer

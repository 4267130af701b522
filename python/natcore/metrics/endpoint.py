"""The HTTP endpoint of a gateway's metrics: /metrics, /healthz and /readyz, by threads of its own.

A client that is slow, stuck or hostile costs its own connection: there are at most CONNECTIONS, each with a deadline, and a
further one is closed at once.
"""

from __future__ import annotations

import http.server
import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from natcore.errors import ConfigurationError, InterfaceError
from natcore.internal import threads
from natcore.internal.extras import extra
from natcore.internal.redaction import show
from natcore.internal.validation import is_text
from natcore.metrics.collector import Collector, Reloads
from natcore.metrics.health import Health, Report

with extra("metrics"):
    from prometheus_client.exposition import choose_encoder

if TYPE_CHECKING:
    from types import TracebackType

    from natcore.gateway import Gateway

CONNECTIONS = 16  # at once
DEADLINE_SECONDS = 10.0  # of a connection, from its beginning to its end
_POLL_SECONDS = 0.5


def parse_listen(listen: object) -> tuple[str, int]:
    """Return address and port of "127.0.0.1:9468" or "[::1]:9468". Raises ConfigurationError."""
    wanted = "listen must be an address, a colon and a port from 0 to 65535, such as '127.0.0.1:9468' or '[::1]:9468'"
    if not is_text(listen):
        raise ConfigurationError(f"{wanted}, got {show(listen)}")
    host, colon, port = str(listen).rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host, version = host[1:-1], 6
    else:
        version = 4
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if not colon or address is None or address.version != version or not port.isascii() or not port.isdigit():
        raise ConfigurationError(f"{wanted}, got {show(listen)}")
    if int(port) > 65_535:
        raise ConfigurationError(f"{wanted}, got {show(listen)}")
    return str(address), int(port)


class Endpoint:
    """Serves a gateway's metrics and health over HTTP, from its making until `stop`; a context manager that stops it.

    | path | answer |
    | --- | --- |
    | `/metrics` | the metrics, as OpenMetrics or as Prometheus's text, whichever is asked for |
    | `/healthz` | 200 while every loop of every plane turns, else 503 and the threads that hang |
    | `/readyz` | 200 while it also forwards between interfaces that are up, else 503 and why not |

    Parameters
    ----------
    gateway
        The gateway.
    listen
        Address and port: "127.0.0.1:9468", "[::1]:9468"; port 0: one that is free. Anyone who reaches it can read it, and
        outside addresses are among what is read: leave it on the loopback, or on a management network.
    service
        As for `Collector`.

    Raises
    ------
    ConfigurationError
        `listen` is no address with a port.
    InterfaceError
        It cannot be listened on.
    """

    def __init__(self, gateway: Gateway, listen: str = "127.0.0.1:9468", *, service: Reloads | None = None) -> None:
        host, port = parse_listen(listen)
        registry = Collector(gateway, service=service).registry()
        health = Health(gateway)
        try:
            self._server = _Server((host, port), _handler(registry, health))
        except OSError as error:
            reason = error.strerror or str(error)
            raise InterfaceError(error.errno or 0, f"metrics cannot listen on {listen}: {reason}") from error
        self._thread = threads.start("natcore-metrics", self._server.serve_forever, _POLL_SECONDS)

    @property
    def address(self) -> str:
        """Where it listens: "127.0.0.1:9468"."""
        host, port = self._server.server_address[:2]
        host = str(host)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def stop(self) -> None:
        """Close the listening socket; answers under way end by themselves. Idempotent."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


class _Server(http.server.HTTPServer):
    """A thread for each connection, up to CONNECTIONS."""

    request_queue_size = 2 * CONNECTIONS

    def __init__(self, address: tuple[str, int], handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._places = threading.BoundedSemaphore(CONNECTIONS)
        self._deadlines: dict[socket.socket, float] = {}  # of the connections that are served
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind without looking up this host's name, which may take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def get_request(self) -> tuple[Any, Any]:
        try:
            return super().get_request()
        except OSError:  # no descriptor is left: the connection waits, and is asked for again
            time.sleep(_POLL_SECONDS / 10)
            raise

    def service_actions(self) -> None:
        """Cut the connections that are over their time, however slowly their other end goes on."""
        now = time.monotonic()
        for connection in [each for each, deadline in tuple(self._deadlines.items()) if deadline <= now]:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            threads.start("natcore-scrape", self._serve, request, client_address)
        except Exception:
            self._places.release()
            raise

    def _serve(self, request: Any, client_address: Any) -> None:
        self._deadlines[request] = time.monotonic() + DEADLINE_SECONDS
        try:
            with suppress(OSError):  # the client has gone, or its time is over
                self.finish_request(request, client_address)
        finally:
            del self._deadlines[request]
            self.shutdown_request(request)
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: the system has no thread left, and the connection is closed."""


def _handler(registry: Any, health: Health) -> type[http.server.BaseHTTPRequestHandler]:
    reports: dict[str, Callable[[], Report]] = {"/healthz": health.alive, "/readyz": health.ready}

    class Handler(http.server.BaseHTTPRequestHandler):
        """One request, one answer."""

        server_version, sys_version = "natcore", ""
        protocol_version = "HTTP/1.0"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                encode, kind = choose_encoder(self.headers.get("Accept", ""))
                self._answer(HTTPStatus.OK, kind, encode(registry))
            elif path in reports:
                report = reports[path]()
                status = HTTPStatus.OK if report.ok else HTTPStatus.SERVICE_UNAVAILABLE
                self._answer(status, "text/plain; charset=utf-8", str(report).encode())
            else:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"/metrics, /healthz, /readyz\n")

        do_HEAD = do_GET

        def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing: a scrape is no event."""

    return Handler

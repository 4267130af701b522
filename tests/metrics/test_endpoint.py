"""The HTTP endpoint: what it answers, and that a client that hangs costs its own connection alone."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from urllib.error import HTTPError

import pytest

from natcore import ConfigurationError, InterfaceError, Side, metrics
from natcore.metrics import endpoint as endpoints
from natcore.testhooks.planted_faults import unlock_worker
from support.frames import gateway, udp
from support.netns import Nat, nat, needs_root, network, until
from support.worker_lock import locked

__all__ = ["nat", "network"]  # fixtures


@pytest.fixture
def served() -> Iterator[metrics.Endpoint]:
    over = gateway()
    over.translate_one(udp(), Side.INSIDE, 0.0)
    with metrics.Endpoint(over, "127.0.0.1:0") as made:
        yield made


def ask(served: metrics.Endpoint, path: str, **headers: str) -> tuple[int, str, str]:
    request = urllib.request.Request(f"http://{served.address}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


def test_metrics_come_in_the_format_that_is_asked_for(served: metrics.Endpoint) -> None:
    status, kind, text = ask(served, "/metrics")
    assert (status, kind.partition(";")[0]) == (200, "text/plain") and "\nnatcore_sessions 1.0\n" in text
    status, kind, text = ask(served, "/metrics?x=1", Accept="application/openmetrics-text; version=1.0.0")
    assert (status, kind.partition(";")[0]) == (200, "application/openmetrics-text") and text.endswith("# EOF\n")


def test_health_is_200_or_503_with_the_reason(served: metrics.Endpoint) -> None:
    assert ask(served, "/healthz")[::2] == (200, "ok\n")
    assert ask(served, "/readyz")[::2] == (503, "it forwards between no interfaces\n")
    assert ask(served, "/")[::2] == (404, "/metrics, /healthz, /readyz\n")


def test_requests_that_are_none_harm_nothing(served: metrics.Endpoint) -> None:
    host, port = served.address.rsplit(":", 1)
    for said in (b"", b"\0\xff\r\n\r\n", b"GET " + b"a" * 70_000, b"POST /metrics HTTP/1.0\r\n\r\n", b"GET /metrics"):
        with socket.create_connection((host, int(port)), timeout=60) as client:
            client.sendall(said)
            client.shutdown(socket.SHUT_WR)
            while client.recv(65_536):
                pass
    assert ask(served, "/healthz")[0] == 200


def test_clients_that_say_nothing_take_no_place_for_long(
    served: metrics.Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, port = served.address.rsplit(":", 1)
    monkeypatch.setattr(endpoints, "DEADLINE_SECONDS", 0.3)
    with ExitStack() as stack:
        held = [
            stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
            for _ in range(endpoints.CONNECTIONS + 3)
        ]
        assert [client.recv(1) for client in held] == [b""] * len(held)  # closed: at once, or at the deadline

    def is_answered() -> bool:
        with suppress(OSError):  # a place is free when its thread ends, a moment after the connection
            return ask(served, "/healthz")[0] == 200
        return False

    until(is_answered)


@pytest.mark.parametrize(
    "value", ["", "9468", ":9468", "localhost:9468", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "::1:9468", 5]
)
def test_a_wrong_address_is_named(value: object) -> None:
    with pytest.raises(ConfigurationError, match="listen must be an address, a colon and a port"):
        endpoints.parse_listen(value)


def test_an_address_in_use_is_an_error_that_names_it(served: metrics.Endpoint) -> None:
    with pytest.raises(InterfaceError, match=f"metrics cannot listen on {served.address}: Address already in use"):
        metrics.Endpoint(gateway(), served.address)
    with metrics.Endpoint(gateway(), "[::1]:0") as other:
        assert other.address.startswith("[::1]:")
        other.stop()


@needs_root
def test_a_loop_that_hangs_is_named(nat: Nat) -> None:
    """Planted: its worker's lock is never given back."""
    _, made, plane = nat
    health = metrics.Health(made, late=0.4)
    until(lambda: health.alive().ok)
    worker = made._core.worker_capsule(0)
    until(lambda: locked(worker))
    try:
        until(lambda: any(text.startswith("natcore-w0 has not turned for ") for text in health.alive().problems))
        assert not health.alive().ok
    finally:
        unlock_worker(worker)
    until(lambda: health.alive().ok)
    assert plane.state == "running"

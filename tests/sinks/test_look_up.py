"""A resolver that hangs hangs neither a delivery nor a stop."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import pytest

from natcore import DeliveryError, Gateway
from natcore.internal.look_up import look_up
from natcore.sinks import ClickHouseSink, IpfixSink, KafkaSink, Sink, SyslogSink
from support.batches import batch_of


class Resolver:
    """Answers when it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.asked: list[str] = []
        self._real: Callable[..., Any] = socket.getaddrinfo

    def __call__(self, host: str, port: int, *, type: int = 0, flags: int = 0) -> Any:
        if flags & socket.AI_NUMERICHOST:
            return self._real(host, port, type=type, flags=flags)
        self.asked.append(host)
        self.released.wait()
        if host.startswith("no-"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self._real("127.0.0.1", port, type=type)


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    made = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", made)
    yield made
    made.released.set()


@pytest.mark.parametrize(
    "make",
    [
        lambda: SyslogSink("hangs-syslog.example", 514, timeout=0.1),
        lambda: IpfixSink("hangs-tcp.example", 4739, transport="tcp", timeout=0.1),
        lambda: IpfixSink("hangs-udp.example", 4739, transport="udp", timeout=0.1),
        lambda: ClickHouseSink("http://hangs-http.example:8123", timeout=0.1),
    ],
)
def test_a_delivery_fails_in_its_time_and_later_ones_start_no_second_look_up(
    resolver: Resolver, make: Callable[[], Sink]
) -> None:
    for _ in range(3):
        with pytest.raises(DeliveryError) as failed:
            make().deliver(batch_of(3, 0))
        assert failed.value.code in ("ETIMEDOUT", "TimeoutError")
        assert "the resolver has not answered" in str(failed.value)
    assert len(resolver.asked) == 1


def test_no_producer_is_made_while_the_resolver_hangs(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end would wait for librdkafka's own look-ups, which have no limit."""
    pytest.importorskip("confluent_kafka", reason="the extra natcore[kafka] is not installed")
    times = cycle([0.0, 0.98, 0.99])  # of a call: its start, and each server's turn
    monkeypatch.setattr("natcore.internal.http_request.monotonic", lambda: next(times))
    sink = KafkaSink("hangs-kafka.example:9092,SASL_SSL://hangs-too.example", "t", timeout=1)
    for _ in range(2):
        for call in (sink.open, lambda: sink.deliver(batch_of(3, 0))):
            with pytest.raises(DeliveryError, match="hangs-too") as failed:
                call()
            assert (failed.value.code, failed.value.action) == ("_RESOLVE", "backoff")
    assert resolver.asked == ["hangs-kafka.example", "hangs-too.example"]


def test_a_stop_does_not_wait_for_it(resolver: Resolver) -> None:
    gateway = Gateway()
    gateway.start_session_log(SyslogSink("hangs-stop.example", 514, timeout=0.1))
    gateway.close(timeout=1)
    assert not resolver.released.is_set()


def test_its_late_answer_is_the_next_ones(resolver: Resolver) -> None:
    def ask(host: str, seconds: float) -> Any:
        return look_up(host, 514, socket.SOCK_STREAM, seconds)

    for host in ("late.example", "no-such.example"):
        with pytest.raises(TimeoutError):
            ask(host, 0)
    resolver.released.set()
    assert ask("late.example", 60)[0][4] == ("127.0.0.1", 514)
    with pytest.raises(socket.gaierror, match="not known"):
        ask("no-such.example", 60)
    assert ask("127.0.0.2", 0)[0][4] == ("127.0.0.2", 514)  # an address needs no resolver


def test_a_system_without_threads_is_a_failed_delivery(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(DeliveryError, match="can't start new thread"):
            SyslogSink("no-thread.example", 514).deliver(batch_of(3, 0))
    resolver.released.set()
    with pytest.raises(socket.gaierror):
        look_up("no-thread.example", 514, socket.SOCK_STREAM, 60)

"""The console over a gateway with a million sessions: the processor time of each view, and for how long packets wait for it."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from natcore.console import pages
from natcore.control.client import Client
from natcore.control.server import ControlServer
from natcore.testing.load import Load
from support.console import Visitor, serving

SESSIONS = 1_048_576
VIEWS = {
    "overview": "", "sessions, newest": "sessions", "sessions, by bytes": "sessions?sort=bytes",
    "sessions of a host": "sessions?subscriber=10.0.1.7", "ports": "ports", "top": "top", "entries": "entries",
}  # fmt: skip


@contextmanager
def _visited(loaded: Load) -> Iterator[Visitor]:
    with (
        tempfile.TemporaryDirectory() as folder,
        ControlServer(loaded.gateway, Path(folder, "ngw.sock")),
        serving(Path(folder)) as (_, url),
    ):
        yield Visitor(url)


@pytest.mark.parametrize("view", VIEWS)
def bench_a_view_of_a_million_sessions(benchmark: BenchmarkFixture, load: Callable[[int], Load], view: str) -> None:
    """Gateway, console and client are one process here: its processor time is all that a view costs."""
    with _visited(load(SESSIONS)) as visitor:
        spent: list[float] = []

        def look() -> None:
            start = time.process_time()
            assert visitor.get(f"/g/ngw/{VIEWS[view]}").status == 200
            spent.append(time.process_time() - start)

        benchmark.pedantic(look, rounds=5, warmup_rounds=1)
    benchmark.extra_info["processor_ms"] = round(min(spent) * 1e3, 1)


def bench_what_packets_wait_for_a_live_page(benchmark: BenchmarkFixture, load: Callable[[int], Load]) -> None:
    """All processor time of the thread that answers stands for what packets lose: it can be no more.

    A live part is asked for once for all who look, each LIVE seconds. Left out is the sweep, which a gateway in memory does at
    each look, and the loops of a plane do anyway; top, which is in a thread of its own, is looked at without the socket.
    """
    loaded = load(SESSIONS)
    gateway = loaded.gateway
    rates = gateway.subscriber_rates()
    rates.rows()

    def spent(look: Callable[[], object]) -> float:
        start = time.thread_time()
        look()
        return time.thread_time() - start

    with (
        tempfile.TemporaryDirectory() as folder,
        ControlServer(gateway, Path(folder, "s")) as server,
        Client(server.path) as client,
    ):
        clock = time.pthread_getcpuclockid(
            next(each for each in threading.enumerate() if each.name == "natcore-control").ident or 0
        )

        def answering(page: str, **query: str) -> float:
            """Processor seconds of the gateway's own thread."""
            look = pages.PAGES[page][1]
            found = []
            for _ in range(4):
                before = time.clock_gettime(clock)
                look(client, query)
                found.append(time.clock_gettime(clock) - before)
            return min(found)

        sweep = min(spent(lambda: gateway.advance(gateway.now)) for _ in range(4))
        costs = {
            "overview": (answering("") - sweep) / pages.LIVE_SECONDS,
            "session log": (answering("log") - sweep) / pages.LIVE_SECONDS,
            "ports": (answering("ports") - 2 * sweep) / pages.LIVE["ports"],
            "top": min(spent(rates.rows) for _ in range(3)) / pages.top_interval({"sessions": SESSIONS}),
            "a sorted page each 10 s": (answering("sessions", sort="bytes") - 2 * sweep) / 10.0,
        }
        benchmark.pedantic(lambda: client.ask("status"), rounds=20)
    benchmark.extra_info.update(
        {f"per cent of a worker: {name}": round(100 * max(0.0, each), 2) for name, each in costs.items()}
    )

"""The console over a gateway with a million sessions: the processor time of each view, and for how long packets wait for it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from load import Load
from natcore.console import pages
from natcore.control.server import ControlServer
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
    """A worker is held while rows are copied. All of a search's processor time stands for it here: more than it can be.

    The status has the sweep in it, which a gateway in memory does at each look, and a plane's loops do anyway.
    """
    loaded = load(SESSIONS)
    gateway = loaded.gateway
    interval = pages.top_interval({"sessions": SESSIONS})

    def spent(look: Callable[[], object]) -> float:
        start = time.thread_time()
        look()
        return time.thread_time() - start

    sessions = min(spent(lambda: sum(len(rows) for rows in gateway.find_sessions())) for _ in range(3))
    mappings = min(spent(lambda: sum(len(rows) for rows in gateway.find_mappings())) for _ in range(3))
    status = min(spent(lambda: (gateway.counters(), gateway.ports())) for _ in range(3))
    benchmark.pedantic(gateway.counters, rounds=20)
    shares = {
        "top": (sessions + mappings) / interval, "overview": status / pages.LIVE_SECONDS, "ports": status / 10.0,
        "a sorted page each 10 s": sessions / 10.0,
    }  # fmt: skip
    benchmark.extra_info.update(
        {f"per cent of a worker: {name}": round(100 * each, 2) for name, each in shares.items()}
    )

"""The sweep: over a million sessions that all live, and over sessions that all are due."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from pytest_benchmark.fixture import BenchmarkFixture

from natcore import Side
from natcore.testing.load import UDP_SECONDS, Load, flows, make_gateway
from timing import seconds_of

FLOWS = 65_536


def bench_sweep_of_a_million_live_sessions(benchmark: BenchmarkFixture, load: Callable[[int], Load]) -> None:
    loaded = load(1_048_576)
    ended = loaded.gateway.counters()["ended"]
    benchmark.pedantic(loaded.gateway.advance, kwargs={"now": loaded.now}, rounds=20)
    counters = loaded.gateway.counters()
    assert (counters["sessions"], counters["ended"]) == (1_048_576, ended)


def bench_sweep_that_ends_every_session(benchmark: BenchmarkFixture) -> None:
    gateway = make_gateway(FLOWS)
    rounds = itertools.count()

    def admit() -> tuple[tuple[()], dict[str, float]]:
        number = next(rounds)
        now = number * 2 * UDP_SECONDS
        frames, lengths = flows(number * FLOWS, FLOWS)
        Load.expect(gateway.translate(frames, lengths, Side.INSIDE, now=now), Side.INSIDE)
        return (), {"now": now + UDP_SECONDS}

    benchmark.pedantic(gateway.advance, setup=admit, rounds=20)
    counters = gateway.counters()
    assert counters["sessions"] == 0
    assert counters["ended"] == counters["created"] == 20 * FLOWS
    benchmark.extra_info["million_ends_a_second"] = round(FLOWS / seconds_of(benchmark).median / 1e6, 2)

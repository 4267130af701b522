"""The session table at CSIT's sizes (session_scale.py): the two small ones, and with --all-sizes all four, of which the largest
takes 5 GB."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from natcore import Side
from session_scale import SIZES, STEP, Sessions
from timing import seconds_of

SMALL = SIZES[:2]


@pytest.mark.parametrize("sessions", SIZES)
def bench_session_scale(benchmark: BenchmarkFixture, request: pytest.FixtureRequest, sessions: int) -> None:
    if sessions not in SMALL and not request.config.getoption("--all-sizes"):
        pytest.skip("--all-sizes measures it too")
    table = Sessions(sessions)

    def packets() -> tuple[tuple[object, ...], dict[str, object]]:
        return (*table.frames(table.chosen()), Side.INSIDE), {}

    benchmark.pedantic(table.translate, setup=packets, rounds=100)
    benchmark.extra_info["million_packets_a_second"] = round(STEP / seconds_of(benchmark).median / 1e6, 1)
    benchmark.extra_info["million_new_sessions_a_second"] = round(table.new() / 1e6, 2)
    benchmark.extra_info["bytes_a_session"] = round(table.resident)
    table.both_ways()
    table.gateway.close()

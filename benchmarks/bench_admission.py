"""Admission: every frame opens a session with a mapping and a port of its own."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from natcore import Side
from natcore.testing.bulk import TCP, UDP
from natcore.testing.load import Load, flows, make_gateway
from timing import seconds_of

FLOWS = 65_536
ROUNDS = 20


@pytest.mark.parametrize("protocol", [UDP, TCP], ids=["udp", "tcp-syn"])
def bench_admission(benchmark: BenchmarkFixture, protocol: int) -> None:
    gateway = make_gateway(FLOWS)
    rounds = itertools.count()
    verdicts = np.zeros(FLOWS, np.uint8)

    def new_flows() -> tuple[tuple[object, ...], dict[str, object]]:
        number = next(rounds)
        now = number * 600.0
        gateway.advance(now)  # the last round's sessions are over
        verdicts[:] = 255
        return (*flows(number * FLOWS, FLOWS, protocol), Side.INSIDE), {"now": now, "out": verdicts}

    def check(*_: object, **__: object) -> None:
        Load.expect(verdicts, Side.INSIDE)

    benchmark.pedantic(gateway.translate, setup=new_flows, teardown=check, rounds=ROUNDS)
    assert gateway.counters()["created"] == ROUNDS * FLOWS
    benchmark.extra_info["million_sessions_a_second"] = round(FLOWS / seconds_of(benchmark).median / 1e6, 2)

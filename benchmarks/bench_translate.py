"""Translation of 64-byte UDP frames in random order over 1 to 1 M sessions, both ways, after churn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from natcore import Side
from natcore.testing.load import Load
from timing import seconds_of

FRAMES = 16_384  # a call; 1 MiB of frames


@pytest.mark.parametrize("side", [Side.INSIDE, Side.OUTSIDE], ids=["outbound", "inbound"])
@pytest.mark.parametrize("sessions", [1, 1_000, 65_536, 1_048_576])
def bench_translate(benchmark: BenchmarkFixture, load: Callable[[int], Load], sessions: int, side: Side) -> None:
    loaded = load(sessions)
    verdicts = np.zeros(FRAMES, np.uint8)

    def restore() -> tuple[tuple[object, ...], dict[str, object]]:
        verdicts[:] = 255
        return (*loaded.frames(side, FRAMES), side), {"now": loaded.now, "out": verdicts}

    def check() -> None:
        loaded.expect(verdicts, side)

    benchmark.pedantic(loaded.gateway.translate, setup=restore, teardown=lambda *_, **__: check(), rounds=100)
    benchmark.extra_info["million_packets_a_second"] = round(FRAMES / seconds_of(benchmark).median / 1e6, 1)
    assert loaded.gateway.counters()["sessions"] == sessions

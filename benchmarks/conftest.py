"""Benchmarks find each other and the bulk builder of the tests; loads are made once a size."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from natcore.testing.load import Load


@pytest.fixture(scope="session")
def load() -> Callable[[int], Load]:
    """load(sessions): one gateway a size for the whole run."""
    return functools.cache(Load)


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list[object], output_json: dict[str, list[dict[str, Any]]]
) -> None:
    """What the benchmarks say of themselves, in the words of who uses it: millions a second."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    reporter.ensure_newline()
    reporter.section("rates")
    for benchmark in output_json["benchmarks"]:
        rates = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in benchmark["extra_info"].items())
        median = benchmark["stats"]["median"]
        reporter.write_line(f"{benchmark['name'].removeprefix('bench_'):55} {shown(median):>12}  {rates}")


def shown(seconds: float) -> str:
    """With the unit that suits it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rows", type=int, default=400_000, help="rows of the session log that questions are asked of")
    parser.addoption("--all-sizes", action="store_true", help="bench_session_scale: 16,515,072 sessions too (5 GB)")

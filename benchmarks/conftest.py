"""Benchmarks find each other and the bulk builder of the tests; loads are made once a size."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from load import Load


@pytest.fixture(scope="session")
def load() -> Callable[[int], Load]:
    """load(sessions): one gateway a size for the whole run."""
    return functools.cache(Load)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rows", type=int, default=400_000, help="rows of the session log that questions are asked of")

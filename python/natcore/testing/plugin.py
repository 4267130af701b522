"""A pytest plugin: the fixtures `gateway`, `lab` and `sls_server`. It imports nothing of natcore until one is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from natcore.gateway import Gateway
    from natcore.testing.lab import Lab
    from natcore.testing.sls_server import SlsServer


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", "gateway(**settings): keywords of natcore.Gateway for the fixture gateway")


@pytest.fixture
def gateway(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    """Give a gateway in memory, repeatable (seed=1), and close it. ``@pytest.mark.gateway(…)`` has its other keywords."""
    from natcore.gateway import Gateway

    marker = request.node.get_closest_marker("gateway")
    with Gateway(**{"seed": 1, **(marker.kwargs if marker else {})}) as made:
        yield made


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Give network namespaces with real clients and servers; a test without root is skipped."""
    from natcore.testing.lab import Lab, why_not

    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with Lab() as made:
        yield made


@pytest.fixture
def sls_server() -> Iterator[SlsServer]:
    """Give a strict local Simple Log Service, and end it."""
    from natcore.testing.sls_server import SlsServer

    with SlsServer() as made:
        yield made

"""A pair of linked interfaces."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from natcore.demo.namespaces import Network


@pytest.fixture
def pair() -> Iterator[Network]:
    with Network(f"natcore-block-{os.getpid()}-", ["a", "b"]) as network:
        network.pair("a", "one", "b", "two")
        network.up("a", "one", "10.1.0.1/24", "10.1.0.3/24")
        network.up("b", "two", "10.1.0.2/24")
        yield network

"""One world for all tests of the console: its gateways, and a console that may change session logs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.console import Visitor, World, serving, world


@pytest.fixture(scope="package")
def here() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="natcore-console-") as folder, world(Path(folder)) as made:
        made.pass_an_hour()
        yield made


@pytest.fixture(scope="package")
def address(here: World) -> Iterator[str]:
    """The URL with the token of a console with --write."""
    with serving(here.folder) as (_, url):
        yield url


@pytest.fixture
def visitor(address: str) -> Visitor:
    """A client without a browser that came in by the token."""
    return Visitor(address)

"""How many examples a property is tried with: as many as it says in `make test`, and many times that in `make search`."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

TIMES = int(os.environ.get("NATCORE_TEST_SEARCH", "1"))


def examples(count: int) -> settings:
    """So many, each time others, however long each takes."""
    return settings(max_examples=count * TIMES, deadline=None, suppress_health_check=list(HealthCheck))

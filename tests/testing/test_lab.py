"""Lab: real programs reach the server through a gateway."""

from __future__ import annotations

import pytest

from natcore import Gateway, SnatEntry
from natcore.testing import lab


@pytest.mark.skipif(lab.why_not() is not None, reason=str(lab.why_not()))
def test_a_program_reaches_the_server_through_the_gateway() -> None:
    with lab.Lab() as made, Gateway() as over:
        over.add(SnatEntry("10.0.0.0/24", pool=made.POOL))
        made.start(over)
        asked = made.run("inside", ["ping", "-c", "1", "-W", "10", made.SERVER])
        assert asked.returncode == 0, asked.stdout
        assert over.counters()["forwarded"] >= 2

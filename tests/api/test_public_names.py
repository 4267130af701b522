"""What `import natcore` gives: every public name, the slow ones when they are first named."""

from __future__ import annotations

import subprocess
import sys

import pytest

import natcore

SLOW = ("natcore.plane", "natcore.sessionlog", "natcore.sinks", "natcore.explain", "natcore.who", "pyroute2", "asyncio")


@pytest.mark.parametrize("name", natcore.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(natcore, name) is not None
    assert name in dir(natcore)


def test_the_import_leaves_out_what_is_slow() -> None:
    script = f"import natcore, sys; print([m for m in sys.modules if m.startswith({SLOW})])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Gatewy'"):
        _ = natcore.Gatewy

"""Every test with several workers: NATCORE_TEST_WORKERS=2 (or more). Frames go to the workers in turn, not by affinity;
with NATCORE_TEST_STEERING=owner each frame goes to its owner, as a steering interface would have it.

A gateway of which a test says how many workers it has is left alone: such tests are about workers."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from itertools import cycle
from typing import Any
from weakref import WeakKeyDictionary

from natcore import Gateway

WORKERS = int(os.environ.get("NATCORE_TEST_WORKERS", "1"))
COUNTS = (1, 1, 2, 3) if WORKERS == 1 else (WORKERS,)  # of which random gateways have one
BLIND = os.environ.get("NATCORE_TEST_STEERING", "turns") == "turns"
_turns: WeakKeyDictionary[Gateway, Iterator[int]] = WeakKeyDictionary()


def use_several() -> None:
    """Gateways have WORKERS workers from now on, where a test does not say how many."""
    if WORKERS == 1 or hasattr(Gateway.__init__, "__wrapped__"):
        return
    setattr(Gateway, "__init__", with_several(Gateway.__init__))  # noqa: B010
    for name in ("translate", "translate_one") if BLIND else ():
        setattr(Gateway, name, in_turn(getattr(Gateway, name)))


def with_several(begin: Any) -> Any:
    @functools.wraps(begin)
    def call(self: Gateway, *args: Any, **settings: Any) -> None:
        if "workers" not in settings:
            _turns[self] = cycle(range(WORKERS))
        begin(self, *args, **{"workers": WORKERS, **settings})

    return call


def in_turn(method: Any) -> Any:
    @functools.wraps(method)
    def call(self: Gateway, *args: Any, worker: int | None = None, **options: Any) -> Any:
        if worker is None and self in _turns:
            worker = next(_turns[self])
        return method(self, *args, worker=worker, **options)

    return call


def counted(gateway: Gateway) -> dict[str, int]:
    """The counters that do not depend on which worker took a frame."""
    return {name: value for name, value in gateway.counters().items() if name != "handed_over"}

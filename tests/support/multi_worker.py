"""Every test with several workers: NATCORE_TEST_WORKERS=2 (or more). Frames go to the workers in turn, not by affinity;
with NATCORE_TEST_STEERING=owner each frame goes to its owner, as a steering interface would have it."""

from __future__ import annotations

import os
from itertools import count
from typing import Any

from natcore import Gateway

WORKERS = int(os.environ.get("NATCORE_TEST_WORKERS", "1"))
BLIND = os.environ.get("NATCORE_TEST_STEERING", "turns") == "turns"


def use_several() -> None:
    """Gateways have WORKERS workers from now on, where a test does not say how many."""
    defaults: dict[str, Any] = Gateway.__init__.__kwdefaults__
    if WORKERS == 1 or defaults["workers"] != 1:
        return
    defaults["workers"] = WORKERS
    if BLIND:
        turn = count()
        for name in ("translate", "translate_one"):
            setattr(Gateway, name, in_turn(getattr(Gateway, name), turn))


def in_turn(method: Any, turn: Any) -> Any:
    def call(self: Gateway, *args: Any, worker: int | None = None, **options: Any) -> Any:
        if worker is None:
            worker = next(turn) % self.workers
        return method(self, *args, worker=worker, **options)

    return call


def counted(gateway: Gateway) -> dict[str, int]:
    """The counters that do not depend on which worker took a frame."""
    return {name: value for name, value in gateway.counters().items() if name != "handed_over"}

"""Calls in other threads, stopped at the points where threads meet."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from natcore import Gateway, Side, Verdict
from natcore.testhooks import planted_faults
from support.gateways import arrays


def in_thread(call: Callable[[], Any]) -> Callable[[], Any]:
    """Begins the call in a thread; what is returned waits for it and gives its result."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(call())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def join() -> Any:
        thread.join(timeout=60)
        assert not thread.is_alive(), "it waits for ever"
        if isinstance(result[0], BaseException):
            raise result[0]
        return result[0]

    return join


def until_waited_for(capsule: Any, threads: int = 1) -> None:
    while planted_faults.waiting_for(capsule) < threads:
        pass


def translated(gateway: Gateway, frame: bytes, side: Side, worker: int) -> tuple[Verdict, bytes]:
    """As translate_one, but without the GIL."""
    frames, lengths = arrays(frame)
    verdicts = gateway.translate(frames, lengths, side, 0.0, worker=worker)
    return Verdict(verdicts[0]), frames[0, : lengths[0]].tobytes()

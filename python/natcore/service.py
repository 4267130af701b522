"""`natcore run`: a gateway of a file, on its interfaces, until a signal ends it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from .settings import Settings, SettingsError

POLL = 0.2  # seconds between looks at signals, events and states; a signal is acted on within it

Tell = Callable[[str, dict[str, Any]], None]


def serve(settings: Settings, tell: Tell) -> None:
    """Forward until SIGTERM or SIGINT. SIGHUP tells the counters; the file is not read again.

    tell: called with what happened ("started", "counters", "state", "delivery", "event", "stopped") and its fields.
    Raises what SettingsError, InterfaceError and a failed plane raise; the gateway is closed then as well.
    """
    if settings.plane is None:
        raise SettingsError(settings.source, "plane", None, "missing; `run` needs its inside and outside interfaces")
    asked: list[int] = []
    with ExitStack() as stack, _signals(asked):
        gateway = stack.enter_context(settings.make_gateway())
        logs = [log.start(gateway) for log in settings.logs]
        plane = stack.enter_context(gateway.forward(**settings.plane))
        tell("started", {**settings.plane, "logs": [_destination(log) for log in logs]})
        states = _States()
        while not {signal.SIGTERM, signal.SIGINT} & set(asked) and plane.state != "stopped":
            plane.wait(timeout=POLL)  # raises what ended a worker
            if signal.SIGHUP in asked:
                asked.remove(signal.SIGHUP)
                tell("counters", gateway.counters() | plane.counters())
            for event in gateway.events():
                tell("event", _fields(event))
            if states.changed("plane", plane.state):
                tell("state", {"plane": plane.state})
            for log in logs:
                if states.changed(log.name, (status := log.delivery_status).state):
                    tell("delivery", {"log": log.name, **_fields(status)})
        plane.stop()
        counters = gateway.counters() | plane.counters()
        gateway.close()  # closes the open windows and writes their rows
        tell("stopped", {"counters": counters, "logs": {log.name: log.counters() for log in logs}})


class _States:
    """What was told last, so that only changes are."""

    def __init__(self) -> None:
        self._last: dict[str, object] = {}

    def changed(self, name: str, state: object) -> bool:
        before = self._last.get(name)
        self._last[name] = state
        return before is not None and before != state


@contextmanager
def _signals(asked: list[int]) -> Iterator[None]:
    """Note SIGTERM, SIGINT and SIGHUP in the list instead of ending the process."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, _frame: asked.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _destination(log: Any) -> dict[str, Any]:
    return {"name": log.name, "type": log.delivery_type, **dict(log.destination)}


def _fields(value: Any) -> dict[str, Any]:
    """The public attributes of a small object."""
    names = getattr(value, "_fields", None) or getattr(value, "__dataclass_fields__", None) or vars(value)
    return {name: getattr(value, name) for name in names}

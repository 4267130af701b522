"""`natcore run`: forward between a file's interfaces until a signal ends it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from natcore.events import Digest
from natcore.service.configuration_file import Settings, SettingsError

POLL = 0.2  # seconds between looks at signals, events and states; a signal is acted on within it

STOP = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}
FROZEN = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)  # would stop the process, and with it the packets
# Signals that a fault raises, that cannot be caught, and that are ignored by default.
_LEFT_ALONE = {
    signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT,
    signal.SIGTRAP, signal.SIGSYS, signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH,
}  # fmt: skip

Report = Callable[[str, dict[str, Any]], None]


def serve(settings: Settings, report: Report) -> None:
    """Forward until SIGTERM, SIGINT or SIGQUIT. SIGUSR1 reports the counters, SIGHUP that the file is not read again.

    report: called with what happened ("started", "counters", "state", "delivery", "event", "signal", "stopped") and its
    fields; it must not wait or raise. Raises what SettingsError, InterfaceError and a failed plane raise; the gateway is
    closed then as well.
    """
    if settings.plane is None:
        raise SettingsError(settings.source, "plane", None, "missing; `run` needs its inside and outside interfaces")
    asked: list[int] = []
    with ExitStack() as stack, _signals(asked):
        gateway = stack.enter_context(settings.make_gateway())
        logs = [log.start(gateway) for log in settings.logs]
        plane = stack.enter_context(gateway.forward(**settings.plane))
        states, digest = _States(), Digest()
        destinations = [_destination(log) | {"on_failure": log.on_failure} for log in logs]
        report("started", {**settings.plane, "logs": destinations})
        for log in logs:
            states.changed(log.name, "Success")  # the state that needs no report
        while not STOP & set(asked) and plane.state != "stopped":
            plane.wait(timeout=POLL)  # raises the error that ended a worker
            while asked and asked[0] not in STOP:
                _answer(asked.pop(0), report, gateway, plane)
            for event in digest.add(gateway.take_events(), time.monotonic()):
                report("event", _fields(event))
            if states.changed("plane", plane.state):
                report("state", {"plane": plane.state})
            for log in logs:
                status = log.delivery_status
                if status.state != "Modifying" and states.changed(log.name, status.state):
                    report("delivery", {"log": log.name, **_fields(status)})
        plane.stop()
        for event in digest.rest():
            report("event", _fields(event))
        counters = gateway.counters() | plane.counters()
        gateway.close()  # closes the open windows and writes their rows
        report("stopped", {"counters": counters, "logs": {log.name: log.counters() for log in logs}})


_NAMED = {int(number) for number in signal.Signals}


def _answer(number: int, report: Report, gateway: Any, plane: Any) -> None:
    """Answer a signal that does not end the run."""
    name = signal.Signals(number).name if number in _NAMED else str(number)
    if number == signal.SIGUSR1:
        report("counters", gateway.counters() | plane.counters())
    elif number == signal.SIGHUP:
        report(
            "signal", {"signal": name, "message": "the file is not read again yet; nothing has changed: restart for it"}
        )
    else:
        report("signal", {"signal": name, "message": "it has no meaning here, and nothing has changed"})


class _States:
    """The states reported last, so that only changes are reported."""

    def __init__(self) -> None:
        self._last: dict[str, object] = {}

    def changed(self, name: str, state: object) -> bool:
        before = self._last.get(name)
        self._last[name] = state
        return before is not None and before != state


@contextmanager
def _signals(asked: list[int]) -> Iterator[None]:
    """Collect in the list the signals that would end the process: the logs' rows are delivered first."""
    before: dict[int, Any] = {}
    for number in map(int, sorted(signal.valid_signals() - _LEFT_ALONE)):
        handler = signal.getsignal(number)
        if handler is signal.SIG_DFL or number in STOP | {signal.SIGHUP, signal.SIGUSR1}:
            before[number] = handler
            ours = signal.SIG_IGN if number in FROZEN else lambda number, _frame: asked.append(number)
            signal.signal(number, ours)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _destination(log: Any) -> dict[str, Any]:
    return {"name": log.name, "type": log.delivery_type, **dict(log.destination)}


def _fields(value: Any) -> dict[str, Any]:
    """The public attributes of a small object."""
    names = getattr(value, "_fields", None) or getattr(value, "__dataclass_fields__", None) or vars(value)
    return {name: getattr(value, name) for name in names}

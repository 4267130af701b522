"""`natcore run`: forward between a file's interfaces until a signal ends it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from natcore.errors import Error
from natcore.events import Digest
from natcore.gateway import Gateway
from natcore.internal import threads
from natcore.internal.parts import parts_of
from natcore.metrics.health import LATE_SECONDS, Health
from natcore.service import control
from natcore.service.configuration_file import Settings, SettingsError, load
from natcore.service.kept_state import KeptState
from natcore.service.notify import Notifier
from natcore.service.reload import Planned, Reloaded, RestartError, carry_out, find, plan_of

if TYPE_CHECKING:
    from natcore.control.server import ControlServer
    from natcore.plane.plane import Plane
    from natcore.sessionlog.session_log import SessionLog

POLL = 0.2  # seconds between looks at signals, events and states; a signal is acted on within it

STOP = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}
FROZEN = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)  # would stop the process, and with it the packets
# Signals that a fault raises, that cannot be caught, and that are ignored by default.
_LEFT_ALONE = {
    signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT,
    signal.SIGTRAP, signal.SIGSYS, signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH,
}  # fmt: skip

Report = Callable[[str, dict[str, Any]], None]


class Service:
    """A gateway made from a configuration file, with its session logs and its plane.

    settings: the file in force. logs: the running session logs by name; replaced, never changed, so that any thread may look.
    started: Unix seconds when forwarding began; None: not yet. last_reload_ok: of the last reload, True while there was none.
    last_reload_at: Unix seconds when the configuration in force was read. reloads, failed_reloads: how many there were.
    reloading: one is under way. control: the control socket, if there is one.
    """

    def __init__(self, settings: Settings, report: Report) -> None:
        """report: called with what happened ("restored", "started", "counters", "state", "delivery", "event", "reload",
        "signal", "warning", "stopped") and its fields; it must not block or raise."""
        self.settings = settings
        self.logs: dict[str, SessionLog] = {}
        self.control: ControlServer | None = None
        self.started: float | None = None
        self.last_reload_ok = True
        self.last_reload_at = time.time()
        self.reloads = self.failed_reloads = 0
        self.notifier = Notifier()
        self.reloading = False
        self._file = settings.source
        self._reload_asked = threading.Event()
        self._reloader: threading.Thread | None = None
        self._report = report
        self._gateway: Gateway | None = None
        self._plane: Plane | None = None
        self._stopping = self._handed_over = False
        self._states = _States()

    @property
    def gateway(self) -> Gateway:
        """The gateway. Raises Error before it is made."""
        if self._gateway is None:
            raise Error("the service has not started")
        return self._gateway

    @property
    def plane(self) -> Plane:
        """What forwards. Raises Error before it is made."""
        if self._plane is None:
            raise Error("the service has not started")
        return self._plane

    def run(self) -> None:
        """Forward until SIGTERM, SIGINT or SIGQUIT. SIGUSR1 reports the counters, SIGHUP reloads the file.

        In the main thread, once. Raises SettingsError, InterfaceError, or the error that ended a worker; the gateway is closed
        then as well.
        """
        settings = self.settings
        if settings.plane is None:
            raise SettingsError(
                settings.source, "plane", None, "missing; `run` needs its inside and outside interfaces"
            )
        asked: list[int] = []
        with ExitStack() as stack, _signals(asked):
            kept = None if settings.state is None else KeptState(settings.state, self._report)
            made = settings.make_gateway() if kept is None else kept.make_gateway(settings)
            self._gateway = gateway = stack.enter_context(made)
            if kept is not None:
                stack.callback(self._hand_over, kept)
            self.logs = {each.name: each.start(gateway) for each in settings.logs}
            self._plane = plane = stack.enter_context(gateway.forward(**settings.plane))
            stack.callback(self._finish_reload)
            if kept is not None:
                kept.start(gateway)
            self.started = time.time()
            self.control, why_not = control.serve(self)
            digest = Digest()
            destinations = [_destination(log) | {"on_failure": log.on_failure} for log in self.logs.values()]
            where = None if self.control is None else str(self.control.path)
            self._report("started", {**settings.plane, "logs": destinations, "control": where})
            if settings.metrics is not None:
                self._serve_metrics(stack, settings.metrics)
            if why_not:
                self._report("warning", {"message": why_not})
            self.notifier.ready()
            while not STOP & set(asked) and plane.state != "stopped":
                plane.wait(timeout=POLL)  # raises the error that ended a worker
                while asked and asked[0] not in STOP:
                    self._answer(asked.pop(0))
                self._begin_reload()
                for event in digest.add(gateway.take_events(), time.monotonic()):
                    self._report("event", _fields(event))
                self._report_states()
                self._tell_manager()
            self.notifier.stopping()
            self._finish_reload()
            plane.stop()
            for event in digest.rest():
                self._report("event", _fields(event))
            counters = gateway.counters() | plane.counters()
            if kept is None:
                gateway.close()  # closes the open windows and writes their rows
            else:
                self._hand_over(kept)  # they stay open for the next process
            logs = {name: log.counters() for name, log in self.logs.items()}
            self._report("stopped", {"counters": counters, "logs": logs})

    def _hand_over(self, kept: KeptState) -> None:
        """Keep the sessions for the next process, whatever ends this one; once."""
        self._finish_reload()
        if not self._handed_over:
            self._handed_over = True
            kept.hand_over(self.gateway)

    def _serve_metrics(self, stack: ExitStack, settings: Mapping[str, Any]) -> None:
        from natcore.metrics.endpoint import Endpoint

        endpoint = stack.enter_context(Endpoint(self.gateway, **settings, service=self))
        self._report("metrics", {"listen": endpoint.address})

    def _tell_manager(self) -> None:
        """Pet the watchdog while every loop turns, this one among them, and say in one line how things are."""
        late = min(LATE_SECONDS, (self.notifier.watchdog or LATE_SECONDS) / 2)
        self.notifier.pet(lambda: Health(self.gateway, late=late).alive().ok)
        failed = [name for name, log in self.logs.items() if log.delivery_status.state == "Failed"]
        status = f"{self.plane.state}, {len(self.gateway.entries())} entries"
        status += f", session logs failed: {', '.join(failed)}" if failed else ""
        self.notifier.status(status if self.last_reload_ok else f"{status}; the last reload failed")

    def _answer(self, number: int) -> None:
        """Answer a signal that does not end the run."""
        name = signal.Signals(number).name if number in _NAMED else str(number)
        if number == signal.SIGUSR1:
            self._report("counters", self.gateway.counters() | self.plane.counters())
        elif number == signal.SIGHUP:
            self._reload_asked.set()
        else:
            self._report("signal", {"signal": name, "message": "it has no meaning here, and nothing has changed"})

    def reload(self, path: str | os.PathLike[str] | None = None, *, dry_run: bool = False) -> Reloaded:
        """Put a file into force, by any thread; one at a time. All of it, or, with an error, nothing.

        path: the file; None: the one that the service began with. dry_run: say what would be done, and do nothing. Raises
        SettingsError: the file, or an entry of it, is refused; RestartError: it asks for what a running gateway cannot change.
        """
        with self._alone():
            if dry_run:
                planned = self._find(load(self._file if path is None else path, to_run=True))
                return planned.said(dry_run=True, plan=plan_of(planned, self.gateway))
            self.reloading = True
            self.notifier.reloading()
            try:
                done = self._reload(load(self._file if path is None else path, to_run=True))
            except Exception as error:
                self.last_reload_ok = False
                self.failed_reloads += 1
                self._report("reload", {"ok": False, "file": str(path or self._file), "error": str(error)})
                raise
            finally:
                self.reloading = False
                self.notifier.ready()
            return done

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until nothing else changes the gateway. Raises Error: the service stops meanwhile."""
        lock = parts_of(self.gateway).one_at_a_time
        while not lock.acquire(timeout=POLL):
            if self._stopping:
                raise Error("the service stops")
        try:
            yield
        finally:
            lock.release()

    def _find(self, settings: Settings) -> Planned:
        return find(self.settings, settings, self.gateway, [log.name for log in self.gateway.logs])

    def _reload(self, settings: Settings) -> Reloaded:
        planned = self._find(settings)
        if planned.needs_restart:
            raise RestartError(planned.needs_restart)
        try:
            done = carry_out(planned, self.settings, self.gateway, {log.name: log for log in self.gateway.logs})
        finally:  # also after an error: a log that was restarted is another object
            self.logs = {log.name: log for log in self.gateway.logs}
        self.settings = settings
        self.last_reload_ok, self.last_reload_at = True, time.time()
        self.reloads += 1
        for warning in settings.warnings:
            self._report("warning", {"message": f"{settings.source}: {warning}"})
        counts = {name: getattr(done, name) for name in ("unchanged", "kept", "drained", "ended")}
        self._report("reload", {"ok": True, "file": done.file, "changes": [str(step) for step in done.steps], **counts})
        return done

    def _begin_reload(self) -> None:
        """Reload, if asked, in a thread of its own: a log that is stopped may take its time, and this loop goes on."""
        if self._reload_asked.is_set() and (self._reloader is None or not self._reloader.is_alive()):
            self._reload_asked.clear()
            self._reloader = threads.start("natcore-reload", self._reload_asked_for)

    def _reload_asked_for(self) -> None:
        with suppress(Error, OSError):  # it has been reported
            self.reload()

    def _finish_reload(self) -> None:
        """Wait for a reload that is under way, and begin no other one."""
        self._stopping = True
        self._reload_asked.clear()
        if self._reloader is not None:
            self._reloader.join()

    def _report_states(self) -> None:
        if self._states.changed("plane", self.plane.state):
            self._report("state", {"plane": self.plane.state})
        for name, log in self.logs.items():
            status = log.delivery_status
            if status.state != "Modifying" and self._states.changed(name, status.state, "Success"):
                self._report("delivery", {"log": name, **_fields(status)})


_NAMED = {int(number) for number in signal.Signals}


class _States:
    """The states reported last, so that only changes are reported."""

    def __init__(self) -> None:
        self._last: dict[str, object] = {}

    def changed(self, name: str, state: object, first: object = None) -> bool:
        """first: a state that needs no report at first; None: any."""
        before = self._last.get(name, first)
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

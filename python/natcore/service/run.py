"""`natcore run`: forward between a file's interfaces until a signal ends it."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from natcore.errors import Error, PeerError
from natcore.events import Digest
from natcore.gateway import Gateway
from natcore.internal import threads
from natcore.internal.parts import parts_of
from natcore.metrics.health import LATE_SECONDS, Health
from natcore.service import control, descriptor_store
from natcore.service.configuration_file import Settings, SettingsError, load
from natcore.service.kept_state import KeptState, restored
from natcore.service.notify import Notifier
from natcore.service.reload import Planned, Reloaded, RestartError, carry_out, find, plan_of
from natcore.service.stand_in import StandIn
from natcore.service.succession import (
    Estate,
    Predecessor,
    Restart,
    SuccessionError,
    Successor,
    driver_of,
    file_in_memory,
    rehearse,
)  # fmt: skip

if TYPE_CHECKING:
    from natcore.control.server import ControlServer
    from natcore.metrics.endpoint import Endpoint
    from natcore.peer.pair import Pair
    from natcore.plane.left_plane import LeftPlane
    from natcore.plane.plane import Plane
    from natcore.service.standing_by import StandingBy
    from natcore.sessionlog.session_log import SessionLog

TAKE_OVER_SECONDS = 30.0  # from being chosen until packets go
FOLLOW_SECONDS = 30.0  # from making way until the other gateway of a pair is followed
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
    reloading: one is under way. control: the control socket, if there is one. successor: the number of the process that has
    taken over. pair: with the other gateway, where the file has a [peer].
    """

    def __init__(self, settings: Settings, report: Report, predecessor: Predecessor | None = None) -> None:
        """report: called with what happened ("restored", "started", "counters", "state", "delivery", "event", "reload",
        "restart", "role", "peer", "signal", "warning", "stopped") and its fields; it must not block or raise. predecessor: the
        process that hands its gateway over to this one."""
        self.settings = settings
        self.logs: dict[str, SessionLog] = {}
        self.control: ControlServer | None = None
        self.started: float | None = None
        self.last_reload_ok = True
        self.last_reload_at = time.time()
        self.reloads = self.failed_reloads = 0
        self.notifier = Notifier()
        self.stand_in = StandIn()
        self.reloading = False
        self.successor: int | None = None
        self.pair: Pair | None = None
        self._standing: StandingBy | None = None
        self.asked: list[int] = []  # signals that are not answered yet
        self._file = settings.source
        self._reload_asked = threading.Event()
        self._reloader: threading.Thread | None = None
        self._report = report
        self._predecessor = predecessor
        self._restart: Restart | None = None  # that was asked for, once the successor is ready
        self._makes_way = False  # to the other gateway of a pair, in order to be restarted
        self._retired: list[
            tuple[ControlServer, Gateway]
        ] = []  # they answer what was asked before; one ends with its gateway
        self._gateway: Gateway | None = None
        self._plane: Plane | None = None
        self._left: LeftPlane | None = None  # by the unit's process before
        self._prepared: Plane | None = None  # opened before this gateway was chosen, until it forwards
        self._endpoint: Endpoint | None = None
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
        """Forward until SIGTERM, SIGINT or SIGQUIT, or until a successor does. SIGUSR1 reports the counters, SIGHUP reloads the
        file.

        In the main thread, once. Raises SettingsError, InterfaceError, or the error that ended a worker; the gateway is closed
        then as well.
        """
        plane = self.settings.plane
        if plane is None:
            raise SettingsError(
                self.settings.source, "plane", None, "missing; `run` needs its inside and outside interfaces"
            )
        with self._signals():
            self._left = descriptor_store.taken(self.notifier)
            if self.settings.peer is not None:
                if self._left is not None:
                    self._left.close()  # what waits there is too old for one that stands by first
                    self._left = None
                self._run_in_pair()
                return
            estate = None
            if self._predecessor is not None:
                rehearse()
                estate = self._predecessor.take(driver_of(plane))
                if estate is None:
                    return
            while (estate := self._serve(self.asked, estate)) is not None:
                pass

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Collect in `asked` the signals that would end the process: the logs' rows are delivered first. Once there is a
        successor it stays so: they are that one's."""
        before: dict[int, Any] = {}
        for number in map(int, sorted(signal.valid_signals() - _LEFT_ALONE)):
            handler = signal.getsignal(number)
            if handler is signal.SIG_DFL or number in STOP | {signal.SIGHUP, signal.SIGUSR1}:
                before[number] = handler
                ours = signal.SIG_IGN if number in FROZEN else lambda number, _frame: self.asked.append(number)
                signal.signal(number, ours)
        try:
            yield
        finally:
            for number, handler in before.items() if self.successor is None else ():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _serve(self, asked: list[int], estate: Estate | None) -> Estate | None:
        """Forward until the end; return what to go on with after all, where a successor failed. estate: to begin with."""
        settings = self.settings
        assert settings.plane is not None
        with ExitStack() as stack:
            self._stopping = self._handed_over = False
            kept = self._kept()
            self._gateway = gateway = stack.enter_context(self._make_gateway(stack, kept, estate))
            stack.push(lambda _, error, __: self._keep(kept, error))
            at_once = self._prepared is None  # else packets wait for nothing but the logs
            self.logs = {each.name: each.start(gateway, at_once=at_once) for each in settings.logs}
            self._plane = plane = stack.enter_context(self._forward(gateway, settings.plane, estate))
            stack.callback(self._finish_reload)
            self._tell_predecessor(estate)
            self._tell_pair(gateway, plane)
            if kept is not None:
                kept.start(gateway, soon=estate is not None or self.pair is not None)
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
            stack.callback(self._call_off_restart)
            self.notifier.ready()
            while self._goes_on(plane):
                self._report_pair()
                plane.wait(timeout=POLL)  # raises the error that ended a worker
                while asked and asked[0] not in STOP:
                    self._answer(asked.pop(0))
                self._begin_reload()
                for event in digest.add(gateway.take_events(), time.monotonic()):
                    self._report("event", _fields(event))
                self._report_states()
                self._tell_manager()
                if self._restart is not None and self.pair is not None:
                    self._call_off_restart("this gateway has just taken over; try again")
                elif self._restart is not None:
                    return self._hand_to(self._restart, kept)
            yielded = self.pair is not None and self.pair.must_stop.is_set()
            if not yielded:
                self.notifier.stopping()
                self._let_the_standby_take_over()
            self._finish_reload()
            left = self._stop(plane, kept)
            for event in digest.rest():
                self._report("event", _fields(event))
            counters = gateway.counters() | plane.counters()
            if self.pair is not None:
                self._answer_rest()
                self.pair.stopped()  # the standby has everything
            if kept is not None:
                self._keep(kept, None)  # they stay open for the next process
            if left is not None:
                descriptor_store.keep(left, self.notifier)
            if kept is None or self._is_handed_on():
                gateway.close()  # closes the open windows and writes their rows
            self._report_stopped(counters, yielded=yielded)
        return None

    def _stop(self, plane: Plane, kept: KeptState | None) -> LeftPlane | None:
        """Stop forwarding; return the rings that are for the next process, where the manager may keep them for it."""
        ends_in_order = STOP & set(self.asked) and plane.state != "stopped"
        if kept is None or self.pair is not None or not self.notifier.is_heard or not ends_in_order:
            plane.stop()
            return None
        return plane.leave(rings_alone=True)

    def _goes_on(self, plane: Plane) -> bool:
        """Whether nothing says that this process is to forward no more."""
        yields = self.pair is not None and self.pair.must_stop.is_set()
        return not (STOP & set(self.asked) or plane.state == "stopped" or yields or self.stand_in.is_gone())

    def _report_stopped(self, counters: dict[str, int], *, yielded: bool = False) -> None:
        """yielded: to the other gateway of the pair; the run goes on."""
        told = {"counters": counters, "logs": {name: log.counters() for name, log in self.logs.items()}}
        if yielded:
            self._report("role", {"role": "stopping", **told})
        else:
            self._report("stopped", told)

    def _keep(self, kept: KeptState | None, error: BaseException | None) -> None:
        """Keep the sessions for the next process, whatever ends this one; once."""
        self._finish_reload()
        if self._handed_over:
            return
        if self._predecessor is not None and self._predecessor.is_owed():
            self._handed_over = True
            with Estate(file_in_memory()) as estate:
                self.gateway.hand_over(estate.state, at_once=True)
                self._predecessor.give_back(estate, str(error))
        elif kept is not None:
            self._handed_over = True
            if self._is_handed_on():
                kept.stop()
                kept.discard()  # the other gateway's sessions are newer
            else:
                kept.hand_over(self.gateway)

    def _is_handed_on(self) -> bool:
        """Whether the other gateway of the pair has the sessions: this one has made way for it."""
        return self.pair is not None and self.pair.handed_on

    # ---- one of a pair ----------------------------------------------------------------------------------------------

    @property
    def is_standby(self) -> bool:
        """Whether the other gateway of the pair translates, or may do so."""
        return self._standing is not None

    def _run_in_pair(self) -> None:
        from natcore.service.standing_by import pair_of, rehearse_once

        rehearse_once()
        if self._predecessor is not None:
            estate = self._predecessor.take(driver_of(self.settings.plane or {}))
            if estate is None:
                return
            estate.close()  # a standby leaves nothing but its place
        goes_on = True
        while goes_on:
            with pair_of(self.settings, self._kept()) as self.pair:
                self._take_turns(self.pair)
            asked, self._restart = self._restart, None
            goes_on = asked is not None and not self._give_place_to(asked)

    def _take_turns(self, pair: Pair) -> None:
        """Stand by, and forward when chosen, until a signal ends the run, or a standby is to be restarted."""
        while not (STOP & set(self.asked) or self.stand_in.is_gone() or self._restart is not None):
            if self._stand_by(pair):
                self._serve(self.asked, None)
            elif self._restart is None:
                self.notifier.stopping()
                self._report("stopped", {"counters": pair.counters(), "logs": {}})
        if STOP & set(self.asked) or self.stand_in.is_gone():
            self._call_off_restart()

    def _stand_by(self, pair: Pair) -> bool:
        """Follow the active gateway, until this one is chosen (True), or is to end or to be restarted. Where it is chosen, the
        control socket stays until the gateway has its own."""
        from natcore.service.standing_by import StandingBy

        self.started, self._plane, self.logs = None, None, {}
        self._stopping = is_chosen = False
        kept = self._kept()
        self._standing = standing = StandingBy(self.settings)
        try:
            self._gateway = standing.gateway
            self.control, why_not = standing.control, _ = control.serve(self)
            if why_not:
                self._report("warning", {"message": why_not})
            if self.settings.metrics is not None:
                standing.endpoint = self._make_endpoint(self.settings.metrics)
            self._report("role", {"role": "standby", "name": pair.name, "of": pair.peer_name})
            self.notifier.ready()
            if self._predecessor is not None and self._predecessor.is_owed():
                self._predecessor.forwards(seconds=0.0, sessions=0)
            while not STOP & set(self.asked) and not self.stand_in.is_gone():
                is_chosen = pair.chosen.wait(POLL)
                if is_chosen or self._restart is not None:
                    return is_chosen
                while self.asked and self.asked[0] not in STOP:
                    self._answer(self.asked.pop(0))
                self._refuse_reload()
                self._report_pair()
                if kept is not None and pair.has_image:
                    kept.discard()  # what the active gateway has told is newer
                if why_not := standing.prepare(pair.image):
                    self._report(
                        "warning", {"message": f"packets would wait for the interfaces at a take-over: {why_not}"}
                    )
                self.notifier.pet(lambda: True)
                lag = "follows" if pair.connected else "does not reach"
                self.notifier.status(f"standby, {lag} {pair.peer_name}")
            return False
        finally:
            if not is_chosen or STOP & set(self.asked):
                if self._restart is not None and self.control is not None:
                    self._retire(self.control)
                    standing.control = self.control = None
                self._end_standing()

    def _end_standing(self) -> None:
        standing, self._standing = self._standing, None
        if standing is not None:
            standing.close()

    def _refuse_reload(self) -> None:
        """A standby has the active gateway's entries."""
        if self._reload_asked.is_set():
            self._reload_asked.clear()
            self._report("reload", {"ok": False, "file": str(self._file), "error": self._why_not_standby("reload")})
            self.notifier.reloading()
            self.notifier.ready()

    def _why_not_standby(self, what: str) -> str:
        peer = "the other one" if self.pair is None else self.pair.peer_name
        return f"{what}: this gateway is the standby, and {peer} translates: ask there; this one reads its file when it starts"

    def _take_over(self, stack: ExitStack, pair: Pair, kept: KeptState | None) -> Gateway:
        """Return the gateway that the image has become; without one that of the state file, or a new one of the file. Its
        planes translate nothing before `_forward`."""
        gateway = pair.take_over()
        if gateway is None:
            gateway = self.settings.make_gateway() if kept is None else kept.make_gateway(self.settings)
        elif kept is not None:
            kept.discard()
        stack.enter_context(gateway)
        stack.callback(self._end_standing)
        stack.callback(pair.stopped)
        self._prepared = None if self._standing is None else self._standing.take(gateway)
        if self._prepared is not None:
            self._prepared.activate(block_when_stopped=(self.settings.plane or {}).get("block_when_stopped"))
        return gateway

    def _tell_pair(self, gateway: Gateway, plane: Plane) -> None:
        """This gateway forwards, if it is one of a pair; what stood for it ends."""
        if self.pair is None:
            return
        self.pair.forwards(gateway, plane.stop)
        forwards = time.monotonic()
        standing, self._standing = self._standing, None
        if standing is not None:
            standing.replaced()
        told = {"role": "active", "name": self.pair.name, "sessions": gateway.counters()["sessions"]}
        self._report("role", {**told, **self.pair.took_over, "monotonic": forwards})

    def _let_the_standby_take_over(self) -> None:
        """Before an end that was asked for; without a standby there is nothing to do."""
        if self.pair is not None:
            with suppress(PeerError):
                self.pair.step_down()

    def _answer_rest(self) -> None:
        """Let the control socket end when it has answered: who asked for the change is to hear of it."""
        before, self.control = self.control, None
        if before is None:
            return
        if self._makes_way:
            self._retire(before)  # the restart is answered by it
        else:
            before.close_when_answered()

    def _report_pair(self) -> None:
        """Say when the stream begins and ends, and when the standby got everything anew."""
        if self.pair is None:
            return
        counters = self.pair.counters()
        snapshots = {name: counters[f"snapshots_{name}"] for name in ("sent", "received")}
        fields = {"name": self.pair.peer_name, "connected": self.pair.connected, "snapshots": sum(snapshots.values())}
        if self._states.changed("peer", (fields["connected"], fields["snapshots"]), (False, 0)):
            self._report("peer", fields)

    def activate(self, *, alone: bool = False) -> dict[str, Any]:
        """Take over from the other gateway of the pair; return when packets go. By any thread but the main one.

        alone: the caller knows that the other machine is off. Raises PeerError: it did not, and why.
        """
        pair = self._require_pair()
        began = time.monotonic()
        pair.activate(alone=alone)
        while self.started is None:
            if self._stopping or time.monotonic() - began > TAKE_OVER_SECONDS:
                raise PeerError("this gateway was chosen, and does not forward; its output says why")
            time.sleep(POLL / 20)
        sessions = self.gateway.counters()["sessions"]
        return {"role": pair.role, "sessions": sessions, "seconds": round(time.monotonic() - began, 3)}

    def step_down(self) -> dict[str, Any]:
        """Let the other gateway of the pair take over; return when it has everything. Raises PeerError: this one goes on."""
        pair = self._require_pair()
        pair.step_down()
        return {"role": pair.role, "active": pair.peer_name}

    def _require_pair(self) -> Pair:
        if self.pair is None:
            raise PeerError(f"{self.settings.source} has no [peer]: this gateway has no other one")
        return self.pair

    # ---- succession -------------------------------------------------------------------------------------------------

    def _kept(self) -> KeptState | None:
        return None if self.settings.state is None else KeptState(self.settings.state, self._report)

    def _make_gateway(self, stack: ExitStack, kept: KeptState | None, estate: Estate | None) -> Gateway:
        if self.pair is not None:
            return self._take_over(stack, self.pair, kept)
        if estate is not None:
            stack.enter_context(estate)
            return restored(self.settings, estate.state, resume=estate.is_sure)
        return self.settings.make_gateway() if kept is None else kept.make_gateway(self.settings)

    def _forward(self, gateway: Gateway, interfaces: Mapping[str, Any], estate: Estate | None) -> Plane:
        plane, self._prepared = self._prepared, None
        if self.pair is not None:
            self.pair.guard(gateway)
        if plane is not None:
            plane.announce()
            return plane
        left, self._left = self._left if estate is None else estate.plane, None
        if left is None:
            return gateway.forward(**interfaces)
        from natcore.plane.plane import Plane

        return Plane(gateway, **interfaces, left=left)

    def _tell_predecessor(self, estate: Estate | None) -> None:
        """Say that this process forwards now, if that is owed to another one."""
        if estate is None:
            return
        waited, sessions = round(time.monotonic() - estate.since, 3), self.gateway.counters()["sessions"]
        if self._predecessor is not None and self._predecessor.is_owed():
            self._predecessor.forwards(seconds=waited, sessions=sessions)
            gc.enable()
        self._report("restored", {"file": None, "sessions": sessions, "seconds": waited})

    def restart(self) -> dict[str, Any]:
        """Let a new process of the same command take over, with the file as it is now; by any thread but the main one.

        Return its number (pid), how many sessions it has, and the seconds that packets waited. Raises SuccessionError: it did
        not take over, and this process goes on.
        """
        with self._alone():
            try:
                told = self._restarted()
            except SuccessionError as error:
                self._report("restart", {"ok": False, "error": str(error)})
                raise
            self._report("restart", {"ok": True, **told})
            return told

    def _restarted(self) -> dict[str, Any]:
        environment = self.notifier.environment or self.stand_in.environment
        with Successor(environment) as successor:
            successor.wait_ready(driver_of(self.settings.plane or {}))
            if self.pair is not None:
                self._make_way(self.pair)
            self._restart = asked = Restart(successor)
            if self._stopping:
                self._call_off_restart()
            return asked.wait()

    def _make_way(self, pair: Pair) -> None:
        """Let the other gateway of the pair take over, if this one is active, and follow it: a standby can be restarted. Raises
        SuccessionError: it goes on."""
        if self.is_standby:
            return
        self._makes_way = True
        try:
            pair.step_down()
            end = time.monotonic() + FOLLOW_SECONDS
            while not (self.is_standby and pair.connected):
                if time.monotonic() > end:
                    raise PeerError(f"this gateway has made way, and {pair.peer_name} cannot be followed")
                time.sleep(POLL / 20)
        except PeerError as error:
            retired, self._retired = self._retired, []
            for each, gateway in retired:
                each.close_when_answered(partial(_release, gateway))
            raise SuccessionError(str(error)) from error
        finally:
            self._makes_way = False

    def _give_place_to(self, asked: Restart) -> bool:
        """Let the successor be the standby; whether it is, and this process ends."""
        retired, self._retired = self._retired, []
        try:
            with Estate(file_in_memory(), since=time.monotonic()) as estate:
                asked.successor.give(estate)
            _, told = asked.successor.wait_forwarding()
        except SuccessionError as error:
            asked.fail(error)
            return False
        else:
            self._appoint(asked, told)
            self._report("stopped", {"counters": {}, "logs": {}})
            return True
        finally:
            for each, _ in retired:
                each.answer_rest()
                each.close()

    def _retire(self, server: ControlServer) -> None:
        """Give the control socket's path free; what was asked is answered still."""
        server.retire()
        self._retired.append((server, self.gateway))

    def _appoint(self, asked: Restart, told: dict[str, Any]) -> None:
        """The successor is the service's process from now on."""
        self.successor = asked.successor.pid
        self.notifier.main_process(self.successor)
        asked.successor.appoint()
        asked.succeed({"pid": self.successor, "sessions": told["sessions"], "seconds": told["seconds"]})

    def _call_off_restart(self, reason: str = "the service stops") -> None:
        asked, self._restart = self._restart, None
        if asked is not None:
            asked.fail(SuccessionError(reason))

    def _hand_to(self, asked: Restart, kept: KeptState | None) -> Estate | None:
        """Hand everything to the successor; None: it forwards, and this process ends. Else return what to go on with."""
        self._restart = None
        self._finish_reload()
        if kept is not None:
            kept.stop()
        if self._endpoint is not None:
            self._endpoint.stop()
        before = self.control
        if before is not None:
            before.retire()
        estate = Estate(file_in_memory(), since=time.monotonic())
        try:
            counters, told = self._give(asked.successor, estate)
        except SuccessionError as error:
            asked.fail(error)
            estate.is_sure = error.is_sure
            estate.state.seek(0)
            return estate
        except BaseException as error:
            asked.fail(error)
            raise
        else:
            estate.close()
            self._appoint(asked, told)
            self.gateway.end_handed_over()
            self._report_stopped(counters)
            return None
        finally:
            if before is not None:
                before.answer_rest()
                before.close()

    def _give(self, successor: Successor, estate: Estate) -> tuple[dict[str, int], dict[str, Any]]:
        """Stop, and give the estate, which is filled here; return the last counters, and what the successor says.

        Raises SuccessionError: it does not forward; the estate is what to go on with.
        """
        estate.plane = self.plane.leave()
        counters = self.gateway.counters() | self.plane.counters()
        self._handed_over = True
        self.gateway.hand_over(estate.state, at_once=True)
        successor.give(estate)
        estate.plane.close()  # from here on these are the successor's
        estate.plane = None
        returned, told = successor.wait_forwarding()
        if returned is not None:
            estate.state.close()
            estate.state = returned.state
            raise SuccessionError(str(told.get("reason", "it gave the gateway back")))
        return counters, told

    def _serve_metrics(self, stack: ExitStack, settings: Mapping[str, Any]) -> None:
        self._endpoint = stack.enter_context(self._make_endpoint(settings))

    def _make_endpoint(self, settings: Mapping[str, Any]) -> Endpoint:
        from natcore.metrics.endpoint import Endpoint

        endpoint = Endpoint(self.gateway, **settings, service=self)
        self._report("metrics", {"listen": endpoint.address})
        return endpoint

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
            self._report("counters", self.gateway.counters() | ({} if self._plane is None else self._plane.counters()))
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


def _release(gateway: Gateway) -> None:
    """What a retired control server calls when it has answered; until then the call to come keeps its gateway."""


def _destination(log: Any) -> dict[str, Any]:
    return {"name": log.name, "type": log.delivery_type, **dict(log.destination)}


def _fields(value: Any) -> dict[str, Any]:
    """The public attributes of a small object."""
    names = getattr(value, "_fields", None) or getattr(value, "__dataclass_fields__", None) or vars(value)
    return {name: getattr(value, name) for name in names}

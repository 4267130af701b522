"""Sessions outlive `natcore run`: its state file is restored at the start, written again now and then, and at the end."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natcore.errors import Error
from natcore.gateway import Gateway
from natcore.internal import threads

if TYPE_CHECKING:
    from natcore.service.configuration_file import Settings

UNUSABLE = ".unusable"  # behind the name of a file that no gateway could be restored from
SAVE_EVERY = 60.0

Report = Callable[[str, dict[str, Any]], None]


class KeptState:
    """The state file of a service. state: the file's [state]; report: as Service's."""

    def __init__(self, state: Mapping[str, Any], report: Report) -> None:
        self.path = Path(state["path"])
        self._every = float(state.get("save_every", SAVE_EVERY))
        self._gap = state.get("gap", "count")
        self._report = report
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def make_gateway(self, settings: Settings) -> Gateway:
        """Return the gateway that the file has, with these settings; without a usable file a new one. Raises SettingsError."""
        try:
            return self._restore(settings)
        except FileNotFoundError:
            pass
        except (Error, OSError) as error:
            aside = self.path.with_name(self.path.name + UNUSABLE)
            where = f"is {aside} now"
            try:
                self.path.replace(aside)
            except OSError as failed:
                where = f"cannot become {aside} ({failed.strerror}), and is replaced by the next state"
            self._report("warning", {"message": f"no session is kept: {error}; the file {where}"})
        return settings.make_gateway()

    def _restore(self, settings: Settings) -> Gateway:
        began = time.monotonic()
        defaults = {
            name: each.default for name, each in inspect.signature(Gateway).parameters.items() if name != "epoch"
        }
        arguments = {name: settings.gateway.get(name, default) for name, default in defaults.items()}
        gateway = Gateway.restore(
            self.path, entries=settings.entries, gap=self._gap, wall=time.time(), resume=True, **arguments
        )
        sessions = gateway.counters()["sessions"]
        took = round(time.monotonic() - began, 3)
        self._report("restored", {"file": str(self.path), "sessions": sessions, "seconds": took})
        return gateway

    def start(self, gateway: Gateway) -> None:
        """Save the gateway's state from now on, each `save_every` seconds."""
        if self._every:
            self._thread = threads.start("natcore-state", self._run, gateway)

    def _run(self, gateway: Gateway) -> None:
        while not self._end.wait(self._every):
            self._attempt(lambda: gateway.save(self.path))

    def stop(self) -> None:
        """Write no more snapshots. Idempotent."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def hand_over(self, gateway: Gateway) -> None:
        """Close the gateway for the next process to go on with."""
        self.stop()
        self._attempt(lambda: gateway.hand_over(self.path))

    def _attempt(self, save: Callable[[], object]) -> None:
        try:
            save()
        except (Error, OSError) as error:
            self._report("warning", {"message": f"the state cannot be written into {self.path}: {error}"})

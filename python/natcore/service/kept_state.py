"""Sessions outlive `natcore run`: its state file is restored at the start, written again now and then, and at the end."""

from __future__ import annotations

import inspect
import itertools
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from natcore.errors import Error
from natcore.gateway import Gateway
from natcore.internal import threads

if TYPE_CHECKING:
    from natcore.service.configuration_file import Settings

UNUSABLE = ".unusable"  # behind the name of a file that no gateway could be restored from
SAVE_EVERY = 60.0
SOON = 1.0  # seconds after a process has taken over: the file is another one's still, and packets have waited already

Report = Callable[[str, dict[str, Any]], None]


def restored(settings: Settings, file: Path | BinaryIO, *, resume: bool = True) -> Gateway:
    """Return the gateway that a state has, with these settings. resume: its session logs go on. Raises Error, OSError."""
    defaults = {name: each.default for name, each in inspect.signature(Gateway).parameters.items() if name != "epoch"}
    arguments = {name: settings.gateway.get(name, default) for name, default in defaults.items()}
    gap = (settings.state or {}).get("gap", "count")
    return Gateway.restore(file, entries=settings.entries, gap=gap, wall=time.time(), resume=resume, **arguments)


class KeptState:
    """The state file of a service. state: the file's [state]; report: as Service's."""

    def __init__(self, state: Mapping[str, Any], report: Report) -> None:
        self.path = Path(state["path"])
        self._every = float(state.get("save_every", SAVE_EVERY))
        self._report = report
        self._end = threading.Event()
        self._told = False  # that the file cannot be removed
        self._thread: threading.Thread | None = None

    def make_gateway(self, settings: Settings) -> Gateway:
        """Return the gateway that the file has, with these settings; without a usable file a new one. Raises SettingsError."""
        try:
            return self._restore(settings)
        except FileNotFoundError:
            pass
        except (Error, OSError) as error:
            aside = self._unused_name()
            where = f"is {aside} now"
            try:
                self.path.replace(aside)
            except OSError as failed:
                where = f"cannot become {aside} ({failed.strerror}), and is replaced by the next state"
            self._report("warning", {"message": f"no session is kept: {error}; the file {where}"})
        return settings.make_gateway()

    def _unused_name(self) -> Path:
        """Return where a file that cannot be used is kept: an earlier one stays."""
        names = (f"{self.path.name}{f'.{number}' if number else ''}{UNUSABLE}" for number in itertools.count())
        return next(path for path in map(self.path.with_name, names) if not os.path.lexists(path))

    def _restore(self, settings: Settings) -> Gateway:
        began = time.monotonic()
        gateway = restored(settings, self.path)
        took = round(time.monotonic() - began, 3)
        self._report("restored", {"file": str(self.path), "sessions": gateway.counters()["sessions"], "seconds": took})
        return gateway

    def start(self, gateway: Gateway, *, soon: bool = False) -> None:
        """Save the gateway's state from now on, each `save_every` seconds. soon: for the first time in a few seconds."""
        if self._every:
            self._thread = threads.start("natcore-state", self._run, gateway, SOON if soon else self._every)

    def _run(self, gateway: Gateway, first: float) -> None:
        pause = min(first, self._every)
        while not self._end.wait(pause):
            self._attempt(lambda: gateway.save(self.path))
            pause = self._every

    def stop(self) -> None:
        """Write no more snapshots. Idempotent."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def written(self) -> float | None:
        """Return when the file was written, Unix seconds; None: there is none."""
        try:
            return self.path.stat().st_mtime
        except OSError:
            return None

    def discard(self) -> None:
        """Remove the file, if there is one: another gateway has what is newer."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            if not self._told:
                self._report("warning", {"message": f"{self.path} is outdated, and cannot be removed: {error}"})
            self._told = True

    def hand_over(self, gateway: Gateway) -> None:
        """Close the gateway for the next process to go on with."""
        self.stop()
        self._attempt(lambda: gateway.hand_over(self.path))

    def _attempt(self, save: Callable[[], object]) -> None:
        try:
            save()
        except (Error, OSError) as error:
            self._report("warning", {"message": f"the state cannot be written into {self.path}: {error}"})

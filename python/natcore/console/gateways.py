"""The gateways of this machine that the console shows, each known by its control socket."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from natcore.control import socket_file
from natcore.control.client import Client, find
from natcore.errors import ControlError
from natcore.internal.exit_codes import ExitCode
from natcore.internal.redaction import show

ANSWER_SECONDS = 20.0


class Gateways:
    """Those that were named, or all that serve in /run/natcore.

    Parameters
    ----------
    named
        Names or sockets' paths; none: all, looked up anew each time.

    Raises
    ------
    ControlError
        Two sockets have one name.
    """

    def __init__(self, named: Sequence[str] = ()) -> None:
        self._named: dict[str, Path] = {}
        for each in named:
            path = find(each)
            if self._named.setdefault(path.stem, path) != path:
                raise ControlError(
                    f"--instance: {path} and {self._named[path.stem]} must have names of their own", ExitCode.USAGE
                )

    def names(self) -> list[str]:
        """Return their names, in order."""
        return sorted(self._paths())

    @contextmanager
    def asking(self, name: str, *, timeout: float = ANSWER_SECONDS) -> Iterator[Client]:
        """Connect to one. Raises ControlError: it is not there, or does not answer."""
        path = self._paths().get(name)
        if path is None:
            raise ControlError(f"no gateway {show(name)} serves here", ExitCode.TRY_AGAIN)
        with Client(path, timeout=timeout) as client:
            yield client

    def _paths(self) -> dict[str, Path]:
        if self._named:
            return self._named
        with suppress(OSError):
            return {path.stem: path for path in socket_file.FOLDER.glob("*.sock")}
        return {}

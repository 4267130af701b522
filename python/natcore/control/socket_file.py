"""The socket's file: made with its owner, group and mode before anyone can connect, and removed by who made it."""

from __future__ import annotations

import errno
import grp
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from natcore.errors import ConfigurationError
from natcore.internal.redaction import show
from natcore.internal.validation import as_integer, check_path

FOLDER = Path("/run/natcore")
MOST_PATH_BYTES = 107  # sun_path, less the zero at its end
_BACKLOG = 64
_PEERGROUPS = 59  # SO_PEERGROUPS
_MOST_GROUPS = 256  # that getsockopt of Python can give


def default_path(instance: str) -> Path:
    """Return where `natcore run` serves a gateway of this name. Raises ConfigurationError: it cannot be a file's name."""
    if "/" in instance or instance.startswith("."):
        raise ConfigurationError(
            f"instance must have no '/' and no '.' at its start to name the control socket, got {show(instance)}; the file's"
            " [control] path may be given instead"
        )
    return FOLDER / f"{instance or 'natcore'}.sock"


def group_number(name: str, value: object) -> int:
    """Return a group's number, given it or its name. Raises ConfigurationError."""
    number = as_integer(value)
    if number is None and isinstance(value, str):
        with suppress(KeyError):
            number = grp.getgrnam(value).gr_gid
    if number is None or not 0 <= number < 0xFFFFFFFF:
        raise ConfigurationError(f"{name} must be a group of this system, by name or number, got {show(value)}")
    return number


def listen(path: str | os.PathLike[str], group: int | None, mode: int) -> tuple[socket.socket, Path, os.stat_result]:
    """Return a listening socket, its path, and the file's identity. Raises ConfigurationError, OSError."""
    place = Path(check_path("path", path)).absolute()
    if len(os.fsencode(place)) > MOST_PATH_BYTES:
        raise ConfigurationError(f"path must have at most {MOST_PATH_BYTES} bytes, got {show(str(place))}")
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        try:
            made.bind(os.fsencode(place))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise OSError(error.errno, f"{place}: {os.strerror(error.errno or 0)}") from None
            _remove_dead(place)
            made.bind(os.fsencode(place))
        # no one can connect before listen(): mode and group are right from the first moment
        if group is not None:
            try:
                os.chown(place, -1, group)
            except PermissionError:
                place.unlink()
                raise ConfigurationError(
                    f"group must be one of this process's own, or the process needs CAP_CHOWN, got {group}"
                ) from None
        place.chmod(mode)
        made.listen(_BACKLOG)
        return made, place, place.stat(follow_symlinks=False)
    except BaseException:
        made.close()
        raise


def _remove_dead(place: Path) -> None:
    """Remove the socket of a process that is gone. Raises ConfigurationError: something else is there."""
    if not stat.S_ISSOCK(place.stat(follow_symlinks=False).st_mode):
        raise ConfigurationError(f"path must be free or a socket, got {show(str(place))}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        refused = probe.connect_ex(os.fsencode(place)) == errno.ECONNREFUSED
    if not refused:
        raise ConfigurationError(f"path must be free, got {show(str(place))}: a process answers there")
    with suppress(FileNotFoundError):
        place.unlink()


def remove(place: Path, made: os.stat_result, pid: int) -> None:
    """Remove the file that this process made; a later one at its path stays."""
    with suppress(OSError):
        if os.getpid() == pid and os.path.samestat(place.stat(follow_symlinks=False), made):
            place.unlink()


def groups_of(connected: socket.socket, own: int) -> frozenset[int]:
    """Return all groups of the process at the other end. own: its first one."""
    with suppress(OSError):
        raw = connected.getsockopt(socket.SOL_SOCKET, _PEERGROUPS, 4 * _MOST_GROUPS)
        return frozenset(memoryview(raw).cast("I")) | {own}
    return frozenset({own})

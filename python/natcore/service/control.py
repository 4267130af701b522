"""The control socket of `natcore run`: where it lies, who may connect, and what follows where it cannot be."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natcore.control import socket_file
from natcore.errors import ConfigurationError, Error

if TYPE_CHECKING:
    from natcore.control.server import ControlServer
    from natcore.service.run import Service

GROUP = "natcore"  # it may look, where the system has such a group


def group_of(control: Mapping[str, Any]) -> int | None:
    """Return the group that may connect; None: there is none but the process's own. Raises ConfigurationError."""
    if "group" in control:
        return socket_file.group_number("group", control["group"])
    with suppress(ConfigurationError):
        return socket_file.group_number("group", GROUP)
    return None


def join_group(control: Mapping[str, Any]) -> None:
    """Make the group one of this process's, which may then give its socket to it without CAP_CHOWN; before that is given up."""
    with suppress(ConfigurationError, PermissionError):
        group = group_of(control)
        if group is not None and group not in (os.getegid(), *os.getgroups()):
            os.setgroups([*os.getgroups(), group])


def serve(service: Service) -> tuple[ControlServer | None, str]:
    """Serve the control socket of a service; return it, and why there is none: that costs no packet."""
    control = service.settings.control
    if not control.get("enabled", True):
        return None, ""
    path = control.get("path", "")
    try:
        path = Path(path or socket_file.default_path(service.gateway.instance))
        if path.parent == socket_file.FOLDER:
            make_folder()
        server = service.gateway.serve_control(path, group=group_of(control), write_group=control.get("write_group"))
    except (Error, OSError) as error:
        return None, f"no control socket: {error}"
    server.service = service
    return server, ""


def make_folder() -> None:
    """Make the folder of the sockets, which others may pass and not write to. Raises OSError."""
    with suppress(FileExistsError):
        socket_file.FOLDER.mkdir()
        socket_file.FOLDER.chmod(0o755)

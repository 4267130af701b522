"""The verbs that put a changed configuration file into force, or say what that would do; and let a new process take over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from natcore.control.verb import Answer, Context, verb
from natcore.errors import ControlError
from natcore.internal.exit_codes import ExitCode


@verb("reload", changes=True)
def reload(context: Context, *, file: str | None = None, dry_run: bool = False) -> Answer:
    """Put a file into force, the one that the service began with or another; all of it, or nothing."""
    from natcore.service.problems import SettingsError
    from natcore.service.reload import RestartError

    service = context.require_service()
    try:
        done = service.reload(file, dry_run=dry_run)
    except (SettingsError, RestartError) as error:
        told = ControlError(str(error), ExitCode.CONFIGURATION)
        if isinstance(error, SettingsError):
            told.details = {"errors": [each.as_dict() for each in error.errors]}
        else:
            told.details = {"needs_restart": [asdict(step) for step in error.steps]}
        raise told from None
    for step in done.steps:
        yield asdict(step)
    return {name: value for name, value in done.as_dict().items() if name != "steps"}


@verb("restart", changes=True)
def restart(context: Context) -> Mapping[str, Any]:
    """Let a new process of the same command go on with the gateway; what was asked for is done when that one forwards."""
    return dict(context.require_service().restart())

"""The verbs that put a changed configuration file into force, or say what that would do; and let another process take over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from natcore.control.verb import Answer, Context, verb
from natcore.errors import ControlError, PeerError
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


@verb("restart", changes=True, standby=True)
def restart(context: Context) -> Mapping[str, Any]:
    """Let a new process of the same command go on with the gateway; what was asked for is done when that one forwards."""
    return dict(context.require_service().restart())


@verb("activate", writes=True, slow=True, standby=True)
def activate(context: Context, *, alone: bool = False) -> Mapping[str, Any]:
    """Let this gateway of a pair take over; alone: the other machine is known to be off. Done when packets go."""
    return dict(_asked(lambda: context.require_service().activate(alone=alone)))


@verb("standby", writes=True, slow=True, standby=True)
def standby(context: Context) -> Mapping[str, Any]:
    """Let the other gateway of the pair take over, which has everything then."""
    return dict(_asked(context.require_service().step_down))


def _asked(step: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    try:
        return step()
    except PeerError as error:
        raise ControlError(str(error)) from None

"""Verbs that change the gateway: end, log-start, log-stop, log-retry; and logs, which lists them."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from natcore.control.verb import Answer, Context, verb
from natcore.control.verbs.about import log_fields
from natcore.control.verbs.tables import given
from natcore.errors import ControlError, Error
from natcore.internal.exit_codes import ExitCode
from natcore.internal.redaction import show
from natcore.internal.validation import either

if TYPE_CHECKING:
    from natcore.service.configuration_file import LogSettings

STOP_SECONDS = 10.0
NEW_LOG = "nat"  # the name of a session log that the file does not have, unless another is given


@verb("end", changes=True)
def end(
    context: Context,
    *,
    subscriber: str | None = None,
    remote: str | None = None,
    outside: str | None = None,
    protocol: str | None = None,
    entry: str | None = None,
    all: bool = False,
    dry_run: bool = False,
) -> Answer:
    """End the sessions that match every criterion given, with their rows; dry_run: only count them."""
    gateway = context.gateway
    asked = given(context, subscriber=subscriber, remote=remote, outside=outside, protocol=protocol, entry=entry)
    if bool(asked) == all:
        raise ControlError(
            f"end: {'all goes with no other criterion' if all else 'give a criterion, or all'}", ExitCode.USAGE
        )
    count = 0
    if dry_run:
        for found in gateway.find_sessions(**asked):
            count += len(found)
            yield []
    else:
        count = gateway.end_all() if all else gateway.end(**asked)
        yield []
    return {"sessions": count, "ended": not dry_run}


@verb("logs")
def logs(context: Context) -> Answer:
    """List the session logs: those that run, and those of the file that do not.

    Where the file has none: `new` is one to Simple Log Service that can be started all the same, and `missing` says what is
    missing for it.
    """
    running = {log.name: log for log in context.gateway.logs}
    for log in running.values():
        yield log_fields(log)
    for name, settings in _configured(context).items():
        if name not in running:
            yield {"name": name, "status": "Disabled", **_destination(settings)}
    if context.service is None or context.service.settings.logs or running:
        return {}
    try:
        return {"new": {"name": NEW_LOG, "status": "Disabled", **_destination(_new(context, NEW_LOG))}}
    except Error as error:
        return {"missing": str(error)}


def _new(context: Context, name: str, project: str = "", logstore: str = "") -> LogSettings:
    """Return a session log to Simple Log Service that the file does not have, where it has none at all: at the endpoint of
    the gateway's region, with the key of the environment. Who asks does not say where to: rows and key go to the region's
    service, or where the environment says. Raises Error."""
    from natcore.service.configuration_file import new_log

    source, region = context.service.settings.source, context.gateway.region
    missing = [
        variable for variable in ("NATCORE_ACCESS_KEY_ID", "NATCORE_ACCESS_KEY_SECRET") if variable not in os.environ
    ]
    if missing:
        raise ControlError(
            f"{source} has no [[log]], and {' and '.join(missing)} are not in the environment of `natcore run`: give one or the"
            " other",
            ExitCode.USAGE,
        )
    endpoint = os.environ.get("NATCORE_SLS_ENDPOINT") or (f"https://{region}.log.aliyuncs.com" if region else None)
    if endpoint is None:
        raise ControlError(
            f"{source} has no [[log]], and [gateway] has no region, nor the environment NATCORE_SLS_ENDPOINT: it does not say"
            " where Simple Log Service is",
            ExitCode.USAGE,
        )
    # names that are still to be given: only the account's projects are listed until then
    raw = {"sink": "sls", "name": name, "endpoint": endpoint, "project": project or "-", "logstore": logstore or "-"}
    return new_log(source, {**raw, "region": region} if region else raw)


def _destination(settings: LogSettings) -> dict[str, Any]:
    """Return type and destination of a log that does not run; without its library the type alone."""
    kind = settings.raw["sink"]
    try:
        return {"type": kind, "destination": dict(settings.make_sink().destination)}
    except Error:
        return {"type": kind, "destination": {}}


@verb("log-retry", writes=True)
def log_retry(context: Context, *, name: str) -> dict[str, Any]:
    """End the pause after a failed delivery: the waiting rows are tried now."""
    log = _running(context, name)
    log.retry()
    return log_fields(log)


@verb("log-stop", changes=True)
def log_stop(context: Context, *, name: str, timeout: float = STOP_SECONDS) -> dict[str, Any]:
    """Stop a session log; its open windows are delivered as partial rows."""
    log = _running(context, name)
    left = log.stop(timeout)
    if context.service is not None:
        _set_logs(context.service, {name: None})
    return {**log_fields(log), "rows_left": left}


@verb("log-destinations", writes=True, slow=True)  # it asks with the gateway's credentials
def log_destinations(context: Context, *, name: str, project: str | None = None) -> Answer:
    """List where a session log of the file can deliver to: the account's projects, or a project's Logstores."""
    sink = _of_file(context, name).make_sink()
    look = getattr(sink, "projects" if project is None else "logstores", None)
    if look is None:
        raise ControlError(f"name must be a session log to 'sls', got {show(name)}", ExitCode.USAGE)
    what = "project" if project is None else "logstore"
    found = look() if project is None else look(project)
    yield [{what: each} for each in found]
    return {"rows": len(found)}


@verb("log-start", changes=True)
def log_start(
    context: Context, *, name: str, project: str | None = None, logstore: str | None = None, create: bool | None = None
) -> dict[str, Any]:
    """Start a session log of the file that does not run.

    project, logstore, create: of a log to Simple Log Service, instead of the file's, until the gateway is started again. Where
    the file has no log one of any name is started so, in the gateway's region, with the key of the environment.
    """
    service = context.require_service()
    if any(log.name == name for log in context.gateway.logs):
        raise ControlError(f"session log {show(name)} runs already", ExitCode.USAGE)
    settings = _of_file(context, name)
    if not service.settings.logs and (project is None or logstore is None):
        raise ControlError(
            f"project and logstore must be given: {service.settings.source} has no [[log]]", ExitCode.USAGE
        )
    instead = {"project": project, "logstore": logstore, "create": create}
    given = {argument: value for argument, value in instead.items() if value is not None}
    if given and settings.raw["sink"] != "sls":
        raise ControlError(
            f"{', '.join(given)}: only for a session log to 'sls', got {show(settings.raw['sink'])}", ExitCode.USAGE
        )
    log = replace(settings, arguments={**settings.arguments, **given}).start(context.gateway)
    _set_logs(service, {name: log})
    return log_fields(log)


def _set_logs(service: Any, changed: dict[str, Any]) -> None:
    """Have the service know its running logs; None: it has stopped. Any thread may look at the mapping: it is replaced, by
    whoever changes the gateway."""
    service.logs = {name: log for name, log in {**service.logs, **changed}.items() if log is not None}


def _running(context: Context, name: str) -> Any:
    found = {log.name: log for log in context.gateway.logs}
    if name not in found:
        names = either(found) if found else "one that runs (none does)"
        raise ControlError(f"name must be {names}, got {show(name)}", ExitCode.USAGE)
    return found[name]


def _of_file(context: Context, name: str) -> LogSettings:
    service = context.require_service()
    settings = _configured(context).get(name)
    if settings is None and not service.settings.logs:
        return _new(context, name)
    if settings is None:
        raise ControlError(f"name must be a session log of {service.settings.source}, got {show(name)}", ExitCode.USAGE)
    return settings


def _configured(context: Context) -> dict[str, LogSettings]:
    """Return the file's session logs by name."""
    if context.service is None:
        return {}
    return {each.name: each for each in context.service.settings.logs}

"""Verbs that change the gateway: end, log-start, log-stop, log-retry; and logs, which lists them."""

from __future__ import annotations

from typing import Any

from natcore.control.verb import Answer, Context, verb
from natcore.control.verbs.about import log_fields
from natcore.control.verbs.tables import given
from natcore.errors import ControlError
from natcore.internal.exit_codes import ExitCode
from natcore.internal.redaction import show
from natcore.internal.validation import either

STOP_SECONDS = 10.0


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
    """List the session logs: those that run, and those of the file that do not."""
    running = {log.name: log for log in context.gateway.logs}
    for log in running.values():
        yield log_fields(log)
    for name in _configured(context):
        if name not in running:
            yield {"name": name, "status": "Disabled"}
    return {}


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


@verb("log-start", changes=True)
def log_start(context: Context, *, name: str) -> dict[str, Any]:
    """Start a session log of the file that does not run."""
    service = context.require_service()
    if any(log.name == name for log in context.gateway.logs):
        raise ControlError(f"session log {show(name)} runs already", ExitCode.USAGE)
    settings = _configured(context).get(name)
    if settings is None:
        raise ControlError(f"name must be a session log of {service.settings.source}, got {show(name)}", ExitCode.USAGE)
    log = settings.start(context.gateway)
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


def _configured(context: Context) -> dict[str, Any]:
    """Return the file's session logs by name."""
    if context.service is None:
        return {}
    return {each.name: each for each in context.service.settings.logs}

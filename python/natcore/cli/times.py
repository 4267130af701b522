"""Times on the command line: read with their zone, shown in UTC."""

from __future__ import annotations

from datetime import UTC, datetime

from natcore.errors import ConfigurationError
from natcore.internal.redaction import show


def moment_of(name: str, text: str) -> datetime:
    """Return the time; name: the option that it is of."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ConfigurationError(f"{name} must be a time with its zone, such as 2026-11-20T12:03:17Z, got {show(text)}")
    return moment


def utc(moment: datetime) -> str:
    """Return the moment in UTC, in whole seconds if it is one."""
    text = moment.astimezone(UTC).isoformat(timespec="milliseconds" if moment.microsecond else "seconds")
    return text.replace("+00:00", "Z")

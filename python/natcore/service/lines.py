"""The lines of `natcore run`: an event's name and fields, for a journal, a file or a program. One line each, on standard error;
with --json on standard output."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from natcore.internal.redaction import printable

Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = get_args(Level)
_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3}  # of syslog(3)
_PLAIN = re.compile(r"[^\s\"=\x00-\x1f\x7f]+")
OUTPUT, ERRORS = 1, 2  # descriptors


def level_of(what: str, fields: Mapping[str, Any]) -> Level:
    """Return how grave what happened is."""
    if what == "log":
        given = str(fields.get("level", "warning"))
        return "error" if given in ("error", "critical") else given if given in LEVELS else "warning"
    if what == "state":
        return "info" if fields.get("plane") == "running" else "warning"
    if what == "delivery":
        return "info" if fields.get("state") == "Success" else "error"
    if what in ("reload", "restart"):
        return "info" if fields.get("ok", True) else "error"
    return "warning" if what in ("event", "warning", "lost") else "info"


def is_journal(environment: Mapping[str, str], descriptor: int = ERRORS) -> bool:
    """Whether the descriptor is the journal's stream (systemd.exec(5), JOURNAL_STREAM)."""
    device, _, inode = environment.get("JOURNAL_STREAM", "").partition(":")
    with suppress(OSError):
        status = os.fstat(descriptor)
        return (device, inode) == (str(status.st_dev), str(status.st_ino))
    return False


def text_writer(
    least: Level, *, journal: bool, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> Callable[[str, dict[str, Any]], tuple[int, str]]:
    """Return what makes text of an event: `TIME LEVEL EVENT key=value …`, or for a journal `<PRIORITY>EVENT key=value …`,
    since that has the time. Nothing for one below the least level.
    """

    def write(what: str, fields: dict[str, Any]) -> tuple[int, str]:
        level = level_of(what, fields)
        if LEVELS.index(level) < LEVELS.index(least):
            return ERRORS, ""
        head = f"<{_PRIORITY[level]}>" if journal else f"{_time(now())} {level} "
        return ERRORS, "".join(f"{head}{line}\n" for line in _lines(what, fields))

    return write


def json_writer(
    least: Level, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> Callable[[str, dict[str, Any]], tuple[int, str]]:
    """Return what makes a JSON object of an event; log records and warnings go to standard error."""

    def write(what: str, fields: dict[str, Any]) -> tuple[int, str]:
        level = level_of(what, fields)
        descriptor = ERRORS if what in ("log", "warning") else OUTPUT
        if LEVELS.index(level) < LEVELS.index(least):
            return descriptor, ""
        told = {"happened": what, "at": _time(now()), "level": level, **fields}
        return descriptor, json.dumps(told, default=str) + "\n"

    return write


def _time(moment: datetime) -> str:
    """RFC 3339, in UTC."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _lines(what: str, fields: Mapping[str, Any]) -> Iterator[str]:
    """The event, and a line for each session log that it tells of."""
    logs = fields.get("logs")
    yield _line(what, {name: value for name, value in fields.items() if name != "logs"})
    if isinstance(logs, Mapping):
        for name, counters in logs.items():
            yield _line(f"{what}-log", {"log": name, **counters})
    else:
        for log in logs or ():
            yield _line(f"{what}-log", log)


def _line(what: str, fields: Mapping[str, Any]) -> str:
    words = [what]
    for name, value in fields.items():
        if name == "message" and what in ("log", "warning", "signal"):
            continue
        if isinstance(value, Mapping):  # counters: those that count something
            words += [_word(each, count) for each, count in value.items() if count]
        elif value not in (None, "", ()):
            words.append(_word(name, value))
    message = fields.get("message") if what in ("log", "warning", "signal") else None
    return " ".join(words) + (f": {printable(' '.join(str(message).split()))}" if message else "")


def _word(name: str, value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    text = printable(text)
    return f"{name}={text}" if _PLAIN.fullmatch(text) else f"{name}={json.dumps(text, ensure_ascii=False)}"

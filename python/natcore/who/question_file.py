"""Many questions from one file: CSV with a heading, or JSON lines."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from natcore.errors import ConfigurationError
from natcore.internal.files import read_regular
from natcore.internal.protocols import protocol_of
from natcore.internal.redaction import show
from natcore.internal.validation import digits
from natcore.who.question import Question

FIELDS = ("id", "address", "port", "protocol", "inside", "remote", "remote_port", "at", "until", "tolerance")
_NEEDED = "at, and one of address, inside and remote"


def read_questions(path: str | os.PathLike[str], tolerance: float = 2.0) -> list[tuple[str, Question]]:
    """Read the questions of a file, each with its id.

    Parameters
    ----------
    path
        A `.csv` with a heading, or a `.jsonl` with an object a line. The fields are those of FIELDS: with `address` it is
        `who`, with `inside` `what`, with a remote alone `talked`. Times have a zone. An id that is missing is the number of
        the question.
    tolerance
        Seconds, of questions without one.

    Returns
    -------
    list of (str, Question)
        In the file's order.

    Raises
    ------
    ConfigurationError
        It names the question that is wrong.
    """
    path = Path(path)
    try:
        text = read_regular(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError(f"questions must be a .csv or .jsonl file, got {show(str(path))}: {why}") from error
    if path.suffix not in (".csv", ".jsonl"):
        raise ConfigurationError(f"questions must be a .csv or .jsonl file, got {show(str(path))}")
    found = []
    for number, fields in enumerate(_csv(text) if path.suffix == ".csv" else _json_lines(text), 1):
        try:
            found.append((str(fields.get("id") or number), question_of(fields, tolerance)))
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: question {number}: {error}") from error
    if not found:
        raise ConfigurationError(f"{show(str(path))}: there is no question in it")
    return found


def question_of(fields: Mapping[str, Any], tolerance: float = 2.0) -> Question:
    """Return the question with these FIELDS; empty ones are missing. Raises ConfigurationError."""
    given = {name: value for name, value in fields.items() if value not in (None, "")}
    unknown = sorted(set(given) - set(FIELDS))
    if unknown:
        raise ConfigurationError(f"fields must be some of {', '.join(FIELDS)}, got {show(unknown[0])}")
    if "at" not in given or not {"address", "inside", "remote"} & set(given):
        raise ConfigurationError(f"a question must have {_NEEDED}, got {show(', '.join(given) or 'nothing')}")
    remote = given.get("remote")
    remote_port = _number("remote_port", given.get("remote_port"))
    if remote_port is not None and remote is None:
        raise ConfigurationError(f"remote_port must come with a remote, got {remote_port} alone")
    protocol = given.get("protocol")
    return Question(
        given.get("address"), _number("port", given.get("port")),
        protocol_of(protocol) if isinstance(protocol, str) else protocol, _moment("at", given["at"]),
        remote if remote is None or remote_port is None else (remote, remote_port),
        _seconds(given.get("tolerance", tolerance)), None, inside=given.get("inside"),
        until=_moment("until", given["until"]) if "until" in given else None,
    )  # fmt: skip


def _csv(text: str) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text), restkey="", skipinitialspace=True)
    try:
        for row in reader:
            if "" in row:
                raise ConfigurationError(f"line {reader.line_num} must have as many fields as the heading, got more")
            yield dict(row)
    except csv.Error as error:
        raise ConfigurationError(f"line {reader.line_num + 1} must be CSV: {error}") from error


def _json_lines(text: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"line {number} must be a JSON object: {error}") from error
        if not isinstance(found, dict):
            raise ConfigurationError(f"line {number} must be a JSON object, got {show(found)}")
        yield found


def _number(name: str, value: object) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, str) and (number := digits(value.strip())) is not None:
        return number
    raise ConfigurationError(f"{name} must be a number, got {show(value)}")


def _seconds(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise ConfigurationError(f"tolerance must be seconds, got {show(value)}") from None


def _moment(name: str, value: object) -> datetime:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ConfigurationError(
            f"{name} must be a time with its zone, such as 2026-11-20T12:03:17Z, got {show(value)}"
        )
    return moment

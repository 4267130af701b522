"""A log of who asked what of the session log: lines of JSON that are only ever added, each with the hash of the one before."""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from natcore.errors import ConfigurationError
from natcore.internal.files import make_private, open_private, read_regular, write_all
from natcore.internal.json_fields import compact
from natcore.internal.redaction import show

_TAIL_BYTES = 1 << 20  # a line is shorter


class QuestionLog:
    """A file to which each question is added before its answer is given: a question that cannot be recorded is refused.

    A line has the time, the user, the question, the answer's status and subscribers, and `before`, the SHA-256 of the line
    before it ("": it is the first), so that a line that was changed or taken out is found. Several processes may add lines.

    Parameters
    ----------
    path
        The file; made with mode 0600, its folder with 0700, where they are missing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def add(self, questions: Iterable[Mapping[str, Any]], *, now: datetime | None = None) -> None:
        """Add a line for each question, durably. Raises ConfigurationError, OSError: then no answer is to be given."""
        make_private(self.path.parent)
        descriptor = open_private(self.path, os.O_RDWR | os.O_APPEND)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            tail = os.pread(descriptor, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
            if tail and not tail.endswith(b"\n"):  # a crash cut the last line; it is one all the same
                write_all(descriptor, b"\n")
                tail += b"\n"
            before = hashlib.sha256(tail[:-1].rpartition(b"\n")[2]).hexdigest() if tail else ""
            lines = bytearray()
            at = (now or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            for question in questions:
                line = compact({"time": at, "user": _user(), **question, "before": before}).encode()
                before = hashlib.sha256(line).hexdigest()
                lines += line + b"\n"
            write_all(descriptor, bytes(lines))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check(path: str | os.PathLike[str]) -> int:
    """Return how many lines a question log has, each of which continues the one before.

    Raises
    ------
    ConfigurationError
        A line does not: it names the line's number.
    """
    before, count = "", 0
    for count, line in enumerate(read_regular(Path(path)).splitlines(), 1):
        try:
            told = json.loads(line)["before"]
        except (ValueError, KeyError, TypeError):
            told = None
        if told != before:
            raise ConfigurationError(
                f"{show(str(path))}: line {count} does not continue the one before it: a line was changed, put in or taken out"
            )
        before = hashlib.sha256(line).hexdigest()
    return count


def _user() -> str:
    """Return the login name, and behind it who called sudo."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"uid {os.getuid()}"
    by = os.environ.get("SUDO_USER")
    return f"{name} (sudo by {by})" if by else name

"""What a folder of a session log holds at one moment, to be kept elsewhere: files, their newest, and the numbers of all rows.

Whoever can write into the folder can write another log there; a later `verify` with the anchor tells. The anchor's file is a
line of JSON and, with a key, a second one with its HMAC-SHA256: then the anchor need not be kept where none can write.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from natcore.errors import ConfigurationError
from natcore.internal.files import read_regular, replaced
from natcore.internal.redaction import show
from natcore.sessionlog.file_metadata import Numbers

KEY_VARIABLE = "NATCORE_ANCHOR_KEY"
_LEAST_KEY_BYTES = 16
_MARK = b"hmac-sha256 "


@dataclass(frozen=True, slots=True)
class Chain:
    """A folder, relative to the one that is verified. numbers: by instance and run; of files that retention removed too."""

    folder: str
    newest: str
    sha256: str
    numbers: dict[str, tuple[Numbers, ...]]


@dataclass(frozen=True, slots=True)
class Anchor:
    """One chain a folder."""

    chains: tuple[Chain, ...]

    def encode(self, key: bytes | None = None) -> bytes:
        """The content of the anchor's file."""
        text = json.dumps(asdict(self)).encode()
        return text + b"\n" if key is None else text + b"\n" + _MARK + _hmac(key, text) + b"\n"

    def write(self, path: str | os.PathLike[str], key: bytes | None = None) -> None:
        """Replace the file at path, durably."""
        with replaced(Path(path), private=False) as file:
            file.write(self.encode(key))


def read_anchor(path: str | os.PathLike[str], key: bytes | None = None) -> Anchor:
    """Raises ConfigurationError: no anchor, or with a key one that was not written with it."""
    try:
        text, _, rest = read_regular(Path(path)).partition(b"\n")
        anchor = Anchor(tuple(_chain(each) for each in json.loads(text)["chains"]))
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no anchor"
        raise ConfigurationError(
            f"anchor must be a SHA-256, or a file that verify has written, got {show(str(path))}: {why}"
        ) from error
    if key is not None and not hmac.compare_digest(rest, _MARK + _hmac(key, text) + b"\n"):
        raise ConfigurationError(
            f"anchor must be as it was written, with the same key, got {show(str(path))}: its HMAC is not one of this key"
        )
    return anchor


def read_key(path: str | os.PathLike[str] | None, environment: Mapping[str, str] = os.environ) -> bytes | None:
    """The key in the file, or in NATCORE_ANCHOR_KEY; None: neither is given. It is in no message."""
    if path is None:
        key, source = environment.get(KEY_VARIABLE, "").encode(), KEY_VARIABLE
        if not key:
            return None
    else:
        source = f"key_file {show(str(path))}"
        try:
            key = read_regular(Path(path)).strip()
        except OSError as error:
            raise ConfigurationError(f"{source} must be a file with a key: {error.strerror}") from error
    if len(key) < _LEAST_KEY_BYTES:
        raise ConfigurationError(f"{source} must be a key of {_LEAST_KEY_BYTES} bytes or more, got {len(key)} bytes")
    return key


def _chain(found: dict[str, Any]) -> Chain:
    """Raises KeyError, TypeError, ValueError, AttributeError."""
    numbers = {
        str(key): tuple((int(first), int(last)) for first, last in ranges) for key, ranges in found["numbers"].items()
    }
    if not all(key.count(" ") for key in numbers):
        raise ValueError("an instance and a run")
    return Chain(str(found["folder"]), str(found["newest"]), str(found["sha256"]), numbers)


def _hmac(key: bytes, text: bytes) -> bytes:
    return hmac.new(key, text, hashlib.sha256).hexdigest().encode()

"""JSON objects that natcore wrote, read back as frozen values; anything else is refused."""

from __future__ import annotations

import json
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar, get_type_hints

from natcore.internal.validation import is_text

T = TypeVar("T")


def read_fields(text: bytes | str, kind: type[T]) -> T | None:
    """The dataclass kind (fields of str, int or float) from a JSON object; None: damaged, or a field has another type.

    Keys that kind does not have are ignored; a field with a default may be missing.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    hints = _hints(kind)  # type: ignore[arg-type]
    known = {name: found[name] for name in hints if name in found}
    if not all(_fits(value, hints[name]) for name, value in known.items()):
        return None
    try:
        return kind(**known)
    except TypeError:  # a field is missing
        return None


@cache
def _hints(kind: type) -> dict[str, type]:
    """Return the type of each field, which is slow to find out."""
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in fields(kind)}


def _fits(value: Any, hint: type) -> bool:
    if hint is str:
        return is_text(value)
    return type(value) is int or (hint is float and type(value) is float and value - value == 0)


def compact(value: object) -> str:
    """JSON without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

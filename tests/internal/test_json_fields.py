"""JSON that natcore wrote itself is read back; what a crash or another program left is no value."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from natcore.internal.json_fields import read_fields


@dataclass(frozen=True)
class Example:
    name: str
    count: int
    at: float = 0.0


def test_what_is_whole_is_read() -> None:
    assert read_fields(b'{"name": "a", "count": 2, "at": 1.5, "later": []}', Example) == Example("a", 2, 1.5)
    assert read_fields('{"name": "a", "count": 2}', Example) == Example("a", 2)
    assert read_fields('{"name": "a", "count": 2, "at": 3}', Example) == Example("a", 2, 3)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"[]", b"null", b"\xff", b'{"name": "a"}', b'{"name": 1, "count": 2}', b'{"name": "a", "count": "2"}',
        b'{"name": "a", "count": true}', b'{"name": "a", "count": 1.0}', b'{"name": "\\ud800", "count": 1}',
        b'{"name": "a", "count": 1, "at": NaN}', b"[" * 100_000, b'{"name": "a", "count": ' + b"1" * 5000 + b"}",
    ],
    ids=lambda text: text[:40].decode(errors="replace"),
)  # fmt: skip
def test_anything_else_is_no_value(text: bytes) -> None:
    assert read_fields(text, Example) is None

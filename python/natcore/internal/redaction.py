"""Values in messages, reprs and log lines: bounded, printable, without secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

MASK = "***"
LONGEST = 200  # characters of a value in a message

# The key of a secret: words of `password`, `sasl.password`, `access_key_secret`, `Authorization`, `api-key`, …
_SECRET_KEY = (
    r"(?:pass(?:word|wd|phrase)?|pwd|secret|token|credentials?|authorization|api[-_.]?key|access[-_.]?key(?:[-_.]?id)?"
    r"|private[-_.]?key|signature|cookie)"
)
_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""


@cache  # compiled at the first message: an import needs none
def _is_secret() -> re.Pattern[str]:
    return re.compile(rf"(?:^|[^a-z]){_SECRET_KEY}(?:$|[^a-z])|{_SECRET_KEY}$", re.IGNORECASE)


@cache
def _has_secret() -> re.Pattern[str]:
    return re.compile(rf"://|{_SECRET_KEY}|basic|bearer", re.IGNORECASE)


@cache
def _rules() -> tuple[tuple[re.Pattern[str], str], ...]:
    return (
        # scheme://user:password@host, also where the password has a slash or an at sign
        (re.compile(r"(?P<before>[a-z][a-z0-9+.-]*://)[^\s'\"<>]*@", re.IGNORECASE), rf"\g<before>{MASK}@"),
        # 'key': 'value', "key": "value", key='value'
        (
            re.compile(
                rf"(?P<before>(?P<quote>['\"]?)[\w.-]*{_SECRET_KEY}(?P=quote)\s*[:=]\s*b?)(?:{_QUOTED})", re.IGNORECASE
            ),
            rf"\g<before>'{MASK}'",
        ),
        # Authorization: Basic …, Bearer …
        (re.compile(r"(?P<before>\b(?:basic|bearer)\s+)[\w.~+/=-]{4,}", re.IGNORECASE), rf"\g<before>{MASK}"),
        # key=value in a query or a line of options
        (
            re.compile(
                rf"(?P<before>\b[\w.-]*{_SECRET_KEY}\s*=\s*)(?!['\"]|{re.escape(MASK)})[^\s&;,'\")\]}}]+", re.IGNORECASE
            ),
            rf"\g<before>{MASK}",
        ),
    )


def is_secret(name: str) -> bool:
    """Return whether a key or an argument of this name holds a secret."""
    return _is_secret().search(name) is not None


def redact(text: str) -> str:
    """Return the text without the passwords of URLs and the values of secret keys.

    >>> redact("https://user:hunter2@host/x refused 'sasl.password': 'hunter2'")
    "https://***@host/x refused 'sasl.password': '***'"
    """
    if _has_secret().search(text) is None:
        return text
    for pattern, by in _rules():
        text = pattern.sub(by, text)
    return text


def show(value: object, name: str = "") -> str:
    """Return a value for a message: its repr, at most LONGEST characters, printable, redacted; never raises.

    name: of the key or argument that it was given for; the value of a secret is masked.
    """
    if is_secret(name) and value is not None:
        return MASK
    return redact(_short(_text_of(value)))


def plain(value: object) -> object:
    """Return a value for JSON: numbers and booleans as they are, texts redacted, the rest as by `show`."""
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and value.bit_length() <= 512):
        return value
    if isinstance(value, str):
        return redact(value[:LONGEST])
    return show(value)


def show_text(text: str) -> str:
    """Return another library's text for a message: as `show`, without quotes."""
    return redact(_short(text))


def _text_of(value: object, depth: int = 0) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 512:
        return f"a whole number of {value.bit_length():,} bits"  # int() refuses to write more than 4,300 digits
    if isinstance(value, str | bytes | bytearray) and len(value) > LONGEST:
        value = value[: LONGEST + 1]
    if isinstance(value, Mapping) and depth < 4:
        shown = (
            f"{_text_of(key, depth + 1)}: {_of_key(key, value, depth)}"
            for key, _ in zip(value, range(20), strict=False)
        )
        return "{" + ", ".join(shown) + (", …" if len(value) > 20 else "") + "}"
    if type(value) in (list, tuple) and depth < 4:
        shown = (_text_of(each, depth + 1) for each in value[:20])  # type: ignore[index]
        inner = ", ".join(shown) + (", …" if len(value) > 20 else "")  # type: ignore[arg-type]
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"  # type: ignore[arg-type]
    try:
        return repr(value)
    except Exception:  # a foreign __repr__ may raise anything
        return f"a {type(value).__name__}"


def _of_key(key: object, table: Mapping[object, object], depth: int) -> str:
    if isinstance(key, str) and is_secret(key):
        return f"'{MASK}'"
    return _text_of(table[key], depth + 1)


def _short(text: str) -> str:
    text = " ".join(text[: 2 * LONGEST].split())
    return printable(text if len(text) <= LONGEST else text[:LONGEST] + "…")


def printable(text: str, keep: str = "") -> str:
    r"""The text with what is not printable as escapes: controls, surrogates, marks of direction; nothing that a terminal obeys.

    keep: characters that stay, such as a line's end.

    >>> printable("\x1b[31mred")
    '\\x1b[31mred'
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode() for each in text
    )

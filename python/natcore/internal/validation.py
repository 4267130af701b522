"""Checks of arguments: an error says what the field must be and what it got."""

from __future__ import annotations

import ipaddress
import math
import numbers
import operator
import os
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex, TypeGuard

from natcore.errors import ConfigurationError
from natcore.internal.redaction import show, show_text

Address = str | SupportsIndex | ipaddress.IPv4Address

MAX_SECONDS = 1_000_000.0  # an idle time is 32 bits of milliseconds, compared modulo its range
_MOST_DIGITS = 18  # of a number in a text
MAX_TIME = 4.6e9  # of a clock, or of an epoch: both together are ns in 63 bits; as Unix time the year 2115


def as_integer(value: object) -> int | None:
    """Return the value as an int if it is a whole number (int, numpy's integers, any __index__, no bool); else None."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except Exception:  # a foreign __index__ may raise anything
        return None


def as_number(value: object) -> int | float | None:
    """Return the value as a number if it is a real one and not NaN; else None. An int stays exact."""
    whole = as_integer(value)
    if whole is not None:
        return whole
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except Exception:  # a fraction that is too large; a foreign __float__ may raise anything
        return None
    return None if math.isnan(number) else number


def parse_ipv4(value: Address, name: str) -> ipaddress.IPv4Address:
    """Return the address; ConfigurationError names the field."""
    if isinstance(value, ipaddress.IPv4Address):
        return value
    given = value if isinstance(value, str) else as_integer(value)
    if given is None:
        raise ConfigurationError(
            f"{name} must be an IPv4 address (str, int or ipaddress.IPv4Address), got {show(value, name)}"
        )
    try:
        return ipaddress.IPv4Address(given)
    except ValueError:
        form = "such as '192.0.2.1'" if isinstance(given, str) else "between 0 and 2^32 - 1"
        raise ConfigurationError(f"{name} must be an IPv4 address {form}, got {show(value, name)}") from None


def parse_network(value: object, name: str) -> ipaddress.IPv4Network:
    """Return the prefix; ConfigurationError names the field. Host bits must be zero."""
    if isinstance(value, ipaddress.IPv4Network):
        return value
    try:
        if not isinstance(value, str):
            raise ValueError("neither a str nor an ipaddress.IPv4Network")
        return ipaddress.IPv4Network(value)
    except ValueError as error:
        raise ConfigurationError(
            f"{name} must be an IPv4 prefix such as '10.0.0.0/16', got {show(value, name)} ({show_text(str(error))})"
        ) from None


def digits(text: str) -> int | None:
    """Return the number that a text of ASCII digits is; None: it is none, or none of 18 digits or fewer."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else None


def check_choice(name: str, value: object, choices: Iterable[object]) -> Any:
    """Return the choice that equals the value and has its type."""
    choices = tuple(choices)
    whole = as_integer(value)
    for each in choices:
        if isinstance(each, bool):
            found = _is_bool(value) and bool(value) is each
        elif isinstance(each, int):
            found = whole is not None and whole == each
        else:
            found = type(each) is type(value) and each == value
        if found:
            return each
    raise ConfigurationError(f"{name} must be {either(map(repr, choices))}, got {show(value, name)}")


def either(words: Iterable[str]) -> str:
    """Return the words as alternatives: "a, b or c"."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def listed(words: Sequence[object], most: int) -> str:
    """Return the words in a row, at most so many, and how many there are besides: "a, b and 3 more"."""
    more = f" and {len(words) - most:,} more" if len(words) > most else ""
    return ", ".join(map(str, words[:most])) + more


def _is_bool(value: object) -> bool:
    """Return whether it is Python's or numpy's bool; numpy is not imported for it."""
    return isinstance(value, bool) or (type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"))


def check_number(name: str, value: object, low: float, high: float, *, unit: str = "") -> float:
    """Return the value as a float within the bounds."""
    number = as_number(value)
    if number is None or not low <= number <= high:
        raise ConfigurationError(
            f"{name} must be between {low:g} and {high:g}{unit and ' ' + unit}, got {show(value, name)}"
        )
    return number if type(value) is type(number) else float(number)


def check_integer(name: str, value: object, low: int, high: int) -> int:
    """Return the value as an int within the bounds."""
    number = as_integer(value)
    if number is None or not low <= number <= high:
        raise ConfigurationError(f"{name} must be a whole number between {low} and {high}, got {show(value, name)}")
    return number


def is_text(value: object) -> TypeGuard[str]:
    """Return whether it is a str that UTF-8 can encode: without lone surrogates."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_path(name: str, value: object) -> str:
    """Return a file's or folder's path as a str that the system can have as a name."""
    try:
        path = os.fsdecode(value)  # type: ignore[arg-type]
        os.fsencode(path)
    except Exception:  # another type, a lone surrogate; a foreign __fspath__ may raise anything
        path = ""
    if not path or "\0" in path:
        raise ConfigurationError(f"{name} must be a path (str or pathlib.Path), got {show(value, name)}")
    return path


def check_url(name: str, value: object) -> str:
    """Return a server's URL without a slash at its end: http or https, a host, no user and no password."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(value if isinstance(value, str) else "")
        good = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc and parts.port != 0
    except ValueError:  # "http://[::1", a port of letters
        good = False
    if not good or not isinstance(value, str) or not value.isprintable() or " " in value:
        raise ConfigurationError(
            f"{name} must be 'https://HOST' or 'http://HOST:PORT', without a user and a password, got {show(value, name)}"
        )
    return value.rstrip("/")


def check_name(name: str, value: object, what: str = "a name") -> str:
    """Return the name of a host, a topic or a table: 1 to 255 bytes, printable."""
    if not is_text(value) or not value.isprintable() or not 1 <= len(value.encode()) <= 255:
        raise ConfigurationError(f"{name} must be {what} of 1 to 255 printable characters, got {show(value, name)}")
    return value


def check_optional_text(name: str, value: object) -> None:
    """Check that it is None, or one line of text that can go into a request's header."""
    if value is not None and not (is_text(value) and value.isprintable() and len(value) <= 16_384):
        raise ConfigurationError(f"{name} must be a text of one line, or None, got {show(value, name)}")


def check_batch(rows: object, seconds: object) -> tuple[int | None, float | None]:
    """Check a sink's batch_rows and batch_seconds; None: the delivery policy's."""
    return (
        None if rows is None else check_integer("batch_rows", rows, 1, 10_000_000),
        None if seconds is None else check_number("batch_seconds", seconds, 0, 86_400, unit="seconds"),
    )


def to_ns(seconds: float, name: str = "now") -> int:
    """Return seconds as nanoseconds, checked and rounded once, at the boundary."""
    number = seconds if type(seconds) is float else as_number(seconds)
    if number is None or not 0 <= number <= MAX_TIME:
        raise ConfigurationError(f"{name} must be between 0 and {MAX_TIME:g} seconds, got {show(seconds, name)}")
    return exact_ns(number)


def exact_ns(seconds: float) -> int:
    """Return seconds as nanoseconds, rounded once: a product with 1e9 is off by up to 128 ns at Unix times."""
    whole = math.floor(seconds)
    return whole * 1_000_000_000 + round((seconds - whole) * 1_000_000_000)

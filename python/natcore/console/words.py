"""Numbers, times and states as a page shows them: each number with its unit, each time in UTC."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from natcore.internal.extras import extra

with extra("console"):
    from markupsafe import Markup

_PREFIXES = ("", "k", "M", "G", "T", "P")
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
# What a delivery's or a plane's state is like: "good", "bad" or "wait", for its mark and colour.
_KINDS = {
    "Success": "good", "Failed": "bad", "Modifying": "wait", "Enabled": "good", "Disabled": "off", "running": "good",
    "degraded": "bad", "stopped": "off", "exact": "good", "held-idle": "good", "static": "good", "ambiguous": "wait",
    "gap": "wait", "unused": "off",
}  # fmt: skip
_MARKS = {"good": "●", "bad": "▲", "wait": "◐", "off": "○"}


def count(value: float) -> str:
    """Return a whole number with its thousands."""
    return f"{value:,.0f}"


def rate(value: float, unit: str) -> str:
    """Return a rate with a decimal prefix: 12.3 Mbit/s."""
    for prefix in _PREFIXES:
        if abs(value) < 999.5 or prefix == _PREFIXES[-1]:
            break
        value /= 1000
    digits = 0 if value == round(value) or abs(value) >= 100 else 1
    return f"{value:,.{digits}f} {prefix}{unit}"


def volume(value: float) -> str:
    """Return bytes with a binary prefix: 12.3 MiB."""
    for unit in _BINARY:
        if abs(value) < 1023.5 or unit == _BINARY[-1]:
            break
        value /= 1024
    return f"{value:,.0f} {unit}" if unit == "B" or abs(value) >= 100 else f"{value:,.1f} {unit}"


def share(part: float, whole: float) -> str:
    """Return a share in per cent; of nothing "-"."""
    if not whole:
        return "-"
    value = 100 * part / whole
    return f"{value:.1f} %" if 0 < value < 10 else f"{value:.0f} %"


def duration(seconds: float) -> str:
    """Return a duration in its two largest units."""
    if seconds < 0:
        return "0 s"
    if 0.05 < seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    parts = [(whole // 86_400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    first = next((number for number, (value, _) in enumerate(parts) if value), 3)
    return " ".join(f"{value} {unit}" for value, unit in parts[first : first + 2] if value) or "0 s"


def moment(seconds: float, *, short: bool = False) -> Markup:
    """Return a time element in UTC, from Unix seconds; the page's script adds the local time. short: hours and minutes."""
    try:
        at = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return Markup("-")
    text = f"{at:%H:%M} UTC" if short else f"{at:%Y-%m-%d %H:%M:%S} UTC"
    kind = "short" if short else "long"
    return Markup('<time datetime="{}" data-local="{}">{}</time>').format(f"{at:%Y-%m-%dT%H:%M:%SZ}", kind, text)


def state(word: str) -> Markup:
    """Return a state as a badge: a mark that differs by its shape, and the word."""
    kind = _KINDS.get(word, "off")
    return Markup('<span class="state {}"><span aria-hidden="true">{}</span> {}</span>').format(
        kind, _MARKS[kind], word
    )


def endpoint(row: Any, side: str) -> str:
    """Return a row's address and port of one side."""
    return f"{row[f'{side}_ip']}:{row[f'{side}_port']}"


FILTERS = {
    "count": count, "rate": rate, "volume": volume, "share": share, "duration": duration, "moment": moment, "state": state,
    "endpoint": endpoint,
}  # fmt: skip

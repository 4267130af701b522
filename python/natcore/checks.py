"""What an argument is checked by: an error names the field, the value and what is allowed."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterable

from .errors import ConfigurationError

Address = str | int | ipaddress.IPv4Address

MAX_SECONDS = 1_000_000.0  # an idle time is 32 bits of milliseconds, compared modulo its range
MAX_TIME = 4.6e9  # of a clock, or of an epoch: both together are ns in 63 bits; as Unix time the year 2115


def parse_ipv4(value: Address, name: str) -> ipaddress.IPv4Address:
    """The address, or a ConfigurationError that names the field."""
    if isinstance(value, bool) or not isinstance(value, str | int | ipaddress.IPv4Address):
        raise ConfigurationError(f"{name}={value!r}: an IPv4 address is a str, an int or an ipaddress.IPv4Address")
    try:
        return ipaddress.IPv4Address(value)
    except ValueError as error:
        raise ConfigurationError(f"{name}={value!r}: not an IPv4 address ({error})") from None


def parse_network(value: object, name: str) -> ipaddress.IPv4Network:
    """The prefix, or a ConfigurationError that names the field. Host bits must be zero."""
    try:
        return value if isinstance(value, ipaddress.IPv4Network) else ipaddress.IPv4Network(value)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{name}={value!r}: not an IPv4 prefix such as '10.0.0.0/16' ({error})") from None


def check_choice(name: str, value: object, allowed: Iterable[object]) -> None:
    allowed = tuple(allowed)
    if value not in allowed:
        raise ConfigurationError(f"{name}={value!r}: allowed are {', '.join(repr(a) for a in allowed)}")


def check_number(name: str, value: object, low: float, high: float, *, unit: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigurationError(f"{name}={value!r}: allowed is {low:g} to {high:g}{unit and ' ' + unit}")


def check_integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigurationError(f"{name}={value!r}: allowed is a whole number from {low} to {high}")


def to_ns(seconds: float, name: str = "now") -> int:
    """Seconds rounded to nanoseconds, once, at the boundary."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
        raise ConfigurationError(f"{name}={seconds!r}: allowed is a finite number of seconds, 0 or more")
    if not 0 <= seconds <= MAX_TIME:
        raise ConfigurationError(f"{name}={seconds!r}: allowed is 0 to {MAX_TIME:g} seconds")
    return exact_ns(seconds)


def exact_ns(seconds: float) -> int:
    """Seconds as nanoseconds, rounded once: a product with 1e9 would be rounded before (by 128 ns at Unix times)."""
    whole = math.floor(seconds)
    return whole * 1_000_000_000 + round((seconds - whole) * 1_000_000_000)

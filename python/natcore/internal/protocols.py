"""The named IP protocols and their IANA numbers, for the whole package."""

from __future__ import annotations

from natcore.errors import ConfigurationError
from natcore.internal.redaction import show
from natcore.internal.validation import as_integer, digits, either

ICMP, TCP, UDP = 1, 6, 17
NUMBERS = {"icmp": ICMP, "tcp": TCP, "udp": UDP}
NAMES = {number: name.upper() for name, number in NUMBERS.items()}


def protocol_number(protocol: object) -> int:
    """Return an IP protocol's number, given its name in either case, or the number."""
    if isinstance(protocol, str) and protocol.lower() in NUMBERS:
        return NUMBERS[protocol.lower()]
    number = as_integer(protocol)
    if number is None or not 0 <= number <= 255:
        raise ConfigurationError(
            f"protocol must be {either(map(repr, NUMBERS))}, or a number between 0 and 255, got {show(protocol)}"
        )
    return number


def protocol_of(text: str) -> str | int:
    """Return a text as `protocol_number` takes it: digits as the number, anything else as it is."""
    number = digits(text)
    return text if number is None else number


def protocol_name(number: int) -> str:
    """Return TCP, UDP, ICMP, or the number as text."""
    return NAMES.get(number, str(number))

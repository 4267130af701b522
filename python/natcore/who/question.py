"""The checked arguments of a query: an outside endpoint or address, an inside address or a remote, at a time or in a span."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from natcore.config import Address, check_integer, check_number, parse_ipv4
from natcore.errors import ConfigurationError
from natcore.internal.protocols import protocol_number
from natcore.internal.redaction import show
from natcore.who.conclude import Asked, Subject
from natcore.who.source import Sought

LONGEST_IDLE = 7440.0  # seconds: Timeouts().tcp_established, the longest of the defaults
LONGEST_WINDOW = 600.0
LONGEST_SPAN = timedelta(days=3660)
EARLIEST_YEAR, LATEST_YEAR = 2, 9998
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Question:
    """A query, checked; times in microseconds since 1970.

    Parameters
    ----------
    address, port
        The outside address and port. Without a port the remote must be given.
    protocol
        "tcp", "udp", "icmp", or a number; None: any, where no port is given.
    at
        The time, with a time zone, in a year from 2 to 9998; with `until` the begin of the span.
    remote
        An address, or (address, port); None: any.
    tolerance
        Seconds by which these times may be wrong, 0 to 86,400.
    longest_idle
        Seconds that a session may have been idle, if longer than the time-outs that the log tells of.
    inside
        The inside address.
    until
        The end of the span; None: a moment is asked for.

    Raises
    ------
    ConfigurationError
        A time without a zone, a value out of range, or nothing that is sought.
    """

    def __init__(
        self,
        address: Address | None,
        port: int | None,
        protocol: str | int | None,
        at: datetime,
        remote: Address | tuple[Address, int] | None,
        tolerance: float,
        longest_idle: float | None,
        *,
        inside: Address | None = None,
        until: datetime | None = None,
    ) -> None:
        self.address = None if address is None else parse_ipv4(address, "address")
        self.inside = None if inside is None else parse_ipv4(inside, "inside")
        if port is not None:
            check_integer("port", port, 0, 65_535)
        self.port = port
        self.protocol = None if protocol is None and port is None else protocol_number(protocol)
        self.at, self.until = checked_moment("at", at), None if until is None else checked_moment("until", until)
        if self.until is not None and not self.at <= self.until <= self.at + LONGEST_SPAN:
            raise ConfigurationError(
                f"until must be after {show(at)}, by {LONGEST_SPAN.days} days at most, got {show(until)}"
            )
        check_number("tolerance", tolerance, 0, 86_400, unit="seconds")
        if longest_idle is not None:
            check_number("longest_idle", longest_idle, 0, 1e6, unit="seconds")
        self.tolerance = float(tolerance)
        self.start = micros(self.at) - round(tolerance * 1e6)
        self.end = micros(self.until or self.at) + round(tolerance * 1e6)
        self.longest_idle = None if longest_idle is None else round(longest_idle * 1e6)
        address_asked, port_asked = remote if isinstance(remote, tuple) else (remote, None)
        self.remote_address = None if address_asked is None else parse_ipv4(address_asked, "remote")
        self.remote = None if self.remote_address is None else str(self.remote_address)
        if port_asked is not None:
            check_integer("remote port", port_asked, 0, 65_535)
        self.remote_port = port_asked
        self.subject = self._subject()

    def _subject(self) -> Subject:
        if self.inside is not None:
            return "inside"
        if self.address is None:
            if self.remote is None:
                raise ConfigurationError("a question must have an outside address, an inside address or a remote")
            return "remote"
        if self.port is None and self.remote is None:
            raise ConfigurationError(
                f"port must be given unless the remote is, got neither with the address {self.address}: "
                "many subscribers share it"
            )
        return "endpoint" if self.port is not None else "address"

    @property
    def text(self) -> str:
        """The outside address, dotted; empty: none is asked for."""
        return "" if self.address is None else str(self.address)

    @property
    def sought(self) -> Sought:
        """What rows must have. With an endpoint those towards other remotes are sought too."""
        return Sought(
            self.text or None, self.port, self.protocol, None if self.inside is None else str(self.inside),
            self.remote if self.subject != "endpoint" else None,
        )  # fmt: skip

    def asked(self, now: int | None = None) -> Asked:
        """Return the query for `conclude`. now: a running gateway's time, which ends the query."""
        end = self.end if now is None or now < self.start else min(self.end, now)
        return Asked(self.start, end, self.remote, self.remote_port, self.subject)

    def has_inside(self, first: int, prefix: int) -> bool:
        """Return whether the inside address is in a prefix."""
        return self.inside is not None and int(self.inside) >> (32 - prefix) == first >> (32 - prefix)


def checked_moment(name: str, moment: datetime) -> datetime:
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise ConfigurationError(
            f"{name} must be a datetime with its time zone, such as {show(EPOCH)}, got {show(moment)}"
        )
    if not EARLIEST_YEAR <= moment.year <= LATEST_YEAR:  # what is counted from it has a date too, in every zone
        raise ConfigurationError(f"{name} must be in a year from {EARLIEST_YEAR} to {LATEST_YEAR}, got {show(moment)}")
    return moment


def micros(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)

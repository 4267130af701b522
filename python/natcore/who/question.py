"""The checked arguments of a query: an outside address and port at a time."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from natcore.config import Address, check_integer, check_number, parse_ipv4
from natcore.errors import ConfigurationError
from natcore.internal.protocols import protocol_number
from natcore.internal.redaction import show
from natcore.who.conclude import Asked

LONGEST_IDLE = 7440.0  # seconds: Timeouts().tcp_established, the longest of the defaults
LONGEST_WINDOW = 600.0
REDACTED = "0.0.0.0"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Question:
    """A query, checked; times in microseconds since 1970."""

    def __init__(
        self,
        address: Address,
        port: int,
        protocol: str | int,
        at: datetime,
        remote: Address | tuple[Address, int] | None,
        tolerance: float,
        longest_idle: float | None,
    ) -> None:
        self.address = parse_ipv4(address, "address")
        self.text = str(self.address)
        check_integer("port", port, 0, 65_535)
        self.port = port
        self.protocol = protocol_number(protocol)
        if not isinstance(at, datetime) or at.tzinfo is None:
            raise ConfigurationError(f"at must be a datetime with its time zone, such as {show(EPOCH)}, got {show(at)}")
        self.at = at
        check_number("tolerance", tolerance, 0, 86_400, unit="seconds")
        if longest_idle is not None:
            check_number("longest_idle", longest_idle, 0, 1e6, unit="seconds")
        self.tolerance = float(tolerance)
        moment = (at - EPOCH) // timedelta(microseconds=1)
        self.start = moment - round(tolerance * 1e6)
        self.end = moment + round(tolerance * 1e6)
        self.longest_idle = None if longest_idle is None else round(longest_idle * 1e6)
        address_asked, port_asked = remote if isinstance(remote, tuple) else (remote, None)
        self.remote_address = None if address_asked is None else parse_ipv4(address_asked, "remote")
        self.remote = None if self.remote_address is None else str(self.remote_address)
        if port_asked is not None:
            check_integer("remote port", port_asked, 0, 65_535)
        self.remote_port = port_asked

    def asked(self, now: int | None = None) -> Asked:
        """Return the query for `conclude`. now: a running gateway's time, which ends the query."""
        end = self.end if now is None or now < self.start else min(self.end, now)
        return Asked(self.start, end, self.remote, self.remote_port)

    def asks_of(self, addresses: Iterable[tuple[str, str | None]] | None) -> bool:
        """Return whether one of the (nat_ip, eip) pairs may have the address; None: they are not recorded."""
        return addresses is None or any(self.text in pair for pair in addresses)

"""What a packet's side and its verdict are called. The numbers are stable; drops are 128 and above."""

from __future__ import annotations

from enum import IntEnum


class Side(IntEnum):
    """The side that a frame came from.

    Attributes
    ----------
    INSIDE
        The inside hosts' side.
    OUTSIDE
        The external side.
    """

    INSIDE = 0
    OUTSIDE = 1


class Verdict(IntEnum):
    """What became of a packet: one of these for each, with a counter each.

    Attributes
    ----------
    OUTBOUND
        Translated, inside to outside.
    INBOUND
        Translated, outside to inside.
    HAIRPIN
        Translated both ways, back inside (RFC 4787 REQ-9).
    UNTRANSLATED
        Passed as it is, by a no-NAT entry.
    LOCAL
        For the gateway itself.
    HELD
        A fragment that waits for its first one.
    DROP_MALFORMED
        A length or a header that cannot be.
    DROP_CHECKSUM
        The IPv4 header's, or an ICMP error's (RFC 5508 REQ-3).
    DROP_TTL
        It was 1 or less on arrival.
    DROP_NO_SNAT_ENTRY
        No entry covers the inside source.
    DROP_NO_MAPPING
        Nothing is open at this outside endpoint. From inside: a TCP segment that opens no session, a RST for one, or a
        later fragment of a session that has ended.
    DROP_FILTERED
        Open, but not for this remote (RFC 4787 REQ-8).
    DROP_PORTS_EXHAUSTED
        No port of the pool is free.
    DROP_SESSION_LIMIT
        A table is full: max_sessions, max_mappings or max_subscribers.
    DROP_SUBSCRIBER_LIMIT
        The subscriber's quota.
    DROP_RATE_LIMIT
        New sessions a second.
    DROP_CONFLICT
        Another session has the other key already.
    DROP_UNSUPPORTED
        Not IPv4, or a protocol or an ICMP message that is not translated.
    DROP_FRAGMENT
        A fragment that cannot be matched.
    DROP_SPOOFED
        A source that cannot come from there.
    DROP_MTU
        Larger than the next link.
    DROP_NO_NEIGHBOUR
        No route leads there, the next hop does not answer, or too many frames wait for it.
    DROP_OUTSIDE_LIMIT
        Too many sessions opened from outside (per mapping, or a share of the table).
    DROP_PROBE_LIMIT
        The index's probe bound; never met at the table's configured load.
    DROP_IP_OPTION
        An IPv4 option that is not forwarded: a source route, or by policy (RFC 7126).
    """

    OUTBOUND = 0
    INBOUND = 1
    HAIRPIN = 2
    UNTRANSLATED = 3
    LOCAL = 4
    HELD = 5

    DROP_MALFORMED = 128
    DROP_CHECKSUM = 129
    DROP_TTL = 130
    DROP_NO_SNAT_ENTRY = 131
    DROP_NO_MAPPING = 132
    DROP_FILTERED = 133
    DROP_PORTS_EXHAUSTED = 134
    DROP_SESSION_LIMIT = 135
    DROP_SUBSCRIBER_LIMIT = 136
    DROP_RATE_LIMIT = 137
    DROP_CONFLICT = 138
    DROP_UNSUPPORTED = 139
    DROP_FRAGMENT = 140
    DROP_SPOOFED = 141
    DROP_MTU = 142
    DROP_NO_NEIGHBOUR = 143
    DROP_OUTSIDE_LIMIT = 144
    DROP_PROBE_LIMIT = 145
    DROP_IP_OPTION = 146

    @property
    def is_drop(self) -> bool:
        """Whether the packet was dropped."""
        return self >= 128

    @property
    def is_forwarded(self) -> bool:
        """Whether the packet is to be sent: OUTBOUND, INBOUND, HAIRPIN or UNTRANSLATED."""
        return self <= Verdict.UNTRANSLATED

    def egress(self, side: int) -> Side | None:
        """Return the side that the packet leaves by; None: it is not forwarded.

        Parameters
        ----------
        side
            The `Side` that it came from.
        """
        if not self.is_forwarded:
            return None
        return Side.INSIDE if self is Verdict.HAIRPIN else Side(1 - side)

    @property
    def reason(self) -> str:
        """A drop's reason in values and events: "ports-exhausted"."""
        return self.name.removeprefix("DROP_").lower().replace("_", "-")

    @property
    def counter(self) -> str:
        """A drop's counter: "dropped_ports_exhausted"."""
        return "dropped_" + self.name.removeprefix("DROP_").lower()

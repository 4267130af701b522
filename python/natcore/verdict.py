"""What a packet's side and its verdict are called. The numbers are stable; drops are 128 and above."""

from __future__ import annotations

from enum import IntEnum


class Side(IntEnum):
    """The side that a frame came from."""

    INSIDE = 0
    OUTSIDE = 1


class Verdict(IntEnum):
    """What became of a packet: one of these for each, with a counter each."""

    OUTBOUND = 0  # translated, inside to outside
    INBOUND = 1  # translated, outside to inside
    HAIRPIN = 2  # translated both ways, back inside (RFC 4787 REQ-9)
    UNTRANSLATED = 3  # passed as it is, by a no-NAT entry
    LOCAL = 4  # for the gateway itself
    HELD = 5  # a fragment that waits for its first one

    DROP_MALFORMED = 128  # a length or a header that cannot be
    DROP_CHECKSUM = 129  # the IPv4 header's, or an ICMP error's (RFC 5508 REQ-3)
    DROP_TTL = 130  # it was 1 or less on arrival
    DROP_NO_SNAT_ENTRY = 131  # no entry covers the inside source
    DROP_NO_MAPPING = 132  # nothing is open at this outside endpoint
    DROP_FILTERED = 133  # open, but not for this remote (RFC 4787 REQ-8)
    DROP_PORTS_EXHAUSTED = 134  # no port of the pool is free
    DROP_SESSION_LIMIT = 135  # max_sessions, or max_mappings, or max_subscribers
    DROP_SUBSCRIBER_LIMIT = 136  # the subscriber's quota
    DROP_RATE_LIMIT = 137  # new sessions a second
    DROP_CONFLICT = 138  # another session has the other key already
    DROP_UNSUPPORTED = 139  # not IPv4, or a protocol or an ICMP message that is not translated
    DROP_FRAGMENT = 140  # a fragment that cannot be matched
    DROP_SPOOFED = 141  # a source that cannot come from there
    DROP_MTU = 142  # larger than the next link
    DROP_NO_NEIGHBOUR = 143  # the next hop does not answer
    DROP_OUTSIDE_LIMIT = 144  # too many sessions opened from outside (per mapping, or a share of the table)
    DROP_PROBE_LIMIT = 145  # the index's probe bound; never met at the table's configured load
    DROP_IP_OPTION = 146  # an IPv4 option that is not forwarded: a source route, or by policy (RFC 7126)

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

"""What the RFCs require of a NAT, one line each, and how natcore meets it."""

from __future__ import annotations

from typing import NamedTuple

TITLES = {"4787": "UDP", "5382": "TCP", "5508": "ICMP", "6888": "carrier-grade NAT", "7857": "updates"}


class Requirement(NamedTuple):
    """A requirement of an RFC.

    Attributes
    ----------
    rfc, number
        Such as "4787" and "13a".
    text
        What it asks for; one that begins with REC or MAY is weaker than the others.
    mark
        Of natcore, where its cases pass: "yes", "by policy" (the default or a keyword fulfils it), or why not.
    """

    rfc: str
    number: str
    text: str
    mark: str

    @property
    def key(self) -> str:
        """Such as "4787-13a"."""
        return f"{self.rfc}-{self.number}"

    @property
    def is_met(self) -> bool:
        """Whether natcore says that it meets it."""
        return self.mark in ("yes", "by policy")


REQUIREMENTS: tuple[Requirement, ...] = tuple(
    Requirement(*each)
    for each in (
        ("4787", "1", "endpoint-independent mapping", "yes"),
        ("4787", "2", "REC: paired address pooling", "by policy"),
        ("4787", "3", "no port overloading", "yes"),
        (
            "4787",
            "3a",
            "REC: 0-1023 map to 0-1023",
            "no: all share one range that is configurable, 1024-65535 by default",
        ),
        ("4787", "4", "REC: port parity", "by policy"),
        ("4787", "5", "a mapping lives 120 s or more; default 300 s; configurable", "yes"),
        ("4787", "6", "outbound traffic refreshes; inbound may", "by policy"),
        ("4787", "7", "inside and outside prefixes that collide", "yes"),
        ("4787", "8", "REC: endpoint-independent filtering, configurable", "by policy"),
        ("4787", "9", "hairpinning with the external source", "yes"),
        ("4787", "10", "ALGs off", "yes"),
        ("4787", "11", "deterministic behaviour", "yes"),
        ("4787", "12", "ICMP ends no mapping; Destination Unreachable passes", "yes"),
        ("4787", "13", "DF=1 and too big: 3/4 to the sender", "yes"),
        ("4787", "13a", "DF=0 and too big: fragment", "yes"),
        ("4787", "14", "fragments, in order and out of order", "yes"),
        ("4787", "14a", "state for fragments is bounded; tiny and overlapping ones (RFC 1858)", "yes"),
        ("5382", "1", "endpoint-independent mapping", "yes"),
        ("5382", "2", "every valid sequence of TCP packets, simultaneous open too", "yes"),
        ("5382", "3", "filtering configurable, apart from UDP's", "by policy"),
        ("5382", "4", "an unsolicited SYN is not answered for 6 s", "yes"),
        ("5382", "4a", "then ICMP 3/3, unless policy is silent", "by policy"),
        ("5382", "5", "established 7,440 s, transitory 240 s or more", "yes"),
        ("5382", "6", "TCP ALGs off", "yes"),
        ("5382", "7", "no port overloading", "yes"),
        ("5382", "8", "hairpinning", "yes"),
        ("5382", "9", "ICMP errors for TCP are translated", "yes"),
        ("5382", "10", "ICMP ends no connection", "yes"),
        ("5508", "1", "queries pass; endpoint-independent ids", "yes"),
        ("5508", "2", "a query session lives 60 s or more", "yes"),
        ("5508", "3", "errors and what they quote are verified", "yes"),
        ("5508", "4", "errors from outside", "yes"),
        ("5508", "5", "errors from inside", "yes"),
        ("5508", "6", "an error neither refreshes nor ends", "yes"),
        ("5508", "7", "hairpinned errors", "yes"),
        ("5508", "7a", "hairpinned queries for basic NAT", "yes"),
        ("5508", "8", "no session can be made: 3/13", "by policy"),
        ("5508", "9", "MAY: a policy says which errors are sent", "by policy"),
        ("5508", "10", "Destination Unreachable, Time Exceeded and Echo pass; other queries by policy", "yes"),
        ("5508", "11", "MAY: other messages are dropped", "yes"),
        ("6888", "1", "RFC 4787, 5382 and 5508 hold", "not yet: see above"),
        ("6888", "2", "paired pooling, across protocols", "yes"),
        ("6888", "3", "a pool of any size, not contiguous", "yes"),
        ("6888", "4", "a limit of ports per subscriber, and of new mappings a second", "by policy"),
        ("6888", "5", "limits of memory per mapping and subscriber", "by policy"),
        ("6888", "6", "chosen destinations pass untranslated", "yes"),
        ("6888", "7", "REC: endpoint-independent filtering", "yes"),
        ("6888", "8", "a freed port is held down for 120 s", "yes"),
        ("6888", "9", "PCP", "no: an optional server beside the NAT"),
        ("6888", "10", "manageable: counters, thresholds, tables", "yes"),
        ("6888", "11a", "out of resources: drop", "yes"),
        ("6888", "11b", "the sender is told host unreachable", "by policy"),
        ("6888", "11c", "the administrator is notified", "yes"),
        ("6888", "11d", "no mapping ends to free a port", "yes"),
        ("6888", "12", "REC: destinations not logged", "by policy"),
        ("6888", "13", "REC: use the ports well (with 14 and 15, which conflict)", "by policy"),
        ("6888", "14", "REC: keep the log small", "by policy"),
        ("6888", "15", "REC: ports hard to guess", "yes"),
        ("7857", "2", "the state machine of RFC 6146", "yes"),
        ("7857", "2.1", "opening, established and closing have timers", "yes"),
        ("7857", "2.2", "a RST ends nothing; later traffic brings it back", "yes"),
        ("7857", "3", "MAY: one port for several destinations", "by policy"),
        ("7857", "4", "paired address full: hard or soft", "by policy"),
        ("7857", "5", "mapping configurable per protocol", "by policy"),
        ("7857", "6", "filtering configurable per protocol", "by policy"),
        ("7857", "7", "refused packets, RST and errors refresh nothing", "yes"),
        ("7857", "7.1", "nor do outbound RSTs and errors", "yes"),
        ("7857", "8", "parity may be off", "yes"),
        ("7857", "9", "ports by RFC 6056", "yes"),
        ("7857", "10", "IP identification is unique where it matters (RFC 6864 section 5.3.1)", "yes"),
        ("7857", "11", "an ICMP mapping may end with its last session", "yes"),
        ("7857", "12", "hairpinned ICMP", "yes"),
    )
)

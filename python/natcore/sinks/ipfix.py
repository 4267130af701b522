"""IpfixSink: session logs to a flow collector, as IPFIX (RFC 7011) with NAT44 session events (RFC 8158).

Window rows become biflow records (RFC 5103): the source is the inside host, the reverse elements count what came
from outside. `create` and `end` rows become events: natEvent 4 and 5; rows of port blocks natEvent 16 and 17; refusals and
thresholds natEvent 12, 13 and 18, as far as the registry has a number. The encoder is natcore.log.encode_ipfix.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import get_args

from natcore import choices
from natcore.errors import ConfigurationError
from natcore.events import LIMITS, reasons
from natcore.internal.redaction import show
from natcore.internal.validation import check_choice, check_integer, check_name, check_number
from natcore.log.encode_ipfix import (
    BLOCK_BYTES,
    EVENT_BYTES,
    EXHAUSTED_BYTES,
    FLOW_BYTES,
    QUOTA_BYTES,
    THRESHOLD_BYTES,
    encode_messages,
)
from natcore.sinks._connection import Connection, Datagrams, Tls, stream
from natcore.sinks.base import BaseSink, Batch, Receipt, row_tails

REVERSE = 29305  # the enterprise number of IANA's elements in the reverse direction (RFC 5103)
# (element, enterprise, bytes), as IANA's registry names the elements.
ENDPOINTS = (
    (8, 0, 4),  # sourceIPv4Address
    (12, 0, 4),  # destinationIPv4Address
    (225, 0, 4),  # postNATSourceIPv4Address
    (226, 0, 4),  # postNATDestinationIPv4Address
    (7, 0, 2),  # sourceTransportPort; for ICMP the identifier
    (11, 0, 2),  # destinationTransportPort
    (227, 0, 2),  # postNAPTSourceTransportPort
    (228, 0, 2),  # postNAPTDestinationTransportPort
    (4, 0, 1),  # protocolIdentifier
)
FLOW = (
    (152, 0, 8),  # flowStartMilliseconds
    (153, 0, 8),  # flowEndMilliseconds
    (148, 0, 8),  # flowId: the session's number
    (1, 0, 8),  # octetDeltaCount
    (2, 0, 8),  # packetDeltaCount
    (1, REVERSE, 8),
    (2, REVERSE, 8),
    *ENDPOINTS,
    (239, 0, 1),  # biflowDirection: 1 the inside host began, 2 the remote one
)
EVENT = (
    (323, 0, 8),  # observationTimeMilliseconds
    (152, 0, 8),  # flowStartMilliseconds: of the session; without these two `nfdump -t` finds no event
    (153, 0, 8),  # flowEndMilliseconds: of a session that goes on, its start
    (148, 0, 8),
    *ENDPOINTS,
    (230, 0, 1),  # natEvent: 4 session created, 5 session deleted
)
BLOCK = (
    (323, 0, 8),
    (152, 0, 8),  # flowStartMilliseconds: of the assignment
    (153, 0, 8),
    (148, 0, 8),  # flowId: the assignment's number
    (8, 0, 4),
    (225, 0, 4),
    (361, 0, 2),  # portRangeStart
    (362, 0, 2),  # portRangeEnd
    (230, 0, 1),  # natEvent: 16 port block allocated, 17 de-allocated
)
EXHAUSTED = (
    (323, 0, 8),
    (152, 0, 8),  # flowStartMilliseconds: of the first packet that was refused
    (153, 0, 8),
    (2, 0, 8),  # packetDeltaCount: packets that were refused
    (8, 0, 4),  # 0.0.0.0: of several subscribers
    (12, 0, 4),  # where the first one was going, as the next two
    (11, 0, 2),
    (4, 0, 1),
    (230, 0, 1),  # natEvent: 12 NAT ports exhausted
)
QUOTA = (*EXHAUSTED, (466, 0, 4))  # natEvent 13, quota exceeded; natQuotaExceededEvent
THRESHOLD = (
    (323, 0, 8),
    (152, 0, 8),
    (153, 0, 8),
    (225, 0, 4),
    (4, 0, 1),  # 0: port blocks
    (230, 0, 1),  # natEvent: 18 threshold reached
    (467, 0, 4),  # natThresholdEvent
)
FLOW_TEMPLATE, EVENT_TEMPLATE, BLOCK_TEMPLATE = 256, 257, 258
EXHAUSTED_TEMPLATE, QUOTA_TEMPLATE, THRESHOLD_TEMPLATE = 259, 260, 261
# (reason, limit) -> natEvent, and natQuotaExceededEvent or natThresholdEvent, by IANA's registry. It has no number for others:
# rates, conflicts, sessions opened from outside, a threshold of sessions.
NAT_EVENTS: Mapping[tuple[str, str], tuple[int, int]] = {
    ("ports-exhausted", "pool"): (12, 0),
    ("session-limit", "max_sessions"): (13, 1),
    ("session-limit", "max_mappings"): (13, 2),
    ("session-limit", "max_subscribers"): (13, 4),
    ("subscriber-limit", "sessions_per_subscriber"): (13, 3),
    ("subscriber-limit", "ports_per_subscriber"): (13, 3),
    ("subscriber-limit", "blocks"): (13, 3),
    ("ports-threshold", "pool"): (18, 3),
}
_LARGEST = {"tcp": 65_535, "udp": 1400}  # bytes of a message


def _template(number: int, fields: Sequence[tuple[int, int, int]]) -> bytes:
    specifiers = [
        struct.pack(">HHI", element | 0x8000, length, enterprise) if enterprise else struct.pack(">HH", element, length)
        for element, enterprise, length in fields
    ]
    return struct.pack(">HH", number, len(fields)) + b"".join(specifiers)


_SETS = (
    (FLOW_TEMPLATE, FLOW), (EVENT_TEMPLATE, EVENT), (BLOCK_TEMPLATE, BLOCK), (EXHAUSTED_TEMPLATE, EXHAUSTED),
    (QUOTA_TEMPLATE, QUOTA), (THRESHOLD_TEMPLATE, THRESHOLD),
)  # fmt: skip
USER_NAME = (371, 0, 65_535)  # userName, of variable length: a byte that says it, below 255
_LABEL_BYTES = 254
_TEMPLATES = b"".join(_template(number, fields) for number, fields in _SETS)
_LABELLED_TEMPLATES = b"".join(  # a threshold has no inside address
    _template(number, fields if number == THRESHOLD_TEMPLATE else (*fields, USER_NAME)) for number, fields in _SETS
)
assert sum(length for _, _, length in FLOW) == FLOW_BYTES
assert sum(length for _, _, length in EVENT) == EVENT_BYTES
assert sum(length for _, _, length in BLOCK) == BLOCK_BYTES
assert sum(length for _, _, length in EXHAUSTED) == EXHAUSTED_BYTES
assert sum(length for _, _, length in QUOTA) == QUOTA_BYTES
assert sum(length for _, _, length in THRESHOLD) == THRESHOLD_BYTES


def _by_code(which: int) -> bytes:
    """Return a number of NAT_EVENTS for each value of `flags` (natcore.events.code_of)."""
    found = bytearray(1 << 12)
    for reason, name in reasons().items():
        for limit, argument in enumerate(LIMITS):
            found[reason | limit << 8] = NAT_EVENTS.get((name, argument), (0, 0))[which]
    return bytes(found)


_NAT_EVENTS, _DETAILS = _by_code(0), _by_code(1)


def _user_name(label: str | None) -> bytes:
    text = (label or "").encode()[:_LABEL_BYTES].decode(errors="ignore").encode()  # whole characters
    return bytes((len(text),)) + text


class IpfixSink(BaseSink):
    """Sends flow records to a collector as IPFIX (RFC 7011), with events of RFC 8158.

    IPFIX has no element for a row's number, run, `eip` or VPC. Rows of refusals and events for which its registry has no
    natEvent are not sent (docs/session-log.md).

    Parameters
    ----------
    host
        The collector's name or address.
    port
        1 to 65,535; with `tls` collectors listen on 4740.
    transport
        "tcp": a batch is delivered when the collector's TCP has acknowledged it. "udp": when it was sent.
    observation_domain
        Tells gateways of one exporter apart, 0 to 2^32 - 1.
    template_seconds
        Templates are sent again so often over UDP, 1 to 86,400 (RFC 7011 section 8.4); over TCP once a connection.
    timeout
        Seconds of a connect or a send, 0.1 to 3,600.
    label
        True: it takes a log's labels: records with an inside address have userName (element 371), the label in UTF-8, cut after
        254 bytes; empty: none.
    tls
        Over TCP: True, a table of PEM files ("ca", "certificate", "key"), or an ssl.SSLContext.
    clock, wall
        Seconds of any origin, and Unix seconds; for tests.
    """

    delivery_type = "ipfix"
    events = True
    blocks = True
    refusals = True

    def __init__(
        self,
        host: str,
        port: int = 4739,
        *,
        transport: choices.Transport = "tcp",
        observation_domain: int = 1,
        template_seconds: float = 600.0,
        timeout: float = 10.0,
        label: bool = False,
        tls: Tls = False,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        host = check_name("host", host, "a name or an address")
        port = check_integer("port", port, 1, 65_535)
        check_choice("transport", transport, get_args(choices.Transport))
        check_integer("observation_domain", observation_domain, 0, 2**32 - 1)
        check_number("template_seconds", template_seconds, 1, 86_400, unit="seconds")
        timeout = check_number("timeout", timeout, 0.1, 3600, unit="seconds")
        self._host, self._port, self._transport = host, port, transport
        self._domain = observation_domain
        self._wall = wall
        self._is_tcp = transport == "tcp"
        if tls and not self._is_tcp:
            raise ConfigurationError(f"tls must be False with transport={show(transport)}, got {show(tls)}")
        self._connection: Connection = (
            stream(host, port, timeout, tls) if self._is_tcp else Datagrams(host, port, timeout)
        )
        self._template_seconds, self._clock = template_seconds, clock
        self.labels = check_choice("label", label, (True, False))
        self._templates = _LABELLED_TEMPLATES if label else _TEMPLATES
        self._templates_due = 0.0
        self._sequence = 0  # data records sent on this transport session

    def __repr__(self) -> str:
        return f"<IpfixSink {self._transport} {self._host}:{self._port} domain {self._domain}>"

    @property
    def destination(self) -> Mapping[str, str]:
        """What identifies the destination, without secrets."""
        return {
            "host": self._host, "port": str(self._port), "transport": self._transport,
            "observation_domain": str(self._domain),
        }  # fmt: skip

    def open(self) -> bool:
        """Called in the delivering thread before the first delivery; it may raise as `deliver` does."""
        self._begin()
        return self._is_tcp  # UDP has no answer

    def deliver(self, batch: Batch) -> Receipt:
        """Return when the batch is durable; raise `DeliveryError` if it is not."""
        self._begin()
        now = int(self._wall()) & 0xFFFFFFFF
        largest = _LARGEST[self._transport]
        labels = row_tails(batch.labels or (None,) * len(batch), _user_name) if self.labels else {}
        data, ends, count = encode_messages(
            batch.records.view("u1"), self._sequence, self._domain, now, largest, _NAT_EVENTS, _DETAILS, **labels
        )
        view = memoryview(data)
        parts = [data] if self._is_tcp else [view[start:end] for start, end in pairwise([0, *ends])]
        self._connection.send(parts)
        self._sequence = (self._sequence + count) & 0xFFFFFFFF
        return Receipt(len(data), len(data))

    def close(self) -> None:
        """Called once in the delivering thread, after the last delivery."""
        self._connection.close()

    def _begin(self) -> None:
        """Connect where necessary, and send the templates where they are due."""
        now = self._clock()
        if self._connection.connect():
            self._sequence = 0  # a new transport session
        elif self._is_tcp or now < self._templates_due:
            return
        self._templates_due = now + self._template_seconds
        header = struct.pack(
            ">HHIIIHH", 10, 20 + len(self._templates), int(self._wall()) & 0xFFFFFFFF, self._sequence, self._domain,
            2, 4 + len(self._templates),
        )  # fmt: skip
        self._connection.send([header + self._templates])

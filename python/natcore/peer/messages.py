"""The stream between two gateways: messages of a header and a body (docs/peer-format.md)."""

from __future__ import annotations

import json
import struct
from enum import IntEnum
from typing import Any, NamedTuple

from natcore.api.peer import peer_row_bytes
from natcore.errors import PeerError

VERSION = 1
HEADER = struct.Struct("<BBHIQ")  # kind, worker, unused, bytes of the body, rows before this message
TIME = struct.Struct("<QqQ")  # the clock, ns; Unix time at 0, ns; the highest number of a session
ACK = struct.Struct("<Q")
MOST_BYTES = 1 << 26  # of a body; a base of 65,536 addresses is smaller
MOST_JSON = 4096  # bytes of a body that is JSON
MOST_NAME = 255  # characters of a gateway's or voter's name


class Kind(IntEnum):
    """What a message is. Those below 16 have rows, numbered as in natcore/workers/peer_rows.pxd."""

    ENDS = 1
    """Slots that have no session now."""
    SESSIONS = 2
    """Slots that have these sessions now, with their mappings."""
    REFRESHES = 3
    """Sessions that packets passed."""
    HELD_DOWN = 4
    """Ports that are held down."""
    BASE = 16
    """A saved state without sessions, mappings and ports: what was sent before is void."""
    COMPLETE = 17
    """The standby has everything now that it needs to take over."""
    TIME = 18
    """The active gateway's clock, and a sign of life."""
    HELLO = 19
    """Who speaks, as JSON: the first message of either side."""
    ACK = 20
    """From the standby: how many rows it has applied."""
    ASK = 21
    """A vote is asked for, or given back (natcore.peer.lease), as JSON."""
    VOTE = 22
    """The answer, as JSON."""
    YIELD = 23
    """From the standby: it is to take over, and the active gateway to stop."""
    YIELDED = 24
    """The active gateway has stopped, and everything was told."""


ROW_BYTES: dict[int, int] = peer_row_bytes()


class Message(NamedTuple):
    """A message. worker: that has the rows. number: rows that were sent before in this stream."""

    kind: int
    worker: int
    number: int
    body: bytes | memoryview

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return len(self.body) // ROW_BYTES[self.kind] if self.kind in ROW_BYTES else 0

    def head(self) -> bytes:
        """Return the header."""
        return HEADER.pack(self.kind, self.worker, 0, len(self.body), self.number)


def parse_head(head: bytes) -> tuple[int, int, int, int]:
    """Return kind, worker, number and how many bytes follow. Raises PeerError."""
    kind, worker, unused, size, number = HEADER.unpack(head)
    if unused or size > MOST_BYTES or (kind in ROW_BYTES and size % ROW_BYTES[kind]) or kind not in _KINDS:
        raise PeerError(f"a message of kind {kind} with {size:,} bytes is none of version {VERSION}")
    return kind, worker, number, size


def parse_json(body: bytes | memoryview) -> dict[str, Any]:
    """Return the object that a body has as JSON; an empty one: it has none."""
    try:
        said = json.loads(bytes(body)) if len(body) <= MOST_JSON else None
    except (ValueError, RecursionError):  # nested without end
        said = None
    return said if isinstance(said, dict) else {}


def is_name(value: object) -> bool:
    """Whether a value may name a gateway or a voter: it is printed where the holder of a vote is."""
    return isinstance(value, str) and 0 < len(value) <= MOST_NAME and value.isprintable()


_KINDS = frozenset(Kind)

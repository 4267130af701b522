"""RECORD: a row of the session log as numbers, 96 bytes, the same in the core, the sinks and the files."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from natcore.internal.validation import parse_ipv4

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The 13 numeric fields of the session log's page, in its order, then natcore's own: the order of columns and of rows().
FIELDS = (
    "protocol", "pri_ip", "pri_port", "pub_ip", "pub_port", "nat_ip", "nat_port", "bytes_from_pub", "pkts_from_pub",
    "bytes_from_vpc", "pkts_from_vpc", "start_time", "end_time", "eip", "session", "number", "kind", "flags",
)  # fmt: skip
# As a row lies in memory and in files. Aligned and in this order numpy keeps the layout where it joins arrays; padding
# has no name, so that every column is a number (data frames, Arrow).
RECORD = np.dtype(
    [
        ("bytes_from_pub", "u8"),  # IPv4 total lengths
        ("pkts_from_pub", "u8"),
        ("bytes_from_vpc", "u8"),
        ("pkts_from_vpc", "u8"),
        ("start_time", "i8"),  # microseconds since 1970
        ("end_time", "i8"),
        ("session", "u8"),
        ("number", "u8"),
        ("pri_ip", "u4"),  # addresses in host order
        ("pub_ip", "u4"),
        ("nat_ip", "u4"),
        ("eip", "u4"),  # 0: the address has none
        ("pri_port", "u2"),
        ("pub_port", "u2"),
        ("nat_port", "u2"),
        ("protocol", "u1"),
        ("kind", "u1"),
        ("flags", "u2"),  # 6 bytes of padding behind it
    ],
    align=True,
)


class RecordKind(IntEnum):
    """What a RECORD row is: its `kind`.

    Attributes
    ----------
    WINDOW
        A session's packets and bytes in one window.
    CREATE
        A session begins.
    END
        A session has ended.
    GAP
        Rows are missing here.
    COVER
        The log is complete until then (natcore.sessionlog.facts, as the next three).
    ENTRY
        An entry comes into force, or ends.
    SETTING
        Time-outs or policies in force.
    CLOCK
        The clock was set.
    BLOCK_ALLOCATED
        A port block is assigned to a subscriber (natcore.sessionlog.block_rows).
    BLOCK_RELEASED
        A port block is returned.
    REFUSAL
        A subscriber's packets were refused a session (natcore.sessionlog.refusals, as the next two).
    EVENT
        A threshold was reached, or another event without a subscriber.
    EVENT_COVER
        Rows of refusals and events are complete until then.
    """

    WINDOW = 0
    CREATE = 1
    END = 2
    GAP = 3
    COVER = 4
    ENTRY = 5
    SETTING = 6
    CLOCK = 7
    BLOCK_ALLOCATED = 8
    BLOCK_RELEASED = 9
    REFUSAL = 10
    EVENT = 11
    EVENT_COVER = 12


class RecordFlag(IntFlag):
    """Bits of `flags` in window, create and end rows, and in those of port blocks.

    Attributes
    ----------
    OPENED_OUTSIDE
        A packet from outside opened the session.
    ASSIGNED_BEFORE
        The port block was assigned when the log started.
    """

    OPENED_OUTSIDE = 1
    ASSIGNED_BEFORE = 2


class GapReason(IntEnum):
    """Why rows are missing: `flags` of a gap row.

    Attributes
    ----------
    DIED
        The process ended without its end mark.
    JOURNAL_FULL
        The core's journal had no place.
    LOG_FULL
        This log had no place.
    """

    DIED = 1
    JOURNAL_FULL = 2
    LOG_FULL = 3


class SessionState(IntEnum):
    """A TCP session's `state` in SESSION (RFC 6146 section 3.5.2, RFC 7857 section 2); 0 with other protocols.

    Attributes
    ----------
    SYN_FROM_INSIDE
        A SYN from inside, and no answer yet; other protocols have this too.
    SYN_FROM_OUTSIDE
        A SYN from outside, and no answer yet.
    PICKED_UP
        Another segment from inside: the connection is older than the session.
    ESTABLISHED
        SYNs both ways.
    FIN_FROM_INSIDE
        The inside has closed its direction.
    FIN_FROM_OUTSIDE
        The outside has closed its direction.
    CLOSING
        FIN from both.
    TRANSITORY
        An acceptable RST.
    PICKED_UP_FROM_OUTSIDE
        Another segment from outside, to an entry's endpoint.
    """

    SYN_FROM_INSIDE = 0
    SYN_FROM_OUTSIDE = 1
    PICKED_UP = 2
    ESTABLISHED = 3
    FIN_FROM_INSIDE = 4
    FIN_FROM_OUTSIDE = 5
    CLOSING = 6
    TRANSITORY = 7
    PICKED_UP_FROM_OUTSIDE = 8


(
    WINDOW, CREATE, END, GAP, COVER, ENTRY, SETTING, CLOCK, BLOCK_ALLOCATED, BLOCK_RELEASED, REFUSAL, EVENT, EVENT_COVER,
) = RecordKind  # fmt: skip
OPENED_OUTSIDE, ASSIGNED_BEFORE = RecordFlag
GAP_DIED, GAP_RING, GAP_LOST = GapReason


def is_of_block(records: NDArray[np.void]) -> NDArray[np.bool_]:
    """Bool (n,): which rows of RECORD (n,) are port blocks'."""
    kinds = records["kind"]
    found: NDArray[np.bool_] = (kinds == BLOCK_ALLOCATED) | (kinds == BLOCK_RELEASED)
    return found


def is_event(records: NDArray[np.void]) -> NDArray[np.bool_]:
    """Bool (n,): which rows of RECORD (n,) are of refusals and events (natcore.sessionlog.refusals)."""
    found: NDArray[np.bool_] = records["kind"] >= REFUSAL
    return found


def is_fact(records: NDArray[np.void]) -> NDArray[np.bool_]:
    """Bool (n,): which rows of RECORD (n,) are about the log itself (natcore.sessionlog.facts)."""
    kinds = records["kind"]
    found: NDArray[np.bool_] = (kinds >= COVER) & (kinds <= CLOCK)
    return found


_BYTES = np.dtype(
    (np.void, RECORD.itemsize)
)  # a row as it lies: numpy would copy its fields one by one, ten times slower


def copy_into(rows: NDArray[np.void], records: NDArray[np.void]) -> None:
    """Rows = records, both RECORD (n,)."""
    rows.view(_BYTES)[:] = records.view(_BYTES)


def copied(records: NDArray[np.void]) -> NDArray[np.void]:
    """A copy of RECORD (n,)."""
    return records.view(_BYTES).copy().view(RECORD)


def chosen(records: NDArray[np.void], wanted: NDArray[np.bool_]) -> NDArray[np.void]:
    """The rows of RECORD (n,) that are wanted, bool (n,); a copy, but of all."""
    return records if wanted.all() else records.view(_BYTES)[wanted].view(RECORD)


def gap_row(start_us: int, end_us: int, number: int, rows: int, reason: int) -> NDArray[np.void]:
    """RECORD (1,): a gap in the log. Rows that began and ended between start_us and end_us (since 1970) are missing.

    number: the last missing row's. rows: how many are known to be missing, 0: unknown; kept in `session`.
    reason: GAP_DIED, the process ended without its end mark; GAP_RING, the journal was full; GAP_LOST, this log had
    no space for them.
    """
    row = np.zeros(1, RECORD)
    row["start_time"], row["end_time"], row["number"], row["session"] = start_us, max(start_us, end_us), number, rows
    row["kind"], row["flags"] = GAP, reason
    return row


def redacted(records: NDArray[np.void]) -> NDArray[np.void]:
    """RECORD (n,) without destinations (RFC 6888 REQ-12): pub_ip and pub_port are 0. A copy, where there were any."""
    kinds = records["kind"]
    told = ((kinds < GAP) | (kinds == REFUSAL)) & ((records["pub_ip"] != 0) | (records["pub_port"] != 0))
    if not told.any():
        return records
    records = copied(records)
    records["pub_ip"][told] = records["pub_port"][told] = 0
    return records


def format_ipv4(address: SupportsIndex) -> str:
    """Dotted quads of an address in host order.

    >>> format_ipv4(0xCB007101)
    '203.0.113.1'
    """
    return str(parse_ipv4(address, "address"))


def to_arrow(rows: NDArray[np.void]) -> Any:
    """Give rows as an Arrow table, which pandas, polars and DuckDB read.

    Parameters
    ----------
    rows
        RECORD, SESSION, MAPPING, PORTS, BLOCKS or FLOW (n,): `Gateway.sessions()`, `take_records()` and others.

    Returns
    -------
    pyarrow.Table
        A column for each field: addresses as dotted text in dictionaries, times since 1970 (`*_time`) as timestamps in
        UTC, the rest as its numbers. An `eip` or `window_time` of 0, which says that there is none, is null.

    Raises
    ------
    MissingExtraError
        pyarrow is not installed: `natcore[parquet]`.
    """
    from natcore.internal.arrow import table

    return table(rows)


# Rows of Gateway.sessions(), mappings() and ports(): addresses and ports in host order, times in ns of the
# gateway's clock. Aligned as RECORD is.
SESSION = np.dtype(
    [
        ("session", "u8"),
        ("bytes_out", "u8"),
        ("packets_out", "u8"),
        ("bytes_in", "u8"),
        ("packets_in", "u8"),
        ("birth_ns", "u8"),
        ("last_seen_ns", "u8"),
        ("deadline_ns", "u8"),
        ("start_time", "i8"),  # its creation, and the start of its open window (0: none): microseconds since 1970
        ("window_time", "i8"),
        ("inside_ip", "u4"),
        ("remote_ip", "u4"),
        ("outside_ip", "u4"),
        ("entry", "u4"),
        ("inside_port", "u2"),
        ("remote_port", "u2"),
        ("outside_port", "u2"),
        ("protocol", "u1"),
        ("state", "u1"),
        ("opened_outside", "u1"),
    ],
    align=True,
)
MAPPING = np.dtype(
    [
        ("inside_ip", "u4"),
        ("outside_ip", "u4"),
        ("entry", "u4"),
        ("sessions", "u4"),
        ("inside_port", "u2"),
        ("outside_port", "u2"),
        ("protocol", "u1"),
    ],
    align=True,
)
SUBSCRIBER_RATE = np.dtype(
    [
        ("bytes_out", "u8"),
        ("packets_out", "u8"),
        ("bytes_in", "u8"),
        ("packets_in", "u8"),
        ("inside_ip", "u4"),
        ("sessions", "u4"),  # open now
        ("mappings", "u4"),  # likewise: ports, where each mapping has one of its own
    ],
    align=True,
)
PORTS = np.dtype(
    [
        ("outside_ip", "u4"),
        ("eip", "u4"),
        ("total", "u4"),  # ports of the ranges: used, held_down, reserved and free together
        ("used", "u4"),
        ("held_down", "u4"),
        ("reserved", "u4"),  # for DNAT entries
        ("free", "u4"),
        ("protocol", "u1"),
    ],
    align=True,
)
BLOCKS = np.dtype(
    [
        ("outside_ip", "u4"),
        ("eip", "u4"),
        ("inside_ip", "u4"),
        ("ports", "u4"),  # of all protocols, in use or held down
        ("first_port", "u2"),
        ("last_port", "u2"),
    ]
)

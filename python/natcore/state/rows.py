"""The rows of a saved state as numpy has them; docs/state-format.md says what each field means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from natcore.dtypes import RECORD

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rows = NDArray[np.void]

NONE = 0xFFFFFFFF  # no slot, no address, the end of a list
FREE_SLOT = np.dtype("<u4")

# Bits of `flags` of sessions (SessionFlag of natcore/tables/sessions.pxd) and of mappings.
OPENED_OUTSIDE, UNLOGGED, NO_WINDOW, SYN_NOTED = 1, 2, 4, 32 | 64
STATIC, PORTLESS, DRAINING = 1, 2, 4

SESSION_STATE = np.dtype(
    [
        ("window_start_ns", "<u8"), ("birth_ns", "<u8"), ("total_bytes", "<u8", 2), ("total_packets", "<u8", 2),
        ("bytes", "<u4", 2), ("packets", "<u4", 2), ("ack", "<u4", 2), ("end", "<u4", 2), ("mapping", "<u4"),
        ("remote_ip", ">u4"), ("last_seen", "<u4"), ("next", "<u4"), ("id_low", "<u4"), ("id_high", "<u2"),
        ("window_end", "<u2"), ("carry_bytes", "<u2", 2), ("remote_port", ">u2"), ("carry_packets", "u1", 2), ("state", "u1"),
        ("flags", "u1"), ("timeout_class", "u1"), ("unused", "u1"),
    ]
)  # fmt: skip
SYN_STATE = np.dtype([("session", "<u4"), ("syn", "<u4", 2)])
MAPPING_STATE = np.dtype(
    [
        ("inside_ip", ">u4"), ("remote_ip", ">u4"), ("outside_ip", ">u4"), ("inside_port", ">u2"), ("remote_port", ">u2"),
        ("outside_port", ">u2"), ("protocol", "u1"), ("flags", "u1"), ("address", "<u4"), ("entry", "<u4"),
        ("subscriber", "<u4"), ("first", "<u4"), ("held_until", "<u4"),
    ]
)  # fmt: skip
SUBSCRIBER_STATE = np.dtype(
    [
        ("ip", ">u4"), ("address", "<u4"), ("entry", "<u4"), ("second", "<u4"), ("second_ms", "<u4"), ("opened", "<u4"),
        ("first", "<u4"), ("examined", "<u4"),
    ]
)  # fmt: skip
FILTER_STATE = np.dtype(
    [("remote_ip", ">u4"), ("outside_ip", ">u4"), ("outside_port", ">u2"), ("protocol", "u1"), ("unused", "u1"),
     ("first", "<u4")]
)  # fmt: skip
WORKER_STATE = np.dtype(
    [
        ("now_ns", "<u8"), ("ticked_ns", "<u8"), ("swept_ns", "<u8"), ("complete_ns", "<u8"), ("created", "<u8"),
        ("ended", "<u8"), ("created_of", "<u8", 4), ("ended_of", "<u8", 4), ("counters", "<u8", 256),
        ("from_outside", "<u8", 256), ("bytes", "<u8", 2), ("refused", "<u8", 11), ("clock_backward", "<u8"),
        ("handed_over", "<u8"), ("undelivered_in_rows", "<u8"), ("sweep_at", "<u4"), ("reap_at", "<u4"),
        ("swept_for", "<u4"), ("lingering", "<u4"),
    ]
)  # fmt: skip
GATEWAY_STATE = np.dtype(
    [
        ("hash_key", "<u8", 2), ("now_ns", "<u8"), ("epoch_ns", "<i8"), ("created", "<u8"), ("reclaimed", "<u8"),
        ("randoms", "<u8", 32), ("blocks_taken", "<u8"), ("blocks_released", "<u8"), ("journal_lost", "<u8"),
        ("journal_lifecycle_lost", "<u8"), ("journal_lost_from", "<i8"), ("journal_lost_until", "<i8"),
        ("journal_order", "<u8"), ("drained", "<u8"), ("reported_lost", "<u8"), ("reported_lifecycle_lost", "<u8"),
        ("generated", "<u8"), ("generated_lost", "<u8"), ("generated_withheld", "<u8"), ("evicted", "<u8", 2),
        ("events_lost", "<u8"), ("held_syns_lost", "<u8"), ("random_state", "<u4", 16), ("random_block", "<u4", 16),
        ("random_used", "<u4"), ("randoms_taken", "<u4"), ("reclaim_table", "<u4"), ("reclaim_line", "<u4"),
        ("opened_second", "<u4"), ("opened", "<u4"), ("sessions_warned", "<u4"), ("reclaim_at", "<u4"),
        ("longest_hold_down_ms", "<u4"), ("unused", "<u4", 2),
    ]
)  # fmt: skip
ADDRESS_STATE = np.dtype(
    [
        ("number", "<u4"), ("ip", ">u4"), ("eip", "<u4"), ("next_word", "<u4", 3), ("words_left", "<u4", 3),
        ("soonest", "<u4", 3), ("next_release", "<u4", 3), ("warned", "<u4", 3),
    ]
)  # fmt: skip
HOST_PORTS_STATE = np.dtype(
    [("now", "<u8", (2, 1024)), ("wanted", "<u8", (2, 1024)), ("address", "<u4"), ("unused", "<u4")]
)
HELD_DOWN_STATE = np.dtype(
    [("address", "<u4"), ("owner", ">u4"), ("until_ms", "<u4"), ("port", "<u2"), ("space", "u1"), ("unused", "u1")]
)
BLOCK_STATE = np.dtype(
    [("address", "<u4"), ("block", "<u4"), ("owner", ">u4"), ("unused", "<u4"), ("number", "<u8"), ("born_ns", "<u8")]
)
EVENT_STATE = np.dtype(
    [
        ("count", "<u8"), ("at_ns", "<u8"), ("subscriber", ">u4"), ("destination", ">u4"), ("port", ">u2"), ("place", "<u2"),
        ("protocol", "u1"), ("reason", "u1"), ("limit", "u1"), ("unused", "u1"),
    ]
)  # fmt: skip
HELD_SYN_STATE = np.dtype(
    [
        ("due_ns", "<u8"), ("length", "<u4"), ("link_bytes", "<u4"), ("source", ">u4"), ("cause", "u1"), ("unused", "u1", 3),
        ("data", "u1", 576),
    ]
)  # fmt: skip
BUDGET_STATE = np.dtype(
    [
        ("second", "<u8"), ("sent", "<u4"), ("count", "<u4"), ("others", "<u4"), ("source", ">u4", 64), ("sent_to", "<u4", 64),
        ("unused", "<u4"),
    ]
)  # fmt: skip
DATAGRAM_STATE = np.dtype(
    [
        ("addresses", ">u4", 2), ("since_ms", "<u8"), ("session", "<u8"), ("ports", ">u2", 2), ("sequence", "<u4"),
        ("identification", ">u2"), ("units", "<u2"), ("high", "<u2"), ("end", "<u2"), ("sent_as", ">u2"), ("ranges", "<u2"),
        ("held", "u1"), ("protocol", "u1"), ("side", "u1"), ("state", "u1"), ("verdict", "u1"), ("unused", "u1", 7),
    ]
)  # fmt: skip
FRAGMENT_STATE = np.dtype([("first", "<u2"), ("units", "<u2"), ("digest", "<u4")])

# Sections by their numbers in natcore/workers/state_rows.pxd: the name in the file, and the type of its rows.
SECTIONS: tuple[tuple[str, np.dtype[np.void] | np.dtype[np.uint32]], ...] = (
    ("worker", WORKER_STATE),
    ("sessions", SESSION_STATE),
    ("free-sessions", FREE_SLOT),
    ("syns", SYN_STATE),
    ("mappings", MAPPING_STATE),
    ("free-mappings", FREE_SLOT),
    ("subscribers", SUBSCRIBER_STATE),
    ("free-subscribers", FREE_SLOT),
    ("mapping-lists", FREE_SLOT),
    ("filters", FILTER_STATE),
    ("free-filters", FREE_SLOT),
    ("filter-lists", FREE_SLOT),
    ("gateway", GATEWAY_STATE),
    ("addresses", ADDRESS_STATE),
    ("host-ports", HOST_PORTS_STATE),
    ("held-down", HELD_DOWN_STATE),
    ("blocks", BLOCK_STATE),
    ("identifications", np.dtype("<u4")),
    ("events", EVENT_STATE),
    ("held-syns", HELD_SYN_STATE),
    ("budgets", BUDGET_STATE),
    ("datagrams", DATAGRAM_STATE),
    ("datagram-units", np.dtype("<u8")),
    ("fragments", FRAGMENT_STATE),
    ("frame-lengths", np.dtype("<u4")),
    ("frame-bytes", np.dtype("u1")),
    ("rows", RECORD),
)  # type: ignore[assignment]
# Rows of the log have padding, which numpy leaves as it is where it copies field by field: copied as this they are whole.
WHOLE_ROW = np.dtype((np.void, RECORD.itemsize))
NUMBERS = {name: number for number, (name, _) in enumerate(SECTIONS)}
OF_WORKER = frozenset(name for name, _ in SECTIONS[:12])  # each worker has its own; the others are the gateway's

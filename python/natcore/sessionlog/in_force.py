"""The gateway's state that the log records besides sessions: entries and settings as rows (facts.py), and its clock."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from natcore.internal.parts import parts_of
from natcore.sessionlog.facts import Records, entry_rows, setting_rows

if TYPE_CHECKING:
    from natcore.gateway import Gateway

Key = tuple[int, ...]


def in_force(reference: weakref.ref[Gateway]) -> Callable[[], Mapping[Key, Records]]:
    """A function that gives the rows by what they stand for: (0, id, …) an entry, (1, code, value) a setting. The same
    mapping as long as nothing has changed. A gateway that is gone has what it had."""
    known: tuple[tuple[object, ...], dict[Key, Records]] = ((), {})

    def look() -> Mapping[Key, Records]:
        nonlocal known
        gateway = reference()
        if gateway is None:
            return known[1]
        table = parts_of(gateway).table
        entries = [*table.rows, *table.draining]
        state = (
            tuple((row.id, id(row.entry)) for row in entries) if table.draining else table.generation,
            gateway.eip_bind_mode, gateway.timeouts, gateway.policy, len(entries),
        )  # fmt: skip
        if state == known[0]:
            return known[1]
        wires = table.book.wires(entries)
        rows: dict[Key, Records] = {}
        for row in entries:
            for record in entry_rows(row.id, row.entry, wires.of(row)):
                rows[0, row.id, *record.view("u8")[0:12].tolist()] = record
        for key, record in setting_rows(gateway.timeouts, gateway.window, gateway.policy).items():
            rows[1, *key] = record
        known = (state, rows)
        return rows

    return look


def clock_offset(reference: weakref.ref[Gateway]) -> Callable[[], int | None]:
    """A function that gives the gateway's clock less CLOCK_MONOTONIC, ns; None while no plane moves it."""

    def look() -> int | None:
        gateway = reference()
        planes = (
            [] if gateway is None else list(parts_of(gateway).planes)
        )  # one that ends leaves the list, in its own thread
        return planes[0].offset_ns if planes else None

    return look

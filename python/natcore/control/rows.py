"""Rows of the gateway's tables as a client sees them: names for numbers, addresses as text, times relative to now."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from natcore.control.protocol import Row
from natcore.dtypes import SessionState
from natcore.internal.protocols import NAMES, TCP

if TYPE_CHECKING:
    from natcore.events import Event
    from natcore.gateway import Gateway
    from natcore.internal.endpoints import Criteria

Array = NDArray[np.void]
_STATES = [state.name.lower() for state in SessionState]
_GATHERED = 16_384  # rows between two choices of the best


@lru_cache(65_536)
def address_text(address: int) -> str:
    """Return dotted quads of an address in host order."""
    return socket.inet_ntoa(address.to_bytes(4, "big"))


@lru_cache(256)
def protocol_text(number: int) -> str:
    """Return "tcp", "udp", "icmp", or the number as text."""
    return NAMES.get(number, str(number)).lower()


def entry_names(gateway: Gateway) -> dict[int, str | None]:
    """Return each entry's name by its number."""
    return {row.id: row.entry.name for row in gateway.entries()}


def session_rows(found: Array, now_ns: int, names: Mapping[int, str | None]) -> list[Row]:
    """Return SESSION rows as objects."""
    return [
        {
            "session": row["session"],
            "protocol": protocol_text(row["protocol"]),
            "inside_ip": address_text(row["inside_ip"]),
            "inside_port": row["inside_port"],
            "outside_ip": address_text(row["outside_ip"]),
            "outside_port": row["outside_port"],
            "remote_ip": address_text(row["remote_ip"]),
            "remote_port": row["remote_port"],
            "state": _STATES[row["state"]] if row["protocol"] == TCP else None,
            "entry": row["entry"],
            "entry_name": names.get(row["entry"]),
            "packets_out": row["packets_out"],
            "bytes_out": row["bytes_out"],
            "packets_in": row["packets_in"],
            "bytes_in": row["bytes_in"],
            "age": _seconds(now_ns - row["birth_ns"]),
            "idle": _seconds(now_ns - row["last_seen_ns"]),
            "expires": _seconds(row["deadline_ns"] - now_ns),
            "opened_outside": bool(row["opened_outside"]),
            "start_time": row["start_time"],
        }
        for row in _records(found)
    ]


def mapping_rows(found: Array, names: Mapping[int, str | None]) -> list[Row]:
    """Return MAPPING rows as objects."""
    return [
        {
            "protocol": protocol_text(row["protocol"]),
            "inside_ip": address_text(row["inside_ip"]),
            "inside_port": row["inside_port"],
            "outside_ip": address_text(row["outside_ip"]),
            "outside_port": row["outside_port"],
            "sessions": row["sessions"],
            "entry": row["entry"],
            "entry_name": names.get(row["entry"]),
        }
        for row in _records(found)
    ]


def port_rows(found: Array) -> list[Row]:
    """Return PORTS rows as objects."""
    return [
        {
            "outside_ip": address_text(row["outside_ip"]),
            "eip": address_text(row["eip"]) if row["eip"] else None,
            "protocol": protocol_text(row["protocol"]),
            "total": row["total"],
            "used": row["used"],
            "held_down": row["held_down"],
            "reserved": row["reserved"],
            "free": row["free"],
        }
        for row in _records(found)
    ]


def block_rows(found: Array) -> list[Row]:
    """Return BLOCKS rows as objects."""
    return [
        {
            "outside_ip": address_text(row["outside_ip"]),
            "eip": address_text(row["eip"]) if row["eip"] else None,
            "inside_ip": address_text(row["inside_ip"]),
            "first_port": row["first_port"],
            "last_port": row["last_port"],
            "ports": row["ports"],
        }
        for row in _records(found)
    ]


def event_row(event: Event) -> Row:
    """Return an event as an object; time: seconds on the gateway's clock."""
    return {
        "time": round(event.time, 6), "reason": event.reason, "subscriber": _text(event.subscriber),
        "destination": _text(event.destination), "port": event.port, "protocol": protocol_text(event.protocol),
        "count": event.count, "limit": event.limit, "outside": _text(event.outside),
    }  # fmt: skip


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def matching(found: Array, wanted: Criteria, sides: Sequence[str]) -> Array:
    """Return the rows that meet the criteria. sides: what the columns SIDE_ip and SIDE_port of the inside, the remote and the
    outside begin with."""
    for side, address, mask, port in zip(sides, wanted.addresses, wanted.masks, wanted.ports, strict=True):
        if mask:
            found = found[(found[f"{side}_ip"] & mask) == address & mask]
        if port >= 0 and f"{side}_port" in (found.dtype.names or ()):
            found = found[found[f"{side}_port"] == port]
    return found if wanted.protocol < 0 else found[found["protocol"] == wanted.protocol]


def best(slices: Iterable[Array], key: Callable[[Array], Any], count: int) -> Iterator[Array]:
    """Yield no rows for each slice, and then those with the smallest keys, in their order, at most `count`."""
    gathered: list[Array] = []
    waiting = 0
    for found in slices:
        if len(found):
            gathered.append(found)
            waiting += len(found)
        if waiting >= count + _GATHERED:
            gathered = [_smallest(np.concatenate(gathered), key, count)]
            waiting = len(gathered[0])
        yield found[:0]
    if gathered:
        rows = _smallest(np.concatenate(gathered), key, count)
        yield rows[np.argsort(key(rows), kind="stable")]


def _smallest(rows: Array, key: Callable[[Array], Any], count: int) -> Array:
    if len(rows) <= count:
        return rows
    return rows[np.argpartition(key(rows), count - 1)[:count]]


def _records(found: Array) -> Iterator[dict[str, Any]]:
    """Yield each row as a dict of Python's numbers: numpy's own records are ten times slower."""
    names: Sequence[str] = found.dtype.names or ()
    for values in zip(*(found[name].tolist() for name in names), strict=True):
        yield dict(zip(names, values, strict=True))


def _seconds(ns: int) -> float:
    return round(ns / 1e9, 3)

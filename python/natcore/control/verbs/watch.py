"""Verbs that tell what happens as it happens: watch-events, watch-sessions, watch-drops, capture, top. They have no end."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from natcore.control.protocol import Row
from natcore.control.rows import address_text, event_row, matching, protocol_text
from natcore.control.verb import Answer, Context, verb
from natcore.control.verbs.tables import given
from natcore.dtypes import OPENED_OUTSIDE, RecordKind
from natcore.errors import ControlError
from natcore.explain import describe_packet
from natcore.internal.endpoints import criteria
from natcore.internal.exit_codes import ExitCode
from natcore.internal.read_only import UNSET
from natcore.internal.redaction import show
from natcore.internal.validation import either
from natcore.verdict import Side

if TYPE_CHECKING:
    from natcore.plane.frame_feed import SeenFrame
    from natcore.plane.plane import Plane

_DROP_BYTES = 128  # of a frame: its headers
_FRAMES_LINE = 64  # frames of a line
_COLUMNS = {  # of SUBSCRIBER_RATE, by what is asked for
    "bits": ("bytes_out", "bytes_in"), "packets": ("packets_out", "packets_in"), "sessions": ("sessions",),
    "ports": ("mappings",),
}  # fmt: skip
TOP_KEYS = tuple(_COLUMNS)


@verb("watch-events")
def watch_events(context: Context) -> Answer:
    """Tell events as they come: exhaustion, thresholds, refusals; `natcore run` reports each as well."""
    lost = 0
    with context.gateway.watch_events() as feed:
        while True:
            found = [event_row(event) for event in feed.take()]
            found, lost = _with_lost(found, feed.lost, lost)
            yield found or None


@verb("watch-sessions")
def watch_sessions(
    context: Context,
    *,
    subscriber: str | None = None,
    remote: str | None = None,
    outside: str | None = None,
    protocol: str | None = None,
) -> Answer:
    """Tell sessions as they begin and end, as `conntrack -E` does; with packets and bytes where they end."""
    asked = given(context, subscriber=subscriber, remote=remote, outside=outside, protocol=protocol)
    values = {name: asked.get(name, UNSET) for name in ("subscriber", "remote", "outside", "protocol")}
    wanted = criteria(**values, entry=UNSET)
    lost = 0
    with context.gateway.watch_sessions() as feed:
        while True:
            rows = feed.take(1024)
            some = len(rows) > 0
            rows = matching(rows, wanted, ("pri", "pub", "nat"))
            found, lost = _with_lost([_session_event(row) for row in rows], feed.lost, lost)
            yield found if some or found else None


def _session_event(row: Any) -> Row:
    ended = row["kind"] == RecordKind.END
    told: dict[str, Any] = {
        "event": "end" if ended else "begin",
        "time": int(row["end_time"] if ended else row["start_time"]) / 1e6,
        "session": int(row["session"]),
        "protocol": protocol_text(int(row["protocol"])),
        "inside_ip": address_text(int(row["pri_ip"])),
        "inside_port": int(row["pri_port"]),
        "outside_ip": address_text(int(row["nat_ip"])),
        "outside_port": int(row["nat_port"]),
        "remote_ip": address_text(int(row["pub_ip"])),
        "remote_port": int(row["pub_port"]),
        "opened_outside": bool(row["flags"] & OPENED_OUTSIDE),
    }
    if ended:
        told |= {
            "packets_out": int(row["pkts_from_vpc"]), "bytes_out": int(row["bytes_from_vpc"]),
            "packets_in": int(row["pkts_from_pub"]), "bytes_in": int(row["bytes_from_pub"]),
            "seconds": round((int(row["end_time"]) - int(row["start_time"])) / 1e6, 6),
        }  # fmt: skip
    return told


@verb("watch-drops")
def watch_drops(
    context: Context,
    *,
    subscriber: str | None = None,
    remote: str | None = None,
    outside: str | None = None,
    protocol: str | None = None,
) -> Answer:
    """Tell packets that the planes drop, with the verdict, and the gateway's answers to them."""
    asked = given(context, subscriber=subscriber, remote=remote, outside=outside, protocol=protocol)
    return (yield from _frames(context, asked, True, _DROP_BYTES, _drop))


@verb("capture", writes=True)
def capture(
    context: Context,
    *,
    subscriber: str | None = None,
    remote: str | None = None,
    outside: str | None = None,
    protocol: str | None = None,
    drops: bool = False,
    snap: int = 2048,
    seconds: float | None = None,
) -> Answer:
    """Tell packets of the planes, whole: as they came, as they leave, and the verdict; the gateway's own too. For writers."""
    asked = given(context, subscriber=subscriber, remote=remote, outside=outside, protocol=protocol)
    return (yield from _frames(context, asked, drops, snap, _whole, seconds))


def _frames(
    context: Context,
    asked: dict[str, Any],
    drops: bool,
    snap: int,
    convert: Callable[[SeenFrame, Plane, float], Row],
    seconds: float | None = None,
) -> Answer:
    planes = context.gateway.planes
    if not planes:
        raise ControlError("the gateway has no plane: no packet passes an interface", ExitCode.FAILED)
    with ExitStack() as stack:
        feeds = [(plane, stack.enter_context(plane.watch_frames(**asked, drops=drops, snap=snap))) for plane in planes]
        lost = 0
        end_at = None if seconds is None else time.monotonic() + seconds
        while end_at is None or time.monotonic() < end_at:
            epoch = context.gateway.epoch
            found: list[Row] = [
                convert(seen, plane, epoch) for plane, feed in feeds for seen in feed.take(_FRAMES_LINE)
            ]
            found, lost = _with_lost(found, sum(feed.lost for _, feed in feeds), lost)
            if not found and all(plane.state == "stopped" for plane in planes):
                break
            yield found or None
    return {}


def _drop(seen: SeenFrame, plane: Plane, epoch: float) -> Row:
    frame, length = _shown(seen)
    return {
        "time": round(epoch + seen.now, 6), "verdict": seen.verdict.name, "side": seen.side.name.lower(),
        "interface": seen.interface, "own": seen.is_own, "cause": seen.cause, "packet": describe_packet(frame),
        "length": length,
    }  # fmt: skip


def _shown(seen: SeenFrame) -> tuple[bytes, int]:
    """Return the frame as it came, or one of the gateway's own, and its bytes."""
    return (seen.after or b"", seen.after_length) if seen.is_own else (seen.before, seen.before_length)


def _whole(seen: SeenFrame, plane: Plane, epoch: float) -> Row:
    leaves_by = seen.verdict.egress(seen.side)
    out = None
    if seen.is_own:
        out = seen.interface
    elif seen.after is not None and leaves_by is not None:
        out = plane.outside if leaves_by == Side.OUTSIDE else plane.inside[0] if len(plane.inside) == 1 else "inside"
    return {
        "time_ns": round((epoch + seen.now) * 1e9), "verdict": seen.verdict.name, "side": seen.side.name.lower(),
        "interface": seen.interface, "out": out, "worker": seen.worker, "own": seen.is_own, "cause": seen.cause,
        "before": None if seen.is_own else base64.b64encode(seen.before).decode(), "before_length": seen.before_length,
        "after": None if seen.after is None else base64.b64encode(seen.after).decode(),
        "after_length": seen.after_length, "packet": describe_packet(_shown(seen)[0]),
        "packet_after": None if seen.after is None else describe_packet(seen.after),
    }  # fmt: skip


def _with_lost(found: list[Row], lost: int, before: int) -> tuple[list[Row], int]:
    """Return the rows, with one that says how many more there were, and the count so far."""
    return ([*found, {"lost": lost - before}] if lost > before else found), lost


# ---- top ------------------------------------------------------------------------------------------------------------


@verb("top", slow=True)
def top(
    context: Context,
    *,
    sort: str = "bits",
    limit: int = 20,
    subscriber: str | None = None,
    interval: float = 2.0,
    samples: int = 0,
) -> Answer:
    """Tell the subscribers with the most traffic, packets, sessions or ports in each interval; samples: 0, endlessly."""
    _check_top(sort, limit)
    if not 0.1 <= interval <= 3600:
        raise ControlError(f"interval must be between 0.1 and 3600 seconds, got {interval}", ExitCode.USAGE)
    rates = context.gateway.subscriber_rates(**given(context, subscriber=subscriber))
    since = 0.0
    for number in range(samples + 1 if samples else 1 << 62):
        while number and time.monotonic() - since < interval:
            yield None
        while rates.look():
            yield []
        found, now = rates.rows(), time.monotonic()
        if number:
            subscribers = [_rates(row, now - since) for row in _most(found, sort, limit)]
            yield {"sample": number, "seconds": round(now - since, 3), "subscribers": subscribers}
        since = now
    return {"samples": samples}


@verb("subscribers")
def subscribers(context: Context, *, sort: str = "bits", limit: int = 20, subscriber: str | None = None) -> Answer:
    """List the subscribers with the most traffic, packets, sessions or ports: what their open sessions had so far."""
    _check_top(sort, limit)
    rates = context.gateway.subscriber_rates(**given(context, subscriber=subscriber), once=True)
    while rates.look():
        yield []
    found = rates.rows()
    yield [
        {
            "subscriber": address_text(int(row["inside_ip"])),
            **{name: int(row[name]) for name in ("bytes_out", "bytes_in", "packets_out", "packets_in", "sessions")},
            "ports": int(row["mappings"]),
        }
        for row in _most(found, sort, limit)
    ]  # fmt: skip
    return {"rows": min(limit, len(found)), "subscribers": len(found)}


def _check_top(sort: str, limit: int) -> None:
    if sort not in TOP_KEYS:
        raise ControlError(f"sort must be {either(TOP_KEYS)}, got {show(sort)}", ExitCode.USAGE)
    if not 1 <= limit <= 10_000:
        raise ControlError(f"limit must be between 1 and 10000, got {limit}", ExitCode.USAGE)


def _most(rows: NDArray[Any], sort: str, limit: int) -> NDArray[Any]:
    """Return the subscribers with the most, in order; those with as much by their address."""
    columns = _COLUMNS[sort]
    keys = -np.sum([rows[name].astype(np.int64) for name in columns], axis=0)
    if len(rows) > 4 * limit:
        chosen = keys <= np.partition(keys, limit - 1)[limit - 1]
        rows, keys = rows[chosen], keys[chosen]
    return rows[np.lexsort((rows["inside_ip"], keys))[:limit]]


def _rates(row: Any, seconds: float) -> Row:
    return {
        "subscriber": address_text(int(row["inside_ip"])),
        "bits_out": round(int(row["bytes_out"]) * 8 / seconds), "bits_in": round(int(row["bytes_in"]) * 8 / seconds),
        "packets_out": round(int(row["packets_out"]) / seconds, 1), "packets_in": round(int(row["packets_in"]) / seconds, 1),
        "sessions": int(row["sessions"]), "ports": int(row["mappings"]),
    }  # fmt: skip
